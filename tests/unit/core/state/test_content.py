"""Blobs come in whole or not at all: bad, cut, long and torn streams, resumption, joining, a full disk."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import CorruptContent, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from crinoid.core.api.linux import mount
from crinoid.core.api.values.image import Descriptor
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.state.content import ContentStore

CONTENT = bytes(range(256)) * 20_000  # some 5 MB, several pieces


class Source:
    """Serves a blob as a registry would, and writes down the offsets it was asked for."""

    def __init__(self, content: bytes, cut_at: int | None = None) -> None:
        self.content = content
        self.cut_at = cut_at
        self.offsets: list[int] = []
        self.closed = 0

    async def open(self, offset: int) -> AsyncIterator[bytes]:
        self.offsets.append(offset)
        return self.stream(offset)

    async def stream(self, offset: int) -> AsyncIterator[bytes]:
        try:
            for at in range(offset, len(self.content), 100_000):
                await asyncio.sleep(0)
                if self.cut_at is not None and at >= self.cut_at:
                    raise Unavailable("the line went dead")
                yield self.content[at : at + 100_000]
        finally:
            self.closed += 1


def blob_of(content: bytes, algorithm: str = "sha256") -> Descriptor:
    return Descriptor("application/x", f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}", len(content))


def ignore(stored: int) -> None:
    """Progress is of no interest."""


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("content", [b"", b"x", CONTENT])
async def test_a_good_stream_is_stored(store: ContentStore, algorithm: str, content: bytes) -> None:
    blob = blob_of(content, algorithm)
    told: list[int] = []
    path = await store.ingest(blob, Source(content).open, told.append)
    assert path.read_bytes() == content
    assert path == store.root / "blobs" / algorithm / blob.digest.partition(":")[2]
    assert store.has(blob) and store.has(blob.digest)
    assert told == sorted(told) and told[-1] == len(content)
    assert store.list() == (blob.digest,)
    assert store.list_partial() == ()
    assert store.read(blob.digest, len(content)) == content


async def test_what_is_there_is_not_asked_for_again(store: ContentStore) -> None:
    source = Source(CONTENT)
    for _ in range(2):
        await store.ingest(blob_of(CONTENT), source.open, ignore)
    assert source.offsets == [0]


async def test_a_wrong_digest_is_named_and_nothing_is_kept(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    lie = CONTENT[:-1] + b"!"
    with pytest.raises(CorruptContent, match=f"{blob.digest}.*{blob_of(lie).digest}"):
        await store.ingest(blob, Source(lie).open, ignore)
    assert not store.has(blob.digest)
    assert store.list_partial() == ()


async def test_a_stream_that_does_not_end_is_stopped_at_the_size(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    source = Source(CONTENT * 10)
    with pytest.raises(CorruptContent, match=f"more than the {len(CONTENT)} bytes"):
        await store.ingest(blob, source.open, ignore)
    assert source.closed == 1
    assert store.list_partial() == ()


async def test_a_stream_is_closed_though_its_last_piece_can_not_be_stored(store: ContentStore) -> None:
    """What a driver's stream holds is given back: a connection, a task."""

    class Pieces:
        left = 1
        closed = False

        def __aiter__(self) -> "Pieces":
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return b"more than it promised"

        async def aclose(self) -> None:
            self.closed = True

    pieces = Pieces()

    async def open_stream(_offset: int) -> AsyncIterator[bytes]:
        return pieces

    with pytest.raises(CorruptContent, match="more than the 4 bytes"):
        await store.ingest(blob_of(b"more"), open_stream, ignore)
    assert pieces.closed


