"""Clients of the streaming server: SPDY of our own, WebSocket by aiohttp, and what Kubernetes' tools do with them.

``exec_over`` and the rest are used alike for both::

    async with connect(url, "spdy", "v4.channel.k8s.io") as client:
        command = await client.start(stdout=True, stderr=True)
        status = await command.status()
"""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp

from crinoid.core.cri.streaming import frames

CHANNELS = ("stdin", "stdout", "stderr", "error", "resize")
READ_BYTES = 1 << 18


class Refused(Exception):
    """The server did not upgrade the connection."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Wire(Protocol):
    """Bytes to and from the server."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


class TcpWire:
    """A connection that was upgraded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> bytes:
        try:
            return await self.reader.read(READ_BYTES)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        self.writer.transport.abort()


class WebSocketWire:
    """SPDY in the messages of a WebSocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def read(self) -> bytes:
        message = await self.websocket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else b""

    async def write(self, data: bytes) -> None:
        await self.websocket.send_bytes(data)

    async def close(self) -> None:
        await self.websocket.close()


async def upgrade(url: str, fields: Mapping[str, str], tls: ssl.SSLContext | None = None) -> tuple[TcpWire, str]:
    """Ask for an upgrade by hand; return the connection and the answer's head. Raises Refused."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, limit=READ_BYTES)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    writer.write("\r\n".join((*lines, "", "")).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split()[1])
    if status != 101:
        text = (await reader.read()).decode()
        writer.close()
        raise Refused(status, text)
    return TcpWire(reader, writer), head


@dataclass
class SpdyStream:
    """A stream that the client opened."""

    client: "SpdyClient"
    id: int
    pieces: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    was_reset: bool = False
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    received: int = 0

    async def send(self, data: bytes) -> None:
        await self.client.wire.write(frames.data_head(self.id, len(data)) + data)

    async def close(self) -> None:
        await self.client.wire.write(frames.data_head(self.id, 0, fin=True))

    async def reset(self) -> None:
        await self.client.wire.write(frames.reset(self.id, frames.CANCEL))

    async def read(self) -> bytes:
        """The next piece; ``b""`` at the end."""
        piece = await self.pieces.get()
        if not piece:
            self.pieces.put_nowait(b"")
        elif self.client.window:
            self.received += len(piece)
            await self.client.wire.write(frames.window_update(self.id, len(piece)))
        return piece

    async def read_all(self) -> bytes:
        return b"".join([piece async for piece in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece


class SpdyClient:
    """A SPDY/3.1 client like Kubernetes': it opens streams, and does not care for windows unless ``window`` is set."""

    def __init__(self, wire: Wire, protocol: str = "", window: int = 0) -> None:
        self.wire, self.protocol, self.window = wire, protocol, window
        self.ended = asyncio.Event()
        self.goaway: frames.GoAway | None = None
        self.pongs: list[int] = []
        self._reader, self._writer = frames.FrameReader(), frames.FrameWriter()
        self._streams: dict[int, SpdyStream] = {}
        self._next = 1
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._reading = asyncio.create_task(self._read())

    async def open(self, **headers: str) -> SpdyStream:
        """Open a stream without waiting for the answer."""
        stream = self._streams[self._next] = SpdyStream(self, self._next)
        self._next += 2
        await self.wire.write(self._writer.opening(stream.id, headers))
        return stream

    async def start(self, **wanted: bool) -> "Command":
        """Open the streams of a remote command, as kubectl does."""
        names = ["error", *(name for name in CHANNELS if wanted.get(name))]
        streams = {name: await self.open(streamtype=name) for name in names}
        for stream in streams.values():
            await stream.accepted.wait()
        return Command(dict(streams), self.protocol)

    async def close(self) -> None:
        await self.wire.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        if self.window:
            await self.wire.write(frames.initial_window(self.window))
        try:
            while data := await self.wire.read():
                await self.flowing.wait()
                for frame in self._reader.feed(data):
                    self._take(frame)
        finally:
            self.ended.set()
            for stream in self._streams.values():
                stream.pieces.put_nowait(b"")
                stream.accepted.set()

    def _take(self, frame: frames.Frame | None) -> None:
        if isinstance(frame, frames.GoAway):
            self.goaway = frame
        if isinstance(frame, frames.Ping):
            self.pongs.append(frame.number)
        stream = self._streams.get(getattr(frame, "stream_id", 0))
        if stream is None:
            return
        if isinstance(frame, frames.Reply):
            stream.accepted.set()
        if isinstance(frame, frames.Data) and frame.data:
            stream.pieces.put_nowait(frame.data)
        if isinstance(frame, frames.Reset):
            stream.was_reset = True
        if isinstance(frame, frames.Reset) or getattr(frame, "fin", False):
            stream.pieces.put_nowait(b"")
            stream.accepted.set()


