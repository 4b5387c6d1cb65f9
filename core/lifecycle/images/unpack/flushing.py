"""What is done each time that 16 MiB of an archive have gone by: a flush, and a look how full the disk is.

A flush has what was unpacked so far written to disk while the rest is unpacked, so that the commit waits for little:
the disk is idle, otherwise, as long as the processors are busy, and the other way round. One that fails fails the
layer: the kernel tells an error of writing back only once, and the commit's own sync would not hear of it.
"""

import os
import threading
from _queue import SimpleQueue
from collections.abc import Iterator

from crinoid.core.api.archives import TooLarge
from crinoid.core.lifecycle.images.unpack import syscalls

STEP_BYTES = 16 << 20


class Flusher:
    """Flushes the file system of ``fd`` each time that 16 MiB have gone by; never waits but in ``finish``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._flush, name="flush", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass chunks on, and count."""
        left = STEP_BYTES
        for chunk in chunks:
            yield chunk
            left -= len(chunk)
            if left <= 0 and self._wanted.empty():
                self._wanted.put(True)
                left = STEP_BYTES

    def finish(self) -> None:
        """Wait for a flush that is under way. Raises OSError where one failed."""
        self._wanted.put(False)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        try:
            while self._wanted.get():
                syscalls.sync_file_system(self._fd)
        except OSError as error:
            self._error = error


class Reserve:
    """Keeps a share of the file system of ``fd`` free for everybody else who writes there.

    A few kilobytes of gzip can become gigabytes of file. Who else fills the disk meanwhile counts as well: what is
    looked at is what is left, and not what was unpacked.
    """

    def __init__(self, fd: int, percent: float) -> None:
        self._fd = fd
        self._percent = percent

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass chunks on, looking before the first and after each 16 MiB. Raises TooLarge."""
        left = 0
        for chunk in chunks:
            left -= len(chunk)
            if left <= 0:
                if shortage := find_shortage(self._fd, self._percent):
                    raise TooLarge(shortage)
                left = STEP_BYTES
            yield chunk


def find_shortage(fd: int, percent: float) -> str:
    """Return what says that less than ``percent`` of the file system of ``fd`` is free; empty where more is."""
    found = os.fstatvfs(fd)
    for what, free, of in (("space", found.f_bavail, found.f_blocks), ("inodes", found.f_favail, found.f_files)):
        if free * 100 < of * percent:
            return (
                f"less than {percent:g} % of the {what} of the file system that it is written to would be left free; "
                "make room, or lower images.keep_free_percent"
            )
    return ""
