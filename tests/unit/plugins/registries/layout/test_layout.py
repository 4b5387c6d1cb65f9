"""Layouts and archives: their names, what changes under the driver, and what is no image at all."""

import gzip
import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crinoid.core.api.errors import CorruptContent, NotFound, NotServed, Unavailable, Unsupported
from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
)
from crinoid.plugins.registries.layout import LayoutRegistry
from crinoid.plugins.registries.layout.layout_registry import LayoutOptions
from support.image_archives import oci_archive
from support.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    Entry,
    ImageConfig,
    add_blob,
    add_json,
    build_image,
    build_index,
    digest_of,
    make_layer,
)

LAYER = make_layer([Entry(path="hello", content=b"hello\n" * 400_000)])
AMD64 = ImageConfig(architecture="amd64")
NAME = "example.com/app:1"
EMPTY = "application/vnd.oci.empty.v1+json"


async def test_a_directory_that_is_not_there_has_nothing_to_say(tmp_path: Path) -> None:
    options = LayoutRegistry.Config.model_validate({"directory": tmp_path / "absent"})
    registry = BoundRegistry(LayoutRegistry(options, Host("test", tmp_path, tmp_path, logging.getLogger("test"), "7")))
    with pytest.raises(NotServed):
        await registry.resolve(ResolveRequest(ImageReference.parse(NAME), Platform("linux", "amd64")))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "layouts"
    path.mkdir()
    return path


@pytest.fixture
def registry(directory: Path, tmp_path: Path) -> BoundRegistry:
    host = Host("test", tmp_path, tmp_path, logging.getLogger("test.layout"))
    return BoundRegistry(LayoutRegistry(LayoutRegistry.Config(directory=directory), host))


def build(layout: Path, name: str = NAME, text: bytes = b"") -> BuiltImage:
    layers = [LAYER, *([make_layer([Entry(path="text", content=text)])] if text else [])]
    return build_image(layout, name, layers, AMD64, compression="none")


async def resolve(registry: BoundRegistry, name: str = NAME) -> ResolvedImage:
    return await registry.resolve(ResolveRequest(ImageReference.parse(name), Platform("linux", "amd64")))


def requests_of(image: ResolvedImage) -> list[BlobRequest]:
    manifest = json.loads(image.manifest_content)
    blobs = [Descriptor(each["mediaType"], each["digest"], each["size"]) for each in manifest["layers"]]
    return [BlobRequest(ImageReference.parse(NAME), blob) for blob in blobs]


def pack(layout: Path, archive: Path) -> Path:
    """Write a layout directory as an archive."""
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, ".")
    return archive


def save(archive: Path, members: dict[str, bytes | str]) -> Path:
    """Write an archive of members; a text is the target of a symbolic link."""
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return archive


def docker_members(*layers: bytes, tags: list[str] | None, **changes: Any) -> dict[str, bytes | str]:
    """Return the members of what ``docker save`` writes."""
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}}).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    entry = {"Config": "config.json", "RepoTags": tags, "Layers": names} | changes
    stored: dict[str, bytes | str] = dict(zip(names, layers, strict=True))
    return {"config.json": config, **stored, "manifest.json": json.dumps([entry]).encode()}


