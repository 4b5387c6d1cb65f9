import asyncio

import pytest

from crinoid.core.api.errors import NotFound, Unavailable
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.concurrency.together import run_together


class Work:
    """Counts how often it began and ended, and waits to be let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = self.ended = 0
        self.cancelled = False
        self.has_begun, self.go = asyncio.Event(), asyncio.Event()
        self._error = error

    async def __call__(self) -> str:
        self.begun += 1
        self.has_begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.ended += 1
        if self._error:
            raise self._error
        return "done"


async def test_callers_of_one_key_share_one_run() -> None:
    tasks, work = SharedTasks("pull"), Work()
    callers = [asyncio.create_task(tasks.join("a", work)) for _ in range(3)]
    await work.has_begun.wait()
    work.go.set()
    assert await asyncio.gather(*callers) == ["done"] * 3
    assert work.begun == 1


async def test_a_later_caller_starts_anew() -> None:
    tasks, work = SharedTasks("pull"), Work()
    work.go.set()
    await tasks.join("a", work)
    await tasks.join("a", work)
    assert work.begun == 2
    assert len(tasks) == 0


async def test_other_keys_run_beside() -> None:
    tasks, one, two = SharedTasks("pull"), Work(), Work()
    first = asyncio.create_task(tasks.join("a", one))
    two.go.set()
    assert await tasks.join("b", two) == "done"
    assert "a" in tasks
    one.go.set()
    await first


async def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    tasks, work = SharedTasks("pull"), Work()
    first, second = (asyncio.create_task(tasks.join("a", work)) for _ in range(2))
    await work.has_begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    assert await second == "done"
    assert not work.cancelled


async def test_work_goes_on_when_the_last_caller_has_left() -> None:
    tasks, work = SharedTasks("pull"), Work()
    caller = asyncio.create_task(tasks.join("a", work))
    await work.has_begun.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    work.go.set()
    assert await tasks.join("a", work) == "done"
    assert (work.begun, work.ended) == (1, 1)


async def test_every_caller_gets_the_error() -> None:
    tasks, work = SharedTasks("pull"), Work(NotFound("no such image"))
    callers = [asyncio.create_task(tasks.join("a", work)) for _ in range(2)]
    await work.has_begun.wait()
    work.go.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(error) for error in results] == ["no such image"] * 2


async def test_close_cancels_waits_and_refuses() -> None:
    tasks, work = SharedTasks("pull"), Work()
    caller = asyncio.create_task(tasks.join("a", work))
    await work.has_begun.wait()
    await tasks.close()
    assert work.cancelled
    with pytest.raises(Unavailable, match="pull a was given up"):
        await caller
    with pytest.raises(Unavailable, match="pull a is refused"):
        await tasks.join("a", work)
    await tasks.close()


async def test_a_caller_cancelled_while_closing_is_cancelled() -> None:
    tasks, work = SharedTasks("pull"), Work()
    caller = asyncio.create_task(tasks.join("a", work))
    await work.has_begun.wait()
    caller.cancel()
    await tasks.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_orphans_are_cancelled_where_that_is_wanted() -> None:
    tasks, work = SharedTasks("layer", orphans="cancel"), Work()
    first, second = (asyncio.create_task(tasks.join("a", work)) for _ in range(2))
    await work.has_begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not work.cancelled
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert work.cancelled
    assert len(tasks) == 0


async def test_a_caller_that_comes_while_an_orphan_ends_starts_anew() -> None:
    tasks, begun, cleaned = SharedTasks("layer", orphans="cancel"), asyncio.Event(), asyncio.Event()
    steps: list[str] = []

    async def work() -> None:
        steps.append("begun")
        begun.set()
        try:
            await asyncio.sleep(60 if len(steps) == 1 else 0)
        finally:
            await cleaned.wait()
            steps.append("cleaned")

    first = asyncio.create_task(tasks.join("a", work))
    await begun.wait()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(tasks.join("a", work))
    await asyncio.sleep(0.01)
    assert steps == ["begun"]
    cleaned.set()
    await second
    assert steps == ["begun", "cleaned", "begun", "cleaned"]


async def test_one_failure_ends_what_runs_together() -> None:
    work = Work()

    async def fail() -> None:
        await work.has_begun.wait()
        raise NotFound("gone")

    with pytest.raises(NotFound, match="gone"):
        await run_together([work(), fail()])
    assert work.cancelled


async def test_all_that_runs_together_is_awaited() -> None:
    works = [Work(), Work()]
    for work in works:
        work.go.set()
    await run_together(work() for work in works)
    assert [work.ended for work in works] == [1, 1]


async def test_work_that_is_given_up_says_why_and_other_work_goes_on() -> None:
    tasks: SharedTasks = SharedTasks("CreateContainer of")
    go = asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "done"

    sick = [asyncio.create_task(tasks.join(("sick", number), work)) for number in range(2)]
    well = asyncio.create_task(tasks.join(("well", 0), work))
    await asyncio.sleep(0)
    tasks.give_up(lambda key: isinstance(key, tuple) and key[0] == "sick", "pod sick is being ended")
    for one in sick:
        with pytest.raises(Unavailable, match=r"given up: pod sick is being ended$"):
            await one
    go.set()
    assert await well == "done"
