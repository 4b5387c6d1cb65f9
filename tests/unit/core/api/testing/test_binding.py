"""The checks that every contract makes by the way: marks, answers, deadlines, and hooks that hold the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crinoid.core.api.hooks import broadcast, hookimpl, hookspec
from crinoid.core.api.testing import binding, contract
from crinoid.core.api.testing.binding import bind_hooks, cuts

pytest_plugins = ("pytester",)


class One:
    @hookspec
    async def attach(self, wait_s: float) -> str: ...

    @hookspec
    async def names(self, answer: object) -> tuple[tuple[str, str | None], ...]: ...

    @hookspec
    async def stream(self, wait_s: float) -> AsyncIterator[bytes]: ...


class Many:
    @broadcast
    async def attach(self, wait_s: float) -> str: ...


class Driver:
    """Its sleeps are what the tests are about."""

    @hookimpl
    async def attach(self, wait_s: float) -> str:
        try:
            await asyncio.sleep(0.05)
        finally:
            time.sleep(wait_s)
        return "done"


class Unmarked:
    async def attach(self, wait_s: float) -> str: ...


class Answers:
    @hookimpl
    async def names(self, answer: Any) -> tuple[tuple[str, str | None], ...]:
        return answer  # type: ignore[no-any-return]

    @hookimpl
    async def stream(self, wait_s: float) -> AsyncIterator[bytes]:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            time.sleep(wait_s)
            yield b"two"

        return pieces()


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


async def test_a_stream_that_holds_the_loop_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "STEP_S", 0.2)
    hooks = bind_hooks(Answers(), One)
    assert [piece async for piece in await hooks.stream(wait_s=0.0)] == [b"one", b"two"]
    stream = await hooks.stream(wait_s=0.3)
    assert await anext(stream) == b"one"
    with pytest.raises(AssertionError, match=r"stream's answer has held the event loop for 0\.3\d s"):
        await anext(stream)


@pytest.mark.parametrize("answer", [None, [], [("a", None)], ("a",), (("a", 1),), (("a", None, None),)])
async def test_an_answer_of_another_type_fails(answer: object) -> None:
    hooks = bind_hooks(Answers(), One)
    assert await hooks.names(answer=(("a", None), ("b", "a"))) == (("a", None), ("b", "a"))
    with pytest.raises(AssertionError, match=r"names returned .* where tuple\[tuple\[str, str"):
        await hooks.names(answer=answer)


async def test_a_cancellation_reaches_the_hook() -> None:
    call = asyncio.create_task(bind_hooks(Driver(), One).attach(wait_s=0.0))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


class Hangs:
    stubborn = False

    @hookimpl
    async def attach(self, wait_s: float) -> str:
        while True:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise


@pytest.mark.parametrize(("stubborn", "words"), [(False, "s$"), (True, "s, and goes on though it was cancelled$")])
async def test_a_hook_that_hangs_fails(monkeypatch: pytest.MonkeyPatch, stubborn: bool, words: str) -> None:
    monkeypatch.setattr(binding, "HOOK_S", 0.1)
    monkeypatch.setattr(binding, "_GRACE_S", 0.1)
    driver = Hangs()
    driver.stubborn = stubborn
    with pytest.raises(AssertionError, match=f"attach has had no answer for 0.1 {words}"):
        await bind_hooks(driver, One).attach(wait_s=1000.0)
    task = asyncio.current_task()
    assert task is not None and not task.cancelling(), "the test itself is not cancelled"


class TestGuard(contract.Contract):
    """A hook that blocks for ever is interrupted, as no timer of the loop could."""

    specification = One
    test_its_hooks_are_as_specified = None  # type: ignore[assignment]  # the guard alone
    test_it_tells_version_and_options = None  # type: ignore[assignment]
    test_making_it_touches_nothing = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract, "HANG_S", 0.2)

    async def test_it_is_interrupted_and_named(self) -> None:
        with pytest.raises(AssertionError, match=r"attach holds the event loop for \d.\d s, and goes on"):
            await bind_hooks(Driver(), One).attach(wait_s=1000.0)


class Steps:
    """Waits four times, and writes down where it is cancelled."""

    def __init__(self) -> None:
        self.came_to: list[int] = []

    @hookimpl
    async def attach(self, wait_s: float) -> str:
        number = 0
        try:
            for number in range(4):
                await (asyncio.to_thread(time.sleep, wait_s) if number % 2 else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.came_to.append(number)
            await asyncio.sleep(0)  # a cleanup, which is not cancelled again
            self.came_to.append(-1)
            raise
        return "done"


async def test_cuts_come_at_every_await() -> None:
    driver = Steps()
    hooks = bind_hooks(driver, One)
    answers, told = [], []
    for cut in cuts():
        answers.append(await cut(hooks.attach(wait_s=0.001)))
        told.append(str(cut))
    assert driver.came_to == [0, -1, 1, -1, 2, -1, 3, -1] * 2
    assert answers == [None, None, None, None, "done"] * 2
    assert told[1] == "cancelled in await 2 (attach)"
    assert told[6] == "cancelled as await 2 ends (attach)"
    assert told[4] == "not cancelled"


async def test_a_cut_hook_may_raise_nothing_of_its_own() -> None:
    class Wrong:
        @hookimpl
        async def attach(self, wait_s: float) -> str:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                raise ValueError("own") from None
            return ""

    with pytest.raises(ValueError, match="own"):
        for cut in cuts():
            await cut(bind_hooks(Wrong(), One).attach(wait_s=0.0))


def test_what_is_wrong_is_shown_with_its_values(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from crinoid.core.api.testing.extensions import ExtensionContract
        from crinoid.core.api.testing.noops import NoopExtension

        class TestMine(ExtensionContract):
            def make_driver(self, host):
                driver = NoopExtension(NoopExtension.Config(), host)
                driver.api_version = "7.0"
                return driver
        """
    )
    scope = "asyncio_default_fixture_loop_scope=function"
    found = pytester.runpytest_inprocess("-k", "version", "-p", "no:cacheprovider", "-o", scope)
    found.stdout.fnmatch_lines(["E *AssertionError: assert '7' == '1'"])