class TestPlatforms:
    """Several manifests of one name: the one for the platform counts, wherever it lies."""

    @staticmethod
    def describe(image: BuiltImage, name: str, architecture: str) -> dict[str, Any]:
        place = {"platform": {"os": "linux", "architecture": architecture}} if architecture else {}
        names = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        manifest = image.manifest
        return {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size, **place, **names}

    @pytest.mark.parametrize(("name", "told"), [(NAME, True), (NAME, False), ("", True)])
    @pytest.mark.parametrize("order", [("arm64", "amd64"), ("amd64", "arm64")])
    @pytest.mark.parametrize("packed", [True, False])
    async def test_in_one_layout(
        self, registry: BoundRegistry, directory: Path, name: str, order: tuple[str, ...], told: bool, packed: bool
    ) -> None:
        layout = directory.parent / "app" if packed else directory / "app"
        built = {
            one: build_image(layout, "", [LAYER], ImageConfig(architecture=one), compression="none") for one in order
        }
        entries = [self.describe(built[one], name, one if told else "") for one in order]
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        if packed:
            pack(layout, directory / "app.tar")
        asked = ImageReference.parse(name or "app:latest")
        for architecture in order:
            found = await registry.resolve(ResolveRequest(asked, Platform("linux", architecture)))
            assert found.manifest.digest == built[architecture].manifest.digest
        with pytest.raises(Unsupported, match=r"has no manifest for the platform linux/s390x; it has: linux/a.*64"):
            await registry.resolve(ResolveRequest(asked, Platform("linux", "s390x")))

    async def test_in_a_layout_for_each(self, registry: BoundRegistry, directory: Path) -> None:
        built = {
            one: build_image(directory / one, NAME, [LAYER], ImageConfig(architecture=one), compression="none")
            for one in ("arm64", "amd64", "riscv64")
        }
        other = build_image(directory / "a", "", [LAYER], ImageConfig(architecture="s390x"), compression="none")
        build_index(directory / "a", NAME, [other])
        for architecture, image in built.items():
            asked = ResolveRequest(ImageReference.parse(NAME), Platform("linux", architecture))
            assert (await registry.resolve(asked)).manifest.digest == image.manifest.digest


