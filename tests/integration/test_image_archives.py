"""Images from and to files: ctl load, save, tag, untag and system df, with archives as others write and read them."""

import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from crinoid.core.cli.main import main
from support import programs
from support.daemon import Daemon
from support.image_archives import compress, docker_archive, files_of, oci_archive, tar_of
from support.images import (
    BuiltImage,
    Entry,
    ImageConfig,
    build_image,
    build_index,
    digest_of,
    make_layer,
    name_manifest,
)
from support.patience import patient

NAME = "registry.test/app:1"
BASE = make_layer([Entry(path="base", content=os.urandom(1000))])
TOP = make_layer([Entry(path="top", content=b"top" * 100_000)])
Ctl = Callable[..., "Done"]


@dataclass
class Done:
    """What a verb wrote."""

    stdout: bytes
    stderr: bytes


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("archives")
    config = (
        f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{directory}/layouts' }}\n"
        "[network]\ndriver = 'host'\n[snapshotters.overlay]\ndriver = 'overlay'\n"
    )
    daemon = Daemon(directory / "daemon", config)
    try:
        yield daemon.start()
    finally:
        daemon.end()


@pytest.fixture
def ctl(daemon: Daemon) -> Iterator[Ctl]:
    """Run a verb in this process; the node has no images before and nothing of any after."""

    def run(*arguments: object, stdin: bytes = b"", code: int = 0) -> Done:
        words = ["ctl", "-r", f"unix://{daemon.socket}", *map(str, arguments)]
        result = CliRunner().invoke(main, words, input=stdin)
        assert result.exit_code == code, (result.stderr, result.exception)
        return Done(result.stdout_bytes, result.stderr_bytes)

    yield run
    for image in daemon.cri.call("ListImages")["images"]:
        daemon.cri.call("RemoveImage", image={"image": image["id"]})
    assert stored(daemon) == set()
    assert daemon.query("SELECT owner, kind, key FROM ledger") == []


def stored(daemon: Daemon) -> set[str]:
    """All blobs there are, whole and in part."""
    content = daemon.root / "content"
    return {path.name for path in (*content.glob("blobs/*/*"), *content.glob("ingest/*"))}


def names(daemon: Daemon) -> dict[str, list[str]]:
    return {image["id"]: sorted(image["repo_tags"]) for image in daemon.cri.call("ListImages")["images"]}


@pytest.fixture
def image(tmp_path: Path) -> BuiltImage:
    return build_image(tmp_path / "layout", NAME, [BASE, TOP])


