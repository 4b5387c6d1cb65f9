"""An archive is taken apart only into the files that are known, and never beyond the directory meant for them."""

import asyncio
import contextlib
import gzip
import io
import json
import os
import resource
import stat
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.linux import files, mount
from crinoid.core.api.manifests import Document
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import Config, ImagesConfig, PodsConfig
from crinoid.core.lifecycle.checkpoints import archive
from crinoid.core.lifecycle.checkpoints.source import unpack_archive
from support.archives import END, header
from support.descriptors import open_below
from support.patience import patient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the unpacker's child needs root for chroot")

WHOLE = {"config.dump": b"{}", "spec.dump": b"{}", "checkpoint/inventory.img": b"i", "checkpoint/pages-1.img": b"p"}


def write(path: Path, files: dict[str, bytes], mode: str = "w", *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]  # any mode
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        for member in members:
            made.addfile(member)
    return path


def unpack(source: Path, tmp_path: Path, **pods: Any) -> Path:
    directory = tmp_path / "unpacked"
    directory.mkdir()
    config = Config(root=tmp_path, run=tmp_path, pods=PodsConfig(**pods), images=ImagesConfig(keep_free_percent=0))
    asyncio.run(unpack_archive(source, directory, config))
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "parts"
    (directory / "checkpoint").mkdir(parents=True)
    for name, content in (WHOLE | {"rootfs-diff.tar": b"r", "dump.log": b"l"}).items():
        (directory / name).write_bytes(content)
    (directory / "of-somebody-else").touch()
    archive.pack(directory, tmp_path / "packed.tar", threading.Event())
    assert (tmp_path / "packed.tar").stat().st_mode & 0o777 == 0o600
    unpacked = unpack(tmp_path / "packed.tar", tmp_path)
    assert files_in(unpacked) == WHOLE | {"rootfs-diff.tar": b"r", "dump.log": b"l"}
    archive.check_directory(unpacked, "it")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])  # what Podman offers
def test_archives_of_others(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    files = {f"./{name}": content for name, content in WHOLE.items()} | {"status.dump": b"x", "volumes/v.tar": b"x"}
    path = write(tmp_path / "a", files)
    path.write_bytes(compress(path.read_bytes()))
    assert files_in(unpack(path, tmp_path)) == WHOLE


def test_a_compression_that_nobody_writes_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="compressed with xz"):
        unpack(write(tmp_path / "a", WHOLE, "w:xz"), tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "checkpoint/../../evil", "checkpoint/a/b", "config.dump/x", "checkpoint/..", "x"]
)
def test_names_that_lead_elsewhere_are_passed_over(tmp_path: Path, name: str) -> None:
    directory = unpack(write(tmp_path / "a", WHOLE | {name: b"evil"}), tmp_path)
    assert files_in(directory) == WHOLE
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_passed_over(tmp_path: Path) -> None:
    link = tarfile.TarInfo("checkpoint/link.img")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("dump.log")
    hard.type, hard.linkname = tarfile.LNKTYPE, "config.dump"
    assert files_in(unpack(write(tmp_path / "a", WHOLE, "w", link, hard), tmp_path)) == WHOLE


