"""Whole layers through the confined child, as the pull uses it."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.linux import files
from crinoid.core.api.linux.mount import mount, unmount
from crinoid.core.api.values.snapshot import Mount, WhiteoutForm
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, UnpackResult, unpack_alone
from support.archives import BLOCK, END, ArchiveBuilder, header
from support.processes import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the unpacker's child needs root for chroot")
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
Unpack = Callable[..., Awaitable[UnpackResult]]


def diff_id(archive: bytes) -> str:
    return f"sha256:{hashlib.sha256(archive).hexdigest()}"


@pytest.fixture
def request_for(tmp_path: Path, target: Path) -> Callable[..., UnpackRequest]:
    def make(archive: bytes, blob: bytes | None = None, **changes: Any) -> UnpackRequest:
        path = tmp_path / "blob"
        path.write_bytes(archive if blob is None else blob)
        request = UnpackRequest(path, OCI_LAYER, target, WhiteoutForm.OVERLAY, diff_id(archive), sync=False)
        return replace(request, **changes)

    return make


@pytest.fixture
def unpack(request_for) -> Unpack:
    async def run(archive: bytes, blob: bytes | None = None, **changes: Any) -> UnpackResult:
        return await unpack_alone(request_for(archive, blob, **changes))

    return run


ARCHIVE = ArchiveBuilder().directory("d").file("d/f", b"content" * 1000).file("implied/x", b"y").build()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: zstandard.compress(data)])
@pytest.mark.parametrize("media_type", [OCI_LAYER, "application/vnd.docker.image.rootfs.diff.tar.gzip"])
async def test_layer_is_unpacked_verified_and_measured(unpack, target: Path, pack, media_type: str) -> None:
    result = await unpack(ARCHIVE, pack(ARCHIVE), media_type=media_type, sync=True)
    assert (target / "d/f").read_bytes() == b"content" * 1000
    assert result == UnpackResult(diff_id(ARCHIVE), 4 * 4096 + 4096, 4, (".", "implied"))


async def test_all_of_the_stream_is_hashed_and_not_only_the_entries(unpack) -> None:
    archive = ARCHIVE + b"whatever comes after the end" * 600_000
    assert (await unpack(archive, gzip.compress(archive, 1))).diff_id == diff_id(archive)


@pytest.mark.parametrize("archive", [b"", END, bytes(10240)])
async def test_empty_layer(unpack, target: Path, archive: bytes) -> None:
    assert (await unpack(archive)).inodes == 0
    assert os.listdir(target) == []


async def test_whiteouts_remove_where_they_are_asked_to(unpack, target: Path) -> None:
    (target / "lower").touch()
    await unpack(ArchiveBuilder().file(".wh.lower").build(), whiteouts=WhiteoutForm.DELETE)
    assert os.listdir(target) == []


async def test_another_diff_id_is_corrupt(unpack) -> None:
    with pytest.raises(CorruptContent, match=r"blob .*diffID is sha256:\w+, and the image's .* says sha256:0"):
        await unpack(ARCHIVE, expected_diff_id="sha256:0")


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstandard.compress(data)])
async def test_damaged_and_cut_blobs_are_corrupt(unpack, pack) -> None:
    archive = ArchiveBuilder().file("f", os.urandom(100_000)).build()
    blob = pack(archive)
    with pytest.raises(CorruptContent, match="cut off at byte"):
        await unpack(archive, blob[:-100])
    with pytest.raises(CorruptContent):
        await unpack(archive, blob[:5000] + b"garbage" + blob[5007:])


async def test_cut_archive_names_the_entry(unpack) -> None:
    archive = header(b"some/file", size=b"00000010000") + b"x" * 100
    with pytest.raises(CorruptContent, match="entry 'some/file': the archive ends early"):
        await unpack(archive)


async def test_no_archive_is_corrupt(unpack) -> None:
    with pytest.raises(CorruptContent, match="no tar archive"):
        await unpack(b"<html>sign in to continue</html>" * 100)


@pytest.mark.parametrize("media_type", ["application/vnd.oci.image.layer.v1.tar+encrypted", "text/html", ""])
async def test_media_types_that_are_no_layer(unpack, media_type: str) -> None:
    with pytest.raises(Unsupported, match="media type"):
        await unpack(ARCHIVE, media_type=media_type)


async def test_other_compression_is_named(unpack) -> None:
    with pytest.raises(Unsupported, match="xz"):
        await unpack(b"\xfd7zXZ\0" + bytes(100))


async def test_limits(unpack) -> None:
    with pytest.raises(ResourceExhausted, match="1000 bytes"):
        await unpack(ARCHIVE, max_bytes=1000)
    with pytest.raises(ResourceExhausted, match="1 entries"):
        await unpack(ARCHIVE, max_entries=1)


async def test_what_is_not_there_is_named(unpack, tmp_path: Path) -> None:
    with pytest.raises(CrinoidError, match="nowhere"):
        await unpack(ARCHIVE, target=tmp_path / "nowhere")


async def test_fault_of_the_system_names_entry_and_target(unpack, target: Path) -> None:
    with pytest.raises(CrinoidError, match=r"entry 'n+': File name too long \(while writing to .*/target\)"):
        await unpack(ArchiveBuilder().file("n" * 300).build())


def pax(*records: bytes) -> bytes:
    content = b"".join(b"%d %b\n" % (len(record) + len(str(len(record) + 4)) + 2, record) for record in records)
    return header(b"p", b"x", b"%011o\0" % len(content)) + content + bytes(-len(content) % BLOCK)


def sparse(name: bytes, size: int, offset: int) -> bytes:
    """A header of GNU's old form, with one empty piece; numbers in base 256."""

    def number(value: int) -> bytes:
        return b"\x80" + value.to_bytes(11, "big")

    block = bytearray(header(name, b"S", magic=b"ustar  \0"))
    block[386:410] = number(offset) + number(0)
    block[483:495] = number(size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("archive", "kind", "words"),
    [
        (
            pax(b"GNU.sparse.size=0", b"GNU.sparse.map=0,0", b"GNU.sparse.name=a\0b") + header(b"f"),
            CorruptContent,
            "NUL",
        ),
        (sparse(b"f", 1 << 80, 0), CorruptContent, "sparse map"),
        (sparse(b"f", 1 << 62, 0), ResourceExhausted, "File too large"),
        (sparse(b"f", 1 << 80, 1 << 70), CorruptContent, "sparse map"),
        (pax(b"SCHILY.xattr.=x") + header(b"f"), CorruptContent, "entry 'f'"),
        (pax(b"SCHILY.xattr.security.capability=x") + header(b"f"), CorruptContent, "security.capability"),
        (header(b"l", b"2", link=b"l") + header(b"l/f"), CorruptContent, "symbolic links"),
    ],
)
async def test_what_no_file_system_takes_is_the_layers_fault(unpack, archive: bytes, kind, words: str) -> None:
    """Never a crash of the child, nor a fault of the host."""
    with pytest.raises(kind, match=words):
        await unpack(archive + END)