class TestNames:
    @pytest.mark.parametrize(
        ("given", "asked"),
        [
            ("example.com/app:1", "example.com/app:1"),
            ("docker.io/library/busybox:1", "busybox:1"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("1.2", "place:1.2"),
            ("latest", "place"),
            ("example.com/app", "example.com/app:latest"),
        ],
    )
    @pytest.mark.parametrize("kind", ["directory", "archive"])
    async def test_the_forms_of_a_name(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path, given: str, asked: str, kind: str
    ) -> None:
        layout = (directory if kind == "directory" else tmp_path) / "place"
        image = build(layout, given)
        if kind == "archive":
            pack(layout, directory / "place.tar")
        assert (await resolve(registry, asked)).manifest.digest == image.manifest.digest

    async def test_containerds_name(self, registry: BoundRegistry, directory: Path) -> None:
        build(directory / "a")
        index = json.loads((directory / "a/index.json").read_text())
        index["manifests"][0]["annotations"] = {
            "io.containerd.image.name": "docker.io/library/x:2",
            "org.opencontainers.image.ref.name": "2",
        }
        (directory / "a/index.json").write_text(json.dumps(index))
        for name in ("x:2", "a:2"):
            assert await resolve(registry, name)

    async def test_an_only_image_without_a_name_is_the_latest_of_its_place(
        self, registry: BoundRegistry, directory: Path
    ) -> None:
        image = build(directory / "a", "")
        entry = image.manifest.document()
        (directory / "a/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        assert (await resolve(registry, "a")).manifest.digest == image.manifest.digest

    async def test_another_tag_is_not_found(self, registry: BoundRegistry, directory: Path) -> None:
        build(directory / "a")
        with pytest.raises(NotFound, match=f"pull example.com/app:2: no layout in {directory} has it"):
            await resolve(registry, "example.com/app:2")

    async def test_a_digest_of_the_index_or_of_what_it_lists(self, registry: BoundRegistry, directory: Path) -> None:
        image = build(directory / "a", "")
        index = build_index(directory / "a", NAME, [image])
        for digest in (index.digest, image.manifest.digest):
            assert (await resolve(registry, f"any.test/name@{digest}")).manifest.digest == image.manifest.digest

    async def test_the_first_by_file_name_has_a_doubled_name(self, registry: BoundRegistry, directory: Path) -> None:
        build(directory / "b", text=b"b")
        first = build(directory / "a", text=b"a")
        assert (await resolve(registry)).manifest.digest == first.manifest.digest


class TestChanges:
    async def test_the_directory_need_not_exist(self, registry: BoundRegistry, directory: Path) -> None:
        directory.rmdir()
        with pytest.raises(NotFound):
            await resolve(registry)
        assert (await registry.status()).ready
        directory.mkdir()
        build(directory / "a")
        assert await resolve(registry)

    async def test_what_is_added_replaced_and_removed_counts_at_once(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFound):
            await resolve(registry)
        build(tmp_path / "one", text=b"1")
        pack(tmp_path / "one", directory / "app.tar")
        old = await resolve(registry)
        build(tmp_path / "two", text=b"2")
        pack(tmp_path / "two", tmp_path / "new.tar").rename(directory / "app.tar")
        assert (await resolve(registry)).manifest.digest != old.manifest.digest
        (directory / "app.tar").unlink()
        with pytest.raises(NotFound):
            await resolve(registry)

    async def test_an_archive_is_read_once(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build(tmp_path / "one")
        pack(tmp_path / "one", directory / "app.tar")
        await resolve(registry)
        monkeypatch.setattr(tarfile, "open", None)
        await resolve(registry)

    async def test_an_archive_that_is_still_being_copied(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path
    ) -> None:
        build(tmp_path / "one")
        whole = pack(tmp_path / "one", tmp_path / "app.tar").read_bytes()
        for part in (0, 100, 5000, len(whole) // 2):
            (directory / "app.tar").write_bytes(whole[:part])
            with pytest.raises(NotFound, match=r"app\.tar"):
                await resolve(registry)
        (directory / "app.tar").write_bytes(whole)
        assert await resolve(registry)

    @pytest.mark.parametrize("kind", ["directory", "archive"])
    async def test_a_file_that_changes_while_it_is_read(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path, kind: str
    ) -> None:
        build(tmp_path / "one")
        path = directory / "app.tar"
        if kind == "archive":
            pack(tmp_path / "one", path)
        else:
            shutil.copytree(tmp_path / "one", directory / "one")
        request = requests_of(await resolve(registry))[0]
        if kind == "directory":
            path = directory / "one/blobs" / request.blob.digest.replace(":", "/")
        stream: Any = await registry.open_blob(request)
        await anext(stream)
        os.utime(path, (1, 1))
        with pytest.raises(Unavailable, match="changed while it was read"):
            await anext(stream)

    async def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path
    ) -> None:
        build(tmp_path / "one")
        pack(tmp_path / "one", directory / "app.tar")
        request = requests_of(await resolve(registry))[0]
        stream: Any = await registry.open_blob(request)
        (directory / "app.tar").unlink()
        assert b"".join([piece async for piece in stream]) == LAYER

    async def test_a_blob_of_another_size_than_the_manifest_says(
        self, registry: BoundRegistry, directory: Path
    ) -> None:
        build(directory / "a")
        request = requests_of(await resolve(registry))[0]
        path = directory / "a/blobs" / request.blob.digest.replace(":", "/")
        path.write_bytes(LAYER[:-1])
        with pytest.raises(CorruptContent, match=f"has {len(LAYER) - 1} bytes, not {len(LAYER)}"):
            await registry.read(request)


class TestDockerArchives:
    async def test_a_plain_layer_has_its_diff_id_as_digest(self, registry: BoundRegistry, directory: Path) -> None:
        save(directory / "x.tar", docker_members(LAYER, tags=["busybox:1", "example.com/other:2"]))
        image = await resolve(registry, "busybox:1")
        assert (await resolve(registry, "example.com/other:2")) == image
        (request,) = requests_of(image)
        assert request.blob.digest == digest_of(LAYER)
        assert await registry.read(request) == LAYER

    async def test_the_manifest_is_the_same_each_time(
        self, registry: BoundRegistry, directory: Path, tmp_path: Path
    ) -> None:
        save(directory / "x.tar", docker_members(LAYER, tags=["x:1"]))
        other = LayoutRegistry(
            LayoutRegistry.Config(directory=directory), Host("o", tmp_path, tmp_path, logging.getLogger())
        )
        assert await resolve(registry, "x:1") == await resolve(BoundRegistry(other), "x:1")
        manifest = (await resolve(registry, "x:1")).manifest
        blob = Descriptor(manifest.media_type, manifest.digest, manifest.size)
        content = await registry.read(BlobRequest(ImageReference.parse("x:1"), blob))
        assert digest_of(content) == manifest.digest, "the made manifest can be read as a blob"

    async def test_without_tags_it_is_the_latest_of_its_place(self, registry: BoundRegistry, directory: Path) -> None:
        save(directory / "thing.tar", docker_members(LAYER, tags=None))
        assert await resolve(registry, "thing")

    async def test_a_layer_that_occurs_twice_is_a_link(self, registry: BoundRegistry, directory: Path) -> None:
        members = docker_members(LAYER, LAYER, tags=["x:1"]) | {"1/layer.tar": "../0/layer.tar"}
        save(directory / "x.tar", members)
        first, second = requests_of(await resolve(registry, "x:1"))
        assert first == second
        assert await registry.read(second) == LAYER

    async def test_a_compressed_layer_is_digested_as_it_is(self, registry: BoundRegistry, directory: Path) -> None:
        packed = gzip.compress(LAYER, mtime=0)
        save(directory / "x.tar", docker_members(LAYER, tags=["x:1"]) | {"0/layer.tar": packed})
        (request,) = requests_of(await resolve(registry, "x:1"))
        assert (request.blob.digest, request.blob.media_type.rpartition("+")[2]) == (digest_of(packed), "gzip")
        assert await registry.read(request) == packed

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"manifest.json": b"{"}, "not JSON"),
            ({"manifest.json": b"{}"}, "not a list"),
            ({"manifest.json": b"[{}]"}, "Config"),
            ({"manifest.json": b'[{"Config": "gone.json", "Layers": []}]'}, "gone.json"),
            ({"config.json": b"[]"}, "config.json"),
            ({"config.json": b'{"rootfs": {"diff_ids": []}}'}, "diffID"),
            ({"config.json": b'{"rootfs": {"diff_ids": ["rubbish"]}}'}, "diffID"),
            ({"0/layer.tar": "../../../../etc/passwd"}, "0/layer.tar"),
            ({"0/layer.tar": "layer.tar"}, "0/layer.tar"),
            ({"0/layer.tar": b"BZh9 rubbish"}, "bzip2"),
        ],
    )
    async def test_a_broken_one_is_told(
        self, registry: BoundRegistry, directory: Path, changes: dict[str, bytes | str], words: str
    ) -> None:
        save(directory / "x.tar", docker_members(LAYER, tags=["x:1"]) | changes)
        with pytest.raises(NotFound, match=r"x\.tar"):
            await resolve(registry, "x:1")
        assert words.rpartition("/")[2] in (await registry.status()).message


