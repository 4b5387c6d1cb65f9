"""Steps that run at the same time, where one failure ends them all."""

import asyncio
from collections.abc import Coroutine, Iterable


async def run_together(steps: Iterable[Coroutine[object, object, object]]) -> None:
    """Run coroutines at the same time and return when all have ended.

    The first that raises cancels the others, which are awaited; its error is raised as it is, not in a group.
    """
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
    if failure is not None:
        raise failure
