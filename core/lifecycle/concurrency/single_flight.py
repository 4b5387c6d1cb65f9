"""Work that several requests share: the first one starts it, a retry that comes meanwhile joins and gets its answer.

The kubelet repeats a request whose answer it did not see; neither its cancelling nor its impatience may undo what
another caller waits for. So the work is a task of its own, owned here, and callers wait for it from outside.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.timeline import stage

LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Shared:
    task: "asyncio.Task[object]"
    callers: int = 0
    given_up: str = ""


class SharedTasks:
    """Tasks by key, at most one of each at a time. Belongs to the event loop's thread."""

    def __init__(self, what: str, orphans: Literal["finish", "cancel"] = "finish") -> None:
        """``what``: a noun for messages, such as ``pull``; ``orphans``: what happens when the last caller has left."""
        self._what = what
        self._cancels_orphans = orphans == "cancel"
        self._shared: dict[Hashable, _Shared] = {}
        self._closed = False

    def __contains__(self, key: Hashable) -> bool:
        """Return whether work of this key is under way."""
        return key in self._shared

    def __len__(self) -> int:
        return len(self._shared)

    async def settle(self) -> None:
        """Wait for all that is under way now, however it ends; what begins meanwhile is not waited for."""
        if tasks := {shared.task for shared in self._shared.values()}:
            await asyncio.wait(tasks)

    async def join(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> T:
        """Wait for the work of this key, which ``start`` begins where none is under way; answer or raise as it does.

        A caller that is cancelled leaves the work to the others. Once the last one has left, the work goes on to its
        end, and what it raises is logged; or, with ``orphans="cancel"``, it is cancelled, and the caller is held until
        that is done. Raises Unavailable when ``close`` or ``give_up`` was called before or meanwhile.
        """
        # Work that is being cancelled has no answer to give any more: it ends first, so that the same is never at work
        # twice, and then begins anew.
        while (shared := self._shared.get(key)) is not None and shared.task.cancelling():
            await asyncio.wait({shared.task})
        joins = f"{self._what.removesuffix(' of')} that another request has begun"
        waits = nullcontext() if shared is None else stage(joins)
        shared = shared or self._begin(key, start)
        shared.callers += 1
        try:
            with waits:
                return cast("T", await asyncio.shield(shared.task))
        except asyncio.CancelledError:
            why = "the daemon stops" if self._closed else shared.given_up
            if why and shared.task.cancelled() and not _is_being_cancelled():
                raise Unavailable(f"{self._what} {key} was given up: {why}") from None
            await self._leave(shared)
            raise
        finally:
            shared.callers -= 1

    def give_up(self, fits: Callable[[Hashable], bool], why: str) -> None:
        """Cancel work under way whose key fits; those who wait for it are told ``why``."""
        for key, shared in self._shared.items():
            if fits(key) and not shared.task.done():
                shared.given_up = why
                shared.task.cancel()

    async def close(self) -> None:
        """Cancel all that is under way and wait until it has ended; refuse what comes later. Idempotent."""
        self._closed = True
        tasks = [shared.task for shared in self._shared.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, shared: _Shared) -> None:
        if self._cancels_orphans and shared.callers == 1 and not shared.task.done():
            shared.task.cancel()
            await asyncio.wait({shared.task})

    def _begin(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> _Shared:
        if self._closed:
            raise Unavailable(f"{self._what} {key} is refused: the daemon stops")

        async def work() -> object:
            return await start()

        shared = self._shared[key] = _Shared(asyncio.create_task(work(), name=f"{self._what} {key}"))
        shared.task.add_done_callback(lambda task: self._forget(key, task))
        return shared

    def _forget(self, key: Hashable, task: "asyncio.Task[object]") -> None:
        """Make room for the next of this key; reading the error keeps asyncio from calling it lost."""
        del self._shared[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.debug("%s %s failed: %s", self._what, key, error)


def _is_being_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
