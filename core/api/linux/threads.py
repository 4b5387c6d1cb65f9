"""Threads: a fresh one for what changes the thread itself (namespaces, folder), a pooled one for what only blocks."""

import _thread
import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


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
    """Call the function in a new thread that ends with it; blocks. Raises what the function raises."""
    pending = _Call(function)
    thread = threading.Thread(target=pending, name="fresh", daemon=True)
    thread.start()
    thread.join()
    if pending.error is not None:
        raise pending.error
    return pending.result


def _no_interrupt() -> None:
    """For functions that can't be told to hurry."""


async def call_in_thread(function: Callable[[], T], interrupt: Callable[[], None] = _no_interrupt) -> T:
    """Call a function in one of the loop's threads; a caller that is cancelled waits until the function has ended.

    So what the function works on, such as an open file, can safely be undone in a ``finally`` around this.
    ``interrupt`` is called once when the caller is cancelled: it may tell a long function to give up.
    """
    return await _outlast(asyncio.get_running_loop().run_in_executor(None, function), interrupt)


async def run_in_fresh_thread(function: Callable[[], T]) -> T:
    """As ``call_in_thread``, in a new thread that ends with the function: it may enter namespaces."""
    loop = asyncio.get_running_loop()
    running: asyncio.Future[T] = loop.create_future()
    pending = _Call(function)

    def finish() -> None:
        if pending.error is not None:
            running.set_exception(pending.error)
        else:
            running.set_result(pending.result)

    def work() -> None:
        pending()
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waits
            loop.call_soon_threadsafe(finish)

    # Not by threading: its start() waits until the thread has begun, for milliseconds where the machine is busy.
    _thread.start_new_thread(work, ())
    return await _outlast(running, _no_interrupt)


async def _outlast(running: "asyncio.Future[T]", interrupt: Callable[[], None]) -> T:
    """Wait for what can't be cancelled; pass a cancellation on when it is over."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        interrupt()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # read, so that asyncio does not call it lost
        raise