class TestLoad:
    @pytest.mark.parametrize("form", ["oci", "docker", "legacy"])
    @pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
    def test_an_archive_of_any_form_and_compression(
        self, daemon: Daemon, ctl: Ctl, image: BuiltImage, tmp_path: Path, form: str, compression: str
    ) -> None:
        made = (
            oci_archive(image.layout)
            if form == "oci"
            else docker_archive([(image, (NAME, "other:2"))], legacy=form == "legacy")
        )
        archive = tmp_path / "archive"
        archive.write_bytes(compress(made, compression))  # type: ignore[arg-type]
        output = ctl("load", "-i", archive).stdout.decode()
        assert f"Loaded image: {NAME}\n" in output
        expected = [NAME] if form == "oci" else ["docker.io/library/other:2", NAME]
        assert names(daemon) == {image.config.digest: expected}

    @pytest.mark.parametrize("arguments", [["load"], ["load", "-"], ["load", "-i", "-"]])
    def test_from_standard_input(self, daemon: Daemon, ctl: Ctl, image: BuiltImage, arguments: list[str]) -> None:
        ctl(*arguments, stdin=compress(oci_archive(image.layout), "gzip"))
        assert names(daemon) == {image.config.digest: [NAME]}

    def test_from_a_directory_with_zstd_layers(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        image = build_image(tmp_path / "layout", NAME, [BASE, TOP], compression="zstd")
        assert ctl("load", "-q", image.layout).stdout.decode() == f"{image.config.digest}\n"

    def test_several_images_of_one_archive_share_a_layer(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        one = build_image(tmp_path / "layout", NAME, [BASE])
        two = build_image(tmp_path / "layout", "registry.test/two:2", [BASE, TOP])
        ctl("load", stdin=docker_archive([(one, (NAME,)), (two, ("registry.test/two:2",))]))
        assert names(daemon) == {one.config.digest: [NAME], two.config.digest: ["registry.test/two:2"]}

    def test_the_platform_that_is_asked_for(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        layout = tmp_path / "layout"
        arm = build_image(layout, "", [TOP], ImageConfig(architecture="s390x"))
        own = build_image(layout, "", [BASE])
        build_index(layout, NAME, [arm, own])
        ctl("load", layout)
        assert names(daemon) == {own.config.digest: [NAME]}
        ctl("load", "--platform", "linux/s390x", layout)
        assert names(daemon) == {own.config.digest: [], arm.config.digest: [NAME]}
        error = ctl("load", "--platform", "linux/riscv64", layout, code=1).stderr.decode()
        assert "linux/riscv64" in error
        assert "s390x" in error

    def test_names_that_are_given(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        image = build_image(tmp_path / "layout", "3.2", [BASE])  # a mere tag, as umoci and skopeo write it
        assert b"Loaded image ID: " in ctl("load", image.layout).stdout
        assert names(daemon) == {image.config.digest: []}
        ctl("load", "--name", "alpine", image.layout)
        assert names(daemon) == {image.config.digest: ["docker.io/library/alpine:3.2"]}
        ctl("load", "--name", "registry.test/x:y", image.layout)
        assert "registry.test/x:y" in names(daemon)[image.config.digest]
        name_manifest(image.layout, "4", build_image(image.layout, "", [TOP]).manifest)
        assert b"2 images" in ctl("load", "--name", "x:y", image.layout, code=1).stderr

    def test_untagged_images_of_a_docker_archive(self, daemon: Daemon, ctl: Ctl, image: BuiltImage) -> None:
        ctl("load", stdin=docker_archive([(image, ())]))
        assert names(daemon) == {image.config.digest: []}
        ctl("tag", image.config.digest, "found:1")
        assert names(daemon) == {image.config.digest: ["docker.io/library/found:1"]}

    def test_a_pull_after_a_load_fetches_nothing(self, daemon: Daemon, ctl: Ctl, image: BuiltImage) -> None:
        layouts = daemon.directory.parent / "layouts"
        layouts.mkdir(exist_ok=True)
        shutil.copytree(image.layout, layouts / "app")
        for layer in image.layers:  # a source without the blobs can only be asked what the name means
            (layouts / "app/blobs" / layer.digest.replace(":", "/")).unlink()
        ctl("load", image.layout)
        assert daemon.cri.call("PullImage", image={"image": NAME})["image_ref"] == image.config.digest
        shutil.rmtree(layouts / "app")


def cut(image: BuiltImage) -> bytes:
    return oci_archive(image.layout)[:-200_000]


def wrong_bytes(image: BuiltImage) -> bytes:
    path = f"blobs/{image.layers[1].digest.replace(':', '/')}"
    found = files_of(image.layout)
    return tar_of(found | {path: bytes(len(found[path]))})


def too_long(image: BuiltImage) -> bytes:
    path = f"blobs/{image.layers[1].digest.replace(':', '/')}"
    found = files_of(image.layout)
    return tar_of(found | {path: found[path] + b"more"})


def without_a_layer(image: BuiltImage) -> bytes:
    found = files_of(image.layout)
    del found[f"blobs/{image.layers[0].digest.replace(':', '/')}"]
    return tar_of(found)


def linked_to_the_host(image: BuiltImage) -> bytes:
    found = files_of(image.layout)
    path = f"blobs/{image.layers[0].digest.replace(':', '/')}"
    del found[path]
    link = tarfile.TarInfo(path)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return tar_of(found, [link])


def escaping_layer(image: BuiltImage) -> bytes:
    layer = make_layer([Entry(path="../../../../../etc/crinoid-was-here", content=b"x")])
    escaping = build_image(image.layout.parent / "escaping", NAME, [layer])
    return oci_archive(escaping.layout)


def sparse_member(image: BuiltImage) -> bytes:
    found = files_of(image.layout)
    path = f"blobs/{image.layers[0].digest.replace(':', '/')}"
    del found[path]
    sparse = tarfile.TarInfo(path)
    sparse.type = tarfile.GNUTYPE_SPARSE
    return tar_of(found, [sparse])


HOSTILE = {
    "cut off": (cut, "not a whole one"),
    "wrong digest": (wrong_bytes, "digest"),
    "longer than it says": (too_long, "bytes, not"),
    "a layer is missing": (without_a_layer, "but does not have it"),
    "a link out of the archive": (linked_to_the_host, "but does not have it"),
    "a sparse blob": (sparse_member, "does not have it"),
    "a layer that leads out": (escaping_layer, "leads out of the layer"),
    "no image at all": (lambda _: tar_of({"hello": b"x"}), "neither an index.json"),
    "not a tar": (lambda _: os.urandom(5000), "not a tar archive"),
    "an empty one": (lambda _: b"", "tar archive"),
    "broken gzip": (lambda image: compress(oci_archive(image.layout), "gzip")[:-100], "decompressed"),
    "another compression": (lambda _: b"BZh91AY" + bytes(600), "bzip2"),
    "no JSON": (lambda _: tar_of({"manifest.json": b"{"}), "not JSON"),
    "an unknown configuration": (
        lambda _: tar_of({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'}),
        "has no file",
    ),
}


class TestHostileArchives:
    @pytest.mark.parametrize("kind", HOSTILE)
    def test_a_bad_archive_is_refused_and_leaves_nothing(
        self, daemon: Daemon, ctl: Ctl, image: BuiltImage, kind: str, tmp_path: Path
    ) -> None:
        make, words = HOSTILE[kind]
        error = ctl("load", stdin=make(image), code=1).stderr.decode()
        assert words in error
        assert "Traceback" not in error
        assert "/proc/" not in error
        assert names(daemon) == {}
        assert stored(daemon) == set()
        (archive := tmp_path / "archive").write_bytes(compress(make(image), "gzip"))
        error = ctl("load", archive, code=1).stderr.decode()
        assert "/proc/" not in error
        assert str(archive) in error or words in error

    def test_a_bomb_is_stopped_before_the_disk_is_full(
        self, daemon: Daemon, ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], check=True)
        try:
            monkeypatch.setenv("TMPDIR", str(small))
            error = ctl("load", stdin=compress(bytes(300 << 20), "zstd"), code=1).stderr.decode()
            assert "TMPDIR" in error
            assert list(small.iterdir()) == []
        finally:
            subprocess.run(["umount", small], check=True)

    def test_what_a_client_that_was_killed_has_brought_is_gone(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        image = build_image(tmp_path / "layout", NAME, [BASE, make_layer([Entry(path="x", content=bytes(50 << 20))])])
        command = [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{daemon.socket}", "load", str(image.layout)]
        with programs.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as loading:
            while not stored(daemon) and loading.poll() is None:
                pass
            loading.kill()
        deadline = time.monotonic() + patient(30)
        while stored(daemon) and not names(daemon):  # it may have been done before it was killed
            assert time.monotonic() < deadline
            time.sleep(0.05)


class TestSave:
    @pytest.mark.parametrize("form", ["oci", "docker"])
    def test_it_is_loaded_again_and_equal_images_give_equal_bytes(
        self, daemon: Daemon, ctl: Ctl, image: BuiltImage, tmp_path: Path, form: str
    ) -> None:
        ctl("load", image.layout)
        saved = ctl("save", "--format", form, NAME).stdout
        ctl("save", "--format", form, "-o", tmp_path / "saved.tar", NAME)
        assert (tmp_path / "saved.tar").read_bytes() == saved
        assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "saved.tar"]
        ctl("rmi", NAME)
        assert stored(daemon) == set()
        ctl("load", "-i", tmp_path / "saved.tar")
        assert names(daemon) == {image.config.digest: [NAME]}
        assert ctl("save", "--format", form, NAME).stdout == saved

    @pytest.mark.parametrize(("form", "transport"), [("oci", "oci-archive"), ("docker", "docker-archive")])
    def test_skopeo_reads_it_and_we_read_what_skopeo_writes(
        self, daemon: Daemon, ctl: Ctl, image: BuiltImage, tmp_path: Path, form: str, transport: str
    ) -> None:
        ctl("load", image.layout)
        ctl("save", "--format", form, "-o", tmp_path / "saved.tar", NAME)
        name = {"oci": "1", "docker": NAME}[form]
        source = f"{transport}:{tmp_path}/saved.tar:{name}"
        config = subprocess.run(["skopeo", "inspect", "--config", "--raw", source], check=True, capture_output=True)
        assert digest_of(config.stdout) == image.config.digest
        copied = f"{transport}:{tmp_path}/copied.tar:{NAME}"
        subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", source, copied], check=True)
        ctl("rmi", NAME)
        ctl("load", "-i", tmp_path / "copied.tar")
        assert names(daemon) == {image.config.digest: [NAME]}

    def test_umoci_unpacks_it(self, ctl: Ctl, image: BuiltImage, tmp_path: Path) -> None:
        ctl("load", image.layout)
        ctl("save", "-o", tmp_path / "saved.tar", NAME)
        with tarfile.open(tmp_path / "saved.tar") as archive:
            archive.extractall(tmp_path / "out", filter="data")
        target = str(tmp_path / "bundle")
        subprocess.run(["umoci", "unpack", "--image", f"{tmp_path}/out:1", target], check=True, capture_output=True)
        assert (tmp_path / "bundle/rootfs/top").read_bytes() == b"top" * 100_000

    def test_an_image_of_an_index_is_saved_alone_or_with_its_digest(
        self, daemon: Daemon, ctl: Ctl, tmp_path: Path
    ) -> None:
        layout = tmp_path / "layout"
        other = build_image(layout, "", [TOP], ImageConfig(architecture="s390x"))
        own = build_image(layout, "", [BASE])
        index = build_index(layout, NAME, [other, own])
        ctl("load", layout)
        alone, whole = ctl("save", NAME).stdout, ctl("save", "--keep-index", NAME).stdout
        ctl("rmi", NAME)
        ctl("load", stdin=alone)
        (found,) = daemon.cri.call("ListImages")["images"]
        assert found["repo_digests"] == [f"registry.test/app@{own.manifest.digest}"]
        ctl("rmi", NAME)
        ctl("load", stdin=whole)
        (found,) = daemon.cri.call("ListImages")["images"]
        assert found["repo_digests"] == [f"registry.test/app@{index.digest}"]

    def test_several_images_with_one_tag(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        one = build_image(tmp_path / "layout", NAME, [BASE])
        two = build_image(tmp_path / "layout", "registry.test/two:1", [BASE, TOP])
        ctl("load", tmp_path / "layout")
        both = ctl("save", NAME, two.config.digest).stdout
        ctl("rmi", "--all")
        ctl("load", stdin=both)
        assert names(daemon) == {one.config.digest: [NAME], two.config.digest: ["registry.test/two:1"]}

    def test_what_can_t_be_saved_is_said_and_leaves_no_file(
        self, daemon: Daemon, ctl: Ctl, image: BuiltImage, tmp_path: Path
    ) -> None:
        target = tmp_path / "saved.tar"
        assert b"no image 'nothing'" in ctl("save", "-o", target, "nothing", code=1).stderr
        ctl("load", image.layout)
        blob = daemon.root / "content/blobs" / image.layers[1].digest.replace(":", "/")
        whole = blob.read_bytes()
        blob.write_bytes(bytes(len(whole)))
        assert b"is damaged" in ctl("save", "-o", target, NAME, code=1).stderr
        blob.unlink()
        assert b"pull it once more" in ctl("save", "-o", target, NAME, code=1).stderr
        assert not target.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["layout"]

    def test_a_terminal_gets_no_archive(self, daemon: Daemon, ctl: Ctl, image: BuiltImage) -> None:
        ctl("load", image.layout)
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{daemon.socket}", "save", NAME]
        done = programs.run(command, stdout=follower, stderr=subprocess.PIPE, timeout=60)
        os.close(leader)
        os.close(follower)
        assert done.returncode == 1
        assert b"terminal" in done.stderr


class TestNames:
    def test_names_are_normalised_and_a_tag_moves(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        one = build_image(tmp_path / "layout", NAME, [BASE])
        two = build_image(tmp_path / "layout", "registry.test/two:1", [BASE, TOP])
        ctl("load", tmp_path / "layout")
        assert ctl("tag", NAME, "busybox", "quay.test/x/y:z").stdout == (
            b"Tagged: docker.io/library/busybox:latest\nTagged: quay.test/x/y:z\n"
        )
        assert names(daemon)[one.config.digest] == ["docker.io/library/busybox:latest", "quay.test/x/y:z", NAME]
        ctl("tag", two.config.digest[7:19], "docker.io/busybox:latest")
        assert names(daemon)[one.config.digest] == ["quay.test/x/y:z", NAME]
        assert "docker.io/library/busybox:latest" in names(daemon)[two.config.digest]
        index = json.loads((daemon.root / "content/index.json").read_bytes())
        listed = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]}
        assert {"docker.io/library/busybox:latest", "quay.test/x/y:z"} <= listed

    def test_untag_takes_one_name_and_the_image_stays(self, daemon: Daemon, ctl: Ctl, image: BuiltImage) -> None:
        ctl("load", image.layout)
        ctl("tag", NAME, "a:1", "a:2")
        ctl("untag", "a:1")
        assert names(daemon)[image.config.digest] == ["docker.io/library/a:2", NAME]
        assert b"no image is called docker.io/library/a:1" in ctl("untag", "a:1", code=1).stderr
        done = ctl("untag", "a:2", NAME, f"registry.test/app@{image.manifest.digest}")
        assert b"has no name any more" in done.stderr
        assert names(daemon) == {image.config.digest: []}
        daemon.stop()
        daemon.start()
        assert names(daemon) == {image.config.digest: []}

    @pytest.mark.parametrize("name", ["A/B", "a@sha256:" + "0" * 64, "a:1:2", ""])
    def test_what_is_no_name_is_refused(self, ctl: Ctl, image: BuiltImage, name: str) -> None:
        ctl("load", image.layout)
        assert ctl("tag", NAME, name, code=1).stderr

    def test_an_unknown_image_is_named(self, ctl: Ctl) -> None:
        assert b"no image 'nothing:1'" in ctl("tag", "nothing:1", "a:1", code=1).stderr


class TestDiskUsage:
    def test_shared_unique_and_reclaimable(self, daemon: Daemon, ctl: Ctl, tmp_path: Path) -> None:
        random = make_layer([Entry(path="random", content=os.urandom(1 << 20))])
        own = make_layer([Entry(path="own", content=os.urandom(2 << 20))])
        build_image(tmp_path / "layout", NAME, [random])
        build_image(tmp_path / "layout", "registry.test/two:1", [random, own])
        ctl("load", tmp_path / "layout")
        use = json.loads(ctl("system", "df", "-o", "json").stdout)
        by_name = {image["names"][0]: image for image in use["images"]}
        one, two = by_name[NAME], by_name["registry.test/two:1"]
        assert one["shared_bytes"] == two["shared_bytes"] > 2 << 20  # the files and the blob
        assert one["unique_bytes"] < 10_000
        assert two["unique_bytes"] > 4 << 20
        assert sorted(layer["images"] for layer in use["layers"]) == [1, 2]
        assert use["images_bytes"] == use["images_reclaimable_bytes"]
        total = one["shared_bytes"] + one["unique_bytes"] + two["unique_bytes"]
        assert use["images_bytes"] == total
        before = use["images_bytes"]
        ctl("rmi", NAME)
        use = json.loads(ctl("system", "df", "-o", "json").stdout)
        assert before - use["images_bytes"] == one["unique_bytes"]
        assert b"RECLAIMABLE" in ctl("system", "df", "-v").stdout
