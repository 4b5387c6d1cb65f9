"""A port forward as its client has it: one connection to the server, on which any number are carried into the pod."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from crinoid.core.api.errors import Unavailable
from crinoid.core.cri.streaming.client.dialing import Dialing, dial_spdy, dial_websocket
from crinoid.core.cri.streaming.client.remotecommand import running
from crinoid.core.cri.streaming.client.spdy import SpdyClient
from crinoid.core.cri.streaming.portforward import DATA, ERROR, PROTOCOL, TUNNEL_PROTOCOL
from crinoid.core.cri.streaming.spdy import SpdyStream
from crinoid.core.cri.streaming.transports import READ_BYTES, Transport
from crinoid.core.cri.streaming.websocket import TunnelTransport

_REASON_S = 5.0
_MAX_REASON_BYTES = 4000


class Forwarder:
    """Carries connections; ``gone`` is set when the server has left, and no more can be carried."""

    def __init__(self, connection: SpdyClient) -> None:
        self.gone = connection.gone
        self._connection = connection
        self._requests = 0

    async def carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a local connection to a port in the pod until both sides have finished; then it is closed.

        Raises Unavailable with the server's words when the port can't be reached or the connection broke in the pod.
        """
        reason = ""
        try:
            reason = await self._carry(port, reader, writer)
        except ConnectionError as error:  # told below where it was the server's end, and else nobody's business
            reason = f"the connection to the pod was lost: {error}" if self.gone.is_set() else ""
        finally:
            if not writer.is_closing():
                writer.transport.abort()
        if reason:
            raise Unavailable(reason)

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Return why the server gave it up, ``""`` if it did not."""
        self._requests += 1
        headers = {"port": str(port), "requestid": str(self._requests)}
        error = await self._connection.open(streamtype=ERROR, **headers)
        await error.close()
        data = await self._connection.open(streamtype=DATA, **headers)
        try:
            await _both_ways(data, reader, writer)
        finally:
            await data.reset()  # nothing, where both sides have finished
        return await _read_reason(error)


@contextlib.asynccontextmanager
async def port_forwarder(url: str, dialing: Dialing) -> AsyncIterator[Forwarder]:
    """Connect to where ports are forwarded; leaving ends all connections. Raises as ``dialing``."""
    transport = await _dial(url, dialing)
    connection = SpdyClient(transport)
    try:
        async with running(connection.run()):
            yield Forwarder(connection)
    finally:
        transport.abort()


async def _dial(url: str, dialing: Dialing) -> Transport:
    if dialing.transport != "websocket":
        return (await dial_spdy(url, PROTOCOL, dialing)).transport
    websocket, protocol = await dial_websocket(url, (TUNNEL_PROTOCOL,), dialing)
    if protocol != TUNNEL_PROTOCOL:
        websocket.abort()
        raise Unavailable("the streaming server forwards no ports over WebSocket; use SPDY")
    return TunnelTransport(websocket)


async def _both_ways(data: SpdyStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways to both ends and close; the server's reset ends both at once. Raises ConnectionError."""
    upwards = asyncio.create_task(_to_pod(reader, data))
    downwards = asyncio.create_task(_to_client(data, writer))
    try:
        await downwards
        if not data.was_reset:
            await upwards
            writer.close()
    finally:
        upwards.cancel()
        downwards.cancel()
        await asyncio.gather(upwards, downwards, return_exceptions=True)


async def _to_pod(reader: asyncio.StreamReader, data: SpdyStream) -> None:
    """Copy until the local side has finished; when it breaks, the pod's side is broken too."""
    try:
        while piece := await reader.read(READ_BYTES):
            await data.write(piece)
        await data.close()
    except ConnectionError:
        await data.reset()


async def _to_client(data: SpdyStream, writer: asyncio.StreamWriter) -> None:
    while piece := await data.read():
        writer.write(piece)
        await writer.drain()
    if not data.was_reset:
        writer.write_eof()
        await writer.drain()


async def _read_reason(error: SpdyStream) -> str:
    text = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REASON_S):
            while len(text) < _MAX_REASON_BYTES and (piece := await error.read()):
                text += piece
    return text.decode(errors="replace").strip()
