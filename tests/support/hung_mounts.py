"""A FUSE mount that never answers, as a volume's is whose server hangs; until it is aborted.

No fusermount and no libfuse: /dev/fuse is opened and mounted, FUSE_INIT is answered, and every later request is taken
and left without an answer. Who waits for one then hangs uninterruptibly: not even SIGKILL ends the wait. With
``takes_requests=False`` they stay in the queue, where SIGKILL does end the wait, as on a hard NFS mount.

``hangs`` may say which processes get no answer, by their names, and ``hangs_at`` which requests, by their numbers in
the kernel's header; else it is an empty directory.
"""

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_DEVICE = Path("/dev/fuse")
_REQUEST_BYTES = 1 << 17
_HEADER = struct.Struct("<IIQ")  # length, opcode, unique of fuse_in_header
_ANSWER = struct.Struct("<IiQ")
_INIT = struct.Struct("<IIIIHHIIHHI7I")  # fuse_init_out of protocol 7.23 and later
_ATTR = struct.Struct("<QII6Q10I")  # fuse_attr_out
_LOOKUP, _FORGET, _GETATTR, _STATFS, _INTERRUPT, _BATCH_FORGET = 1, 2, 3, 17, 36, 42
_ENOENT, _ENOSYS = 2, 38
MKDIR, OPEN = 9, 14
_PROGRAM = 2  # its inode
_ATTR_HEAD = 16  # what fuse_attr_out has before fuse_attr
_MNT_DETACH = 2


class HungMount:
    """A mounted FUSE file system without answers; ``abort`` ends it, and lets everybody who waits go on (ENOTCONN)."""

    def __init__(self, path: Path, takes_requests: bool) -> None:
        self.path = path
        self.hangs: Callable[[str], bool] = lambda _name: True
        self.hangs_at: frozenset[int] = frozenset()
        """Empty: at all of them."""
        self.has_programs = False
        """Whether every name in the directory is that of a program."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self._libc.mount(b"hung", os.fsencode(path), b"fuse.hung", 0, options) != 0:
            error = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(error, os.strerror(error), str(path))
        self.requests = 0
        self._answer_init()
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._taker = threading.Thread(target=self._take, daemon=True) if takes_requests else None
        if self._taker is not None:
            self._taker.start()

    def abort(self) -> None:
        """End the connection and unmount. Idempotent."""
        if self._fd < 0:
            return
        os.close(self._stopped)
        if self._taker is not None:
            self._taker.join()  # closing the descriptor aborts only once nobody reads from it
        os.close(self._fd)
        os.close(self._stop)
        self._fd = -1
        self._libc.umount2(os.fsencode(self.path), _MNT_DETACH)

    def _answer_init(self) -> None:
        _, _, unique = _HEADER.unpack_from(os.read(self._fd, _REQUEST_BYTES))
        body = _INIT.pack(7, 31, 0, 0, 12, 10, 1 << 16, 1, 0, 0, 0, *([0] * 7))
        os.write(self._fd, _ANSWER.pack(_ANSWER.size + len(body), 0, unique) + body)

    def _take(self) -> None:
        os.set_blocking(self._fd, False)
        poll = select.poll()
        for fd in (self._fd, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop in ready:
                return
            with contextlib.suppress(BlockingIOError):
                self._treat(os.read(self._fd, _REQUEST_BYTES))

    def _treat(self, request: bytes) -> None:
        _, opcode, unique = _HEADER.unpack_from(request)
        (pid,) = struct.unpack_from("<I", request, _HEADER.size + 16)
        if opcode in (_FORGET, _INTERRUPT, _BATCH_FORGET):
            return
        if (not self.hangs_at or opcode in self.hangs_at) and self.hangs(_name_of(pid)):
            self.requests += 1
            return
        (node,) = struct.unpack_from("<Q", request, _HEADER.size)
        if self.has_programs and (opcode == _LOOKUP or node == _PROGRAM):
            body, error = _answer_of_program(opcode)
        else:
            body, error = _answer_of_empty_directory(opcode)
        with contextlib.suppress(FileNotFoundError):  # it was interrupted
            os.write(self._fd, _ANSWER.pack(_ANSWER.size + len(body), -error, unique) + body)


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _answer_of_empty_directory(opcode: int) -> tuple[bytes, int]:
    if opcode == _GETATTR:
        return _ATTR.pack(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0), 0
    if opcode == _STATFS:
        return bytes(80), 0
    return b"", _ENOENT if opcode == _LOOKUP else _ENOSYS


def _answer_of_program(opcode: int) -> tuple[bytes, int]:
    attributes = _ATTR.pack(0, 0, 0, _PROGRAM, 100, 1, 0, 0, 0, 0, 0, 0, 0o100755, 1, 0, 0, 0, 4096, 0)
    if opcode == _GETATTR:
        return attributes, 0
    if opcode == _LOOKUP:
        return struct.pack("<4Q2I", _PROGRAM, 0, 0, 0, 0, 0) + attributes[_ATTR_HEAD:], 0
    return b"", _ENOSYS


@contextlib.contextmanager
def hung_mount(path: Path, takes_requests: bool = True) -> Iterator[HungMount]:
    """A mount at a new directory for the block; skips the test where FUSE can't be had."""
    path.mkdir(parents=True)
    try:
        made = HungMount(path, takes_requests)
    except OSError as error:
        pytest.skip(f"no FUSE mount can be made here: {error}")
    try:
        yield made
    finally:
        made.abort()
