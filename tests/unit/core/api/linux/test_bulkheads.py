"""Threads with a bound for each owner: what hangs takes none from others, and is left behind."""

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from crinoid.core.api.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from crinoid.core.api.linux import threads
from crinoid.core.api.linux.bulkheads import OwnerThreads, on_behalf_of, touching
from crinoid.core.api.linux.threads import call_in_thread, call_within
from crinoid.core.api.testing.patience import patient


@pytest.fixture
def pool() -> Iterator[OwnerThreads]:
    made = OwnerThreads(own=3, per_owner=2)
    yield made
    made.shutdown()


@contextlib.contextmanager
def hanging() -> Iterator[tuple[Callable[[], bool], threading.Event]]:
    """A function that hangs until the block ends, and an event that it has begun."""
    end, begun = threading.Event(), threading.Event()

    def hang() -> bool:
        touching("/mnt/dead")
        begun.set()
        return end.wait(60)

    try:
        yield hang, begun
    finally:
        end.set()


def test_results_and_errors_come_back(pool: OwnerThreads) -> None:
    assert pool.submit(pow, 2, 5).result(10) == 32
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(10)


def test_a_thread_is_used_again_by_another_owner(pool: OwnerThreads) -> None:
    idents = set()
    for number in range(20):
        with on_behalf_of(f"pod {number}"):
            idents.add(pool.submit(threading.get_ident).result(10))
        time.sleep(0.002)  # the thread comes back a moment after its result
    assert len(idents) < 10


