"""Carries a client's connections into a pod, any number of them at once.

Over SPDY (``portforward.k8s.io``) each is a pair of streams, ``data`` and ``error``, that share a ``requestid``. In the
old WebSocket protocol each port of the request has two channels, and one connection.
"""

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.sessions import ByteSink, ByteSource
from crinoid.core.cri.streaming.conduits import READ_BYTES
from crinoid.core.cri.streaming.spdy import SpdyStream, StreamRefused
from crinoid.core.cri.streaming.websocket import Channels

LOG = logging.getLogger("crinoid.streaming")

PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = f"SPDY/3.1+{PROTOCOL}"
OLD_WEBSOCKET_PROTOCOLS = {"v4.channel.k8s.io": 4, "v4.base64.channel.k8s.io": 4}

DATA, ERROR = "data", "error"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[int], Awaitable[Connection]]
"""Opens a connection to a port in the pod. Raises CrinoidError."""


class _ClientHasLeft(Exception):
    """The client has reset the stream, as Kubernetes' clients do when they have all they want."""


class Duplex(ByteSource, ByteSink, Protocol):
    """A client's stream."""

    @property
    def was_reset(self) -> bool:
        """Whether it was ended at once, both ways."""
        ...

    async def reset(self) -> None:
        """End it at once, both ways."""
        ...


@dataclass(slots=True)
class _Pair:
    """The streams of one connection, as far as they have come."""

    port: int
    streams: dict[str, SpdyStream] = field(default_factory=dict)
    expiry: asyncio.TimerHandle | None = None


class PortForward:
    """Brings together the streams that a client opens over SPDY, and runs a task for each connection."""

    def __init__(self, connect: Connect, creation_timeout_s: float) -> None:
        self._connect = connect
        self._creation_timeout_s = creation_timeout_s
        self._pairs: dict[str, _Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, stream: SpdyStream) -> None:
        """Take a stream by its headers ``streamtype``, ``port`` and ``requestid``."""
        kind, port = stream.headers.get("streamtype"), parse_port(stream.headers.get("port", ""))
        if kind not in (DATA, ERROR) or port is None:
            raise StreamRefused
        name = stream.headers.get("requestid") or _guess_request(stream.id, kind)
        pair = self._pairs.setdefault(name, _Pair(port))
        if kind in pair.streams or pair.port != port:
            raise StreamRefused
        pair.streams[kind] = stream
        if len(pair.streams) == 2:
            self._begin(name)
        else:
            loop = asyncio.get_running_loop()
            pair.expiry = loop.call_later(self._creation_timeout_s, self._expire, name)

    async def close(self) -> None:
        """Give up all connections."""
        for name in tuple(self._pairs):
            self._drop(name)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, name: str) -> None:
        pair = self._drop(name)
        self._spawn(forward(pair.streams[DATA], pair.streams[ERROR], pair.port, self._connect))

    def _expire(self, name: str) -> None:
        for stream in self._drop(name).streams.values():
            self._spawn(stream.reset())

    def _drop(self, name: str) -> _Pair:
        pair = self._pairs.pop(name)
        if pair.expiry is not None:
            pair.expiry.cancel()
        return pair

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def forward_channels(channels: Channels, ports: tuple[int, ...], connect: Connect) -> None:
    """Serve the old WebSocket protocol until the client has gone; each channel begins with its port."""
    pairs = list(zip(channels.all[::2], channels.all[1::2], ports, strict=True))
    for data, error, port in pairs:
        await data.write(struct.pack("<H", port))
        await error.write(struct.pack("<H", port))
    tasks = [asyncio.create_task(forward(data, error, port, connect)) for data, error, port in pairs]
    leaving = asyncio.create_task(_left(channels))
    try:
        for task in tasks:
            await asyncio.wait({leaving, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (leaving, *tasks):
            task.cancel()
        await asyncio.gather(leaving, *tasks, return_exceptions=True)


async def forward(data: Duplex, error: Duplex, port: int, connect: Connect) -> None:
    """Carry one connection until both sides have finished; a side that has finished may still be sent to."""
    try:
        reader, writer = await connect(port)
    except CrinoidError as failure:
        await _fail(data, error, f"error forwarding port {port}: {failure.message}")
        return
    try:
        await _both_ways(data, reader, writer)
        await data.close()
        await error.close()
    except (_ClientHasLeft, BrokenPipeError):
        await data.reset()
        await error.close()
    except OSError as failure:
        reason = os.strerror(failure.errno) if failure.errno else str(failure)
        await _fail(data, error, f"error forwarding port {port}: the connection broke: {reason}")
    finally:
        writer.transport.abort()


async def _left(channels: Channels) -> None:
    await channels.gone.wait()


def parse_port(text: str) -> int | None:
    """Read a port number; ``None`` for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    return port if 0 < port < 1 << 16 else None


async def _both_ways(data: Duplex, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    upwards = asyncio.ensure_future(_to_pod(data, writer))
    downwards = asyncio.ensure_future(_to_client(reader, data))
    try:
        await asyncio.gather(upwards, downwards)
    finally:
        upwards.cancel()
        downwards.cancel()
        await asyncio.gather(upwards, downwards, return_exceptions=True)


async def _to_pod(data: Duplex, writer: asyncio.StreamWriter) -> None:
    """Copy to the pod; what is not taken there any more is dropped, as an answer may still be on its way."""
    try:
        while piece := await data.read():
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:
        while await data.read():
            pass
    if data.was_reset:
        raise _ClientHasLeft


async def _to_client(reader: asyncio.StreamReader, data: Duplex) -> None:
    while piece := await reader.read(READ_BYTES):
        await data.write(piece)
    await data.close()


async def _fail(data: Duplex, error: Duplex, message: str) -> None:
    """Tell what went wrong; the end of the error stream makes the client read it."""
    LOG.info("%s", message)
    with contextlib.suppress(BrokenPipeError):
        await error.write(message.encode())
    await error.close()
    await data.reset()


def _guess_request(stream_id: int, kind: str) -> str:
    """Clients of 2015 sent no request id: the error stream came first, and the data stream next."""
    return f"stream {stream_id if kind == ERROR else stream_id - 2}"
