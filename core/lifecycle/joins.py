"""Work that several requests share: the first one starts it, a retry that comes meanwhile joins and gets its answer.

The kubelet repeats a request whose answer it did not see; neither its cancelling nor its impatience may undo what
another caller waits for. So the work is a task of its own, owned here, and callers wait for it from outside.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Literal, TypeVar, cast

from crinoid.core.api.errors import Unavailable

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class SharedTasks:
    """Tasks by key, at most one of each at a time. Belongs to the event loop's thread."""

    def __init__(self, what: str, orphans: Literal["finish", "cancel"] = "finish") -> None:
        """``what`` is a noun for messages, such as ``pull``; ``orphans``: what happens once the last caller has left."""
        self._what = what
        self._cancels_orphans = orphans == "cancel"
        self._tasks: dict[Hashable, asyncio.Task[object]] = {}
        self._callers: Counter[asyncio.Task[object]] = Counter()
        self._closed = False

    def __contains__(self, key: Hashable) -> bool:
        """Tell whether work of this key is under way."""
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> T:
        """Wait for the work of this key, which ``start`` begins where none is under way; answer or raise as it does.

        A caller that is cancelled leaves the work to the others. Once the last one has left, the work goes on to its
        end, and what it raises is logged; or, with ``orphans="cancel"``, it is cancelled, and the caller is held until
        that is done. Raises Unavailable when ``close`` was called before or meanwhile.
        """
        while (task := self._tasks.get(key)) is not None and task.cancelling():
            await asyncio.wait({task})
        task = task or self._begin(key, start)
        self._callers[task] += 1
        try:
            return cast("T", await asyncio.shield(task))
        except asyncio.CancelledError:
            if self._closed and task.cancelled() and not _is_being_cancelled():
                raise Unavailable(f"{self._what} {key} was given up: the daemon stops") from None
            await self._leave(task)
            raise
        finally:
            self._callers[task] -= 1

    async def close(self) -> None:
        """Cancel all that is under way and wait until it has ended; refuse what comes later. Idempotent."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, task: "asyncio.Task[object]") -> None:
        if self._cancels_orphans and self._callers[task] == 1 and not task.done():
            task.cancel()
            await asyncio.wait({task})

    def _begin(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> "asyncio.Task[object]":
        if self._closed:
            raise Unavailable(f"{self._what} {key} is refused: the daemon stops")

        async def work() -> object:
            return await start()

        task = self._tasks[key] = asyncio.create_task(work(), name=f"{self._what} {key}")
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: Hashable, task: "asyncio.Task[object]") -> None:
        """Make room for the next of this key; reading the error keeps asyncio from calling it lost."""
        del self._tasks[key], self._callers[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.debug("%s %s failed: %s", self._what, key, error)


def _is_being_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
