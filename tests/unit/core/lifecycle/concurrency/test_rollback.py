"""The clean-ups of a request that fails half-way."""

import asyncio
import logging

import pytest

from crinoid.core.lifecycle.concurrency.rollback import Rollback


async def test_without_an_error_nothing_is_taken_back() -> None:
    done: list[str] = []
    async with Rollback("the act") as rollback:
        rollback.add("first", lambda: done.append("first"))
    assert done == []


async def test_all_is_taken_back_from_the_last_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    done: list[str] = []

    async def undo_first() -> None:
        done.append("first")

    with pytest.raises(ValueError, match="broken"):
        async with Rollback("the act") as rollback:
            rollback.add("taking the first away", undo_first)
            rollback.add("taking the second away", lambda: done.append("second"))
            raise ValueError("broken")
    assert done == ["second", "first"]
    assert caplog.messages == [
        "the act has failed: taking the second away",
        "the act has failed: taking the first away",
    ]


async def test_one_that_fails_keeps_none_of_the_others_from_running() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("busy")

    with pytest.raises(OSError, match="busy"):
        async with Rollback("the act") as rollback:
            rollback.add("first", lambda: done.append("first"))
            rollback.add("second", fail)
            raise ValueError("broken")
    assert done == ["first"]


async def test_a_second_cancellation_leaves_it_to_end_in_the_background() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def undo() -> None:
        begun.set()
        await go_on.wait()
        done.set()

    async def act() -> None:
        async with Rollback("the act") as rollback:
            rollback.add("taking it away", undo)
            await asyncio.Event().wait()

    acting = asyncio.create_task(act())
    await asyncio.sleep(0)
    acting.cancel()
    await begun.wait()
    acting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acting
    assert not done.is_set()
    go_on.set()
    await asyncio.wait_for(done.wait(), 10)
