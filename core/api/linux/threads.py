"""Threads: a fresh one for what changes the thread itself (namespaces, directory), a pooled one for what blocks."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from crinoid.core.api.errors import DeadlineExceeded, ResourceExhausted
from crinoid.core.api.linux.bulkheads import Call, current_call, has_owner, start_thread

T = TypeVar("T")
_LEAVE_AFTER_S = 5.0
"""How long a call on somebody's behalf may go on once nobody waits for it any more, before it is left behind."""
_here = threading.local()


def is_fresh() -> bool:
    """Return whether this thread ends with the function it was made for: what it changes of itself ends with it."""
    return getattr(_here, "fresh", False)


class _Call(Generic[T]):
    """One call and what came of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.result: T
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001  # it is raised again where the result is wanted
            self.error = error


def call_in_fresh_thread(function: Callable[[], T]) -> T:
    """Call the function in a new thread that ends with it; blocks. Raises what the function raises, and
    ResourceExhausted."""
    pending = _Call(function)

    def work() -> None:
        _here.fresh = True
        pending()

    thread = threading.Thread(target=work, name="fresh", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceExhausted(f"no thread can be started: {error}") from error
    thread.join()
    if pending.error is not None:
        raise pending.error
    return pending.result


def _no_interrupt() -> None:
    """For functions that can't be told to hurry."""


async def call_in_thread(function: Callable[[], T], interrupt: Callable[[], None] = _no_interrupt) -> T:
    """Call a function in one of the loop's threads; a caller that is cancelled waits until the function has ended.

    So what the function works on, such as an open file, can safely be undone in a ``finally`` around this.
    ``interrupt`` is called once when the caller is cancelled: it may tell a long function to give up. A call on
    somebody's behalf (``bulkheads.on_behalf_of``) that does not end within seconds then is left behind: it hangs.
    """
    running = asyncio.get_running_loop().run_in_executor(None, function)
    return await _outlast(running, interrupt, _LEAVE_AFTER_S if has_owner() else math.inf)


async def call_within(timeout_s: float, what: str, function: Callable[[], T]) -> T:
    """Call a function that goes to other people's paths in one of the loop's threads, for at most ``timeout_s``.

    Then its thread is left behind, and DeadlineExceeded is raised: it begins with ``what`` and names the path that the
    thread said it was going to (``bulkheads.touching``). A caller that is cancelled leaves the thread behind, too.
    """
    calls: list[Call | None] = []

    def work() -> T:
        calls.append(current_call())
        return function()

    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        async with asyncio.timeout(timeout_s) as timeout:
            return await running
    except TimeoutError:
        if not timeout.expired():
            raise  # the function's own
        why = str(calls[0]) if calls and calls[0] else f"no thread was free for {timeout_s:g} s"
        raise DeadlineExceeded(f"{what}: {why}") from None


async def run_in_fresh_thread(function: Callable[[], T]) -> T:
    """As ``call_in_thread``, in a new thread that ends with the function: it may enter namespaces. Raises
    ResourceExhausted, too."""
    loop = asyncio.get_running_loop()
    running: asyncio.Future[T] = loop.create_future()
    pending = _Call(function)

    def finish() -> None:
        if pending.error is not None:
            running.set_exception(pending.error)
        else:
            running.set_result(pending.result)

    def work() -> None:
        _here.fresh = True
        pending()
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waits
            loop.call_soon_threadsafe(finish)

    start_thread(work)
    return await _outlast(running, _no_interrupt, math.inf)


async def _outlast(running: "asyncio.Future[T]", interrupt: Callable[[], None], leave_after_s: float) -> T:
    """Wait for what can't be cancelled; pass a cancellation on when it is over, or hangs."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        interrupt()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + leave_after_s
        while not running.done() and loop.time() < until_s:
            with contextlib.suppress(asyncio.CancelledError):
                limit_s = None if math.isinf(until_s) else max(0.0, until_s - loop.time())
                await asyncio.wait({running}, timeout=limit_s)
        running.cancel()  # nothing happens to one that is done; else its executor learns that it is left behind
        if not running.cancelled():
            running.exception()  # read, so that asyncio does not call it lost
        raise
