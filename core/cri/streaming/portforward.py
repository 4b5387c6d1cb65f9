"""Carries a client's connections into a pod, any number of them at once.

Over SPDY (``portforward.k8s.io``) each is a pair of streams, ``data`` and ``error``, that share a ``requestid``. In the
old WebSocket protocol each port of the request has two channels, and one connection.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from crinoid.core.api.linux.descriptors import readable
from crinoid.core.api.sessions import ByteSink, ByteSource
from crinoid.core.cri.expected import expected
from crinoid.core.cri.streaming.inbox import Inbox
from crinoid.core.cri.streaming.spdy import SpdyStream, StreamRefused
from crinoid.core.cri.streaming.throttling import ThrottledLog
from crinoid.core.cri.streaming.websocket import Channels

PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = f"SPDY/3.1+{PROTOCOL}"
OLD_WEBSOCKET_PROTOCOLS = {"v4.channel.k8s.io": 4, "v4.base64.channel.k8s.io": 4}

DATA, ERROR = "data", "error"

_PIECE_BYTES = 1 << 16
_CONNECTING = 16
"""Connections into the pod that one client has under way at one time; its further ones wait."""
_HOLDING = 4
"""Connections of one client that hold a piece for it at one time: others leave theirs in the kernel."""
_LINGER_S = 5.0

Connect = Callable[[int], Awaitable[socket.socket]]
"""Opens a connection to a port in the pod, a socket that does not block. Raises CrinoidError, OSError."""


class _ClientHasLeft(Exception):
    """The client has reset the stream, as Kubernetes' clients do when they have all they want."""


class Duplex(ByteSource, ByteSink, Protocol):
    """A client's stream. ``dead`` is set when it was ended at once, both ways."""

    @property
    def inbox(self) -> Inbox:
        """What has come and was not read."""
        ...

    @property
    def dead(self) -> asyncio.Event:
        """Set when nothing more is taken or sent."""
        ...

    @property
    def was_reset(self) -> bool:
        """Whether the client has ended it at once."""
        ...

    async def room(self) -> int:
        """Wait until something may be written; return how much. Raises BrokenPipeError."""
        ...

    async def reset(self) -> None:
        """End it at once, both ways."""
        ...


class Way:
    """Into the pod, for all connections of one client."""

    def __init__(self, connect: Connect, log: ThrottledLog) -> None:
        self.connect = connect
        self.log = log
        self.connecting = asyncio.Semaphore(_CONNECTING)
        self.holding = asyncio.Semaphore(_HOLDING)


@dataclass(slots=True)
class _Pair:
    """The streams of one connection, as far as they have come."""

    port: int
    streams: dict[str, SpdyStream] = field(default_factory=dict)
    expiry: asyncio.TimerHandle | None = None


class PortForward:
    """Brings together the streams that a client opens over SPDY, and runs a task for each connection."""

    def __init__(self, connect: Connect, creation_timeout_s: float, most: int, log: ThrottledLog) -> None:
        """``most`` connections, begun ones included, are carried at one time; streams of others are refused."""
        self._way = Way(connect, log)
        self._creation_timeout_s = creation_timeout_s
        self._most = most
        self._pairs: dict[str, _Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, stream: SpdyStream) -> None:
        """Take a stream by its headers ``streamtype``, ``port`` and ``requestid``."""
        kind, port = stream.headers.get("streamtype"), parse_port(stream.headers.get("port", ""))
        if kind not in (DATA, ERROR) or port is None:
            raise StreamRefused
        name = stream.headers.get("requestid") or _guess_request(stream.id, kind)
        # A stream that was reset has gone, but what it began has not: its half pair, or its connection into the pod.
        if name not in self._pairs and len(self._pairs) + len(self._tasks) >= self._most:
            raise StreamRefused
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
        self._spawn(forward(pair.streams[DATA], pair.streams[ERROR], pair.port, self._way))

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