def test_one_name_twice(tmp_path: Path) -> None:
    again = tarfile.TarInfo("./config.dump")
    with pytest.raises(CorruptContent, match="twice"):
        unpack(write(tmp_path / "a", WHOLE, "w", again), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 512 + b"x" * 10_000])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CorruptContent):
        archive.check_directory(unpack(tmp_path / "a", tmp_path), "it")


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", WHOLE | {"rootfs-diff.tar": b"x" * 100_000}).read_bytes()
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptContent):
        unpack(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("missing", ["config.dump", "spec.dump", "checkpoint/inventory.img"])
def test_a_part_is_missing(tmp_path: Path, missing: str) -> None:
    rest = {name: content for name, content in WHOLE.items() if name != missing}
    directory = unpack(write(tmp_path / "a", rest), tmp_path)
    with pytest.raises(CorruptContent, match=missing.rpartition("/")[2]):
        archive.check_directory(directory, "it")


def test_links_in_an_image_are_refused(tmp_path: Path) -> None:
    directory = unpack(write(tmp_path / "a", WHOLE), tmp_path)
    (directory / "checkpoint/link.img").symlink_to("/etc/passwd")
    with pytest.raises(CorruptContent, match="link"):
        archive.check_directory(directory, "it")


def raw(*pieces: bytes) -> bytes:
    return b"".join(piece + bytes(-len(piece) % 512) for piece in pieces)


def whole(tmp_path: Path) -> bytes:
    """The members of a good archive, without its end."""
    return write(tmp_path / "whole", WHOLE).read_bytes()[: len(WHOLE) * 1024]


def octal(size: int) -> bytes:
    return b"%011o\0" % size


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], type[CrinoidError], str]] = {
    "a pax header of a gibibyte": (
        lambda good: raw(header(b"x", b"x", octal(1 << 30)), bytes(1 << 21)) + good,
        CorruptContent,
        "extended header of 1073741824 bytes",
    ),
    "a long name of a gibibyte": (
        lambda good: raw(header(b"L", b"L", octal(1 << 30)), bytes(1 << 21)) + good,
        CorruptContent,
        "extended header of 1073741824 bytes",
    ),
    "a document of 8 MiB and more": (
        lambda good: good + raw(header(b"spec.dump", size=octal((8 << 20) + 1)), bytes((8 << 20) + 1)) + END,
        ResourceExhausted,
        "spec.dump.*at most 8388608",
    ),
    "bytes beyond the limit": (
        lambda good: good + raw(header(b"checkpoint/p", size=octal(80 << 20)), bytes(80 << 20)) + END,
        ResourceExhausted,
        "more than 67108864 bytes uncompressed",
    ),
    "no end": (lambda good: good, CorruptContent, "its end is missing"),
    "something after the end": (lambda good: good + END + b"more" * 500, CorruptContent, "follows the end"),
    "one block of zeros": (lambda good: good + bytes(512) + good, CorruptContent, "goes on after"),
    "a checksum that is wrong": (lambda good: good + b"x" * 512 + END, CorruptContent, "checksum is wrong"),
    "a size that is a lie": (
        lambda good: good + raw(header(b"dump.log", size=b"\x80" + b"\xff" * 11)) + END,
        CorruptContent,
        "ends early",
    ),
    "a name that no file system takes": (
        lambda good: (
            good + raw(header(b"", b"x", octal(320)), b"320 path=checkpoint/%b\n" % (b"n" * 299), header(b"f")) + END
        ),
        CorruptContent,
        "File name too long",
    ),
    "a sparse file": (
        lambda good: (
            good
            + raw(header(b"", b"x", octal(44)), b"22 GNU.sparse.size=90\n22 GNU.sparse.map=0,0\n", header(b"dump.log"))
            + END
        ),
        Unsupported,
        "sparse",
    ),
}


@pytest.mark.parametrize("which", HOSTILE)
@pytest.mark.parametrize("compress", [bytes, lambda data: gzip.compress(data, 1)])
def test_a_hostile_archive(tmp_path: Path, which: str, compress: Callable[[bytes], bytes]) -> None:
    make, kind, words = HOSTILE[which]
    (tmp_path / "a").write_bytes(compress(make(whole(tmp_path))))
    with pytest.raises(kind, match=words) as raised:
        unpack(tmp_path / "a", tmp_path, checkpoint_max_bytes=64 << 20)
    assert f"checkpoint archive {tmp_path}/a" in str(raised.value)


@pytest.mark.parametrize("flip", [-8, -1])
def test_a_wrong_trailer_of_gzip(tmp_path: Path, flip: int) -> None:
    """Its CRC, and its length: tar itself needs neither."""
    packed = bytearray(gzip.compress(write(tmp_path / "a", WHOLE).read_bytes()))
    packed[flip] ^= 1
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(CorruptContent, match="gzip stream is damaged"):
        unpack(tmp_path / "a", tmp_path)


