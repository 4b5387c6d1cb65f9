"""What lies below a streaming protocol: bytes both ways, with back-pressure, and when they last moved.

SPDY runs over a ``TcpTransport``, or, tunnelled, over the one in ``websocket``.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from crinoid.core.cri.streaming.turns import Turns

Buffer = bytes | memoryview
"""What can be sent."""

READ_BYTES = 1 << 16
_RECORD_BYTES = 1 << 14  # RFC 8446, section 5.1
_PARTING_S = 1.0
_PARTING_BYTES = 1 << 20
_ESTABLISHED = 1  # the first byte of struct tcp_info, tcp(7)


class Transport(Protocol):
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


class TcpTransport:
    """A TCP connection, with TLS or without; it takes the socket over, one that does not block.

    Nothing is read ahead: what is not fetched stays in the kernel, where it holds up the client, so that a connection
    that stands still takes one piece of memory. TLS is done here, piece by piece, as asyncio's does all that has come
    to any connection at once, handshakes too, and others wait for it.
    """

    def __init__(self, connected: socket.socket, turns: Turns, tls: "Tls | None" = None) -> None:
        self._socket = connected
        self._descriptor = connected.fileno()  # -1 once it is closed
        self._turns = turns
        self._tls = tls
        self._ahead = b""  # has come, and is read next
        self._unsent = memoryview(b"")  # a writer that was cancelled may leave some; it goes before anything else
        self._writing = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.moved_at = self._loop.time()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def handshake(self) -> None:
        """Agree on keys, where there is TLS; before anything else. Raises ssl.SSLError, ConnectionError."""
        if self._tls is None:
            return
        while True:
            await self._turns.take()
            try:
                is_done = self._tls.shake_hands()
            finally:
                async with self._writing:  # an alert, too, when it failed
                    await self._flush()
            if is_done:
                return
            if not (data := await self._receive()):
                raise ConnectionResetError("the peer has gone before the handshake was over")
            self._tls.take(data)

    async def turn(self) -> None:
        """See the protocol."""
        await self._turns.take()

    async def read(self) -> bytes:
        """See the protocol."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        return await (self._receive() if self._tls is None else self._decrypt(self._tls))

    async def read_until(self, end: bytes, most_bytes: int) -> bytes:
        """Return what comes, to the first such end, itself included; what follows is read next.

        Raises asyncio.LimitOverrunError when there is none in so many bytes, IncompleteReadError when there is none.
        """
        seen, looked = bytearray(), 0
        while (at := seen.find(end, looked)) < 0:
            looked = max(0, len(seen) - len(end))
            if len(seen) >= most_bytes:
                raise asyncio.LimitOverrunError("too much without an end", len(seen))
            if not (piece := await self.read()):
                raise asyncio.IncompleteReadError(bytes(seen), None)
            await self._turns.take()
            seen += piece
        at += len(end)
        self._ahead = bytes(seen[at:])
        return bytes(seen[:at])

    async def write(self, *parts: Buffer) -> None:
        """See the protocol."""
        async with self._writing:  # or each of a thousand streams would add its piece to what the client does not take
            await self._turns.take()
            if self._descriptor < 0:
                raise ConnectionResetError("the connection has been closed")
            data = b"".join(parts)
            if self._tls is not None:
                self._tls.encrypt(data)
            else:
                self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)
            await self._flush()
            self.moved_at = self._loop.time()

    async def hold(self) -> None:
        """The end of a connection that nobody reads is not noticed: the kernel is asked."""
        with contextlib.suppress(OSError):
            if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED:
                return
        raise ConnectionResetError("the client has gone")

    async def part(self) -> None:
        """Send no more, and drop for a moment what the client still sends.

        Were it closed at once, the client's kernel would throw away what it has not read yet.
        """
        left = _PARTING_BYTES
        with contextlib.suppress(OSError, TimeoutError):
            if self._tls is None:
                self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_PARTING_S):
                while left > 0 and (data := await self.read()):
                    await self.turn()
                    left -= len(data)

    async def close(self) -> None:
        """See the protocol."""
        with contextlib.suppress(OSError):
            async with self._writing:
                if self._tls is not None:
                    self._tls.say_close()
                await self._flush()
        self.abort()

    def abort(self) -> None:
        """See the protocol."""
        if self._descriptor < 0:
            return
        # In this order: whoever waits wakes up later, and the number may be another connection's by then.
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._descriptor = -1
        for waiter in self._waiting:
            _resolve(waiter)
        self._socket.close()

    async def _receive(self) -> bytes:
        """Return the next bytes from the kernel; ``b""`` at the end, and after ``abort``."""
        while self._descriptor >= 0:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
            except OSError as error:
                raise _broken(error) from None
            else:
                self.moved_at = self._loop.time()
                return data
        return b""

    async def _decrypt(self, tls: "Tls") -> bytes:
        """Return some records' content. A turn for each: there may be thousands with a byte in them."""
        pieces: list[bytes] = []
        size = 0
        while size < READ_BYTES:
            await self._turns.take()
            piece = tls.decrypt()
            if piece is None and not pieces:
                if tls.has_output:  # what the protocol itself answers, such as to an update of keys
                    async with self._writing:
                        await self._flush()
                tls.take(await self._receive())
                continue
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    async def _flush(self) -> None:
        """Send what was written, to its end; with the lock held."""
        while True:
            if not self._unsent and self._tls is not None:
                self._unsent = memoryview(self._tls.give())
            if not self._unsent:
                return
            if self._descriptor < 0:
                raise ConnectionResetError("the connection has been closed")
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                await self._wait(self._loop.add_writer, self._loop.remove_writer)
            except OSError as error:
                raise _broken(error) from None

    async def _wait(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Wait until the socket can be read, or written, or is closed; one for each of the two."""
        waiter = self._loop.create_future()
        self._waiting.add(waiter)
        add(self._descriptor, _resolve, waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            if self._descriptor >= 0:
                remove(self._descriptor)


class Tls:
    """One end of TLS, without any input or output. Raises ConnectionError for what breaks it after the handshake."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool, peer: str | None = None) -> None:
        """``peer`` is what a client expects the server's certificate to be for."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server, server_hostname=peer)

    @property
    def has_output(self) -> bool:
        """Whether there is something to send."""
        return self._outgoing.pending > 0

    def shake_hands(self) -> bool:
        """Go on with the handshake; tell whether it is over. Raises ssl.SSLError."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self, data: bytes) -> None:
        """Take what has come; ``b""`` is the end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def give(self) -> bytes:
        """Return what is to be sent."""
        return self._outgoing.read()

    def decrypt(self) -> bytes | None:
        """Return the next record's content, ``b""`` at the end; ``None`` where it is not there yet."""
        try:
            return self._object.read(_RECORD_BYTES)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # whoever cares for the end says so in the protocol above
            return b""
        except ssl.SSLError as error:
            raise ConnectionResetError(f"TLS: {error}") from error

    def encrypt(self, data: bytes) -> None:
        """Add to what is to be sent."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._object.write(view) :]
        except ssl.SSLError as error:
            raise ConnectionResetError(f"TLS: {error}") from error

    def say_close(self) -> None:
        """Add to what is to be sent that there will be no more."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()


def _broken(error: OSError) -> ConnectionError:
    """Make a ConnectionError of whatever the kernel says of a connection: ETIMEDOUT and EHOSTUNREACH are none."""
    return error if isinstance(error, ConnectionError) else ConnectionResetError(error.errno, error.strerror)


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
