"""What comes after the start: in the background, and no failure of it ends the daemon."""

import asyncio
import gc
import logging
from collections.abc import Iterator

import pytest

from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.settling import settling


class Opened(DaemonInstruments):
    """Instruments that tell when they are opened, and may fail then."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(MetricsConfig(), TracingConfig(), "1")
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


async def test_the_garbage_collector_begins_once_all_is_there() -> None:
    instruments = Opened()
    async with settling(instruments), asyncio.timeout(30):
        await instruments.opened.wait()
        await asyncio.sleep(0)
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


async def test_an_end_before_that_is_none_too_early() -> None:
    instruments = Opened()
    async with settling(instruments):
        pass
    assert not instruments.opened.is_set()


async def test_a_failure_is_told_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    instruments = Opened(RuntimeError("no"))
    async with settling(instruments), asyncio.timeout(30):
        await instruments.opened.wait()
        await asyncio.sleep(0)
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "the daemon serves, but could not settle"
    ]
    assert gc.isenabled()
