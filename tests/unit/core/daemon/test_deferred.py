"""What comes after the start: in the background, and no failure of it ends the daemon."""

import asyncio
import gc
import logging
from collections.abc import Iterator

import pytest

from crinoid.core.api.config import DriverConfig
from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.deferred import deferred_initialisation
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.slots.running import HookCalls
from support.patience import patient


class Options(DriverConfig):
    """What nobody has validated yet."""

    size: int = 1


class Opened(DaemonInstruments):
    """Instruments that tell when they are opened, and may fail then."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(MetricsConfig(), TracingConfig(), "1", Watchdog(HookCalls(), 1.0))
        self.error = error
        self.opened = asyncio.Event()

    async def open(self) -> None:
        self.opened.set()
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


async def wait_until_enabled() -> None:
    async with asyncio.timeout(patient(30)):
        while not gc.isenabled():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.01)


async def test_what_the_first_pod_needs_is_made_and_then_the_garbage_collector_begins() -> None:
    assert not Options.__pydantic_complete__
    instruments = Opened()
    async with deferred_initialisation(instruments):
        await wait_until_enabled()
    assert instruments.opened.is_set()
    assert Options.__pydantic_complete__
    assert gc.get_freeze_count() > 0


async def test_an_end_before_that_is_none_too_early() -> None:
    instruments = Opened()
    async with deferred_initialisation(instruments):
        pass
    assert not instruments.opened.is_set()


async def test_a_failure_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    instruments = Opened(RuntimeError("no"))
    async with deferred_initialisation(instruments):
        await wait_until_enabled()
        await asyncio.sleep(0)
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "the daemon serves, but could not finish its deferred initialisation"
    ]
