"""An end of a WebSocket (RFC 6455), the server's unless told otherwise: a connection of messages, and two uses of it.

``Channels`` carries several streams, each message beginning with the number of its channel (the remotecommand and old
port forward protocols); ``TunnelTransport`` carries SPDY. Messages are handed on piece by piece as they come, so that
none is ever kept in memory, whatever its length.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crinoid.core.api.buffers import BufferShare
from crinoid.core.cri.streaming.inbox import Inbox
from crinoid.core.cri.streaming.transports import Buffer, Transport

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR = 1000, 1002
CLOSE_SIGNAL = 255
"""The channel of ``v5.channel.k8s.io`` that tells of the end of another channel."""

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_CONTROL_BYTES = 125
_NO_CHANNEL = 256
_PIECE_BYTES = 1 << 16
_LINGER_S = 5.0


class WebSocketError(Exception):
    """The peer sent what is no WebSocket."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a message, or a whole control frame; ``first`` and ``last`` of its message."""

    opcode: int
    data: bytes
    first: bool = True
    last: bool = True


@dataclass(slots=True)
class _Frame:
    """The frame under way."""

    opcode: int
    fin: bool
    mask: bytes
    missing: int


def accept_key(key: str) -> str:
    """Return the answer to a client's Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def frame_head(opcode: int, length: int, key: bytes = b"") -> bytes:
    """Return what goes before the payload of a whole message; a client's is masked with a key of four bytes."""
    first, masked = 0x80 | opcode, 0x80 if key else 0
    if length < 126:
        return struct.pack(">BB", first, masked | length) + key
    if length < 1 << 16:
        return struct.pack(">BBH", first, masked | 126, length) + key
    return struct.pack(">BBQ", first, masked | 127, length) + key


def mask(data: bytes, key: bytes) -> bytes:
    """Apply a client's mask, or take it off; as one great number, which is fast."""
    whole = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(whole)).to_bytes(len(data))


class PieceReader:
    """Turns the peer's bytes into pieces of messages; a client's are ``masked``, a server's are not."""

    def __init__(self, *, masked: bool = True) -> None:
        self._masked = masked
        self._buffer = b""
        self._at = 0  # what is before it has been read
        self._frame: _Frame | None = None
        self._message = 0  # the opcode of the message under way
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Take bytes as they come and yield what can be handed on. Raises WebSocketError; use it up before the next."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> Piece | None:
        if self._frame is None and not self._read_head():
            return None
        assert self._frame is not None
        frame = self._frame
        is_control = frame.opcode >= CLOSE
        there = len(self._buffer) - self._at
        if frame.missing and (not there or (is_control and there < frame.missing)):
            return None
        data = self._take(min(there, frame.missing))
        frame.missing -= len(data)
        plain = mask(data, frame.mask) if data and frame.mask else data
        turn = len(data) % 4
        frame.mask = frame.mask[turn:] + frame.mask[:turn]
        if not frame.missing:
            self._frame = None
        return Piece(frame.opcode, plain) if is_control else self._piece(frame, plain)

    def _take(self, count: int) -> bytes:
        self._at += count
        return self._buffer[self._at - count : self._at]

    def _piece(self, frame: _Frame, plain: bytes) -> Piece:
        first, self._begun = not self._begun, True
        last = frame.fin and not frame.missing
        opcode = self._message
        if last:
            self._message, self._begun = 0, False
        return Piece(opcode, plain, first, last)

    def _read_head(self) -> bool:
        """Read a frame's head, if it is there whole."""
        there = len(self._buffer) - self._at
        if there < 2:
            return False
        first, second = self._buffer[self._at], self._buffer[self._at + 1]
        length, form = second & 0x7F, {126: ">H", 127: ">Q"}.get(second & 0x7F, "")
        size = 2 + struct.calcsize(form) + (4 if self._masked else 0)
        if there < size:
            return False
        head = self._take(size)
        if form:
            (length,) = struct.unpack_from(form, head, 2)
        self._check_head(first, second, length)
        self._frame = _Frame(first & 0x0F, bool(first & 0x80), head[-4:] if self._masked else b"", length)
        return True

    def _check_head(self, first: int, second: int, length: int) -> None:
        opcode, fin = first & 0x0F, first & 0x80
        if first & 0x70 or opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketError(f"a frame that begins with {first:#x}")
        if bool(second & 0x80) != self._masked:
            raise WebSocketError("a client's frame without a mask, or a server's with one")
        if opcode >= CLOSE:
            if length > _MAX_CONTROL_BYTES or not fin:
                raise WebSocketError("a long or broken control frame")
        elif (opcode == 0) != (self._message != 0):
            raise WebSocketError("a message in the midst of another, or the rest of none")
        elif opcode:
            self._message = opcode