async def forward_channels(channels: Channels, ports: tuple[int, ...], connect: Connect, log: ThrottledLog) -> None:
    """Serve the old WebSocket protocol until the client has gone; each channel begins with its port."""
    pairs = list(zip(channels.all[::2], channels.all[1::2], ports, strict=True))
    for data, error, port in pairs:
        await data.write(struct.pack("<H", port))
        await error.write(struct.pack("<H", port))
    way = Way(connect, log)
    tasks = [asyncio.create_task(forward(data, error, port, way)) for data, error, port in pairs]
    leaving = asyncio.create_task(_left(channels))
    try:
        for task in tasks:
            await asyncio.wait({leaving, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (leaving, *tasks):
            task.cancel()
        await asyncio.gather(leaving, *tasks, return_exceptions=True)


async def forward(data: Duplex, error: Duplex, port: int, way: Way) -> None:
    """Carry one connection until both sides have finished; a side that has finished may still be sent to."""
    try:
        async with way.connecting:
            connected = await way.connect(port)
    except Exception as failure:
        if (known := expected(failure)) is None:
            raise
        await _fail(data, error, f"error forwarding port {port}: {known.message}", way.log)
        return
    try:
        with connected:
            await _both_ways(data, connected, way.holding)
        await data.close()
        await error.close()
    except (_ClientHasLeft, BrokenPipeError):
        await data.reset()
        await error.close()
    except OSError as failure:
        reason = os.strerror(failure.errno) if failure.errno else str(failure)
        await _fail(data, error, f"error forwarding port {port}: the connection broke: {reason}", way.log)
    finally:
        data.inbox.discard()


async def _left(channels: Channels) -> None:
    await channels.gone.wait()


def parse_port(text: str) -> int | None:
    """Read a port number; ``None`` for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    return port if 0 < port < 1 << 16 else None


async def _both_ways(data: Duplex, connected: socket.socket, holding: asyncio.Semaphore) -> None:
    upwards = asyncio.create_task(_to_pod(data, connected))
    downwards = asyncio.create_task(_to_client(connected, data, holding))
    leaving = asyncio.create_task(_linger(data))
    try:
        waiting = {upwards, downwards}
        while waiting:
            done, _ = await asyncio.wait({leaving, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
            waiting -= done
    finally:
        for task in (leaving, upwards, downwards):
            task.cancel()
        await asyncio.gather(leaving, upwards, downwards, return_exceptions=True)


async def _linger(data: Duplex) -> None:
    """Raise _ClientHasLeft a moment after the client has ended the stream at once, whatever the pod does."""
    await data.dead.wait()
    await asyncio.sleep(_LINGER_S)
    raise _ClientHasLeft


async def _to_pod(data: Duplex, connected: socket.socket) -> None:
    """Copy to the pod; what is not taken there any more is dropped, as an answer may still be on its way."""
    loop = asyncio.get_running_loop()
    try:
        while piece := await data.read():
            await loop.sock_sendall(connected, piece)
        connected.shutdown(socket.SHUT_WR)
    except OSError:
        while await data.read():
            pass
    if data.was_reset:
        raise _ClientHasLeft


async def _to_client(connected: socket.socket, data: Duplex, holding: asyncio.Semaphore) -> None:
    """Copy to the client. What can't be sent now stays in the kernel, where the pod's side is held up by it."""
    while True:
        room = await data.room()
        async with holding:
            try:
                piece = connected.recv(min(room, _PIECE_BYTES))
            except BlockingIOError:
                piece = None
            if piece:
                await data.write(piece)
        if piece is None:
            await readable(connected.fileno())
        elif not piece:
            break
    await data.close()


async def _fail(data: Duplex, error: Duplex, message: str, log: ThrottledLog) -> None:
    """Report what went wrong; the end of the error stream makes the client read it."""
    log.info("%s", message)
    with contextlib.suppress(BrokenPipeError):
        await error.write(message.encode())
    await error.close()
    await data.reset()


def _guess_request(stream_id: int, kind: str) -> str:
    """Clients of 2015 sent no request id: the error stream came first, and the data stream next."""
    return f"stream {stream_id if kind == ERROR else stream_id - 2}"
