"""What has come for one stream and was not read yet; bounded, as whoever fills it waits while it is full."""

import asyncio
from collections.abc import Awaitable, Callable

from crinoid.core.api.buffers import BufferShare, ByteQueue

CAPACITY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_HOLD_S = 2.0


class Inbox:
    """Pieces in the order in which they came; one reader. ``share`` is its connection's, of all inboxes' memory."""

    def __init__(self, share: BufferShare) -> None:
        self._share = share
        self._queue = ByteQueue()
        self._fetched = 0  # bytes that the reader has and may not be done with
        self._ended = False
        self._discards = False
        self._changed = asyncio.Event()  # there is something to read

    @property
    def is_ended(self) -> bool:
        """Whether no more will come."""
        return self._ended

    def put(self, piece: bytes) -> None:
        """Take a piece; after the end, and when discarding, it is dropped."""
        if piece and not self._ended and not self._discards:
            self._queue.put(piece)
            self._share.resize(len(piece))
            self._changed.set()

    def end(self) -> None:
        """Note that no more will come. What is there can still be read."""
        self._ended = True
        self._changed.set()
        self._share.changed.set()

    def discard(self) -> None:
        """Drop what is there and all that will come: nobody reads any more."""
        self._discards = True
        self._share.resize(-self._queue.size - self._fetched)
        self._queue.clear()
        self._fetched = 0

    async def get(self) -> bytes:
        """Return what there is, up to some hundred KiB; wait where there is nothing; ``b""`` at the end.

        It counts as held until the next is asked for: the reader may wait for long to hand it on.
        """
        self._share.resize(-self._fetched)
        self._fetched = 0
        while not self._queue.size:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._queue.take(_PIECE_BYTES)
        self._fetched = 0 if self._discards else len(data)
        return data

    async def wait_for_room(self, hold: Callable[[], Awaitable[None]]) -> None:
        """Wait until this inbox and its connection have room again; call ``hold`` every few seconds meanwhile.

        Who keeps to the window that he was given, which is as large as this, is only waited for where the connection,
        or all of them, hold too much.
        """
        while not self._share.has_room or (self._queue.size > CAPACITY_BYTES and not self._ended):
            try:
                async with asyncio.timeout(_HOLD_S):
                    await self._share.wait_for_change()
            except TimeoutError:
                await hold()
