"""What the daemon does once it serves: all that the first answer can do without."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from crinoid.core.daemon.instruments import DaemonInstruments

LOG = logging.getLogger(__name__)
_PAUSE_S = 0.25  # whoever waited for the socket goes first


@asynccontextmanager
async def deferred_initialisation(instruments: DaemonInstruments) -> AsyncIterator[None]:
    """Initialise in the background; give up what is not done at the end. A failure is logged: pods can do without."""
    task = asyncio.create_task(_initialise(instruments), name="deferred_initialisation")
    task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _initialise(instruments: DaemonInstruments) -> None:
    """Open the metrics, and make what the first pod would have to wait for, in small steps.

    Then let the garbage collector begin, which ``crinoid serve`` has held off since its start.

    What is there by then stays: to look through it would take longer than an RPC, and would find nothing.
    """
    try:
        await asyncio.sleep(_PAUSE_S)
        await instruments.open()
        for model in tuple(_heirs(BaseModel)):
            model.model_rebuild(raise_errors=False)
            await asyncio.sleep(0)
    finally:
        gc.freeze()
        gc.enable()


def _heirs(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for heir in model.__subclasses__():
        yield heir
        yield from _heirs(heir)


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.error("the daemon serves, but could not finish its deferred initialisation", exc_info=error)
