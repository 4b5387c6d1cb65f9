"""What lies below a streaming protocol: bytes both ways, with back-pressure, and when they last moved.

SPDY runs over a ``TcpConduit``, or, tunnelled, over the one in ``websocket``.
"""

import asyncio
import contextlib
import socket
from typing import Protocol

from crinoid.core.cri.streaming.turns import Turns

Buffer = bytes | memoryview
"""What can be sent."""

READ_BYTES = 1 << 18
READ_AHEAD_BYTES = 1 << 18
"""asyncio stops to read from the kernel once twice this has come and was not fetched. With less, a bulk transfer into
an exec runs at half the speed: the next piece would not come in while one is handed on."""
_WRITE_HIGH_BYTES = 1 << 17
_PARTING_S = 1.0
_PARTING_BYTES = 1 << 20
_ESTABLISHED = 1  # the first byte of struct tcp_info, tcp(7)


class Conduit(Protocol):
    """Bytes both ways; one reads, many may write, one after the other."""

    async def turn(self) -> None:
        """Await this before each piece of work for what was read, so that others get theirs done too."""
        ...

    @property
    def moved_at(self) -> float:
        """The loop's time when bytes moved last."""
        ...

    async def read(self) -> bytes:
        """Return what comes next; ``b""`` at the end. Raises ConnectionError when the connection breaks."""
        ...

    async def write(self, *parts: Buffer) -> None:
        """Send the parts without anything between them. Raises ConnectionError when nobody is there."""
        ...

    async def hold(self) -> None:
        """Called now and then while nothing is read. Raises ConnectionError when the peer has gone meanwhile."""
        ...

    async def close(self) -> None:
        """Close both ways, after what was written is sent. Idempotent."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class TcpConduit:
    """A TCP connection, with TLS or without."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turns: Turns) -> None:
        self._reader = reader
        self._writer = writer
        self._turns = turns
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.moved_at = self._loop.time()
        writer.transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    async def turn(self) -> None:
        """See the protocol."""
        await self._turns.take()

    async def read(self) -> bytes:
        """See the protocol."""
        data = await self._reader.read(READ_BYTES)
        self.moved_at = self._loop.time()
        return data

    async def write(self, *parts: Buffer) -> None:
        """See the protocol."""
        async with self._writing:  # or each of a thousand streams would add its piece to what the client does not take
            await self._turns.take()
            if self._writer.transport.is_closing():
                raise ConnectionResetError("the connection has been closed")
            # Not writelines(): in Python 3.12.0 to 3.12.8, and 3.13.0 and 3.13.1, it never pauses (CVE-2024-12254).
            self._writer.write(b"".join(parts))
            await self._writer.drain()
            self.moved_at = self._loop.time()

    async def hold(self) -> None:
        """asyncio does not notice the end of a connection that it does not read: the kernel is asked."""
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED:
                return
        raise ConnectionResetError("the client has gone")

    async def part(self) -> None:
        """Send no more, and drop for a moment what the client still sends.

        Were it closed at once, the client's kernel would throw away what it has not read yet.
        """
        left = _PARTING_BYTES
        with contextlib.suppress(OSError, TimeoutError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            async with asyncio.timeout(_PARTING_S):
                while left > 0 and (data := await self.read()):
                    await self.turn()
                    left -= len(data)

    async def close(self) -> None:
        """See the protocol."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """See the protocol."""
        self._writer.transport.abort()