def test_a_bomb_stops_while_there_is_room(tmp_path: Path) -> None:
    """On a file system that has room for a tenth of it; as much as was said stays free."""
    disk = tmp_path / "unpacked"
    disk.mkdir()
    mount.mount(Mount("tmpfs", "tmpfs", ("size=100m",)), disk)
    try:
        bomb = whole(tmp_path) + header(b"checkpoint/p", size=octal(1 << 30))
        (tmp_path / "a").write_bytes(gzip.compress(bomb) + gzip.compress(bytes(1 << 26), 1) * 16)
        config = Config(root=tmp_path, run=tmp_path, images=ImagesConfig(keep_free_percent=50))
        with pytest.raises(ResourceExhausted, match=r"less than 50 % of the space.*images\.keep_free_percent"):
            asyncio.run(unpack_archive(tmp_path / "a", disk, config))
        free = os.statvfs(disk)
        assert free.f_bavail * 4 > free.f_blocks, "a step of 16 MiB and what was on its way, at most"
    finally:
        mount.unmount(disk)


def test_many_members_hold_neither_loop_nor_memory(tmp_path: Path) -> None:
    """600,000 of them; the daemon's own memory and time are what is measured, not the child's."""
    (tmp_path / "a").write_bytes(
        gzip.compress(whole(tmp_path)) + gzip.compress(header(b"other") * 20_000, 1) * 30 + gzip.compress(END)
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    unpack(tmp_path / "a", tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < patient(0.5)
    assert after.ru_maxrss - before.ru_maxrss < 20 << 10, "KiB"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        unpack(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("name", ["absent", "n" * 300, "nul\0"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument if name != "absent" else NotFound, match="archive"):
        unpack(tmp_path / name, tmp_path)


def members() -> st.SearchStrategy[bytes]:
    """Headers that are sound, with fields that need not be."""
    fields = st.fixed_dictionaries(
        {},
        optional={
            "mode": st.binary(max_size=8),
            "mtime": st.binary(max_size=12),
            "link": st.binary(max_size=100),
            "prefix": st.binary(max_size=155),
            "tail": st.binary(max_size=12),
        },
    )
    names = st.sampled_from([name.encode() for name in (*WHOLE, "rootfs-diff.tar", "checkpoint/a", "../x")])
    sizes = st.sampled_from([octal(0), octal(5), octal(512), octal(1 << 32), b"\x80" + bytes(10) + b"\5", b"\xff" * 12])
    content = st.sampled_from([b"", b"5 a=b", b"12 size=9999\n", b"26 GNU.sparse.name=a\0b\0c\n\n"]) | st.binary(
        max_size=600
    )
    kinds = st.sampled_from([bytes([kind]) for kind in b"01234567xXgLKVSDN"])
    return st.builds(
        lambda name, kind, size, content, fields: raw(header(name, kind, size, **fields), content),
        names, kinds, sizes, content, fields,
    )  # fmt: skip


@given(
    st.lists(members(), max_size=5),
    st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=3),
    st.sampled_from([bytes, gzip.compress, zstandard.compress]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_bytes_it_is_unpacked_or_an_error_says_why(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    flips: list[tuple[int, int]],
    compress: Callable[[bytes], bytes],
    early: bool,
) -> None:
    """Sound members with unsound fields, and bytes changed before or after compression; never a crash of the child."""
    tmp_path = tmp_path_factory.mktemp("fuzz")
    content = bytearray(b"".join(parts) + whole(tmp_path) + END)
    content = content if early else bytearray(compress(bytes(content)))
    for place, value in flips:
        content[place % len(content)] = value
    (tmp_path / "a").write_bytes(compress(bytes(content)) if early else content)
    with contextlib.suppress(CorruptContent, ResourceExhausted, Unsupported):
        archive.check_directory(unpack(tmp_path / "a", tmp_path, checkpoint_max_bytes=64 << 20), "it")
    assert {path.name for path in (tmp_path / "unpacked").iterdir()} <= {*archive.FILES, archive.IMAGES}


DUMPS = [archive.ContainerDump, archive.SpecDump, archive.PodOptions, archive.PodDump]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("/../.."),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["process", "linux", "args", "env", "user", "uid", "cgroupsPath", "version"]), inner
        )
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("model", DUMPS)
@given(content=JSON.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=100))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_document_holds(tmp_path: Path, model: type[Document], content: bytes) -> None:
    (tmp_path / "pod.dump").write_bytes(content)
    with contextlib.suppress(CorruptContent):
        archive.read_dump(model, tmp_path / "pod.dump", "it")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"process": {"args": [' + b'"",' * 200_000 + b'""]}}', "more than 131072 values"),
        (b'{"a": "' + b"x" * (8 << 20) + b'"}', "more than 8388608 bytes"),
        (b'{"process": {"user": {"uid": NaN}}}', "uid"),
        (b'{"process": {"user": {"uid": 1e3}}}', "uid"),
        (b'{"process": {"user": {"uid": 4294967295}}}', "uid"),
        (b'{"process": {"user": {"uid": -1}}}', "uid"),
        (b'{"process": {"user": {"uid": ' + b"9" * 5000 + b"}}}", "."),
        (b'{"process": {"args": ["a\\u0000b"]}}', "args"),
        (b'{"process": {"args": "sh"}}', "args"),
        (b'{"process": {"terminal": "yes"}}', "terminal"),
        (b'{"process": {"cwd": "relative"}}', "cwd"),
        (b'{"linux": {"cgroupsPath": "/a/../../b"}}', "cgroup"),
        (b'{"linux": {"cgroupsPath": "a"}}', "cgroup"),
        (b"[]", "object"),
        (b"\xff\xfe", "JSON"),
        (b"", "JSON"),
    ],
)
def test_a_document_that_is_not_as_it_should_be(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "spec.dump").write_bytes(content)
    with pytest.raises(CorruptContent, match=f"it: spec.dump.*{words}"):
        archive.read_dump(archive.SpecDump, tmp_path / "spec.dump", "it")