class WebSocket:
    """A WebSocket over a connection that has been upgraded; one reads, many may send."""

    def __init__(self, transport: Transport, *, is_client: bool = False) -> None:
        self._transport = transport
        self._is_client = is_client
        self._reader = PieceReader(masked=not is_client)
        self._pieces: Iterator[Piece] = iter(())
        self._said_close = False

    @property
    def moved_at(self) -> float:
        """The loop's time when bytes moved last."""
        return self._transport.moved_at

    async def receive(self) -> Piece | None:
        """Return the next piece of a message; ``None`` at the end. Pings are answered here."""
        while True:
            try:
                for piece in self._pieces:
                    await self._transport.turn()
                    if piece.opcode < CLOSE:
                        return piece
                    if piece.opcode == CLOSE:
                        await self.say_close(NORMAL)
                        return None
                    if piece.opcode == PING:
                        await self.send(piece.data, opcode=PONG)
            except WebSocketError:
                await self.say_close(PROTOCOL_ERROR)
                return None
            data = await self._transport.read()
            if not data:
                return None
            self._pieces = self._reader.feed(data)

    async def turn(self) -> None:
        """See ``Transport``."""
        await self._transport.turn()

    async def send(self, *parts: Buffer, opcode: int = BINARY) -> None:
        """Send the parts as one message. Raises ConnectionError."""
        if self._said_close:
            raise ConnectionResetError("the WebSocket has been closed")
        length = sum(map(len, parts))
        if self._is_client:
            key = os.urandom(4)
            await self._transport.write(frame_head(opcode, length, key), mask(b"".join(parts), key))
        else:
            await self._transport.write(frame_head(opcode, length), *parts)

    async def hold(self) -> None:
        """While nothing is read, no ping is answered: an unasked pong (section 5.5.3) keeps the client content."""
        await self._transport.hold()
        if not self._is_client:
            await self.send(opcode=PONG)

    async def say_close(self, code: int) -> None:
        """Begin, or answer, the closing. Idempotent."""
        if not self._said_close:
            with contextlib.suppress(ConnectionError):
                await self.send(struct.pack(">H", code), opcode=CLOSE)
            self._said_close = True

    async def close(self) -> None:
        """Close the connection below."""
        await self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class TunnelTransport:
    """SPDY's bytes in binary messages."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    @property
    def moved_at(self) -> float:
        """See the protocol."""
        return self._websocket.moved_at

    async def turn(self) -> None:
        """See the protocol."""
        await self._websocket.turn()

    async def read(self) -> bytes:
        """See the protocol."""
        while (piece := await self._websocket.receive()) is not None:
            if piece.data:
                return piece.data
        return b""

    async def write(self, *parts: Buffer) -> None:
        """See the protocol."""
        await self._websocket.send(*parts)

    async def hold(self) -> None:
        """See the protocol."""
        await self._websocket.hold()

    async def close(self) -> None:
        """See the protocol."""
        await self._websocket.say_close(NORMAL)
        await self._websocket.close()

    def abort(self) -> None:
        """See the protocol."""
        self._websocket.abort()


class Channel:
    """One channel, to be read and written."""

    was_reset = False  # that can't be said in these protocols

    def __init__(self, channels: "Channels", number: int) -> None:
        self.inbox = Inbox(channels.share)
        self.dead = channels.gone
        self._channels = channels
        self._number = number

    async def read(self) -> bytes:
        """Return what has come; ``b""`` once the client has ended the channel, or gone."""
        return await self.inbox.get()

    async def write(self, data: bytes) -> None:
        """Send data. Raises BrokenPipeError when the client has gone."""
        view = memoryview(data)
        while view:
            await self._channels.send(self._number, view[:_PIECE_BYTES])
            view = view[_PIECE_BYTES:]

    async def room(self) -> int:
        """Return how much to write at a time: there are no windows in these protocols."""
        return _PIECE_BYTES

    async def announce(self) -> None:
        """Send an empty message, by which the client knows that the channel is there."""
        await self._channels.send(self._number, b"")

    async def close(self) -> None:
        """Nothing: in these protocols all of a server's channels end with the connection."""

    async def reset(self) -> None:
        """Nothing, too."""