async def test_a_cut_stream_is_resumed_where_it_broke(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    with pytest.raises(Unavailable, match="line went dead"):
        await store.ingest(blob, Source(CONTENT, cut_at=2_500_000).open, ignore)
    assert store.list_partial() == (blob.digest,)
    assert not store.has(blob)
    again, told = Source(CONTENT), list[int]()
    await ContentStore(store.root).ingest(blob, again.open, told.append)  # as after a restart
    assert again.offsets == [2_500_000]
    assert told[0] == 2_500_000
    assert store.read(blob.digest, len(CONTENT)) == CONTENT


async def test_a_stream_that_ends_early_is_unavailable_and_kept(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    with pytest.raises(Unavailable, match=f"after 1000 of {len(CONTENT)} bytes"):
        await store.ingest(blob, Source(CONTENT[:1000]).open, ignore)
    assert store.list_partial() == (blob.digest,)


async def test_a_torn_partial_ingest_is_not_blamed_on_the_source(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    (store.root / "ingest" / blob.digest).write_bytes(b"\0" * 4096)
    source = Source(CONTENT)
    await store.ingest(blob, source.open, ignore)
    assert source.offsets == [4096, 0]
    assert store.read(blob.digest, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("extra, offsets", [(b"", []), (b"more", [0])])
async def test_a_partial_ingest_of_full_length_or_more(store: ContentStore, extra: bytes, offsets: list[int]) -> None:
    blob = blob_of(CONTENT)
    (store.root / "ingest" / blob.digest).write_bytes(CONTENT + extra)
    source = Source(CONTENT)
    await store.ingest(blob, source.open, ignore)
    assert source.offsets == offsets


async def test_concurrent_ingests_of_one_digest_share_one_stream(store: ContentStore) -> None:
    source = Source(CONTENT)
    blob = blob_of(CONTENT)
    paths = await asyncio.gather(*(store.ingest(blob, source.open, ignore) for _ in range(5)))
    assert set(paths) == {store.path(blob.digest)}
    assert source.offsets == [0]
    assert source.closed == 1


async def test_a_cancelled_ingest_leaves_its_turn_and_its_bytes_to_the_next(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    source, reached = Source(CONTENT), asyncio.Event()
    first = asyncio.create_task(store.ingest(blob, source.open, lambda stored: reached.set() if stored else None))
    await asyncio.sleep(0)
    second = asyncio.create_task(store.ingest(blob, source.open, ignore))
    await reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert len(source.offsets) == 2 and source.offsets[1] >= 1 << 20
    assert store.read(blob.digest, len(CONTENT)) == CONTENT


def test_documents_are_put_read_and_removed(store: ContentStore) -> None:
    blob = store.put(b"{}", "application/json")
    assert blob == Descriptor("application/json", blob_of(b"{}").digest, 2)
    assert store.put(b"{}", "application/json") == blob
    assert store.read(blob.digest, 2) == b"{}"
    with pytest.raises(ResourceExhausted, match="longer than the 1 bytes"):
        store.read(blob.digest, 1)
    store.path(blob.digest).write_bytes(b"[]")
    with pytest.raises(CorruptContent, match=blob.digest):
        store.read(blob.digest, 2)
    for _ in range(2):
        store.remove(blob.digest)
    with pytest.raises(NotFound, match=blob.digest):
        store.read(blob.digest, 2)


async def test_a_blob_of_another_size_is_fetched_anew(store: ContentStore) -> None:
    blob = blob_of(CONTENT)
    path = await store.ingest(blob, Source(CONTENT).open, ignore)
    path.write_bytes(b"short")
    assert not store.has(blob)
    await store.ingest(blob, Source(CONTENT).open, ignore)
    assert store.read(blob.digest, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "g" * 64, "md5:" + "0" * 32, "sha256:../../etc/passwd"])
def test_what_is_no_digest_never_becomes_a_path(store: ContentStore, digest: str) -> None:
    for act in (store.path, store.has, store.remove, store.remove_partial):
        with pytest.raises(InvalidArgument):
            act(digest)


def test_stale_partial_ingests_are_dropped(store: ContentStore) -> None:
    old, new = blob_of(b"old"), blob_of(b"new")
    for blob in (old, new):
        (store.root / "ingest" / blob.digest).touch()
    os.utime(store.root / "ingest" / old.digest, (0, 0))
    store.remove_stale(3600)
    assert store.list_partial() == (new.digest,)


def test_the_directory_is_an_oci_image_layout(store: ContentStore) -> None:
    target = store.put(b"{}", "application/vnd.oci.image.manifest.v1+json")
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((store.root / "index.json").read_text())["manifests"] == []
    store.write_index([("registry.example/app:1", target)])
    (entry,) = json.loads((store.root / "index.json").read_text())["manifests"]
    assert (entry["digest"], entry["size"]) == (target.digest, 2)
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "registry.example/app:1"}


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_what_a_killed_daemon_was_writing_is_removed(store: ContentStore) -> None:
    blob = store.put(b"document")
    for directory in (store.root, store.path(blob.digest).parent):
        (directory / ".some.0123abcd.tmp").touch()
    opened = ContentStore(store.root)
    assert list(store.root.rglob("*.tmp")) == []
    assert opened.list() == (blob.digest,)


def test_skopeo_reads_the_store(store: ContentStore, tmp_path: Path) -> None:
    layer = store.put(b"\0" * 10_240, "application/vnd.oci.image.layer.v1.tar")
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Labels": {"told": "by skopeo"}}, "rootfs": rootfs}
    config_blob = store.put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    parts = {"config": entry_of(config_blob), "layers": [entry_of(layer)]}
    manifest = store.put(json.dumps({"schemaVersion": 2, "mediaType": manifest_type, **parts}).encode(), manifest_type)
    store.write_index([("app:1", manifest)])
    command = ["skopeo", "copy", "--insecure-policy", f"oci:{store.root}:app:1", f"dir:{tmp_path}/copy"]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "copy" / config_blob.digest.partition(":")[2]).read_text()) == config


def entry_of(blob: Descriptor) -> dict[str, object]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root to mount it")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount.mount(Mount("tmpfs", "tmpfs", ("size=2m",)), disk)
    yield disk
    mount.unmount(disk)


async def test_a_full_disk_names_the_file_and_gets_its_space_back(small_disk: Path) -> None:
    store = ContentStore(small_disk / "store")
    blob = blob_of(CONTENT)
    with pytest.raises(ResourceExhausted, match=f"{store.root}/ingest/{blob.digest}"):
        await store.ingest(blob, Source(CONTENT).open, ignore)
    assert store.list_partial() == ()
    (small_disk / "filler").write_bytes(b"x" * 1_900_000)
    with pytest.raises(ResourceExhausted, match=str(store.root)):
        store.put(b"x" * 1_000_000)


async def test_other_errors_of_the_disk_are_not_called_full(store: ContentStore) -> None:
    blob = blob_of(b"x")
    (store.root / "ingest" / blob.digest).mkdir()
    with pytest.raises(OSError) as caught:
        await store.ingest(blob, Source(b"x").open, ignore)
    assert caught.value.errno == errno.EISDIR


class TestPlace:
    """Blobs that are taken from another's files."""

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        path = tmp_path / "other"
        path.write_bytes(CONTENT)
        return path

    @pytest.mark.parametrize("link", [True, False])
    def test_by_link_or_copy(self, tmp_path: Path, other: Path, link: bool) -> None:
        store = ContentStore(tmp_path / "content")
        with other.open("rb") as file:
            how = store.place(blob_of(CONTENT), file.fileno(), link)
            assert store.place(blob_of(CONTENT), file.fileno(), link) == "there"
        placed = store.path(blob_of(CONTENT).digest)
        assert placed.read_bytes() == CONTENT
        assert how in ({"cloned", "linked"} if link else {"cloned", "copied"})
        assert placed.samefile(other) is (how == "linked")

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
    @pytest.mark.parametrize(("kind", "size"), [("xfs", 320 << 20), ("btrfs", 128 << 20)])
    def test_by_reflink_where_the_file_system_can(self, tmp_path: Path, kind: str, size: int) -> None:
        """Real ones, in a file: the other's later writes are not ours, nor is its space taken twice."""
        if not shutil.which(f"mkfs.{kind}") or f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
            pytest.skip(f"no mkfs.{kind}, or no {kind} in this kernel")
        disk, mounted = tmp_path / "disk", tmp_path / "mounted"
        mounted.mkdir()
        with disk.open("wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", disk], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
        try:
            other, content = mounted / "other", os.urandom(8 << 20)
            other.write_bytes(content)
            os.sync()
            store, used = ContentStore(mounted / "content"), shutil.disk_usage(mounted).used
            with other.open("rb") as file:
                assert store.place(blob_of(content), file.fileno(), link=True) == "cloned"
            os.sync()
            assert shutil.disk_usage(mounted).used - used < 4 << 20
            assert other.stat().st_nlink == 1
            with other.open("r+b") as file:
                file.write(b"changed later")
            assert store.path(blob_of(content).digest).read_bytes() == content
        finally:
            subprocess.run(["umount", mounted], check=True)

    def test_times_of_a_linked_file_are_left_alone(self, tmp_path: Path, other: Path) -> None:
        store, before = ContentStore(tmp_path / "content"), other.stat().st_mtime_ns
        with other.open("rb") as file:
            store.place(blob_of(CONTENT), file.fileno(), link=True)
        store.settle([blob_of(CONTENT).digest])
        assert other.stat().st_mtime_ns == before

    @pytest.mark.parametrize("link", [True, False])
    @pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"x", b""])
    def test_other_bytes_leave_nothing(self, tmp_path: Path, other: Path, content: bytes, link: bool) -> None:
        store = ContentStore(tmp_path / "content")
        other.write_bytes(content)
        with other.open("rb") as file, pytest.raises(CorruptContent):
            store.place(blob_of(CONTENT), file.fileno(), link)
        assert [path for path in store.root.glob("blobs/**/*") if path.is_file()] == []
        assert other.read_bytes() == content

    def test_a_full_disk_leaves_nothing(self, other: Path, small_disk: Path) -> None:
        store = ContentStore(small_disk / "content")
        with other.open("rb") as file, pytest.raises(ResourceExhausted):
            store.place(blob_of(CONTENT), file.fileno(), link=True)
        assert [path for path in store.root.glob("blobs/**/*") if path.is_file()] == []
