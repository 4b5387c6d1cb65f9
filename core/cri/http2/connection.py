"""One client's connection (RFC 9113, section 5): its streams, from their headers to their ends, and what may be sent.

``data_received`` takes bytes from the loop; a request that is whole goes to the ``Application``, which answers by
``Connection.respond``, or piece by piece by ``begin``, ``send`` and ``end``. An answer that finds no room in the
client's windows waits for it, and holds up nothing else.
"""

import asyncio
import logging
import struct
from typing import Protocol

from hpack import Decoder, HPACKError

from crinoid.core.cri.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    HEAD,
    MAX_FRAME,
    MAX_WINDOW,
    PREFACE,
    Code,
    ConnectionFault,
    Kind,
    Setting,
    content,
    frame,
    goaway,
    number_frame,
    settings,
)

LOG = logging.getLogger("crinoid.cri")
MAX_STREAMS = 1024
_MAX_HEADERS = 1 << 16
_RENEW = 1 << 24
_MAX_UNREAD = 1 << 22
"""Bytes of answers to pings and settings that a client may leave unread."""


class Stream:
    """A request with its answer. ``body`` is the request's data; ``closed`` when nothing can be said any more."""

    __slots__ = ("body", "closed", "ended", "fields", "number", "pending", "room", "tail", "task", "window")

    def __init__(self, number: int, fields: dict[bytes, bytes], window: int) -> None:
        self.number = number
        self.fields = fields
        self.body: bytes | bytearray = b""
        self.ended = False
        self.closed = False
        self.window = window
        self.pending: memoryview | None = None
        self.tail: bytes | None = None
        self.room: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None


class Application(Protocol):
    """What connections serve."""

    max_body: int

    def accept(self, connection: "Connection", stream: Stream) -> None:
        """Take a request that is whole."""
        ...

    def refuse(self, connection: "Connection", stream: Stream) -> None:
        """Answer a request that is larger than ``max_body``."""
        ...

    def opened(self, connection: "Connection") -> None:
        """Note a connection."""
        ...

    def closed(self, connection: "Connection") -> None:
        """Note the end of a connection."""
        ...


