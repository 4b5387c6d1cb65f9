"""What has come for one stream and was not read yet; bounded, as whoever fills it waits while it is full."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

CAPACITY_BYTES = 1 << 20
_HOLD_S = 2.0


class Inbox:
    """Pieces in the order in which they came; one reader."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._ended = False
        self._discards = False
        self._changed = asyncio.Event()  # there is something to read
        self._room = asyncio.Event()

    @property
    def is_ended(self) -> bool:
        """Whether no more will come."""
        return self._ended

    def put(self, piece: bytes) -> None:
        """Take a piece; after the end, and when discarding, it is dropped."""
        if piece and not self._ended and not self._discards:
            self._pieces.append(piece)
            self._bytes += len(piece)
            self._changed.set()

    def end(self) -> None:
        """Note that no more will come. What is there can still be read."""
        self._ended = True
        self._changed.set()
        self._room.set()

    def discard(self) -> None:
        """Drop what is there and all that will come: nobody reads any more."""
        self._discards = True
        self._pieces.clear()
        self._bytes = 0
        self._room.set()

    async def get(self) -> bytes:
        """Return all there is; wait where there is nothing; ``b""`` at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._bytes = 0
        self._room.set()
        return data

    async def wait_for_room(self, hold: Callable[[], Awaitable[None]]) -> None:
        """Wait until there is room again; call ``hold`` every few seconds meanwhile.

        Who keeps to the window that he was given, which is as large as this, is never waited for.
        """
        while self._bytes > CAPACITY_BYTES and not self._ended:
            self._room.clear()
            try:
                async with asyncio.timeout(_HOLD_S):
                    await self._room.wait()
            except TimeoutError:
                await hold()
