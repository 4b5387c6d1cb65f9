"""A SPDY/3.1 connection as the server has it: streams that the client opens, over any transport.

Flow control: Kubernetes' clients, all of which use one Go library, neither keep to windows nor open them; they are held
back by TCP, and so is every stream of the connection by one that is not read. For a client that does count (it sends
SETTINGS or a WINDOW_UPDATE), windows are kept both ways.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crinoid.core.api.buffers import BufferShare
from crinoid.core.cri.streaming import frames
from crinoid.core.cri.streaming.inbox import CAPACITY_BYTES, Inbox
from crinoid.core.cri.streaming.transports import Buffer, Transport

_DEFAULT_WINDOW = 1 << 16
_LARGEST_WINDOW = (1 << 31) - 1
_FRAME_BYTES = 1 << 16
_LINGER_S = 5.0


@dataclass(frozen=True, slots=True)
class SpdyLimits:
    """What one connection may take: ``max_streams`` open at once, further ones are refused; ``share`` of memory."""

    max_streams: int
    share: BufferShare


class StreamRefused(Exception):
    """Raised by who is asked to accept a stream."""


class SpdyStream:
    """A stream, to be read and written; ``headers`` have lower-case names."""

    def __init__(self, connection: "SpdyConnection", stream_id: int, headers: Mapping[str, str]) -> None:
        self.id = stream_id
        self.headers = headers
        self.inbox = Inbox(connection.limits.share)
        self.dead = asyncio.Event()
        self._connection = connection
        self._sent_fin = False
        self._sent_bytes = 0
        self._credit = 0  # by WINDOW_UPDATE, beyond the initial window
        self._read_bytes = 0  # since the last WINDOW_UPDATE of ours
        self._window_changed = asyncio.Event()

    @property
    def was_reset(self) -> bool:
        """Whether it was ended at once, both ways."""
        return self.dead.is_set()

    @property
    def is_over(self) -> bool:
        """Whether both sides have finished."""
        return self.was_reset or (self._sent_fin and self.inbox.is_ended)

    async def read(self) -> bytes:
        """Return what has come; ``b""`` once the client has finished, reset the stream, or gone."""
        data = await self.inbox.get()
        self._read_bytes += len(data)
        if self._read_bytes >= CAPACITY_BYTES // 2 and not self.inbox.is_ended:
            count, self._read_bytes = self._read_bytes, 0
            with contextlib.suppress(ConnectionError):
                await self._connection.send(frames.window_update(self.id, count))
        return data

    async def write(self, data: bytes) -> None:
        """Send data. Raises BrokenPipeError when the client does not take any more."""
        view = memoryview(data)
        while view:
            piece = view[: await self.room()]
            view = view[len(piece) :]
            self._sent_bytes += len(piece)
            try:
                await self._connection.send(frames.data_head(self.id, len(piece)), piece)
            except ConnectionError as error:
                raise BrokenPipeError("the client has gone") from error

    async def close(self) -> None:
        """Say that no more will be sent. Idempotent."""
        if self._sent_fin or self.was_reset:
            return
        self._sent_fin = True
        with contextlib.suppress(ConnectionError):
            await self._connection.send(frames.data_head(self.id, 0, fin=True))
        self._connection.forget_if_over(self)

    async def reset(self, status: int = frames.CANCEL) -> None:
        """End the stream at once, both ways. Idempotent."""
        if self.is_over:
            return
        self.take_reset()
        with contextlib.suppress(ConnectionError):
            await self._connection.send(frames.reset(self.id, status))

    def take_reset(self) -> None:
        """The stream is dead."""
        self.dead.set()
        self.inbox.end()
        self._window_changed.set()
        self._connection.forget_if_over(self)

    def take_credit(self, delta: int) -> bool:
        """The client has room for more; tells whether that can be."""
        self._credit += delta
        self._window_changed.set()
        return self._connection.send_window + self._credit - self._sent_bytes <= _LARGEST_WINDOW

    def wake(self) -> None:
        """Look at the window anew."""
        self._window_changed.set()

    async def room(self) -> int:
        """Wait until something may be sent; return how much. Raises BrokenPipeError when nothing will be taken."""
        while True:
            if self.was_reset or self._sent_fin:
                raise BrokenPipeError("the stream has been closed")
            if not self._connection.counts:
                return _FRAME_BYTES
            room = self._connection.send_window + self._credit - self._sent_bytes
            if room > 0:
                return min(room, _FRAME_BYTES)
            self._window_changed.clear()
            self._connection.blocked.add(self)
            await self._window_changed.wait()


Accept = Callable[[SpdyStream], None]
"""Is shown each new stream; raises StreamRefused for one that has no meaning."""


class SpdyConnection:
    """The server's end. ``run`` reads until the client has gone; ``gone`` tells of it."""

    PEER_PARITY = 1
    """The last bit of the numbers that the peer chooses for its pings: a client's are odd."""

    def __init__(self, transport: Transport, accept: Accept, limits: SpdyLimits) -> None:
        self.gone = asyncio.Event()
        self.limits = limits
        self.blocked: set[SpdyStream] = set()  # those that wait for their windows
        self.counts = False  # whether the client keeps windows
        self.send_window = _DEFAULT_WINDOW
        self._transport = transport
        self._accept = accept
        self._reader = frames.FrameReader()
        self._writer = frames.FrameWriter()
        self._streams: dict[int, SpdyStream] = {}
        self._last_id = 0
        self._going_away = False

    async def run(self) -> None:
        """Serve frames until the connection ends, for whatever reason."""
        try:
            await self.send(frames.initial_window(CAPACITY_BYTES))
            while data := await self._transport.read():
                for frame in self._reader.feed(data):
                    await self._transport.turn()
                    await self._take(frame)
        except frames.ProtocolError:
            with contextlib.suppress(ConnectionError):
                await self.send(frames.goaway(self._last_id, frames.GOAWAY_PROTOCOL_ERROR))
        except ConnectionError:
            pass
        finally:
            self.gone.set()
            for stream in tuple(self._streams.values()):
                stream.take_reset()
            self.limits.share.close()

    async def send(self, *parts: Buffer) -> None:
        """Send bytes of a frame. Raises ConnectionError."""
        await self._transport.write(*parts)

    async def finish(self) -> None:
        """Take no new streams, drop what still comes, and wait a little for the client to leave first.

        Were the connection closed while the client still sends, its kernel would throw away what it has not read yet.
        """
        if self.gone.is_set():
            return
        self._going_away = True
        for stream in tuple(self._streams.values()):
            stream.inbox.discard()
            await stream.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self.send(frames.goaway(self._last_id))
            async with asyncio.timeout(_LINGER_S):
                await self.gone.wait()

    def forget_if_over(self, stream: SpdyStream) -> None:
        """Drop a stream that both sides have finished."""
        if stream.is_over:
            self._streams.pop(stream.id, None)
            self.blocked.discard(stream)

    async def _take(self, frame: frames.Frame | None) -> None:
        match frame:
            case frames.Data():
                await self._take_data(frame)
            case frames.Opening():
                await self._open(frame)
            case frames.Reset(stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.take_reset()
            case frames.Ping(number) if number & 1 == self.PEER_PARITY:
                await self.send(frames.ping(number))
            case frames.GoAway():
                self._going_away = True
            case frames.WindowUpdate() | frames.InitialWindow():
                await self._take_window(frame)
            case frames.Reply(stream_id, _, True):
                self._end(stream_id)

    async def _take_data(self, frame: frames.Data) -> None:
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            if frame.stream_id > self._last_id:
                await self.send(frames.reset(frame.stream_id, frames.INVALID_STREAM))
            return  # else: it has been closed here while this was on its way
        stream.inbox.put(frame.data)
        if frame.fin:
            self._end(frame.stream_id)
        await stream.inbox.wait_for_room(self._transport.hold)

    async def _open(self, frame: frames.Opening) -> None:
        if frame.stream_id <= self._last_id or not frame.stream_id & 1:
            await self.send(frames.reset(frame.stream_id, frames.PROTOCOL_ERROR))
            return
        self._last_id = frame.stream_id
        stream = SpdyStream(self, frame.stream_id, frame.headers)
        try:
            if self._going_away or len(self._streams) >= self.limits.max_streams:
                raise StreamRefused
            self._accept(stream)
        except StreamRefused:
            await self.send(frames.reset(frame.stream_id, frames.REFUSED_STREAM))
            return
        self._streams[stream.id] = stream
        await self.send(self._writer.reply(stream.id, {}))
        if frame.fin:
            self._end(stream.id)

    async def _take_window(self, frame: frames.WindowUpdate | frames.InitialWindow) -> None:
        """Only streams that wait are woken, and each waits again at the earliest in the loop's next round: so thousands
        of frames cost no more than the streams once."""
        self.counts = True
        if isinstance(frame, frames.InitialWindow):
            self.send_window = frame.size
            for one in self.blocked:
                one.wake()
            self.blocked.clear()
        elif (stream := self._streams.get(frame.stream_id)) is not None and not stream.take_credit(frame.delta):
            await stream.reset(frames.FLOW_CONTROL_ERROR)

    def _end(self, stream_id: int) -> None:
        if (stream := self._streams.get(stream_id)) is not None:
            stream.inbox.end()
            self.forget_if_over(stream)
