"""The checks that every contract makes by the way: marks, and hooks that hold the event loop."""

import asyncio
import time

import pytest

from crinoid.core.api.hooks import broadcast, hookimpl, hookspec
from crinoid.core.api.testing import binding
from crinoid.core.api.testing.binding import bind_hooks


class One:
    @hookspec
    async def attach(self, wait_s: float) -> str: ...


class Many:
    @broadcast
    async def attach(self, wait_s: float) -> str: ...


class Driver:
    @hookimpl
    async def attach(self, wait_s: float) -> str:
        try:
            await asyncio.sleep(0.05)
        finally:
            time.sleep(wait_s)  # what the test is about
        return "done"


class Unmarked:
    async def attach(self, wait_s: float) -> str: ...


def test_a_hook_without_its_mark_fails() -> None:
    with pytest.raises(AssertionError, match=r"Unmarked\.attach has the name of a hook but no @hookimpl"):
        bind_hooks(Unmarked(), One)


async def test_what_waits_passes_and_what_holds_the_loop_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "STEP_S", 0.2)
    one, many = bind_hooks(Driver(), One), bind_hooks(Driver(), Many)
    assert await one.attach(wait_s=0.0) == "done"
    assert [await answer for answer in many.attach(wait_s=0.0)] == ["done"]
    for answer in (one.attach(wait_s=0.3), *many.attach(wait_s=0.3)):
        with pytest.raises(AssertionError, match=r"attach has held the event loop for 0\.3\d s at a time"):
            await answer


async def test_a_cancellation_reaches_the_hook() -> None:
    call = asyncio.create_task(bind_hooks(Driver(), One).attach(wait_s=0.0))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
