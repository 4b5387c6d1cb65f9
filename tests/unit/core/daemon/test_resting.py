"""Once work has ended, and not before, its memory is given back; once for each burst."""

import asyncio
import threading

import pytest

from crinoid.core.daemon.resting import Rest
from support.patience import patient

QUIET_S = 0.2


class Acts:
    """Counts what is done, in whatever thread, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.times: list[float] = []
        self.threads: set[int] = set()
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self.times.append(self.loop.time())
        self.threads.add(threading.get_ident())
        self.loop.call_soon_threadsafe(self._changed.set)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(patient(30)):
            while len(self.times) < count:
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
async def acts() -> Acts:
    return Acts()


def ignore(_rpc: str, _seconds: float, _code: str) -> None:
    """Nobody measures."""


async def test_the_start_is_work_and_each_burst_is_followed_by_one_rest_in_a_thread(acts: Acts) -> None:
    rest = Rest(acts, QUIET_S)
    note = rest.noting(ignore)
    async with rest.watched():
        await acts.wait_for(1)
        for _ in range(3):
            note("RunPodSandbox", 0.01, "OK")
        await acts.wait_for(2)
        note("PullImage", 0.01, "OK")
        await acts.wait_for(3)
    assert len(acts.times) == 3
    assert threading.get_ident() not in acts.threads


async def test_nothing_is_given_back_before_it_was_quiet_for_long_enough(acts: Acts) -> None:
    now = [0.0]
    rest = Rest(acts, QUIET_S, lambda: now[0])
    note = rest.noting(ignore)
    async with rest.watched():
        now[0] = QUIET_S * 0.9
        note("CreateContainer", 0.01, "OK")
        now[0] = QUIET_S * 1.8
        await asyncio.sleep(3 * QUIET_S)  # the clock stands: it looked at it more than once
        assert not acts.times
        now[0] = QUIET_S * 2
        await acts.wait_for(1)


async def test_what_a_kubelet_asks_again_and_again_is_no_work(acts: Acts) -> None:
    rest = Rest(acts, QUIET_S)
    seen: list[str] = []
    note = rest.noting(lambda rpc, _seconds, _code: seen.append(rpc))
    asked = ["ListContainers", "ListPodSandboxStats", "Status", "ExecSync", "Version"]
    async with rest.watched():
        await acts.wait_for(1)
        for rpc in asked:
            note(rpc, 0.01, "OK")
        await asyncio.sleep(3 * QUIET_S)
    assert len(acts.times) == 1
    assert seen == asked, "who measures is told of every call"


async def test_the_watch_ends_with_the_daemon(acts: Acts) -> None:
    before = asyncio.all_tasks()
    async with Rest(acts, quiet_s=1000).watched():
        assert len(asyncio.all_tasks() - before) == 1
    assert not asyncio.all_tasks() - before
    assert not acts.times


async def test_where_it_cannot_be_done_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tries = Acts()

    def fail() -> None:
        tries()
        raise MemoryError

    rest = Rest(fail, quiet_s=0)
    note = rest.noting(ignore)
    async with rest.watched():
        async with asyncio.timeout(patient(30)):
            while not caplog.records:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.01)
        note("RunPodSandbox", 0.01, "OK")
        await asyncio.sleep(QUIET_S)
    assert len(tries.times) == 1
    assert [record.message for record in caplog.records] == [
        "memory could not be given back to the system: MemoryError()"
    ]