class Channels:
    """A WebSocket whose messages begin with a channel's number: a byte, or in base64 protocols a digit.

    ``signals_close``: channel 255 tells of the end of another (``v5.channel.k8s.io``).
    """

    def __init__(self, websocket: WebSocket, count: int, protocol: str, share: BufferShare) -> None:
        self.gone = asyncio.Event()
        self.share = share
        self.all = tuple(Channel(self, number) for number in range(count))
        self._websocket = websocket
        self._base64 = "base64." in protocol
        self._signals_close = protocol.startswith("v5.")
        self._number = -1  # the channel of the message under way
        self._text = b""  # of a base64 message: what is no whole group of four yet

    async def run(self) -> None:
        """Hand on what comes until the client has gone."""
        try:
            while (piece := await self._websocket.receive()) is not None:
                data = piece.data
                if piece.first:
                    self._number, self._text = -1, b""
                if self._number < 0 and data:
                    self._number, data = _channel_number(data[0], is_digit=self._base64), data[1:]
                await self._take(self._number, self._decode(data) if self._base64 else data)
        except (ConnectionError, WebSocketError):
            pass
        finally:
            self.gone.set()
            for channel in self.all:
                channel.inbox.end()
            self.share.close()

    async def send(self, number: int, data: Buffer) -> None:
        """Send a message of a channel. Raises BrokenPipeError."""
        try:
            if self._base64:
                await self._websocket.send(b"%d" % number, base64.b64encode(data), opcode=TEXT)
            else:
                await self._websocket.send(bytes((number,)), data)
        except ConnectionError as error:
            raise BrokenPipeError("the client has gone") from error

    async def finish(self) -> None:
        """Say good-bye, drop what still comes, and wait a little for the client to leave first."""
        for channel in self.all:
            channel.inbox.discard()
        await self._websocket.say_close(NORMAL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self.gone.wait()

    async def _take(self, number: int, data: bytes) -> None:
        channel = self._find(number)
        if self._signals_close and number == CLOSE_SIGNAL:
            for one in data[:1]:
                if (ended := self._find(one)) is not None:
                    ended.inbox.end()
        elif channel is not None and data:
            channel.inbox.put(data)
            await channel.inbox.wait_for_room(self._websocket.hold)

    def _decode(self, piece: bytes) -> bytes:
        """Decode what has come of a base64 message, in groups of four characters; what follows no base64 is dropped."""
        text = self._text + piece
        whole = len(text) & ~3
        self._text = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error:
            self._number = _NO_CHANNEL
            return b""

    def _find(self, number: int) -> Channel | None:
        return self.all[number] if 0 <= number < len(self.all) else None


def _channel_number(first: int, *, is_digit: bool) -> int:
    if not is_digit:
        return first
    return first - ord("0") if first >= ord("0") else _NO_CHANNEL


def choose_protocol(offered: tuple[str, ...], known: Mapping[str, object]) -> str | None:
    """Return the first protocol a client offers that is known; ``""`` when it offers none, ``None`` for no match."""
    if not offered:
        return ""
    return next((name for name in offered if name in known), None)
