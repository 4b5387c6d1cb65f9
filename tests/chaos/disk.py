"""A disk whose power can be cut: what was not flushed may be on it or not, block by block.

The kernel's own file system (ext4) stands on a loop device over the one file of a FUSE mount, which this process
serves: so each write and each flush of the disk's cache comes by here (linux/fuse.h). Nothing of the host is asked for
but ext4, loop devices and FUSE.
"""

import contextlib
import errno
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux import libc

BLOCK_BYTES = 4096
_ROOT, _DISK = 1, 2
_LOOKUP, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH = 1, 3, 4, 14, 15, 16, 18, 20, 25
_FORGET, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 2, 26, 36, 38, 42
_UNANSWERED = frozenset({_FORGET, _INTERRUPT, _BATCH_FORGET})
_MAX_WRITE = 1 << 17
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=6Q10I")
_LARGE_WRITES = 1 << 5
_DIRECT_IO = 1


class Disk:
    """The disk at ``device``. Its content is in memory."""

    def __init__(self, size_bytes: int) -> None:
        self._durable = bytearray(size_bytes)
        self._pending: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self.flushes = self.writes = 0

    def cut(self, chance: random.Random) -> bytes:
        """Return what a power cut at this moment leaves: all that was flushed, and of the rest some blocks."""
        with self._lock:
            content = bytearray(self._durable)
            share = chance.choice((0.0, 0.5, 0.9, 1.0))
            for offset, data in self._pending:
                for at in range(0, len(data), BLOCK_BYTES):
                    if chance.random() < share:
                        piece = data[at : at + BLOCK_BYTES]
                        content[offset + at : offset + at + len(piece)] = piece
            return bytes(content)

    def serve(self, fuse: int) -> None:
        """Answer the kernel until the file system is unmounted."""
        while True:
            try:
                request = os.read(fuse, _MAX_WRITE + 4096)
            except OSError as failure:
                if failure.errno == errno.ENODEV:
                    return
                if failure.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                raise
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in _UNANSWERED:
                continue
            try:
                answer, error = self._answer(opcode, node, request[_IN.size :]), 0
            except OSError as failure:
                answer, error = b"", -(failure.errno or errno.EIO)
            with contextlib.suppress(FileNotFoundError):  # the request was interrupted
                os.write(fuse, _OUT.pack(_OUT.size + len(answer), error, unique) + answer)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == _INIT:
            _, minor, read_ahead, _ = struct.unpack_from("=4I", body)
            return struct.pack(
                "=4I2H2I2H8I", 7, min(minor, 31), read_ahead, _LARGE_WRITES, 16, 12, _MAX_WRITE, 1, 0, 0, *[0] * 8
            )
        if opcode == _LOOKUP:
            if body.rstrip(b"\0") != b"disk":
                raise FileNotFoundError(errno.ENOENT, "")
            return struct.pack("=4Q2I", _DISK, 0, 3600, 3600, 0, 0) + self._attributes(_DISK)
        if opcode in (_GETATTR, _SETATTR):
            return struct.pack("=Q2I", 3600, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return struct.pack("=Q2I", 0, _DIRECT_IO, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("=2QI", body)
            return self._read(offset, size)
        if opcode == _WRITE:
            _, offset, size = struct.unpack_from("=2QI", body)
            with self._lock:
                self._pending.append((offset, body[40 : 40 + size]))
                self.writes += 1
            return struct.pack("=2I", size, 0)
        if opcode == _FSYNC:
            with self._lock:
                self._flush()
            return b""
        if opcode in (_FLUSH, _RELEASE, _DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:
            content = bytearray(self._durable[offset : offset + size])
            for at, data in self._pending:
                start, end = max(at, offset), min(at + len(data), offset + len(content))
                if start < end:
                    content[start - offset : end - offset] = data[start - at : end - at]
            return bytes(content)

    def _flush(self) -> None:
        for offset, data in self._pending:
            self._durable[offset : offset + len(data)] = data
        self._pending.clear()
        self.flushes += 1

    def _attributes(self, node: int) -> bytes:
        size, mode = (len(self._durable), 0o100600) if node == _DISK else (0, 0o40700)
        return _ATTRIBUTES.pack(node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK_BYTES, 0)


@contextlib.contextmanager
def mounted_disk(directory: Path, target: Path, size_bytes: int) -> Iterator[Disk]:
    """A new disk with an empty ext4, mounted at ``target``. ``directory`` is where FUSE is mounted."""
    disk = Disk(size_bytes)
    directory.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    libc.call("mount", b"cuttable", os.fsencode(directory), b"fuse", 0, options.encode())
    server = threading.Thread(target=disk.serve, args=(fuse,), name="disk", daemon=True)
    server.start()
    try:
        with loop_device(directory / "disk") as device:
            _run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device)
            with mounted(device, target):
                yield disk
    finally:
        _run("umount", str(directory))
        server.join(10)
        os.close(fuse)


@contextlib.contextmanager
def mounted_image(image: Path, target: Path) -> Iterator[None]:
    """Mount what a power cut has left; the file system brings itself in order by its journal."""
    with loop_device(image) as device, mounted(device, target):
        yield


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """A loop device over a file."""
    device = _run("losetup", "--find", "--show", str(file)).strip()
    try:
        yield device
    finally:
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str, target: Path) -> Iterator[None]:
    """A mount of an ext4; it commits its journal each second, as one that is in use does often."""
    target.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "ext4", "-o", "commit=1", device, str(target))
    try:
        yield
    finally:
        _run("umount", str(target))


def write_sparse(path: Path, content: bytes) -> None:
    """Write a file with holes where there is nothing."""
    with path.open("wb") as file:
        file.truncate(len(content))
        empty = bytes(1 << 16)
        for at in range(0, len(content), len(empty)):
            if (piece := content[at : at + len(empty)]) != empty:
                file.seek(at)
                file.write(piece)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
