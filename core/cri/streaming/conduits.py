"""What lies below a streaming protocol: bytes both ways, with back-pressure, and when they last moved.

SPDY runs over a ``TcpConduit``, or, tunnelled, over the one in ``websocket``.
"""

import asyncio
import contextlib
import socket
from typing import Protocol

Buffer = bytes | memoryview
"""What can be sent."""

READ_BYTES = 1 << 18
_WRITE_HIGH_BYTES = 1 << 19
_ESTABLISHED = 1  # the first byte of struct tcp_info, tcp(7)


class Conduit(Protocol):
    """Bytes both ways; one reads, many may write."""

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

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self.moved_at = self._loop.time()
        writer.transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    async def read(self) -> bytes:
        """See the protocol."""
        data = await self._reader.read(READ_BYTES)
        self.moved_at = self._loop.time()
        return data

    async def write(self, *parts: Buffer) -> None:
        """See the protocol."""
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

    async def close(self) -> None:
        """See the protocol."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """See the protocol."""
        self._writer.transport.abort()
