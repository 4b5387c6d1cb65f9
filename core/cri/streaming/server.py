"""The streaming server: gives out URLs, and takes the connections of those who come with one.

``exec_url`` and its sisters are called by the RPCs; ``start`` and ``stop`` by the daemon. A connection's request is
read here and its ticket redeemed; ``upgrades`` does the rest.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.frozen import dataclass
from crinoid.core.cri.services import Streams
from crinoid.core.cri.streaming.conduits import READ_BYTES, TcpConduit
from crinoid.core.cri.streaming.http import MAX_HEAD_BYTES, BadRequest, Request, make_answer, read_request
from crinoid.core.cri.streaming.tickets import AttachTicket, ExecTicket, ForwardTicket, Ticket, Tickets
from crinoid.core.cri.streaming.upgrades import Upgrades
from crinoid.core.lifecycle.streams import StreamChoice

LOG = logging.getLogger("crinoid.streaming")

_HEAD_S = 10.0
_PATHS: Mapping[type[Ticket], str] = {ExecTicket: "exec", AttachTicket: "attach", ForwardTicket: "portforward"}


@dataclass(frozen=True, slots=True)
class StreamingOptions:
    """Where and how to serve; see ``[streaming]`` in the configuration."""

    address: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    token_ttl_s: float = 60.0
    idle_timeout_s: float = 4 * 3600.0
    creation_timeout_s: float = 30.0


class StreamingServer:
    """Serves streams from ``start`` to ``stop``, once."""

    def __init__(self, options: StreamingOptions, streams: Streams) -> None:
        self._options = options
        self._streams = streams
        self._upgrades = Upgrades(streams, options.idle_timeout_s, options.creation_timeout_s)
        self._tickets = Tickets(options.token_ttl_s, lambda: asyncio.get_running_loop().time())
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._base = ""

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def start(self) -> None:
        """Listen. Raises ConfigurationError when the address can't be had, or a certificate can't be read."""
        options = self._options
        tls = _tls_context(options)
        try:
            self._server = await asyncio.start_server(
                self._accept, options.address, options.port, ssl=tls, limit=max(MAX_HEAD_BYTES, READ_BYTES)
            )
        except OSError as error:
            raise ConfigurationError(
                f"the streaming server can't listen on {options.address} port {options.port}: {error.strerror}"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        self._base = f"{'https' if tls else 'http'}://{_url_host(host)}:{port}"
        LOG.info("streaming server on %s", self._base)

    async def stop(self) -> None:
        """Listen no more and close all connections. Idempotent."""
        if self._server is not None:
            self._server.close()
        connections = tuple(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        self._connections.difference_update(connections)  # of those that had just ended nobody may have been told yet

    def exec_url(self, container_id: str, command: tuple[str, ...], choice: StreamChoice) -> str:
        """Return where to execute the command. Raises as ``check_exec`` does."""
        container = self._streams.check_exec(container_id, command)
        return self._url(ExecTicket(container, command, choice))

    def attach_url(self, container_id: str, choice: StreamChoice) -> str:
        """Return where to attach to the container."""
        return self._url(AttachTicket(self._streams.check_attach(container_id), choice))

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...]) -> str:
        """Return where to forward ports of the pod; clients name the ports themselves but in an old protocol."""
        return self._url(ForwardTicket(self._streams.check_forward(pod_id), ports))

    def _url(self, ticket: Ticket) -> str:
        return f"{self._base}/{_PATHS[type(ticket)]}/{self._tickets.issue(ticket)}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve_to_the_end(reader, TcpConduit(reader, writer)))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve_to_the_end(self, reader: asyncio.StreamReader, conduit: TcpConduit) -> None:
        try:
            await self._serve(reader, conduit)
        except (ConnectionError, BrokenPipeError) as error:
            LOG.debug("a streaming connection broke: %s", error)
        except Exception:
            LOG.exception("a streaming connection failed in a way it should not")
        except asyncio.CancelledError:
            conduit.abort()
            raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_S):
                await conduit.close()
        conduit.abort()

    async def _serve(self, reader: asyncio.StreamReader, conduit: TcpConduit) -> None:
        try:
            async with asyncio.timeout(_HEAD_S):
                request = await read_request(reader)
            if request is not None:
                await self._route(request, conduit)
        except BadRequest as error:
            await conduit.write(make_answer(error.status, error.fields, str(error)))
        except TimeoutError:
            LOG.debug("a streaming connection sent no request in %g s", _HEAD_S)

    async def _route(self, request: Request, conduit: TcpConduit) -> None:
        """Find the request's ticket and serve it."""
        ticket = self._redeem(request)
        LOG.info("%s %s", _PATHS[type(ticket)], getattr(ticket, "container_id", getattr(ticket, "pod_id", "")))
        await self._upgrades.serve(request, conduit, ticket)

    def _redeem(self, request: Request) -> Ticket:
        if request.method not in ("GET", "POST"):
            raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "GET or POST")
        kind, _, token = request.path.partition("?")[0].removeprefix("/").partition("/")
        ticket = self._tickets.redeem(token)
        if ticket is None or _PATHS[type(ticket)] != kind:
            raise BadRequest(HTTPStatus.NOT_FOUND, "no such URL: each can be used once, within a minute")
        return ticket


def _tls_context(options: StreamingOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the streaming server's certificates can't be used: {error}") from error
    if options.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _url_host(address: str) -> str:
    """Return the host of URLs: where the server listens on all addresses, the one that leads out of the node."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.is_unspecified:
        found = ipaddress.ip_address(_outward_address(found.version))
    return f"[{found}]" if found.version == 6 else str(found)


def _outward_address(version: int) -> str:
    """Ask the kernel for the address of its default route; nothing is sent (connecting a datagram socket)."""
    families = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]
    for family, somewhere in families if version == 4 else families[::-1]:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asker:
            asker.connect((somewhere, 9))
            return str(asker.getsockname()[0])
    return "127.0.0.1" if version == 4 else "::1"
