"""However much of one plugin lies ready to be read, others have their turn in between."""

import asyncio
import contextlib
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from crinoid.plugins.extensions.nri.mux import Trunk
from crinoid.plugins.extensions.nri.ttrpc import Client, Server

MANY = 20_000
TURN = 64  # what may be taken at once, with room to spare
_FRAME = struct.pack(">IIBB", 0, 1, 9, 0)


class NoWriter:
    """Nobody reads what would be written."""

    def write(self, _data: bytes) -> None:
        """Drop it."""

    async def drain(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


class Ready:
    """A channel in which everything has come already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, length: int) -> bytes:
        """Answer without a wait, as a stream does that has data."""
        if len(self._data) < length:
            await asyncio.Event().wait()
        taken, self._data = self._data[:length], self._data[length:]
        return taken

    def close(self) -> None:
        """Nothing is open."""


async def turns_during(run: Callable[[], Coroutine[Any, Any, object]], is_over: Callable[[], bool]) -> int:
    """Count how often somebody else has a turn until it is over."""
    task, turns = asyncio.create_task(run()), 0
    while not is_over():
        turns += 1
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return turns


async def test_pieces_of_one_plugin() -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    reader.feed_data((struct.pack(">II", 1, len(_FRAME)) + _FRAME) * MANY)
    trunk = Trunk(reader, NoWriter())  # type: ignore[arg-type]
    channel = trunk.open(1)
    taken = 0

    def take(piece: bytes) -> bool:
        nonlocal taken
        taken += bool(piece)
        return True

    channel.take_in = take  # type: ignore[method-assign]
    assert await turns_during(trunk.run, lambda: taken == MANY) >= MANY // TURN


@pytest.mark.parametrize("end", ["client", "server"])
async def test_messages_of_one_plugin(end: str) -> None:
    channel = Ready(_FRAME * MANY)

    async def handle(*_: object) -> bytes:
        return b""

    reading: Any = Client(channel) if end == "client" else Server(channel, handle)  # type: ignore[arg-type]
    if end == "client":
        reading._last = 1
    assert await turns_during(reading.run, lambda: len(channel._data) < len(_FRAME)) >= MANY // TURN


async def test_pieces_for_nobody_end_the_connection() -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    reader.feed_data(struct.pack(">II", 7, 0) * MANY)
    trunk = Trunk(reader, NoWriter())  # type: ignore[arg-type]
    await asyncio.wait_for(trunk.run(), 60)
    assert trunk.closed.is_set()
