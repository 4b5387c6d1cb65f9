"""An exec or attach as its client has it: streams by name, and what came of it.

Of the protocols only those with a Status (v4, v5) are asked for, since the others do not tell the exit code.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Protocol

from crinoid.core.api.buffers import BufferPool
from crinoid.core.api.errors import DriverError, Unavailable
from crinoid.core.api.sessions import ByteSink, ByteSource
from crinoid.core.api.values.runtime import TerminalSize
from crinoid.core.cri.streaming.client.dialing import Dialing, dial_spdy, dial_websocket
from crinoid.core.cri.streaming.client.spdy import SpdyClient
from crinoid.core.cri.streaming.protocols import CHANNELS, ERROR, RESIZE, STDIN
from crinoid.core.cri.streaming.websocket import CLOSE_SIGNAL, NORMAL, Channel, Channels

_SPDY_PROTOCOL = "v4.channel.k8s.io"
_WEBSOCKET_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_MAX_STATUS_BYTES = 1 << 20
_BUFFER_BYTES = 8 << 20


class Duplex(ByteSource, ByteSink, Protocol):
    """A stream to the server."""


@dataclass(frozen=True, slots=True)
class RemoteCommand:
    """The streams that were asked for, by name, and always ``error``."""

    streams: Mapping[str, Duplex]

    async def resize(self, size: TerminalSize) -> None:
        """Tell the size of the terminal. Raises BrokenPipeError when the command has ended."""
        text = json.dumps({"Width": size.width, "Height": size.height})
        await self.streams[RESIZE].write(text.encode() + b"\n")

    async def outcome(self) -> int:
        """Wait for the end and return the exit code; 0 for an attach that ended well.

        Call it when the outputs have been read. Raises DriverError with the server's words for what could not be done,
        Unavailable when the connection ended without a word.
        """
        text = b""
        while len(text) < _MAX_STATUS_BYTES and (piece := await self.streams[ERROR].read()):
            text += piece
        if not text:
            raise Unavailable("the connection to the container ended before the command did, as far as can be told")
        return parse_status(text)


class _Input:
    """The channel of standard input: its end is told by a message of its own, in v5; v4 has none."""

    def __init__(self, channels: Channels, channel: Channel, *, can_end: bool) -> None:
        self._channels = channels
        self._channel = channel
        self._can_end = can_end

    async def read(self) -> bytes:
        return await self._channel.read()

    async def write(self, data: bytes) -> None:
        await self._channel.write(data)

    async def close(self) -> None:
        if self._can_end:
            with contextlib.suppress(BrokenPipeError):
                await self._channels.send(CLOSE_SIGNAL, bytes((CHANNELS.index(STDIN),)))


@contextlib.asynccontextmanager
async def remote_command(url: str, names: frozenset[str], dialing: Dialing) -> AsyncIterator[RemoteCommand]:
    """Begin an exec or attach with the streams of these names; leaving ends the connection.

    The names have to be what the URL was asked for, with ``resize`` where a terminal was. Raises as ``dialing``.
    """
    connect = _over_websocket if dialing.transport == "websocket" else _over_spdy
    async with connect(url, names, dialing) as streams:
        yield RemoteCommand(streams)


def parse_status(text: bytes) -> int:
    """Read a Status of Kubernetes' API: return the exit code. Raises DriverError for any other failure."""
    try:
        status = json.loads(text)
        if status["status"] == "Success":
            return 0
        if status.get("reason") == "NonZeroExitCode":
            causes = status["details"]["causes"]
            return next(int(cause["message"]) for cause in causes if cause["reason"] == "ExitCode")
        message = str(status.get("message") or "it gave no reason")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        message = f"the server's answer is not understood: {text[:200].decode(errors='replace')}"
    raise DriverError(message)


@contextlib.asynccontextmanager
async def _over_spdy(url: str, names: frozenset[str], dialing: Dialing) -> AsyncIterator[Mapping[str, Duplex]]:
    dialed = await dial_spdy(url, _SPDY_PROTOCOL, dialing)
    connection = SpdyClient(dialed.transport)
    try:
        _check_protocol(dialed.protocol, (_SPDY_PROTOCOL,))
        async with running(connection.run()):
            wanted = (ERROR, *(name for name in CHANNELS if name in names))
            yield {name: await _open(connection, name) for name in wanted}
    finally:
        dialed.transport.abort()


@contextlib.asynccontextmanager
async def _over_websocket(url: str, names: frozenset[str], dialing: Dialing) -> AsyncIterator[Mapping[str, Duplex]]:
    websocket, protocol = await dial_websocket(url, _WEBSOCKET_PROTOCOLS, dialing)
    try:
        _check_protocol(protocol, _WEBSOCKET_PROTOCOLS)
        channels = Channels(websocket, len(CHANNELS), protocol, BufferPool(_BUFFER_BYTES).share())
        named: dict[str, Duplex] = dict(zip(CHANNELS, channels.all, strict=True))
        stdin = channels.all[CHANNELS.index(STDIN)]
        named[STDIN] = _Input(channels, stdin, can_end=protocol.startswith("v5."))
        async with running(channels.run()):
            yield {name: named[name] for name in {ERROR, *names}}
            await websocket.say_close(NORMAL)
    finally:
        websocket.abort()


@contextlib.asynccontextmanager
async def running(reading: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Read a connection in the background."""
    task = asyncio.create_task(reading)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _open(connection: SpdyClient, name: str) -> Duplex:
    try:
        return await connection.open(streamtype=name)
    except ConnectionError as error:
        raise Unavailable(f"the streaming server closed the connection at once: {error}") from error


def _check_protocol(chosen: str, wanted: tuple[str, ...]) -> None:
    if chosen not in wanted:
        raise Unavailable(f"the streaming server speaks none of {', '.join(wanted)}, but {chosen or 'something older'}")