def test_a_device_in_the_place_of_a_document_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some act when they are opened."""
    opened, real = [], os.open

    def note(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        opened.append((str(path), bool(flags & os.O_PATH)))
        return real(path, flags, *arguments, **named)

    os.mknod(tmp_path / "pod.options", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    monkeypatch.setattr(os, "open", note)
    with pytest.raises(InvalidArgument, match=r"pod\.options can't be read: not a regular file"):
        archive.read_dump(archive.PodOptions, tmp_path / "pod.options", "it")
    assert opened == [(str(tmp_path / "pod.options"), True)]


def test_a_document_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pod.options")
    with pytest.raises(InvalidArgument, match=r"pod\.options can't be read: not a regular file"):
        archive.read_dump(archive.PodOptions, tmp_path / "pod.options", "it")


def test_a_sparse_file_without_end_is_not_written_for_ever(tmp_path: Path) -> None:
    """Neither beyond the time nor beyond the disk that there is."""
    directory = tmp_path / "parts"
    (directory / "checkpoint").mkdir(parents=True)
    with (directory / "checkpoint/pages-1.img").open("wb") as file:
        file.truncate(1 << 42)
    given_up = threading.Event()
    timer = threading.Timer(0.3, given_up.set)
    timer.start()
    with pytest.raises(CrinoidError, match="not needed any more"):
        archive.pack(directory, tmp_path / "packed.tar", given_up)
    with pytest.raises(ResourceExhausted, match="keep_free_percent"):
        archive.pack(directory, tmp_path / "again.tar", threading.Event(), 100)
    assert (tmp_path / "again.tar").stat().st_size < 32 << 20


def test_documents(tmp_path: Path) -> None:
    (tmp_path / "config.dump").write_text('{"rootfsImageRef": "sha256:1", "future": 1, "name": null}')
    dump = archive.read_dump(archive.ContainerDump, tmp_path / "config.dump", "it")
    assert (dump.image_ref, dump.name) == ("sha256:1", "")
    (tmp_path / "link").symlink_to("config.dump")
    with pytest.raises(InvalidArgument, match="link can't be read: not a regular file"):
        archive.read_dump(archive.ContainerDump, tmp_path / "link", "it")


async def test_a_cancellation_while_the_archive_is_opened_leaves_it_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    begun, open_regular = threading.Event(), files.open_regular

    def slow(path: Path) -> io.FileIO:
        begun.set()
        time.sleep(0.1)
        return open_regular(path)

    monkeypatch.setattr(files, "open_regular", slow)
    task = asyncio.create_task(unpack_archive(tmp_path / "a", tmp_path, Config()))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert open_below(tmp_path) == []