def test_a_result_is_kept_by_its_caller_alone(pool: OwnerThreads) -> None:
    """It may be large, and a thread lives on for half a minute at least."""

    class Result:
        pass

    for _ in range(2):  # by a new thread, and by one that has made a call before
        kept = weakref.ref(pool.submit(Result).result(10))
        deadline = time.monotonic() + patient(10)
        while kept() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_without_threads_a_call_says_so_and_nothing_is_left_of_it(
    pool: OwnerThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("_thread.start_new_thread", _no_thread)
        for number in range(10):
            with on_behalf_of(f"pod {number}"), pytest.raises(ResourceExhausted, match="no thread can be started"):
                pool.submit(int)
    assert pool._bulkheads == {}
    with on_behalf_of("pod 1"):
        assert pool.submit(int).result(10) == 0


def test_an_owner_has_no_more_than_its_bound_and_the_rest_wait(pool: OwnerThreads) -> None:
    lock, at_once, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with lock:
            at_once -= 1

    with on_behalf_of("pod"):
        calls = [pool.submit(work) for _ in range(12)]
    for call in calls:
        call.result(10)
    assert most == 2


def test_what_hangs_for_one_owner_takes_no_thread_from_others(pool: OwnerThreads) -> None:
    with hanging() as (hang, _):
        for number in range(30):
            with on_behalf_of(f"pod {number}"):
                for _ in range(5):
                    pool.submit(hang)
        assert pool.submit(lambda: "own").result(10) == "own"
        with on_behalf_of("another"):
            assert pool.submit(lambda: "another's").result(10) == "another's"


def test_where_all_threads_were_left_behind_more_calls_are_refused(pool: OwnerThreads) -> None:
    with hanging() as (hang, begun), on_behalf_of("pod", "container"):
        calls = [pool.submit(hang) for _ in range(2)]
        waiting = pool.submit(lambda: 3)  # nobody has given up yet: it waits its turn
        begun.wait(10)
        while not all(call.running() for call in calls):
            time.sleep(0.001)
        assert pool.left_behind() == []
        for call in calls:
            assert not call.cancel()
        with pytest.raises(Unavailable, match=r"pod: 2 calls hang, the oldest: /mnt/dead does not answer since 0 s"):
            pool.submit(lambda: 4)
        assert len(pool.left_behind("container")) == 2
        assert pool.left_behind("another container") == []
    assert waiting.result(10) == 3
    with on_behalf_of("pod"):
        assert pool.submit(lambda: 5).result(10) == 5
    deadline = time.monotonic() + patient(10)
    while pool.left_behind():
        assert time.monotonic() < deadline


def test_a_call_that_waits_can_be_cancelled(pool: OwnerThreads) -> None:
    with hanging() as (hang, _), on_behalf_of("pod"):
        calls = [pool.submit(hang) for _ in range(2)]
        waiting = pool.submit(hang)
        assert waiting.cancel()
    assert [call.result(10) for call in calls] == [True, True]
    assert waiting.cancelled()


def test_a_shutdown_does_not_wait_for_what_was_left_behind(pool: OwnerThreads) -> None:
    with hanging() as (hang, begun):
        call = pool.submit(hang)
        assert begun.wait(10)
        call.cancel()
        began = time.monotonic()
        pool.shutdown()
        assert time.monotonic() - began < 1
        with pytest.raises(RuntimeError, match="the daemon stops"):
            pool.submit(hang)


def test_a_process_ends_whatever_hangs() -> None:
    program = """
import asyncio, threading
from crinoid.core.api.linux.bulkheads import OwnerThreads, on_behalf_of
async def main():
    asyncio.get_running_loop().set_default_executor(OwnerThreads())
    with on_behalf_of("pod"):
        calls = [asyncio.ensure_future(asyncio.to_thread(threading.Event().wait)) for _ in range(9)]
    await asyncio.sleep(0.05)
    print(await asyncio.to_thread(lambda: "others go on"))
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=patient(20))
    assert (ended.returncode, ended.stdout) == (0, "others go on\n"), ended.stderr


async def test_owners_hold_for_tasks_that_are_made_meanwhile(pool: OwnerThreads) -> None:
    asyncio.get_running_loop().set_default_executor(pool)
    with hanging() as (hang, _):
        with on_behalf_of("pod"):
            tasks = [asyncio.create_task(asyncio.to_thread(hang)) for _ in range(8)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(patient(10)):
            assert await asyncio.to_thread(lambda: 1) == 1
    assert await asyncio.gather(*tasks) == [True] * 8


async def test_a_deadline_leaves_the_thread_behind_and_names_the_path(pool: OwnerThreads) -> None:
    asyncio.get_running_loop().set_default_executor(pool)
    with hanging() as (hang, _), on_behalf_of("pod"):
        with pytest.raises(DeadlineExceeded, match=r"^volume: /mnt/dead does not answer since 0 s$"):
            await call_within(0.05, "volume", hang)
        assert len(pool.left_behind("pod")) == 1
    assert await call_within(10, "volume", lambda: 7) == 7
    with pytest.raises(TimeoutError, match="its own"):
        await call_within(10, "volume", _raise_timeout)


async def test_a_cancelled_caller_leaves_a_thread_behind_only_on_somebodys_behalf(
    pool: OwnerThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_LEAVE_AFTER_S", 0.1)
    asyncio.get_running_loop().set_default_executor(pool)
    with hanging() as (hang, _):
        with on_behalf_of("pod"):
            theirs = asyncio.create_task(call_in_thread(hang))
        own = asyncio.create_task(call_in_thread(hang))
        await asyncio.sleep(0.01)
        theirs.cancel()
        own.cancel()
        await asyncio.wait({theirs}, timeout=patient(10))
        assert theirs.cancelled()
        assert [call.behalf.owner for call in pool.left_behind()] == ["pod"]
        assert not own.done()
    await asyncio.wait({own}, timeout=patient(10))
    assert own.cancelled()


def test_an_owner_ends_with_its_block() -> None:
    pool = OwnerThreads(own=1, per_owner=1)
    with hanging() as (hang, begun):
        with on_behalf_of("pod"):
            pool.submit(hang)
        assert begun.wait(10)
        assert contextvars.copy_context().run(pool.submit, int).result(10) == 0
    pool.shutdown()


def _raise_timeout() -> None:
    raise TimeoutError("its own")


def _no_thread(*_arguments: object) -> None:
    raise RuntimeError("can't start new thread")
