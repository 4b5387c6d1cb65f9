"""One lock per pod or container, so that acts on the same object follow one another; lists and statuses take none.

Nobody waits for ever: who does not get a lock in time is told which act holds it, and since when.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from weakref import WeakValueDictionary

from crinoid.core.api.errors import DeadlineExceeded
from crinoid.core.api.timeline import stage

PATIENCE_S = 120.0
"""As long as a kubelet waits for the answer of most calls."""


class _Held(asyncio.Lock):
    """A lock that knows what it is held for."""

    act = ""
    since_s = 0.0


class Locks:
    """Locks by key; a lock lives as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, _Held] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, key: str, act: str, patience_s: float = PATIENCE_S) -> AsyncIterator[None]:
        """Hold the lock of this key for ``act``, a noun for messages such as ``StopPodSandbox of pod X``.

        Raises DeadlineExceeded when others hold it for longer than ``patience_s``.
        """
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = _Held()
        try:
            with stage(f"wait for {lock.act}") if lock.locked() else nullcontext():
                async with asyncio.timeout(patience_s):
                    await lock.acquire()
        except TimeoutError:
            held_s = time.monotonic() - lock.since_s
            raise DeadlineExceeded(f"{act} waits for {lock.act}, which has been under way for {held_s:.0f} s") from None
        try:
            lock.act, lock.since_s = act, time.monotonic()
            yield
        finally:
            lock.release()
