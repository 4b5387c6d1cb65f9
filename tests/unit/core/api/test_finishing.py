"""Work that is finished in spite of a cancellation."""

import asyncio

import pytest

from crinoid.core.api.finishing import finish


async def test_undoing_comes_to_its_end() -> None:
    done: list[str] = []

    async def undo() -> None:
        await asyncio.sleep(0.02)
        done.append("undone")

    undoing = asyncio.ensure_future(finish(undo()))
    for _ in range(2):
        await asyncio.sleep(0.005)
        undoing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await undoing
    assert done == ["undone"]


async def test_undoing_that_fails_says_so() -> None:
    async def undo() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(undo())
