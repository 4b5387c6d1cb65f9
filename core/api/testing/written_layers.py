"""Gives a layer to a driver in the form that it wants, as the kernel does, from a directory in overlay's form."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from crinoid.core.api.archives import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    ByteSource,
    Entry,
    LayerWriter,
)
from crinoid.core.api.values.snapshot import LayerTarget

_OPAQUE = "trusted.overlay.opaque"
_OPAQUE_WHITEOUT = ".wh..wh..opq"
_DEVICES = {stat.S_IFCHR: CHARACTER_DEVICE, stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO}


class _Source(ByteSource):
    """The data of one file after the other, without what is a hole."""

    def __init__(self) -> None:
        self.data = b""

    def take(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        assert len(taken) == count
        return taken

    def write_to(self, fd: int, count: int) -> None:
        os.write(fd, self.take(count))


def write_by_class(tree: Path, target: LayerTarget, root_entry: bool) -> None:
    """Have the target's ``writer`` keep a layer; ``root_entry``: it has an entry for its root."""
    module, _, name = target.writer.partition(":")
    writer_class: type[LayerWriter] = getattr(__import__(module, fromlist=[name]), name)
    fd = os.open(target.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = _Source()
        writer = writer_class(fd, source)
        if root_entry:
            writer.describe_root(_entry(tree, DIRECTORY))
        if _is_opaque(tree):
            writer.hide_below(b"")
        links: dict[int, bytes] = {}
        for path in sorted(tree.rglob("*")):
            _add(writer, source, path, os.fsencode(path.relative_to(tree)), links)
        writer.finish()
    finally:
        os.close(fd)


def _add(writer: LayerWriter, source: _Source, path: Path, name: bytes, links: dict[int, bytes]) -> None:
    parent, _, base = name.rpartition(b"/")
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    if status.st_ino in links:
        entry = _entry(path, HARD_LINK)
        entry.link = links[status.st_ino]
        writer.add_hard_link(parent, base, entry)
    elif kind == stat.S_IFDIR:
        writer.add_directory(parent, base, _entry(path, DIRECTORY))
        if _is_opaque(path):
            writer.hide_below(name)
    elif kind == stat.S_IFREG:
        entry = _entry(path, FILE)
        with path.open("rb") as file:
            pieces = list(_pieces(file.fileno(), status.st_size))
            source.data = b"".join(os.pread(file.fileno(), length, offset) for offset, length in pieces)
        entry.size = len(source.data)
        entry.sparse = (status.st_size, pieces) if entry.size != status.st_size else None
        writer.add_file(parent, base, entry)
    elif kind == stat.S_IFLNK:
        entry = _entry(path, SYMLINK)
        entry.link = os.fsencode(path.readlink())
        writer.add_symlink(parent, base, entry)
    elif kind == stat.S_IFCHR and status.st_rdev == 0:
        writer.hide(parent, base)
    else:
        entry = _entry(path, _DEVICES[kind])
        entry.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        writer.add_node(parent, base, entry)
    if status.st_nlink > 1 and kind != stat.S_IFDIR:
        links[status.st_ino] = name


def _entry(path: Path, kind: bytes) -> Entry:
    status = path.lstat()
    entry = Entry(b"", kind)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    entry.mtime_ns = status.st_mtime_ns
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name != _OPAQUE]
    entry.xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return entry


def _is_opaque(path: Path) -> bool:
    return _OPAQUE in os.listxattr(path)


def _pieces(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


def write_archive(tree: Path, file: IO[bytes], compression: Literal["", "gz"], root_entry: bool) -> None:
    """Write a layer's archive, compressed or not."""
    with tarfile.open(fileobj=file, mode=f"w:{compression}", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        if root_entry:
            archive.add(tree, "./", recursive=False)
        if _is_opaque(tree):
            archive.addfile(tarfile.TarInfo(_OPAQUE_WHITEOUT))
        for path in sorted(tree.rglob("*")):
            _archive(archive, path, str(path.relative_to(tree)))
    file.flush()
    file.seek(0)


def _archive(archive: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    info = archive.gettarinfo(path, name)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        archive.addfile(tarfile.TarInfo(str(Path(name).with_name(f".wh.{path.name}"))))
        return
    records: dict[str, str] = {}
    for key in os.listxattr(path, follow_symlinks=False):
        if key != _OPAQUE:
            value = os.getxattr(path, key, follow_symlinks=False)
            records[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    records["mtime"] = f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09}"
    data = b""
    if info.isreg():
        with path.open("rb") as file:
            pieces = list(_pieces(file.fileno(), status.st_size))
            data = b"".join(os.pread(file.fileno(), length, offset) for offset, length in pieces)
        if len(data) != status.st_size:
            info.size = len(data)
            records["GNU.sparse.size"] = str(status.st_size)
            records["GNU.sparse.map"] = ",".join(f"{offset},{length}" for offset, length in pieces)
    info.pax_headers = records
    archive.addfile(info, io.BytesIO(data))
    if info.isdir() and _is_opaque(path):
        archive.addfile(tarfile.TarInfo(f"{name}/{_OPAQUE_WHITEOUT}"))
