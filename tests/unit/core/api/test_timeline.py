"""Stages: what an act records of them, and what becomes of those that go on after it."""

import asyncio
from collections.abc import Iterator

import pytest

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.timeline import MAX_STEPS, RUNNING, Act, Step, about, acting, clean, note, stage

POD, CONTAINER = "a" * 64, "b" * 64


@pytest.fixture
def late() -> list[Step]:
    return []


@pytest.fixture
def act(late: list[Step]) -> Iterator[Act]:
    act = Act("RunPodSandbox", lambda _, step: late.append(step))
    with acting(act):
        yield act


def told(act: Act) -> list[tuple[str, int, str]]:
    return [(step.name, step.parent, step.outcome) for step in act.steps]


async def test_stages_of_tasks_stand_below_the_stage_that_began_them(act: Act) -> None:
    async def part(name: str) -> None:
        with stage(name):
            await asyncio.sleep(0)

    with stage("whole"):
        await asyncio.gather(part("one"), part("other"))
    with stage("next"):
        pass
    assert told(act) == [("whole", -1, "ok"), ("one", 0, "ok"), ("other", 0, "ok"), ("next", -1, "ok")]
    assert act.steps[0].seconds >= act.steps[1].seconds >= 0


def test_an_error_is_told_once_where_it_came_from(act: Act) -> None:
    with pytest.raises(NotFound), stage("outer"), stage("inner"):
        raise NotFound("no such image")
    assert told(act) == [("outer", -1, "NotFound"), ("inner", 0, "NotFound")]
    assert [step.notes for step in act.steps] == [[], ["no such image"]]


async def test_a_cancelled_stage_says_so(act: Act) -> None:
    async def wait() -> None:
        with stage("wait"):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told(act) == [("wait", -1, "cancelled")]


async def test_what_goes_on_after_its_act_is_handed_over_when_it_ends(act: Act, late: list[Step]) -> None:
    ended = asyncio.Event()

    async def watch() -> None:
        with stage("until the end") as step:
            await ended.wait()
            step.note("exit code 3")
        with stage("after that"):
            pass

    with on_behalf_of(POD, CONTAINER):
        task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    assert told(act) == [("until the end", -1, RUNNING)]
    act.end()
    assert act.steps == []
    ended.set()
    await task
    assert [(step.name, step.notes, step.subjects) for step in late] == [
        ("until the end", ["exit code 3"], (CONTAINER, POD)),
        ("after that", [], (CONTAINER, POD)),
    ]


def test_the_pod_is_known_from_whom_the_work_is_for(act: Act) -> None:
    with on_behalf_of(f"the end of {POD}", CONTAINER), stage("kill"):
        pass
    with on_behalf_of("host maintenance"), stage("other"):
        pass
    assert list(act.about) == [CONTAINER, POD]
    assert [step.subjects for step in act.steps] == [(CONTAINER, POD), ()]


def test_steps_and_notes_are_bounded_and_printable(act: Act) -> None:
    for number in range(MAX_STEPS + 5):
        with stage(f"step {number}") as step:
            for kind in range(100):
                step.note(f"{kind}" + "n" * 10_000)
                step.note(f"{kind}" + "n" * 10_000)
    assert (len(act.steps), act.left_out) == (MAX_STEPS, 5)
    assert max(len(step.notes) for step in act.steps) <= 12
    assert clean("a\x1b[31m\nb") == "a [31m b"
    assert len(clean("x" * 999)) == 300


def test_without_an_act_nothing_is_recorded_and_everything_works() -> None:
    with stage("nothing") as step:
        step.note("to nobody")
        note("to nobody")
        about("nobody")
    with pytest.raises(InvalidArgument), stage("nothing"):
        raise InvalidArgument("passes through")


def test_a_note_belongs_to_the_innermost_stage(act: Act) -> None:
    note("to no stage")
    with stage("outer"):
        note("outer's")
        with stage("inner"):
            note("inner's")
    assert [step.notes for step in act.steps] == [["outer's"], ["inner's"]]
