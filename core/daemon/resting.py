"""What the daemon does once it rests: it gives back the memory that its start, and each burst of work, took."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from crinoid.core.api.linux import memory

LOG = logging.getLogger(__name__)

Observer = Callable[[str, float, str], None]
"""Is told an RPC, the seconds that it took, and the name of its status."""

_QUIET_S = 3.0
_WORK = frozenset({"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer"}) | {
    *("StopContainer", "RemoveContainer", "PullImage", "RemoveImage", "RestorePod", "CheckpointContainer"),
}
"""What a kubelet asks for again and again, probes among it, is no work: it may run on what is left."""


def give_back() -> None:
    """Give back what can be had again in a millisecond or two. Takes milliseconds."""
    memory.trim()
    memory.release_programs()


class Rest:
    """Waits for the ends of bursts of work; sleeps while there is none.

    ``act`` runs in a thread once nothing was noted for ``quiet_s`` seconds. The start is work, too.
    """

    def __init__(
        self,
        act: Callable[[], None] = give_back,
        quiet_s: float = _QUIET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._act = act
        self._quiet_s = quiet_s
        self._clock = clock
        self._works = asyncio.Event()
        self._last = 0.0

    def noting(self, observe: Observer) -> Observer:
        """Return an observer that takes in the end of a call, and tells another one."""

        def note(rpc: str, seconds: float, code: str) -> None:
            if rpc in _WORK:
                self._begin()
            observe(rpc, seconds, code)

        return note

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch for rests until the end of the context."""
        self._begin()
        task = asyncio.create_task(self._watch(), name="resting")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _begin(self) -> None:
        self._last = self._clock()
        self._works.set()

    async def _watch(self) -> None:
        while True:
            await self._works.wait()
            while (left := self._last + self._quiet_s - self._clock()) > 0:  # noqa: ASYNC110  # work wakes it only once
                await asyncio.sleep(left)
            self._works.clear()
            try:
                await asyncio.to_thread(self._act)
            except (MemoryError, OSError) as error:  # a hardened system may not let libffi make callbacks
                LOG.warning("memory could not be given back to the system: %r", error)
                return