class TestRubbish:
    async def test_it_is_skipped_warned_of_once_and_reported(
        self, registry: BoundRegistry, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        build(directory / "good")
        (directory / "README").write_text("not an image")
        (directory / "text.tar").write_text("not a tar" * 1000)
        (directory / "empty").mkdir()
        (directory / "broken").mkdir()
        (directory / "broken/index.json").write_text("{")
        (directory / "squeezed.tar.gz").write_bytes(gzip.compress(b""))
        (directory / "hidden.tar").write_bytes(gzip.compress(b""))
        (directory / "nowhere").symlink_to("absent")
        (directory / ".partial.tar").write_text("still copied")
        os.mkfifo(directory / "pipe.tar")
        for _ in range(3):
            assert await resolve(registry)
        status = await registry.status()
        assert status.ready
        bad = ["README", "text.tar", "empty", "broken", "squeezed.tar.gz", "hidden.tar", "pipe.tar"]
        for name in bad:
            assert str(directory / name) in status.message
            assert caplog.text.count(f"skipped: {directory / name}") == 1
        assert len(caplog.records) == len(bad)
        assert "unpack it to a plain .tar" in status.message

    @pytest.mark.parametrize(
        "index",
        [
            "[]",
            '{"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1}]}',
            '{"manifests": [{"size": -1}]}',
            '{"manifests": {}}',
            " " * (9 << 20),
        ],
    )
    async def test_an_index_that_is_none(self, registry: BoundRegistry, directory: Path, index: str) -> None:
        (directory / "bad").mkdir()
        (directory / "bad/index.json").write_text(index)
        build(directory / "good")
        assert await resolve(registry)
        assert str(directory / "bad") in (await registry.status()).message

    async def test_a_manifest_that_lies(self, registry: BoundRegistry, directory: Path) -> None:
        image = build(directory / "a")
        path = directory / "a/blobs" / image.manifest.digest.replace(":", "/")
        path.write_bytes(path.read_bytes().replace(b"tar", b"rat", 1))
        with pytest.raises(CorruptContent, match=image.manifest.digest):
            await resolve(registry)

    async def test_a_manifest_that_is_missing(self, registry: BoundRegistry, directory: Path) -> None:
        image = build(directory / "a")
        (directory / "a/blobs" / image.manifest.digest.replace(":", "/")).unlink()
        with pytest.raises(CorruptContent, match="does not have it"):
            await resolve(registry)

    async def test_a_broken_index_hides_no_other_image(self, registry: BoundRegistry, directory: Path) -> None:
        image = build(directory / "a")
        broken = build_index(directory / "a", "example.com/broken:1", [image])
        (directory / "a/blobs" / broken.digest.replace(":", "/")).write_text("{")
        assert await resolve(registry)
        with pytest.raises(CorruptContent):
            await resolve(registry, "example.com/broken:1")

    async def test_no_manifest_for_the_platform(self, registry: BoundRegistry, directory: Path) -> None:
        image = build_image(directory / "a", "", [LAYER], ImageConfig(architecture="s390x"))
        build_index(directory / "a", NAME, [image])
        with pytest.raises(Unsupported, match="it has: linux/s390x"):
            await resolve(registry)

    async def test_indexes_without_end(self, registry: BoundRegistry, directory: Path) -> None:
        inner = build_image(directory / "a", "", [LAYER], AMD64).manifest
        for number in range(5):
            document = {"manifests": [inner.document()], "annotations": {"number": str(number)}}
            content = json.dumps(document).encode()
            (directory / "a/blobs" / digest_of(content).replace(":", "/")).write_bytes(content)
            inner = type(inner)(OCI_INDEX, digest_of(content), len(content))
        index = {"manifests": [inner.document() | {"annotations": {"org.opencontainers.image.ref.name": NAME}}]}
        (directory / "a/index.json").write_text(json.dumps(index))
        with pytest.raises(CorruptContent, match="inside each other"):
            await resolve(registry)


async def test_no_stream_is_left_open(registry: BoundRegistry, directory: Path) -> None:
    build(directory / "a")
    request = requests_of(await resolve(registry))[0]
    before = set(os.listdir("/proc/self/fd"))
    await registry.read(request)
    stream: Any = await registry.open_blob(request)
    await anext(stream)
    await stream.aclose()
    assert set(os.listdir("/proc/self/fd")) <= before  # what earlier tests left open may be closed meanwhile


def test_the_directorys_former_name_is_taken_and_both_are_refused() -> None:
    assert LayoutOptions.model_validate({"folder": "/a"}).directory == Path("/a")
    with pytest.raises(ValidationError, match="folder"):
        LayoutOptions.model_validate({"folder": "/a", "directory": "/b"})


@pytest.mark.parametrize("is_typed", [True, False])
@pytest.mark.parametrize("is_archive", [False, True])
async def test_manifests_that_refer_to_another_are_listed(
    registry: BoundRegistry, directory: Path, tmp_path: Path, is_typed: bool, is_archive: bool
) -> None:
    """Without an artifact type the configuration's media type is it (image-spec, manifest.md)."""
    layout = tmp_path / "work" if is_archive else directory / "app"
    subject = build(layout).manifest
    kind = "application/vnd.example.signature"
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": add_blob(layout, EMPTY if is_typed else kind, b"{}").document(),
        "layers": [],
        "subject": subject.document(),
    }
    referrer = add_json(layout, OCI_MANIFEST, document | ({"artifactType": kind} if is_typed else {}))
    torn = add_json(layout, OCI_MANIFEST, {"subject": "none"})
    index = json.loads((layout / "index.json").read_text())
    index["manifests"] += [referrer.document(), torn.document()]
    (layout / "index.json").write_text(json.dumps(index))
    if is_archive:
        (directory / "app.tar").write_bytes(oci_archive(layout))
    subject_place = ImageReference("example.com", "app", "", subject.digest)
    (found,) = await registry.list_referrers(ReferrersRequest(subject_place, kind))
    assert found.digest == referrer.digest
    place = ImageReference("example.com", "app", "", found.digest)
    image = await registry.resolve(ResolveRequest(place, Platform("linux", "amd64")))
    assert json.loads(image.manifest_content)["subject"]["digest"] == subject.digest
    assert await registry.list_referrers(ReferrersRequest(subject_place, "application/other")) == ()
    assert await registry.list_referrers(ReferrersRequest(place, kind)) == ()
