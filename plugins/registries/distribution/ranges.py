"""A large blob over several connections: its ranges are fetched side by side and given in order.

For servers that limit each connection; ``client`` opens one for a blob that is worth it. Memory is bounded: of each
connection one range is held. Whatever goes wrong with a range, from where it would begin the rest comes over one
connection, which knows how to resume, to ask another host and to do without ranges.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from crinoid.core.api.errors import CrinoidError


class Span(Protocol):
    """The stream of a part of a blob."""

    is_ranged: bool

    def __aiter__(self) -> "Span": ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...

    def widen(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """What is asked for: the bytes from ``start`` to before ``end``; ``strict``: as a range, or not at all."""

    start: int
    end: int
    strict: bool = False


OpenPart = Callable[[Part], Awaitable[Span]]


class Places:
    """Some of the slot's streams: the first is waited for, the others are taken where they are free."""

    def __init__(self, streams: asyncio.Semaphore, most: int) -> None:
        self._streams = streams
        self._most = most
        self.count = 0

    async def take(self) -> None:
        """Take them."""
        await self._streams.acquire()
        self.count = 1
        while self.count < self._most and not self._streams.locked():
            await self._streams.acquire()  # does not wait
            self.count += 1

    def give_back(self) -> None:
        """Leave them to others. Idempotent."""
        for _ in range(self.count):
            self._streams.release()
        self.count = 0


class RangedStream:
    """An asynchronous iterator of a blob's pieces from ``start`` to before ``size``."""

    def __init__(self, open_part: OpenPart, places: Places, start: int, size: int, range_bytes: int) -> None:
        self._open_part = open_part
        self._places = places
        self._position = self._begun = start
        self._size = size
        self._range_bytes = range_bytes
        self._fetches: deque[_Fetch] = deque()
        self._alone: Span | None = None
        self._is_open = False

    def __aiter__(self) -> "RangedStream":
        return self

    async def open(self) -> None:
        """Wait for a free stream and ask for the first range; nothing is held when it raises."""
        await self._places.take()
        self._is_open = True
        try:
            first = await self._open_part(self._next_part())
            if first.is_ranged and self._begun < self._size:
                self._fetches.append(_Fetch(self._open_part, first))
                self._fill()
            else:
                first.widen()
                self._alone = first
        except BaseException:
            await self.aclose()
            raise

    async def __anext__(self) -> bytes:
        try:
            piece = await self._read()
        except BaseException:
            await self.aclose()
            raise
        if piece is None:
            await self.aclose()
            raise StopAsyncIteration
        self._position += len(piece)
        return piece

    async def aclose(self) -> None:
        """Give up all connections. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            await self._drop()
            if self._alone is not None:
                await self._alone.aclose()
        finally:
            self._places.give_back()

    async def _read(self) -> bytes | None:
        """Return the next piece; none at the end."""
        while self._is_open and self._position < self._size:
            if self._alone is not None:
                return await anext(self._alone)
            try:
                piece = await self._fetches[0].read()
            except CrinoidError:
                await self._drop()
                self._alone = await self._open_part(Part(self._position, self._size))
                continue
            if piece is not None:
                return piece
            self._fetches.popleft()
            self._fill()
        return None

    def _fill(self) -> None:
        """Have all connections at work."""
        while len(self._fetches) < self._places.count and self._begun < self._size:
            self._fetches.append(_Fetch(self._open_part, self._next_part(strict=True)))

    def _next_part(self, strict: bool = False) -> Part:
        start = self._begun
        is_alone = self._places.count == 1
        self._begun = self._size if is_alone else min(start + self._range_bytes, self._size)
        return Part(start, self._begun, strict)

    async def _drop(self) -> None:
        fetches, self._fetches = self._fetches, deque()
        for fetch in fetches:
            fetch.cancel()
        for fetch in fetches:
            await fetch.close()


class _Fetch:
    """One range on its way into memory: a part to be opened, or one that is open."""

    def __init__(self, open_part: OpenPart, part: Part | Span) -> None:
        self._open_part = open_part
        self._span = None if isinstance(part, Part) else part
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(part), name="range of a blob")

    async def read(self) -> bytes | None:
        """Return the next piece, None at the end. Raises what went wrong."""
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece

    def cancel(self) -> None:
        """Have it end."""
        self._task.cancel()

    async def close(self) -> None:
        """Wait until it has ended, which it was told to."""
        await asyncio.gather(self._task, return_exceptions=True)
        if self._span is not None:
            await self._span.aclose()

    async def _run(self, part: Part | Span) -> None:
        try:
            self._span = await self._open_part(part) if isinstance(part, Part) else part
            async for piece in self._span:
                self._pieces.put_nowait(piece)
            self._pieces.put_nowait(None)
        except Exception as error:  # noqa: BLE001  # it is raised where the range is read
            self._pieces.put_nowait(error)
