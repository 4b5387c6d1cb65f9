"""Streams of exec processes and of containers, over a connection to the agent."""

import asyncio
import contextlib
from collections import deque

from crinoid.core.api.errors import DriverError, ResourceExhausted
from crinoid.core.api.sessions import AttachSession, ByteSink, ByteSource, ExecSession
from crinoid.core.api.values.runtime import TerminalSize
from crinoid_microvm.protocol import CREDIT, Connection, HungUp, encode_frame

_AHEAD_BYTES = 1 << 18
"""What is read of the connection ahead of whoever reads the streams; then the guest waits."""


class GuestSource:
    """One output, filled by :class:`Relay`."""

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._pieces: deque[bytes] = deque()
        self._has_news = asyncio.Event()
        self.is_over = False
        self.size = 0

    async def read(self) -> bytes:
        """Return the next piece; ``b""`` at the end."""
        await asyncio.sleep(0)  # others get their turn, however much there is to read
        while not self._pieces:
            if self.is_over:
                if self._relay.was_slow:
                    raise ResourceExhausted("the session was ended: it was not read in time")
                return b""
            self._has_news.clear()
            await self._has_news.wait()
        piece = self._pieces.popleft()
        self.size -= len(piece)
        self._relay.room.set()
        return piece

    def put(self, piece: bytes) -> None:
        """Take what has come."""
        self._pieces.append(piece)
        self.size += len(piece)
        self._has_news.set()

    def end(self) -> None:
        """That was all. Idempotent."""
        self.is_over = True
        self._has_news.set()


class GuestSink:
    """The input; at most ``CREDIT`` bytes are on their way, so that the agent never has to wait for room."""

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._credit = CREDIT
        self._has_news = asyncio.Event()
        self._is_closed = False
        self.is_broken = False

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises BrokenPipeError when nobody reads any more."""
        left = memoryview(data)
        while left:
            if self.is_broken or self._is_closed:
                raise BrokenPipeError("nobody reads any more")
            if not self._credit:
                self._has_news.clear()
                await self._has_news.wait()
                continue
            piece, left = left[: self._credit], left[self._credit :]
            self._credit -= len(piece)
            if not await self._relay.tell("i", bytes(piece)):
                raise BrokenPipeError("the guest has gone")

    async def close(self) -> None:
        """Tell the reader that this was all. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self._relay.tell("e")

    def give(self, credit: int) -> None:
        """Take note of what was taken; ``0``: nothing will be any more."""
        self.is_broken = self.is_broken or not credit
        self._credit += credit
        self._has_news.set()


class Relay:
    """Reads a connection and passes on what comes, until the end. It owns the connection."""

    def __init__(self, connection: Connection, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._connection = connection
        self._sending = asyncio.Lock()
        self.room = asyncio.Event()
        self.was_slow = False
        self.is_closed = False
        self.stdin = GuestSink(self) if stdin else None
        self.stdout = GuestSource(self) if stdout else None
        self.stderr = GuestSource(self) if stderr else None
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._pass_on(), name="streams of a guest")

    async def tell(self, kind: str, data: bytes = b"") -> bool:
        """Send a frame; tell whether there is still somebody to get it."""
        async with self._sending:
            try:
                await self._connection.send(encode_frame(kind, data))
            except HungUp:
                return False
            return True

    async def close(self) -> None:
        """Close the streams of the process, which goes on; its end is still told. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._end_streams()
            self.room.set()
            await self.tell("c")

    async def drop(self) -> None:
        """Hang up. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _pass_on(self) -> None:
        code: int | None = None
        try:
            while True:
                kind, data = await self._connection.receive()
                source = {"o": self.stdout, "r": self.stderr}.get(kind)
                if source is not None and not self.is_closed:
                    source.put(data)
                    await self._until_there_is_room()
                elif kind in "ab" and self.stdin is not None:
                    self.stdin.give(int.from_bytes(data, "big"))
                elif kind in "xl":
                    self.was_slow = kind == "l"
                    code = data[0] if data else 0
                    return
        except HungUp:
            return
        finally:
            self._connection.close()
            self._end_streams()
            if not self.ended.done():
                self.ended.set_result(code)

    async def _until_there_is_room(self) -> None:
        while not self.is_closed and sum(one.size for one in (self.stdout, self.stderr) if one) > _AHEAD_BYTES:
            self.room.clear()
            await self.room.wait()

    def _end_streams(self) -> None:
        for source in (self.stdout, self.stderr):
            if source is not None:
                source.end()
        if self.stdin is not None:
            self.stdin.give(0)


class GuestExec(ExecSession):
    """An exec process in a guest."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(*_streams(relay))
        self._relay = relay

    async def wait(self) -> int:
        """Wait for the process's end."""
        code = await asyncio.shield(self._relay.ended)
        if code is None:
            raise DriverError("the end of the exec process is not known: the guest has gone")
        return code

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its size."""
        await _resize(self._relay, size)

    async def close(self) -> None:
        """Let go of the streams."""
        await self._relay.close()


class GuestAttach(AttachSession):
    """Streams of a container in a guest."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(*_streams(relay))
        self._relay = relay

    async def wait(self) -> None:
        """Wait until the container, or the session, has ended."""
        await asyncio.shield(self._relay.ended)

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its size."""
        await _resize(self._relay, size)

    async def close(self) -> None:
        """Let go of the streams, and of the connection."""
        await self._relay.close()
        await self._relay.drop()


def _streams(relay: Relay) -> tuple[ByteSink | None, ByteSource | None, ByteSource | None]:
    return relay.stdin, relay.stdout, relay.stderr


async def _resize(relay: Relay, size: TerminalSize) -> None:
    if not relay.ended.done():
        with contextlib.suppress(HungUp):
            await relay.tell("w", f"{min(size.width, 9999):04}{min(size.height, 9999):04}".encode())
