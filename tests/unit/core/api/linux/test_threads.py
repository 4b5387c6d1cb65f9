"""A fresh thread per call that changes the thread; a cancelled caller waits for its thread."""

import asyncio
import threading
import time

import pytest

from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.api.linux.threads import call_in_fresh_thread, call_in_thread, run_in_fresh_thread


def test_a_fresh_thread_is_new_and_gone_after() -> None:
    names = [call_in_fresh_thread(threading.get_native_id) for _ in range(2)]
    assert threading.get_native_id() not in names
    assert not [thread for thread in threading.enumerate() if thread.native_id in names]


def test_errors_come_out_of_a_fresh_thread() -> None:
    with pytest.raises(ZeroDivisionError):
        call_in_fresh_thread(lambda: 1 // 0)


async def test_answers_and_errors_come_out_of_a_thread() -> None:
    assert await call_in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await call_in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancelled_caller_waits_for_its_thread(cancels: int) -> None:
    ended = threading.Event()

    def work() -> None:
        time.sleep(0.1)
        ended.set()

    task = asyncio.create_task(call_in_thread(work))
    for _ in range(cancels):
        await asyncio.sleep(0.01)
        task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert ended.is_set()


async def test_a_cancelled_callers_thread_is_told_to_give_up() -> None:
    stop = threading.Event()
    task = asyncio.create_task(call_in_thread(lambda: stop.wait(10), stop.set))
    await asyncio.sleep(0.01)
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait({task})
    assert task.cancelled()


async def test_a_fresh_thread_that_is_waited_for() -> None:
    name = await run_in_fresh_thread(threading.get_native_id)
    assert name != threading.get_native_id()
    with pytest.raises(ZeroDivisionError):
        await run_in_fresh_thread(lambda: 1 // 0)


async def test_without_threads_an_error_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(ResourceExhausted, match="no thread can be started"):
        call_in_fresh_thread(int)
    with pytest.raises(ResourceExhausted, match="no thread can be started"):
        await run_in_fresh_thread(int)


async def test_a_cancelled_caller_waits_for_its_fresh_thread() -> None:
    ended = threading.Event()

    def work() -> None:
        time.sleep(0.1)
        ended.set()

    task = asyncio.create_task(run_in_fresh_thread(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
