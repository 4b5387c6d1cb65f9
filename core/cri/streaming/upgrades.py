"""From a client's request to its business: the protocol is agreed on, the connection upgraded, the ticket served.

SPDY and WebSocket share one URL; what the client's ``Upgrade`` field says decides.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Protocol

from crinoid.core.api.buffers import BufferPool, BufferShare
from crinoid.core.cri.streaming.http import BadRequest, Request, make_answer
from crinoid.core.cri.streaming.portforward import (
    OLD_WEBSOCKET_PROTOCOLS,
    PROTOCOL,
    TUNNEL_PROTOCOL,
    Connect,
    PortForward,
    forward_channels,
)
from crinoid.core.cri.streaming.protocols import CHANNELS, SPDY, VERSION_FIELD, WEBSOCKET
from crinoid.core.cri.streaming.remotecommand import (
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    Client,
    SpdyStreams,
    channel_streams,
    expected_streams,
    run_attach,
    run_exec,
)
from crinoid.core.cri.streaming.spdy import Accept, SpdyConnection, SpdyLimits
from crinoid.core.cri.streaming.throttling import ThrottledLog
from crinoid.core.cri.streaming.tickets import AttachTicket, ExecTicket, ForwardTicket, Ticket
from crinoid.core.cri.streaming.transports import Transport
from crinoid.core.cri.streaming.websocket import (
    Channels,
    TunnelTransport,
    WebSocket,
    accept_key,
    choose_protocol,
)
from crinoid.core.lifecycle.streams import StreamService

_RESERVE_BYTES = 1 << 16
"""A connection may hold so much however much others hold: it gets on, if slowly."""
_MOST_BYTES = 8 << 20
"""And so much at most: eight streams that nobody reads."""
_ACCEPTED_FIELD = "X-Accepted-Stream-Protocol-Versions"


class _Moving(Protocol):
    """A connection that can be idle."""

    @property
    def moved_at(self) -> float: ...

    def abort(self) -> None: ...


class Limits(Protocol):
    """See ``[streaming]`` in the configuration."""

    @property
    def idle_timeout_s(self) -> float: ...

    @property
    def creation_timeout_s(self) -> float: ...

    @property
    def max_streams(self) -> int: ...

    @property
    def max_buffer_bytes(self) -> int: ...


class Upgrades:
    """Serves tickets on connections."""

    def __init__(self, streams: StreamService, limits: Limits, log: ThrottledLog) -> None:
        self._streams = streams
        self._idle_timeout_s = limits.idle_timeout_s
        self._creation_timeout_s = limits.creation_timeout_s
        self._max_streams = limits.max_streams
        self._buffers = BufferPool(limits.max_buffer_bytes // 2)  # drivers' sessions have the other half
        self._log = log

    async def serve(self, request: Request, transport: Transport, ticket: Ticket) -> None:
        """Serve a ticket to its end. Raises BadRequest as long as the connection has not been upgraded."""
        if request.upgrades_to(WEBSOCKET):
            await self._serve_websocket(request, transport, ticket)
        elif request.upgrades_to(SPDY):
            await self._serve_spdy(request, transport, ticket)
        else:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"upgrade the connection to {SPDY} or to a WebSocket")

    # SPDY

    async def _serve_spdy(self, request: Request, transport: Transport, ticket: Ticket) -> None:
        known = {PROTOCOL: 1} if isinstance(ticket, ForwardTicket) else SPDY_PROTOCOLS
        offered = request.words(VERSION_FIELD.lower())
        protocol = choose_protocol(offered, known)
        if protocol is None:
            accepted = tuple((_ACCEPTED_FIELD, name) for name in known)
            raise BadRequest(HTTPStatus.FORBIDDEN, f"none of {', '.join(offered)} is known", accepted)
        fields = [("Connection", "Upgrade"), ("Upgrade", SPDY)]
        fields += [(VERSION_FIELD, protocol)] if protocol else []
        await transport.write(make_answer(HTTPStatus.SWITCHING_PROTOCOLS, fields))
        if isinstance(ticket, ForwardTicket):
            await self._forward(transport, ticket)
        else:
            await self._remote_command(transport, ticket, SPDY_PROTOCOLS.get(protocol, 1))

    async def _remote_command(self, transport: Transport, ticket: ExecTicket | AttachTicket, version: int) -> None:
        collected = SpdyStreams(expected_streams(ticket.streams, version))
        async with self._connected(transport, collected.accept) as connection:
            try:
                async with asyncio.timeout(self._creation_timeout_s):
                    await _first(collected.complete.wait(), connection.gone.wait())
            except TimeoutError:
                self._log.warning("a client did not open its streams in %g s", self._creation_timeout_s)
                transport.abort()
                return
            if collected.complete.is_set():
                await self._run(Client(version, collected.streams, connection.gone), ticket)

    async def _forward(self, transport: Transport, ticket: ForwardTicket) -> None:
        most = self._max_streams // 2
        forwarding = PortForward(self._connect(ticket), self._creation_timeout_s, most, self._log)
        async with self._connected(transport, forwarding.accept) as connection:
            try:
                await connection.gone.wait()
            finally:
                await forwarding.close()

    @contextlib.asynccontextmanager
    async def _connected(self, transport: Transport, accept: Accept) -> AsyncIterator[SpdyConnection]:
        connection = SpdyConnection(transport, accept, SpdyLimits(self._max_streams, self._share()))
        async with self._running(transport, connection.run(), connection.finish):
            yield connection

    # WebSocket

    async def _serve_websocket(self, request: Request, transport: Transport, ticket: Ticket) -> None:
        forwards = isinstance(ticket, ForwardTicket)
        known: Mapping[str, int] = {TUNNEL_PROTOCOL: 1, **OLD_WEBSOCKET_PROTOCOLS} if forwards else WEBSOCKET_PROTOCOLS
        protocol = choose_protocol(request.words("sec-websocket-protocol"), known)
        if protocol is None or (forwards and not protocol):
            raise BadRequest(HTTPStatus.FORBIDDEN, f"Sec-WebSocket-Protocol has to be one of {', '.join(known)}")
        key = request.get("sec-websocket-key")
        if request.get("sec-websocket-version") != "13" or not key:
            upgrade = (("Sec-WebSocket-Version", "13"),)
            raise BadRequest(HTTPStatus.UPGRADE_REQUIRED, "this is no WebSocket of version 13", upgrade)
        fields = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept_key(key))]
        fields += [("Sec-WebSocket-Protocol", protocol)] if protocol else []
        await transport.write(make_answer(HTTPStatus.SWITCHING_PROTOCOLS, fields))
        websocket = WebSocket(transport)
        if not isinstance(ticket, ForwardTicket):
            await self._remote_command_by_websocket(websocket, ticket, protocol)
        elif protocol == TUNNEL_PROTOCOL:
            await self._forward(TunnelTransport(websocket), ticket)
        else:
            channels = Channels(websocket, 2 * len(ticket.ports), protocol, self._share())
            async with self._running(websocket, channels.run(), channels.finish):
                await forward_channels(channels, ticket.ports, self._connect(ticket), self._log)

    async def _remote_command_by_websocket(
        self, websocket: WebSocket, ticket: ExecTicket | AttachTicket, protocol: str
    ) -> None:
        channels = Channels(websocket, len(CHANNELS), protocol, self._share())
        async with self._running(websocket, channels.run(), channels.finish):
            streams = await channel_streams(channels, ticket.streams)
            await self._run(Client(WEBSOCKET_PROTOCOLS.get(protocol, 1), streams, channels.gone), ticket)

    # both

    async def _run(self, client: Client, ticket: ExecTicket | AttachTicket) -> None:
        if isinstance(ticket, ExecTicket):
            await run_exec(client, lambda: self._streams.execute(ticket.container_id, ticket.command, ticket.streams))
        else:
            await run_attach(client, lambda: self._streams.attach(ticket.container_id, ticket.streams))

    @contextlib.asynccontextmanager
    async def _running(
        self, connection: _Moving, reading: Coroutine[object, object, None], finish: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Read in the background while the business is done; then part in peace."""
        tasks = [asyncio.create_task(reading), asyncio.create_task(self._abort_when_idle(connection))]
        try:
            yield
            await finish()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _abort_when_idle(self, connection: _Moving) -> None:
        loop = asyncio.get_running_loop()
        while (rest_s := connection.moved_at + self._idle_timeout_s - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest_s)
        self._log.info("a streaming connection is closed: nothing has happened on it for %g s", self._idle_timeout_s)
        connection.abort()

    def _share(self) -> BufferShare:
        return self._buffers.share(reserve_bytes=_RESERVE_BYTES, most_bytes=_MOST_BYTES)

    def _connect(self, ticket: ForwardTicket) -> Connect:
        return lambda port: self._streams.connect(ticket.pod_id, port)


async def _first(*work: Coroutine[object, object, object]) -> None:
    """Wait until the first of them has ended."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
