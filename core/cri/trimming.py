"""Gives memory back to the kernel after calls and streams that took much of it."""

import asyncio
import os
from pathlib import Path

from crinoid.core.api.linux import memory

_GROWN_BYTES = 16 << 20
_PAUSE_S = 1.0
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Trimmer:
    """Trims, soon after calls or connections have ended, where the process is much larger than after the last time.

    The C library keeps what was freed, and pages that are free in between it never gives back by itself. Trimming takes
    a millisecond for each ten MiB, so it is done once a second at most.
    """

    def __init__(self) -> None:
        self._least_bytes = _resident_bytes()  # when it was smallest, since the last time
        self._timer: asyncio.TimerHandle | None = None

    def note(self) -> None:
        """A call or connection has ended."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._look)

    def close(self) -> None:
        """Stop. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        size = _resident_bytes()
        self._least_bytes = min(self._least_bytes, size)
        if size - self._least_bytes > _GROWN_BYTES:
            memory.trim()
            self._least_bytes = _resident_bytes()


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
