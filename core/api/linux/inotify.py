"""Watches a directory for files that are complete: closed after writing, or moved into it (inotify(7))."""

import asyncio
import os
import struct
from collections import deque
from pathlib import Path
from types import TracebackType

from crinoid.core.api.linux import libc

_CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLYDIR = 0x1000000
_ISDIR = 0x40000000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16

EVERYTHING = ""
"""The name that stands for "look at the whole directory anew": the kernel dropped events."""


class DirectoryWatch:
    """An async iterator of file names; use it in ``with``, on the loop that reads it.

    The watch stands from construction on, so what is done after that is not missed. With ``removals`` names of files
    that were removed or moved away come too, with ``directories`` those of directories that were made. Iteration ends
    when the directory itself is gone, or at ``close``. One reader at a time. Raises OSError for a path that is no
    directory.
    """

    def __init__(self, directory: Path, removals: bool = False, directories: bool = False) -> None:
        self._names: deque[str] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._fd = libc.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mask = _CLOSE_WRITE | _MOVED_TO | _ONLYDIR
            mask |= (_DELETE | _MOVED_FROM if removals else 0) | (_CREATE if directories else 0)
            libc.call("inotify_add_watch", self._fd, os.fsencode(directory), mask, path=directory)
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._read)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "DirectoryWatch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> "DirectoryWatch":
        return self

    async def __anext__(self) -> str:
        while not self._names:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._names.popleft()

    def close(self) -> None:
        """End the watch, and the iteration. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._ended = True
        self._changed.set()

    def _read(self) -> None:
        try:
            events = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            _, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            self._take(mask, events[at - length : at])
        self._changed.set()

    def _take(self, mask: int, padded_name: bytes) -> None:
        if mask & _IGNORED:
            self._ended = True
        elif mask & _OVERFLOW:
            self._names.append(EVERYTHING)
        elif not mask & _CREATE or mask & _ISDIR:  # a file that was made is told when it is closed
            self._names.append(os.fsdecode(padded_name.rstrip(b"\0")))