@dataclass
class Channel:
    """A channel of a WebSocket."""

    client: "ChannelClient"
    number: int
    pieces: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)

    async def send(self, data: bytes) -> None:
        await self.client.send(self.number, data)

    async def close(self) -> None:
        """v5's way; the others have none."""
        await self.client.websocket.send_bytes(bytes((255, self.number)))

    async def read(self) -> bytes:
        piece = await self.pieces.get()
        if not piece:
            self.pieces.put_nowait(b"")
        return piece

    async def read_all(self) -> bytes:
        return b"".join([piece async for piece in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece


class ChannelClient:
    """A client of the WebSocket protocols with channels."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, count: int = len(CHANNELS)) -> None:
        self.websocket = websocket
        self.protocol = websocket.protocol or ""
        self.channels = [Channel(self, number) for number in range(count)]
        self.ended = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def start(self, **_wanted: bool) -> "Command":
        """All channels are there from the beginning."""
        return Command(dict(zip(CHANNELS, self.channels, strict=True)), self.protocol)

    async def send(self, number: int, data: bytes) -> None:
        if "base64" in self.protocol:
            await self.websocket.send_str(str(number) + base64.b64encode(data).decode())
        else:
            await self.websocket.send_bytes(bytes((number,)) + data)

    async def close(self) -> None:
        await self.websocket.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for message in self.websocket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    number, data = int(message.data[0]), base64.b64decode(message.data[1:])
                else:
                    number, data = message.data[0], message.data[1:]
                if data:
                    self.channels[number].pieces.put_nowait(data)
        finally:
            self.ended.set()
            for channel in self.channels:
                channel.pieces.put_nowait(b"")


@dataclass
class Command:
    """A remote command's streams by name."""

    streams: dict[str, Any]
    protocol: str

    def __getattr__(self, name: str) -> Any:
        return self.streams[name]

    async def status(self) -> Any:
        """What came on the error stream: a Status, or for old protocols a text."""
        text = (await self.streams["error"].read_all()).decode()
        return json.loads(text) if self.protocol.startswith(("v4", "v5")) else text

    async def outcome(self) -> tuple[bytes, bytes, Any]:
        """Everything that came: stdout, stderr, and the exit code (or the whole status where there is none)."""
        names = [name for name in ("stdout", "stderr") if name in self.streams]
        outputs = dict(
            zip(names, await asyncio.gather(*(self.streams[name].read_all() for name in names)), strict=True)
        )
        return outputs.get("stdout", b""), outputs.get("stderr", b""), exit_code(await self.status())

    async def resize(self, width: int, height: int) -> None:
        await self.streams["resize"].send(json.dumps({"Width": width, "Height": height}).encode() + b"\n")


def exit_code(status: Any) -> Any:
    """The exit code in a Status; the status itself when it has none."""
    if not isinstance(status, dict):
        return status
    if status["status"] == "Success":
        return 0
    if status.get("reason") != "NonZeroExitCode":
        return status
    (cause,) = [cause for cause in status["details"]["causes"] if cause["reason"] == "ExitCode"]
    return int(cause["message"])


@contextlib.asynccontextmanager
async def connect_spdy(
    url: str, *protocols: str, tls: ssl.SSLContext | None = None, window: int = 0
) -> AsyncIterator[SpdyClient]:
    """Upgrade to SPDY; without protocols the server takes the oldest."""
    fields = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    if protocols:
        fields["X-Stream-Protocol-Version"] = ", ".join(protocols)
    wire, head = await upgrade(url, fields, tls)
    chosen = [line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("x-stream-protocol")]
    client = SpdyClient(wire, chosen[0] if chosen else "", window)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def connect_websocket(
    url: str, *protocols: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Upgrade to a WebSocket. Raises Refused."""
    async with aiohttp.ClientSession() as session:
        try:
            websocket = await session.ws_connect(url, protocols=protocols, max_msg_size=0, ssl=tls or True)
        except aiohttp.WSServerHandshakeError as error:
            raise Refused(error.status, error.message) from error
        async with websocket:
            yield websocket


@contextlib.asynccontextmanager
async def connect(url: str, transport: str, *protocols: str) -> AsyncIterator[SpdyClient | ChannelClient]:
    """Connect for a remote command by ``spdy`` or ``websocket``."""
    if transport == "spdy":
        async with connect_spdy(url, *protocols) as spdy:
            yield spdy
        return
    async with connect_websocket(url, *protocols) as websocket:
        client = ChannelClient(websocket)
        try:
            yield client
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def connect_forward(url: str, transport: str, window: int = 0) -> AsyncIterator[SpdyClient]:
    """Connect for a port forward, by SPDY or by SPDY in a WebSocket."""
    if transport == "spdy":
        async with connect_spdy(url, "portforward.k8s.io", window=window) as spdy:
            yield spdy
        return
    async with connect_websocket(url, "SPDY/3.1+portforward.k8s.io") as websocket:
        client = SpdyClient(WebSocketWire(websocket), "portforward.k8s.io", window)
        try:
            yield client
        finally:
            await client.close()


@dataclass
class Forwarded:
    """One forwarded connection."""

    data: SpdyStream
    error: SpdyStream


async def forward(client: SpdyClient, port: int, request: str) -> Forwarded:
    """Open a connection, as kubectl does."""
    error = await client.open(streamtype="error", port=str(port), requestid=request)
    await error.close()
    data = await client.open(streamtype="data", port=str(port), requestid=request)
    await data.accepted.wait()
    return Forwarded(data, error)