class Connection(asyncio.Protocol):
    """A client that has connected."""

    _transport: asyncio.Transport

    def __init__(self, application: Application) -> None:
        self._application = application
        self._unread = b""
        self._welcomed = False
        self._decoder = Decoder(_MAX_HEADERS)
        self._block: tuple[int, int, bytes] | None = None
        self.streams: dict[int, Stream] = {}
        self._last = 0
        self._leaving = False
        self._window = FIRST_WINDOW
        self._first_window = FIRST_WINDOW
        self._max_frame = MAX_FRAME
        self._received = 0
        self._writable = asyncio.Event()
        self._writable.set()

    # from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how much may be sent: as much as the client likes, since what is too much is refused by its length."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        ours = {Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS, Setting.INITIAL_WINDOW_SIZE: MAX_WINDOW}
        transport.write(settings(ours) + number_frame(Kind.WINDOW_UPDATE, 0, MAX_WINDOW - FIRST_WINDOW))
        self._application.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all calls: nobody waits for them."""
        self._writable.set()
        for stream in tuple(self.streams.values()):
            self._drop(stream)
        self._application.closed(self)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take frames; what is not whole yet waits for more."""
        buffer = self._unread + data if self._unread else data
        try:
            self._unread = buffer[self._take(buffer) :]
        except ConnectionFault as fault:
            self._give_up(fault)

    # from the application

    def respond(self, stream: Stream, head: bytes, message: bytes, tail: bytes) -> None:
        """Answer as a whole: a block of headers, a message maybe, and a block of trailers."""
        if stream.closed:
            return
        number, size = stream.number, len(message)
        if size > min(self._window, stream.window, self._max_frame):
            self.begin(stream, head)
            self._queue(stream, message)
            self.end(stream, tail)
            return
        data = frame(Kind.DATA, 0, number, message) if message else b""
        self._window -= size
        self._transport.write(
            frame(Kind.HEADERS, END_HEADERS, number, head)
            + data
            + frame(Kind.HEADERS, END_HEADERS | END_STREAM, number, tail)
        )
        self._finish(stream)

    def begin(self, stream: Stream, head: bytes) -> None:
        """Send the headers of an answer."""
        if not stream.closed:
            self._transport.write(frame(Kind.HEADERS, END_HEADERS, stream.number, head))

    async def send(self, stream: Stream, message: bytes) -> None:
        """Send a message; return once the client's windows have taken all of it."""
        if not stream.closed:
            self._queue(stream, message)
            if stream.pending is not None:
                stream.room = asyncio.get_running_loop().create_future()
                await stream.room
            await self._writable.wait()

    def end(self, stream: Stream, tail: bytes) -> None:
        """Send the trailers, after whatever waits to be sent; without ``begin`` they are all of the answer."""
        if stream.closed:
            return
        if stream.pending is not None:
            stream.tail = tail
            return
        self._transport.write(frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream.number, tail))
        self._finish(stream)

    def leave(self) -> None:
        """Take no new streams; the connection closes with the last one there is."""
        if not self._leaving:
            self._leaving = True
            self._transport.write(goaway(self._last, Code.NO_ERROR))
            self._close_if_done()

    def close(self) -> None:
        """End the connection, once what was written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # taking frames

    def _take(self, buffer: bytes) -> int:
        """Take all whole frames; return how many bytes they were."""
        position, size = 0, len(buffer)
        if not self._welcomed:
            if not PREFACE.startswith(buffer[: len(PREFACE)]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this is not HTTP/2")
            if size < len(PREFACE):
                return 0
            position, self._welcomed = len(PREFACE), True
        while size - position >= HEAD.size:
            high, low, kind, flags, number = HEAD.unpack_from(buffer, position)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = position + HEAD.size + length
            if end > size:
                break
            self._dispatch(kind, flags, number & MAX_WINDOW, buffer[position + HEAD.size : end])
            position = end
        return position

    def _dispatch(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != Kind.CONTINUATION:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame in the midst of headers")
        if kind in (Kind.DATA, Kind.HEADERS, Kind.RST_STREAM, Kind.CONTINUATION, Kind.PRIORITY):
            if number == 0:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame of a stream without a stream")
        elif kind in (Kind.SETTINGS, Kind.PING, Kind.GOAWAY) and number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame of the connection with a stream")
        match kind:
            case Kind.HEADERS:
                self._take_headers(flags, number, content(flags, payload, priority=True))
            case Kind.DATA:
                self._take_data(flags, number, payload)
            case Kind.WINDOW_UPDATE:
                self._take_window(number, _number(payload))
            case Kind.PING:
                self._take_ping(flags, payload)
            case Kind.SETTINGS:
                self._take_settings(flags, payload)
            case Kind.RST_STREAM:
                self._take_reset(number, _number(payload))
            case Kind.CONTINUATION:
                self._take_continuation(flags, number, payload)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a client can't push")

    def _take_headers(self, flags: int, number: int, block: bytes) -> None:
        if not flags & END_HEADERS:
            self._block = (number, flags, block)
            return
        try:
            fields = dict(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, f"headers can't be read: {error}") from error
        if number > self._last:
            self._open(number, fields)
        stream = self.streams.get(number)
        if flags & END_STREAM and stream is not None:
            self._end_request(stream)

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._block
        block += payload
        if len(block) > _MAX_HEADERS:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "headers without end")
        self._block = None
        self._take_headers(first_flags | flags & END_HEADERS, number, block)

    def _open(self, number: int, fields: dict[bytes, bytes]) -> None:
        if not number % 2:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a client's streams have odd numbers")
        self._last = number
        if self._leaving or len(self.streams) >= MAX_STREAMS:
            self._transport.write(number_frame(Kind.RST_STREAM, number, Code.REFUSED_STREAM))
            return
        self.streams[number] = Stream(number, fields, self._first_window)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _RENEW:
            self._transport.write(number_frame(Kind.WINDOW_UPDATE, 0, self._received))
            self._received = 0
        stream = self.streams.get(number)
        if stream is None:
            if number > self._last:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "data of a stream that was never opened")
            return  # it was answered, or reset, before all of it came
        data = content(flags, payload)
        if stream.body:
            stream.body = bytearray(stream.body) if isinstance(stream.body, bytes) else stream.body
            stream.body += data
        else:
            stream.body = data
        if len(stream.body) > self._application.max_body:
            self._application.refuse(self, stream)
        elif flags & END_STREAM:
            self._end_request(stream)

    def _end_request(self, stream: Stream) -> None:
        if stream.ended:
            raise ConnectionFault(Code.STREAM_CLOSED, "a request that ends twice")
        stream.ended = True
        self._application.accept(self, stream)

    def _take_reset(self, number: int, _code: int) -> None:
        if number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a reset of a stream that was never opened")
        if (stream := self.streams.get(number)) is not None:
            self._drop(stream)
            self._close_if_done()

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a ping has eight bytes")
        if not flags & ACK:
            self._acknowledge(frame(Kind.PING, ACK, 0, payload))

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "settings have six bytes each")
        for key, value in struct.iter_unpack(">HI", payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._change_first_window(value)
            elif key == Setting.MAX_FRAME_SIZE:
                if not MAX_FRAME <= value < 1 << 24:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, f"frames can't be limited to {value} bytes")
                self._max_frame = value
        self._acknowledge(frame(Kind.SETTINGS, ACK, 0))
        self._send_what_waits()

    def _change_first_window(self, value: int) -> None:
        """Change the windows of all streams by the difference, below zero maybe (RFC 9113, section 6.9.2)."""
        if value > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
        for stream in self.streams.values():
            stream.window += value - self._first_window
        self._first_window = value

    def _take_window(self, number: int, added: int) -> None:
        added &= MAX_WINDOW
        if not added:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a window grows by nothing")
        if number == 0:
            self._window += added
            if self._window > MAX_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "the connection's window is too large")
            self._send_what_waits()
        elif (stream := self.streams.get(number)) is not None:
            stream.window += added
            if stream.window > MAX_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a stream's window is too large")
            self._send_more(stream)
        elif number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a window of a stream that was never opened")

    # sending

    def _queue(self, stream: Stream, message: bytes) -> None:
        stream.pending = memoryview(message)
        self._send_more(stream)

    def _send_what_waits(self) -> None:
        for stream in tuple(self.streams.values()):
            if stream.pending is not None:
                self._send_more(stream)

    def _send_more(self, stream: Stream) -> None:
        """Send as much of a waiting message as the windows take, and what comes after it."""
        if stream.pending is None:
            return
        while stream.pending:
            size = min(len(stream.pending), self._window, stream.window, self._max_frame)
            if size <= 0:
                return
            self._transport.write(frame(Kind.DATA, 0, stream.number, bytes(stream.pending[:size])))
            self._window -= size
            stream.window -= size
            stream.pending = stream.pending[size:]
        stream.pending = None
        if stream.room is not None and not stream.room.done():
            stream.room.set_result(None)
        if stream.tail is not None:
            self.end(stream, stream.tail)

    def _finish(self, stream: Stream) -> None:
        """The answer is complete; a client that still sends its request may stop."""
        if not stream.ended:
            self._transport.write(number_frame(Kind.RST_STREAM, stream.number, Code.NO_ERROR))
        stream.closed = True
        self.streams.pop(stream.number, None)
        self._close_if_done()

    def _drop(self, stream: Stream) -> None:
        """Nobody waits for the answer any more: cancel the call."""
        stream.closed = True
        self.streams.pop(stream.number, None)
        if stream.room is not None:
            stream.room.cancel()
        if stream.task is not None:
            stream.task.cancel()

    def _acknowledge(self, answer: bytes) -> None:
        if self._transport.get_write_buffer_size() > _MAX_UNREAD:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "answers are not read")
        self._transport.write(answer)

    def _close_if_done(self) -> None:
        if self._leaving and not self.streams:
            self._transport.close()

    def _give_up(self, fault: ConnectionFault) -> None:
        LOG.info("a client of the CRI's socket is cut off: %s", fault)
        self._unread = b""
        self._transport.write(goaway(self._last, fault.code, str(fault)))
        self._transport.close()


def _number(payload: bytes) -> int:
    if len(payload) != 4:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame of a number has four bytes")
    return int.from_bytes(payload, "big")