async def test_directories_too_deep_to_be_removed(unpack, target: Path) -> None:
    """A link makes them deeper than any one path; the whiteout then has a long way to go."""
    deep = ArchiveBuilder().file("a/" * 2000 + "l").symlink("l", "a/" * 1900).file("l/" + "b/" * 1900 + "f")
    archive = deep.file("a").build()
    try:
        with pytest.raises(ResourceExhausted, match="nested too deeply"):
            await unpack(archive)
    finally:
        files.remove_tree(target)  # pytest's own removal can't


async def test_a_bomb_leaves_room_for_others(request_for, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(Mount("tmpfs", "tmpfs", ("size=100m",)), disk)
    try:
        (disk / "t").mkdir()
        archive = header(b"f", size=b"%011o\0" % (1 << 30))
        bomb = gzip.compress(archive) + gzip.compress(bytes(1 << 26), 1) * 16
        request = replace(request_for(b"", bomb), target=disk / "t", keep_free_percent=50)
        with pytest.raises(ResourceExhausted, match=r"less than 50 % of the space .* images\.keep_free_percent"):
            await unpack_alone(request)
        found = os.statvfs(disk)
        assert found.f_bavail * 4 > found.f_blocks
    finally:
        unmount(disk)


@pytest.mark.parametrize(
    ("options", "words"),
    [("size=4m,nr_inodes=50", "has no inodes left"), ("size=1m", "No space left on device on the")],
)
async def test_what_is_short_is_named(request_for, tmp_path: Path, options: str, words: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(Mount("tmpfs", "tmpfs", tuple(options.split(","))), disk)
    try:
        (disk / "t").mkdir()
        layer = ArchiveBuilder()
        for number in range(100):
            layer.file(f"f{number}", bytes(20_000))
        request = replace(request_for(layer.build()), target=disk / "t")
        with pytest.raises(ResourceExhausted, match=words) as found:
            await unpack_alone(request)
        assert str(disk) in found.value.message
    finally:
        unmount(disk)


@pytest.mark.parametrize("place", [-8, -1])
async def test_a_wrong_trailer_of_gzip(unpack, place: int) -> None:
    blob = bytearray(gzip.compress(ARCHIVE))
    blob[place] ^= 1
    with pytest.raises(CorruptContent, match="gzip stream is damaged"):
        await unpack(ARCHIVE, bytes(blob))


async def test_absolute_links_stay_inside(unpack, tmp_path: Path, target: Path) -> None:
    (tmp_path / "outside").mkdir()
    archive = ArchiveBuilder().symlink("l", str(tmp_path / "outside")).file("l/f", b"x").build()
    await unpack(archive)
    assert os.listdir(tmp_path / "outside") == []
    assert (target / str(tmp_path / "outside").lstrip("/") / "f").exists()


@pytest.fixture
def endless() -> bytes:
    """Enough entries to keep a child busy for far longer than a test waits."""
    return gzip.compress(header(b"f", size=b"0") * 20_000, 1) * 200


async def test_cancel_kills_the_child(request_for, endless: bytes, target: Path) -> None:
    before = children()
    task = asyncio.create_task(unpack_alone(request_for(b"", endless)))
    while not (target / "f").exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before


async def test_deadline_kills_the_child_and_is_told(unpack, endless: bytes) -> None:
    before = children()
    with pytest.raises(DeadlineExceeded, match=r"unpack layer blob .* longer than 0\.1 s"):
        await unpack(b"", endless, timeout_s=0.1)
    assert children() == before


async def test_no_descriptor_is_left_open(unpack) -> None:
    await unpack(ARCHIVE)
    before = set(os.listdir("/proc/self/fd"))
    await unpack(ARCHIVE)
    with pytest.raises(CorruptContent):
        await unpack(ARCHIVE, expected_diff_id="sha256:0")
    assert set(os.listdir("/proc/self/fd")) <= before  # what earlier tests left open may be closed meanwhile


async def test_crash_of_the_child_is_reported_with_its_last_words(unpack, monkeypatch, tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho it broke >&2\nexit 7\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(CrinoidError, match="exit code 7: it broke"):
        await unpack(ARCHIVE)


async def test_unpacking_many_layers_at_once(request_for, tmp_path: Path) -> None:
    async def one(number: int) -> UnpackResult:
        target = tmp_path / f"t{number}"
        target.mkdir()
        return await unpack_alone(replace(request, target=target))

    request = request_for(ARCHIVE)
    assert {result.inodes for result in await asyncio.gather(*map(one, range(8)))} == {4}


def in_child(program: str, *arguments: str, fds: dict[int, int]) -> str:
    """Run Python in a child with ``fds`` as its own numbers, and return what it prints."""
    script = "import sys; sys.path += sys.argv[1].split(':')\n" + program

    def give() -> None:
        for number, fd in fds.items():
            os.dup2(fd, number)

    command = [sys.executable, "-I", "-S", "-c", script, ":".join(path for path in sys.path if path), *arguments]
    result = subprocess.run(command, preexec_fn=give, close_fds=False, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_confined_process_can_not_get_out(target: Path) -> None:
    """Even code that runs in the child, and not only paths in an archive, is shut in."""
    program = """
import os
from crinoid.core.lifecycle.images.unpack.confinement import confine
outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
confine(3, 4)
def attempt(act):
    try:
        return act()
    except OSError as error:
        return type(error).__name__
print(os.listdir("/"), os.listdir("/../.."), attempt(lambda: open("/etc/passwd")))
print(attempt(lambda: os.chroot("/")), attempt(lambda: os.listdir(outside)), os.umask(0))
"""
    (target / "mine").touch()
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        printed = in_child(program, fds={3: fd})
    finally:
        os.close(fd)
    assert printed.splitlines() == ["['mine'] ['mine'] FileNotFoundError", "PermissionError OSError 0"]


def test_child_starts_light() -> None:
    program = "import sys, crinoid.core.lifecycle.images.unpack.child\nprint(*sys.modules)"
    loaded = set(in_child(program, fds={}).split())
    assert loaded & {"asyncio", "pydantic", "json", "re", "typing", "grpc", "zstandard"} == set()


# Against other programs


def described(root: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    links: dict[int, str] = {}
    for found in (root, *sorted(root.rglob("*"))):
        status = found.lstat()
        name = str(found.relative_to(root))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = found.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(found)
        same = links.setdefault(status.st_ino, name)
        owner = (status.st_uid, status.st_gid)
        seen[name] = (status.st_mode, owner, status.st_mtime_ns // 1000, status.st_rdev, content, same)
    return seen


def source_tree() -> Path:
    wanted = [Path("/usr/share/zoneinfo"), Path("/usr/lib/python3"), Path(tarfile.__file__).parent / "json"]
    return next(path for path in wanted if path.is_dir())


@pytest.mark.parametrize("tar_format", ["ustar", "gnu", "pax"])
async def test_a_real_tree_as_gnu_tar_has_it(unpack, tmp_path: Path, target: Path, tar_format: str) -> None:
    source = source_tree()
    command = ["tar", "-c", f"--format={tar_format}", "--hard-dereference", "-C", str(source), "."]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-xp", "-C", str(theirs)], input=archive, check=True)
    await unpack(archive)
    assert described(target) == described(theirs)


@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], *(["--format=pax", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
)
async def test_sparse_files_of_gnu_tar(unpack, tmp_path: Path, target: Path, options: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for number in range(60):
            file.seek(number * 200_000)
            file.write(b"%d" % number * 3000)
        file.truncate(20_000_000)
    shutil.copy(sys.executable, source / "whole")
    command = ["tar", "-cS", *options, "-C", str(source), "sparse", "whole"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(archive) < 15_000_000
    await unpack(archive)
    assert (target / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (target / "whole").read_bytes() == (source / "whole").read_bytes()
    assert (target / "sparse").stat().st_blocks * 512 < 5_000_000


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not name.startswith(".wh.") and len(os.fsencode(name)) < 200
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map("/".join)


@given(
    st.dictionaries(_PATHS, st.tuples(st.binary(max_size=2000), st.integers(0, 0o7777), st.integers(0, 1 << 32))),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_tarfile_round_trip(tmp_path_factory, files: dict[str, tuple[bytes, int, int]], tar_format: int) -> None:
    directories = {parent for path in files for parent in parents(path)}
    files = {path: value for path, value in files.items() if path not in directories}
    builder = ArchiveBuilder(tar_format)
    for path in sorted(directories):
        builder.directory(path, mtime=5)
    for path, (content, mode, mtime) in files.items():
        builder.file(path, content, mode=mode, mtime=mtime)
    archive = builder.build()
    base = tmp_path_factory.mktemp("round")
    (base / "blob").write_bytes(archive)
    ours, theirs = base / "ours", base / "theirs"
    ours.mkdir()
    theirs.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # Debian 12's Python 3.11.2 has no parameter for this; it takes members as they are.
        tar.extraction_filter = lambda member, path: member
        tar.extractall(theirs)
    request = UnpackRequest(base / "blob", OCI_LAYER, ours, WhiteoutForm.OVERLAY, diff_id(archive), sync=False)
    asyncio.run(unpack_alone(request))
    shutil.copystat(theirs, ours)
    assert described(ours) == described(theirs)


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


async def test_a_list_of_what_was_deleted_makes_nothing(request_for, target: Path) -> None:
    """It is of a container's files, not of a layer's: links are followed, and what is not there stays so."""
    (target / "usr/lib").mkdir(parents=True)
    for name in ("usr/lib/gone", "usr/lib/kept", "file"):
        (target / name).touch()
    (target / "lib").symlink_to("/usr/lib")
    (target / "own").symlink_to("own")
    os.utime(target / "usr/lib", (7, 7))
    paths = ["/lib/gone", "/absent/x", "/usr/lib/no/x", "/file/x", "/own/x", "/usr/lib/kept/../kept2"]
    request = request_for(json.dumps(paths).encode(), form="deleted", whiteouts=WhiteoutForm.DELETE, max_bytes=1 << 20)
    await unpack_alone(request)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        *("file", "lib", "own", "usr", "usr/lib", "usr/lib/kept")
    ]
    assert (target / "lib").is_symlink()
    assert (target / "usr/lib").stat().st_mtime == 7
