"""Where timelines are kept: a ring of files with a JSON object a line, of which the oldest goes when there is no room.

Nothing here is synced and nothing here is needed: what was written outlives ``kill -9`` in the kernel's memory, and a
power cut may take the last seconds. So whatever goes wrong is logged once, and the daemon goes on without; a line that
is damaged is passed over. ``timelines`` has what a line says.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux import rights
from crinoid.core.api.linux.files import read_regular

LOG = logging.getLogger(__name__)
SEGMENTS = 8
MAX_LINE_BYTES = 64 << 10
LEAST_FREE_BYTES = 64 << 20
"""Where the file system has less room, nothing is written: there is more important use for it."""
_PAUSE_S = 60.0
_NAME = re.compile(r"(\d{8})\.jsonl")


class TimelineLog:
    """The files of a directory, ``size_bytes`` of all together at most. Belongs to the event loop's thread."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        """``size_bytes`` 0: nothing is kept."""
        self._directory = directory
        self._segment_bytes = size_bytes // SEGMENTS
        self._fd: int | None = None
        self._number = 0
        self._written = 0
        self._silent_until_s = 0.0 if size_bytes else float("inf")

    @property
    def is_off(self) -> bool:
        """Return whether nothing is kept, by configuration."""
        return not self._segment_bytes

    def append(self, line: bytes) -> None:
        """Write a line, which has no newline in it; never raises. One that is too long is left out."""
        if len(line) > MAX_LINE_BYTES or time.monotonic() < self._silent_until_s:
            return
        try:
            if self._fd is None or self._written + len(line) > self._segment_bytes:
                self._open_next(len(line))
            assert self._fd is not None
            found = os.fstatvfs(self._fd)
            if found.f_bavail * found.f_frsize >= LEAST_FREE_BYTES:
                self._written += os.write(self._fd, line + b"\n")
        except OSError as error:
            LOG.warning("timelines can't be kept in %s for now: %s", self._directory, error)
            self.close()
            self._silent_until_s = time.monotonic() + _PAUSE_S

    def close(self) -> None:
        """Close the file; a later line opens it again. Idempotent."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def _open_next(self, needed: int) -> None:
        """Go on in the last file where it has room, else in a new one, and remove the oldest beyond the bound.

        A power cut may have torn the last line: a newline ends it, so that the next one can be read.
        """
        self.close()
        rights.make_directories(self._directory)
        numbers = _numbers(self._directory)
        self._number = max(numbers, default=0)
        size = self._path(self._number).lstat().st_size if numbers else self._segment_bytes
        if size + needed > self._segment_bytes:
            self._number += 1
            size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self._path(self._number), flags, rights.FILE)
        self._written = size
        if size:
            self._written += os.write(self._fd, b"\n")
        for number in sorted({*numbers, self._number})[:-SEGMENTS]:
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return _path(self._directory, number)


def read_lines(directory: Path, needles: tuple[bytes, ...] = ()) -> Iterator[bytes]:
    """Return all lines with one of ``needles`` in them (all, where there are none), the oldest first. Blocks.

    A file that can't be read is passed over, with a word in the log.
    """
    for number in _numbers(directory):
        try:
            content = read_regular(_path(directory, number), 1 << 30, follow=False)
        except FileNotFoundError:  # removed as the oldest meanwhile
            continue
        except Exception as error:  # noqa: BLE001  # whatever it is, the other files tell something
            LOG.warning("%s can't be read: %s", _path(directory, number), error)
            continue
        for line in content.split(b"\n"):
            if line and (not needles or any(needle in line for needle in needles)):
                yield line


def _numbers(directory: Path) -> list[int]:
    try:
        names = os.listdir(directory)  # noqa: PTH208  # names alone
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.jsonl"
