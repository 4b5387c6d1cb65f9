"""ttrpc, gRPC's small relative over a local socket: calls with one request and one answer, both ways.

A frame has ten bytes of header (length, stream, type, flags; big-endian) and a message of ``wire/ttrpc.proto``. Streams
of the client have odd numbers. Only unary calls are spoken: NRI has no others. Source: containerd/ttrpc, PROTOCOL.md.
"""

import asyncio
import itertools
import logging
import struct
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError

from crinoid.plugins.extensions.nri.mux import MAX_MESSAGE_BYTES, TURN, Channel, ConnectionLost
from crinoid.plugins.extensions.nri.wire import ttrpc_pb2

LOG = logging.getLogger(__name__)
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 3, 8, 12
"""Status codes, gRPC's."""
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_MAX_CALLS = 64

Handler = Callable[[str, str, bytes], Awaitable[bytes]]
"""Serves a call: service, method, request; raises RemoteError for the caller to see."""


class RemoteError(Exception):
    """The other side answered with an error; ``code`` is gRPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Calls the other side. ``run`` reads the answers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._streams = itertools.count(1, 2)
        self._last = 0
        self._waiting: dict[int, asyncio.Future[ttrpc_pb2.Response]] = {}

    async def run(self) -> None:
        """Read answers until the connection ends; then every call under way fails."""
        try:
            for count in itertools.count(1):
                if count % TURN == 0:
                    await asyncio.sleep(0)
                stream, kind, data = await _read_frame(self._channel)
                if stream % 2 == 0 or stream > self._last:
                    raise ConnectionLost(f"the plugin answers call {stream}, which there was not")
                waiting = self._waiting.get(stream)
                if kind == _RESPONSE and waiting is not None and not waiting.done():
                    waiting.set_result(ttrpc_pb2.Response.FromString(data))
        except (ConnectionLost, DecodeError) as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionLost(str(error)))
        finally:
            self._channel.close()

    async def call(self, service: str, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Call a method; ``timeout_s`` is told to the other side, and is the caller's to keep.

        Raises RemoteError and ConnectionLost, ValueError for a request that is too large.
        """
        request = ttrpc_pb2.Request(
            service=service, method=method, payload=payload, timeout_nano=int(timeout_s * 1e9)
        ).SerializeToString()
        if len(request) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a request of {len(request)} bytes is more than ttrpc takes")
        stream = self._last = next(self._streams)
        answer = self._waiting[stream] = asyncio.get_running_loop().create_future()
        try:
            await self._channel.write(_HEADER.pack(len(request), stream, _REQUEST, 0) + request)
            response = await answer
        finally:
            del self._waiting[stream]
        if response.status.code:
            raise RemoteError(response.status.code, response.status.message)
        return bytes(response.payload)


class Server:
    """Serves the other side's calls, each in a task of its own. ``run`` reads them."""

    def __init__(self, channel: Channel, handler: Handler) -> None:
        self._channel = channel
        self._handler = handler
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the connection ends; calls under way are given up then."""
        try:
            for count in itertools.count(1):
                if count % TURN == 0:
                    await asyncio.sleep(0)
                stream, kind, data = await _read_frame(self._channel)
                if kind == _REQUEST and len(self._calls) >= _MAX_CALLS:
                    await self._answer(stream, _error(RESOURCE_EXHAUSTED, f"{_MAX_CALLS} calls are under way"))
                elif kind == _REQUEST:
                    task = asyncio.create_task(self._serve(stream, data))
                    self._calls.add(task)
                    task.add_done_callback(self._calls.discard)
        except ConnectionLost:
            pass
        finally:
            for task in tuple(self._calls):
                task.cancel()
            self._channel.close()

    async def _serve(self, stream: int, data: bytes) -> None:
        try:
            request = ttrpc_pb2.Request.FromString(data)
            payload = await self._handler(request.service, request.method, request.payload)
            response = ttrpc_pb2.Response(payload=payload)
        except DecodeError as error:
            response = _error(INVALID_ARGUMENT, str(error))
        except RemoteError as error:
            response = _error(error.code, str(error))
        await self._answer(stream, response)

    async def _answer(self, stream: int, response: ttrpc_pb2.Response) -> None:
        answer = response.SerializeToString()
        try:
            await self._channel.write(_HEADER.pack(len(answer), stream, _RESPONSE, 0) + answer)
        except ConnectionLost:
            LOG.debug("an answer found nobody: the plugin is gone")


def _error(code: int, message: str) -> ttrpc_pb2.Response:
    return ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=code, message=message))


async def _read_frame(channel: Channel) -> tuple[int, int, bytes]:
    """Return stream, type and data of the next frame."""
    length, stream, kind, _flags = _HEADER.unpack(await channel.read(_HEADER.size))
    if length > MAX_MESSAGE_BYTES:
        raise ConnectionLost(f"the plugin sends a message of {length} bytes, more than ttrpc has")
    return stream, kind, await channel.read(length)
