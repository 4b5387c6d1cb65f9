"""The hook calls that are under way, each in a task of its own, and those that were abandoned.

A driver may swallow its cancellation, raise what ends a loop, or hold the loop's thread. ``calls`` runs every hook
here, so that its caller gets an answer in bounded time whatever the driver does; the daemon's watchdog reads here,
from its own thread, which hook stands in the way.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from crinoid.core.api.errors import DeadlineExceeded, DriverError
from crinoid.core.api.linux.bulkheads import has_owner, on_behalf_of
from crinoid.core.api.sessions import Session

LOG = logging.getLogger("crinoid.slots")
GRACE_S = 5.0
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class HookCall:
    """One call of a driver's code. ``label`` names the slot; times are of ``time.monotonic``."""

    label: str
    hook: str
    started_s: float = field(default_factory=time.monotonic)
    abandoned_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.label} {self.hook}"


@dataclass(slots=True)
class Outcome(Generic[T]):
    """What came of a driver's code: an answer, or whatever it raised."""

    answer: T | None = None
    error: BaseException | None = None


class HookCalls:
    """All calls of a daemon's drivers. Written on the loop's thread; another may read."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        """``grace_s``: how long a hook that was cancelled may take to clean up before it is left behind."""
        self._grace_s = grace_s
        self._running: dict[asyncio.Task[Any], HookCall] = {}
        self._abandoned: dict[asyncio.Task[Any], HookCall] = {}
        self._blocking: HookCall | None = None
        self._closing: set[asyncio.Task[Any]] = set()
        self.abandoned_ever = 0

    @property
    def running(self) -> tuple[HookCall, ...]:
        """The calls that somebody waits for."""
        return tuple(self._running.copy().values())

    @property
    def abandoned(self) -> tuple[HookCall, ...]:
        """The calls that were cancelled and go on; nobody waits for them any more."""
        return tuple(self._abandoned.copy().values())

    def holding(self, task: "asyncio.Task[Any] | None") -> HookCall | None:
        """Return the call whose code has the loop's thread, where ``task`` is what the loop runs now."""
        if self._blocking is not None or task is None:
            return self._blocking
        return self._running.get(task) or self._abandoned.get(task)

    @contextmanager
    def blocking(self, label: str, hook: str) -> Iterator[None]:
        """Note that the block runs a driver's code that is no coroutine on the loop's thread."""
        before, self._blocking = self._blocking, HookCall(label, hook)
        try:
            yield
        finally:
            self._blocking = before

    async def run(self, call: HookCall, answer: Awaitable[T], limit_s: float) -> T:
        """Await a driver's answer in a task of its own; see ``finish``.

        Threads of a hook that works for nobody count against its slot: what hangs there takes none of the daemon's own.
        """
        # A task of its own, as a driver may swallow its cancellation: then the task is left behind, and not the caller.
        with nullcontext() if has_owner() else on_behalf_of(call.label):
            task = asyncio.create_task(contain(answer), name=str(call))
        is_taken = False
        try:
            found = await self.finish(call, task, task, limit_s)
            is_taken = True
            return found
        finally:
            # The driver's answer may come when its caller has gone: a session that nobody would ever close.
            if not is_taken:
                task.add_done_callback(self._close_unclaimed)
            if task.cancelled() and (close := getattr(answer, "close", None)):
                close()  # it was cancelled before it began

    async def finish(
        self, call: HookCall, task: "asyncio.Task[Any]", step: "asyncio.Future[Outcome[T]]", limit_s: float
    ) -> T:
        """Wait for ``step``, which ``task`` brings (or is), for ``limit_s`` (``inf``: for ever); then cancel it.

        Cancelled, the driver has the grace to clean up, and what it answers or raises in that time counts. One that
        goes on for longer is left behind and logged. Raises DeadlineExceeded; DriverError for a cancellation that
        nobody asked for and for every other BaseException; CancelledError only when the caller itself is cancelled.
        """
        self._running[task] = call
        is_late = False
        try:
            # Not wait_for, which waits for what it has cancelled, however long that takes.
            await asyncio.wait({step}, timeout=None if math.isinf(limit_s) else limit_s)
            is_late = not step.done()
        finally:
            if not step.done():
                await self._end(task, call)
            self._running.pop(task, None)
        if not step.done() and not task.done():
            raise DeadlineExceeded(
                f"no answer after {limit_s:g} s; it was cancelled and did not end within {self._grace_s:g} s more, so"
                " it was left behind and may still be doing what it was asked for"
            )
        # What came in the grace counts, also an answer: a container that was made just then has to be known.
        is_told = step.done() and not step.cancelled()
        outcome: Outcome[T] = step.result() if is_told else Outcome(error=asyncio.CancelledError())
        if is_late and isinstance(outcome.error, asyncio.CancelledError):
            raise DeadlineExceeded(f"no answer after {limit_s:g} s") from outcome.error
        if outcome.error is not None:
            raise outcome.error if isinstance(outcome.error, Exception) else foreign(outcome.error)
        return cast("T", outcome.answer)

    def _close_unclaimed(self, task: "asyncio.Task[Outcome[Any]]") -> None:
        """Close a session or stream that a hook has opened for a caller who has gone meanwhile, or lost patience."""
        answer = None if task.cancelled() else task.result().answer
        if isinstance(answer, Session | AsyncIterator):
            closing = asyncio.create_task(contain(_close(answer)), name=f"{task.get_name()}: close what nobody takes")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _end(self, task: "asyncio.Task[Any]", call: HookCall) -> None:
        """Cancel a call, wait for it within the grace, and else leave it behind; a second cancellation cuts it."""
        task.cancel()
        try:
            await asyncio.wait({task}, timeout=self._grace_s)
        finally:
            if not task.done():
                call.abandoned_s = time.monotonic()
                self._abandoned[task] = call
                self.abandoned_ever += 1
                asyncio.tasks._unregister_task(task)  # else the end of the loop would wait for it; asyncio documents it
                lasted_s = call.abandoned_s - call.started_s
                LOG.error("%s goes on although it was cancelled: it is left behind after %.1f s", call, lasted_s)
                task.add_done_callback(lambda _: self._note_end(task, call))

    def _note_end(self, task: "asyncio.Task[Any]", call: HookCall) -> None:
        self._abandoned.pop(task, None)
        LOG.warning("%s, which was left behind, has ended after %.1f s", call, time.monotonic() - call.started_s)


def foreign(error: BaseException) -> DriverError:
    """Make an error of our tree of what ends a task, a loop or a process: a driver can end none of them."""
    why = ", though nobody cancelled it" if isinstance(error, asyncio.CancelledError) else ""
    failure = DriverError(f"{describe(error)}{why}")
    failure.__cause__ = error
    return failure


def describe(error: BaseException) -> str:
    """Name an error and say its text, which may be empty, or not to be had."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001  # a driver's error may do what it likes
        text = f"its text can't be had, as that raises {type(failure).__name__}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _close(answer: object) -> None:
    close = getattr(answer, "aclose", None) or getattr(answer, "close", None)
    if close is not None:
        await close()


async def contain(answer: Awaitable[T]) -> Outcome[T]:
    """Keep whatever is raised from asyncio, which lets some of it out of the loop, and the daemon end."""
    try:
        return Outcome(await answer)
    except BaseException as error:  # noqa: BLE001  # it is told to whoever called
        return Outcome(error=error)
