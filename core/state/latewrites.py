"""What has happened and could not be written: it holds in memory, and is written again and again until it is on disk.

``store`` puts the ends of containers and pods here when the disk is full, read-only or broken. A daemon that is killed
before it could write them learns them once more from the runtimes.
"""

import asyncio
import logging
from collections.abc import Callable

from crinoid.core.api.errors import CrinoidError

LOG = logging.getLogger(__name__)
FIRST_S, MOST_S = 1.0, 30.0


class LateWrites:
    """Writes by key, each tried until it succeeds. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._writes: dict[tuple[str, str], Callable[[], object]] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._writes)

    def add(self, key: tuple[str, str], write: Callable[[], object]) -> None:
        """Have ``write`` called until it raises nothing; it takes the place of an earlier one of this key."""
        self._writes[key] = write
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_trying(), name="late writes")

    def discard(self, key: tuple[str, str]) -> None:
        """Forget what is written by now, or need not be any more."""
        self._writes.pop(key, None)

    def close(self) -> None:
        """Try a last time; the next start finds out what could not be written. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        self._try()
        self._writes.clear()

    async def _keep_trying(self) -> None:
        delay_s = FIRST_S
        while self._writes:
            await asyncio.sleep(delay_s)
            self._try()
            delay_s = min(2 * delay_s, MOST_S)

    def _try(self) -> None:
        for key, write in list(self._writes.items()):
            try:
                write()
            except CrinoidError as error:
                LOG.warning("%d things that happened can't be recorded yet: %s", len(self._writes), error.message)
                return
            self._writes.pop(key, None)
