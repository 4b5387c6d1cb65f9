"""Undoing that comes to its end, even if the one who waits for it is cancelled meanwhile."""

import asyncio
from collections.abc import Coroutine


async def finish(work: Coroutine[object, object, None]) -> None:
    """Run ``work`` to its end; a cancellation that comes meanwhile is raised after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
