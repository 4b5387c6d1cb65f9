"""The loop's clock and who watches it: what holds the loop is named while it does; a loop that waits costs nothing."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.slots.running import HookCall, HookCalls
from support.patience import patient

STALL_S = 0.1


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    made = Watchdog(HookCalls(0.05), STALL_S)
    made.start()
    yield made
    made.stop()
    made.loop.close()


def hold_until(condition: Callable[[], bool]) -> None:
    """Hold the thread as a driver does that blocks."""
    deadline = time.monotonic() + patient(20)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_hook_that_blocks_is_named_with_its_stack(watchdog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    async def hook() -> None:
        await asyncio.sleep(0)
        hold_until(lambda: caplog.text.count("has stood still") >= 2)

    watchdog.loop.run_until_complete(watchdog.calls.run(HookCall('network "x"', "attach"), hook(), 60))
    first = next(record.getMessage() for record in caplog.records if "has stood still" in record.getMessage())
    assert first.startswith("the event loop has stood still for ")
    assert 'network "x" attach holds it' in first
    assert "hold_until(lambda" in first
    assert watchdog.clock.total_s > STALL_S
    watchdog.loop.run_until_complete(asyncio.sleep(0))
    assert "the event loop goes on: it has stood still for" in caplog.text


def test_what_is_no_hook_is_named_by_the_package_of_its_code(
    watchdog: Watchdog, caplog: pytest.LogCaptureFixture
) -> None:
    installed = SimpleNamespace(target="stranger.driver:Driver")
    known: Any = [SimpleNamespace(installed=installed, label='extension "odd" (stranger)')]
    watchdog.know(known)
    names = {"__name__": "stranger.background", "hold": lambda: hold_until(lambda: "has stood still" in caplog.text)}
    exec("def tick(): hold()", names)
    watchdog.loop.call_soon(names["tick"])  # type: ignore[arg-type]  # made by exec
    watchdog.loop.run_until_complete(asyncio.sleep(0))
    assert 'code of extension "odd" (stranger), outside a hook, holds it' in caplog.text


def test_code_that_runs_while_drivers_are_made_is_named(watchdog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    async def bind() -> None:
        with watchdog.calls.blocking('network "x"', "__init__"):
            hold_until(lambda: "has stood still" in caplog.text)

    watchdog.loop.run_until_complete(bind())
    assert 'network "x" __init__ holds it' in caplog.text


def test_a_loop_that_waits_is_well(watchdog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    watchdog.phase = "serving"
    watchdog.loop.run_until_complete(asyncio.sleep(5 * STALL_S))
    assert "stood still" not in caplog.text
    assert watchdog.clock.counts[-1] == 0
    assert watchdog.health()[0]


def test_health_says_what_holds_the_loop(watchdog: Watchdog) -> None:
    told: list[tuple[bool, str]] = [watchdog.health()]
    assert told == [(False, "starting")]
    watchdog.phase = "serving"

    def ask() -> None:
        while not told[-1][1].startswith("the event loop has stood still for"):
            told.append(watchdog.health())
            time.sleep(0.01)

    async def hook() -> None:
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(patient(20))

    watchdog.loop.run_until_complete(watchdog.calls.run(HookCall('network "x"', "attach"), hook(), 60))
    assert not told[-1][0]
    assert told[-1][1].endswith('network "x" attach holds it')


def test_a_hook_that_was_left_behind_is_told_again(
    watchdog: Watchdog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crinoid.core.daemon.watchdog._REMIND_S", 0.1)
    watchdog.phase = "serving"

    async def stubborn() -> None:
        while "has been running for" not in caplog.text:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        with pytest.raises(Exception, match="left behind"):
            await watchdog.calls.run(HookCall('network "x"', "attach"), stubborn(), 0.05)
        assert watchdog.health() == (True, 'ok; left behind: network "x" attach')
        async with asyncio.timeout(patient(20)):
            while watchdog.calls.abandoned:  # noqa: ASYNC110  # nothing tells of its end
                await asyncio.sleep(0.01)
        assert watchdog.health() == (True, "ok")

    watchdog.loop.run_until_complete(main())
    assert 'network "x" attach, which was left behind, has been running for' in caplog.text
