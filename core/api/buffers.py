"""What came of a stream and has not been fetched: queues of bytes, and a limit on what many of them hold together.

The kernel's own streams and drivers' sessions use the same. Everything is called on the event loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable

_SMALL_BYTES = 1 << 12
_JOINED_BYTES = 1 << 16


class ByteQueue:
    """Bytes, first in, first out. Small pieces are put together: kept apart they would take a hundred times as much."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self.size = 0

    def put(self, piece: bytes) -> None:
        """Append a piece."""
        self.size += len(piece)
        last = self._pieces[-1] if self._pieces else None
        if len(piece) >= _SMALL_BYTES:
            self._pieces.append(piece)
        elif isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
            last += piece
        elif piece:
            self._pieces.append(bytearray(piece))

    def take(self, enough_bytes: int) -> bytes:
        """Remove and return whole pieces, the first ones, until that is enough; ``b""`` when there is nothing."""
        taken = []
        count = 0
        while self._pieces and count < enough_bytes:
            taken.append(self._pieces.popleft())
            count += len(taken[-1])
        self.size -= count
        return taken[0] if len(taken) == 1 and isinstance(taken[0], bytes) else b"".join(taken)

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self.size = 0


class BufferPool:
    """A limit on what the buffers of many users hold together. Each user has a share, which it says the size of.

    Who can make its producer wait does so while ``BufferShare.has_room`` is false. Who can't (its producer must not be
    held up) calls ``relieve`` after it has grown, whereupon the largest shares that can be given up are.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._shares: set[BufferShare] = set()
        self._waiting: set[BufferShare] = set()

    @property
    def is_full(self) -> bool:
        """Whether more is held than may be."""
        return self.held_bytes > self.limit_bytes

    def share(
        self, *, reserve_bytes: int = 0, most_bytes: int | None = None, give_up: Callable[[], None] | None = None
    ) -> "BufferShare":
        """Begin a share. ``reserve_bytes`` it has in any case, however full the pool, ``most_bytes`` are its limit.

        ``give_up`` has to make it empty; it is called, once, where the pool must be relieved.
        """
        share = BufferShare(self, reserve_bytes, self.limit_bytes if most_bytes is None else most_bytes, give_up)
        self._shares.add(share)
        return share

    def relieve(self) -> None:
        """Have shares given up, the largest first, until the pool is full no more, or all are within their reserve."""
        while self.is_full:
            able = [share for share in self._shares if share.give_up and share.size > share.reserve_bytes]
            if not able:
                return
            largest = max(able, key=lambda share: share.size)
            give_up, largest.give_up = largest.give_up, None
            if give_up is not None:
                give_up()

    def _note(self, delta: int) -> None:
        self.held_bytes += delta
        if delta < 0 and self._waiting and not self.is_full:
            for share in self._waiting:
                share.changed.set()
            self._waiting.clear()


class BufferShare:
    """What one user of a pool holds; ``size`` in bytes."""

    def __init__(
        self, pool: BufferPool, reserve_bytes: int, most_bytes: int, give_up: Callable[[], None] | None
    ) -> None:
        self.size = 0
        self.reserve_bytes = reserve_bytes
        self.give_up = give_up
        self.changed = asyncio.Event()
        self._is_closed = False
        self._most_bytes = most_bytes
        self._pool = pool

    @property
    def has_room(self) -> bool:
        """Whether its user may go on to take more."""
        return self.size <= self.reserve_bytes or (self.size <= self._most_bytes and not self._pool.is_full)

    def resize(self, delta: int) -> None:
        """Say that so much more, or less, is held; after ``close`` nobody counts."""
        if self._is_closed:
            return
        self.size += delta
        if delta < 0:
            self.changed.set()
        self._pool._note(delta)

    async def wait_for_change(self) -> None:
        """Wait until it has shrunk, or another's shrinking has made room."""
        self.changed.clear()
        self._pool._waiting.add(self)
        try:
            await self.changed.wait()
        finally:
            self._pool._waiting.discard(self)

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        self._pool._shares.discard(self)
        self.give_up = None
        self.resize(-self.size)
        self._is_closed = True
