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
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, ResourceExhausted
from crinoid.core.api.exhaustion import exhausted
from crinoid.core.cri.streaming.http import BadRequest, Request, make_answer, read_request
from crinoid.core.cri.streaming.throttling import ThrottledLog
from crinoid.core.cri.streaming.tickets import AttachTicket, ExecTicket, ForwardTicket, Ticket, Tickets
from crinoid.core.cri.streaming.transports import TcpTransport, Tls
from crinoid.core.cri.streaming.turns import Turns
from crinoid.core.cri.streaming.upgrades import Upgrades
from crinoid.core.cri.trimming import Trimmer
from crinoid.core.lifecycle.streams import StreamChoice, StreamService

LOG = logging.getLogger("crinoid.streaming")

_HEAD_S = 10.0
_BACKLOG = 128
_EXHAUSTED_PAUSE_S = 0.5
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
    max_connections: int = 512
    max_unauthenticated: int = 64
    max_streams: int = 512
    max_buffer_bytes: int = 128 << 20


class StreamingServer:
    """Serves streams from ``start`` to ``stop``, once.

    A connection is a stranger's until it has shown a valid token. Strangers are few and have little time; so that they
    can't keep others out, the oldest of too many has to go: a kubelet's shows its token within milliseconds.
    """

    def __init__(self, options: StreamingOptions, streams: StreamService) -> None:
        self._options = options
        self._streams = streams
        self._log = ThrottledLog(LOG)
        self._upgrades = Upgrades(streams, options, self._log)
        self._tickets = Tickets(options.token_ttl_s, lambda: asyncio.get_running_loop().time())
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._trimmer = Trimmer()
        self._base = ""

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def start(self) -> None:
        """Listen. Raises ConfigurationError when the address can't be had, or a certificate can't be read."""
        options = self._options
        self._tls = tls_context(options)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                options.address, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"the streaming server can't listen on {options.address} port {options.port}: {error.strerror}"
            ) from error
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()[:2]
        self._base = f"{'https' if self._tls else 'http'}://{_url_host(host)}:{port}"
        self._accepting = asyncio.create_task(self._accept(self._listener, Turns()))
        LOG.info("streaming server on %s", self._base)

    async def stop(self) -> None:
        """Listen no more and close all connections. Idempotent."""
        tasks = (*((self._accepting,) if self._accepting else ()), *self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        self._connections.difference_update(tasks)  # of those that had just ended nobody may have been told yet
        self._trimmer.close()

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
        self._check_room()
        return f"{self._base}/{_PATHS[type(ticket)]}/{self._tickets.issue(ticket)}"

    def _check_room(self) -> None:
        if len(self._connections) - len(self._strangers) >= self._options.max_connections:
            raise ResourceExhausted(
                f"{self._options.max_connections} execs, attaches and port forwards are open (max_connections in "
                "[streaming] of crinoid's configuration); close some"
            )

    async def _accept(self, listener: socket.socket, turns: Turns) -> None:
        """Take connections as long as the server runs, whatever becomes of each."""
        loop = asyncio.get_running_loop()
        while True:
            await turns.take()
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:
                if (known := exhausted(error)) is not None:
                    self._log.warning("no streaming connection can be accepted: %s", known.message)
                    await asyncio.sleep(_EXHAUSTED_PAUSE_S)
                continue  # anything else was about the one connection, accept(2)
            if len(self._strangers) >= self._options.max_unauthenticated:
                self._log.info("a streaming connection is closed: others have come and it has not shown a token")
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._serve_to_the_end(connected, turns))
            self._connections.add(task)
            self._strangers[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._connections.discard(task)
        self._strangers.pop(task, None)
        self._trimmer.note()

    async def _serve_to_the_end(self, connected: socket.socket, turns: Turns) -> None:
        """Serve a connection and close it. It is a stranger's, with a deadline, until its request is known."""
        tls = None if self._tls is None else Tls(self._tls, is_server=True)
        transport = TcpTransport(connected, turns, tls)
        try:
            async with asyncio.timeout(_HEAD_S):
                await transport.handshake()
                request = await self._read(transport)
            if request is not None:
                await self._route(request, transport)
        except TimeoutError:
            LOG.debug("a streaming connection sent no request in %g s", _HEAD_S)
        except (ConnectionError, ssl.SSLError) as error:
            LOG.debug("a streaming connection broke: %s", error)
        except Exception as error:  # noqa: BLE001  # whatever it was, it was about this one connection
            self._log.error("a streaming connection failed in a way it should not", error=error)
        except asyncio.CancelledError:
            transport.abort()
            raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_S):
                await transport.close()
        transport.abort()

    async def _read(self, transport: TcpTransport) -> Request | None:
        try:
            return await read_request(transport)
        except BadRequest as error:
            await _refuse(transport, error)
            return None

    async def _route(self, request: Request, transport: TcpTransport) -> None:
        """Find the request's ticket and serve it."""
        try:
            ticket = self._redeem(request)
            with contextlib.suppress(KeyError):
                del self._strangers[_current_task()]
            LOG.info("%s %s", _PATHS[type(ticket)], getattr(ticket, "container_id", getattr(ticket, "pod_id", "")))
            await self._upgrades.serve(request, transport, ticket)
        except BadRequest as error:
            await _refuse(transport, error)

    def _redeem(self, request: Request) -> Ticket:
        if request.method not in ("GET", "POST"):
            raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "GET or POST")
        try:
            self._check_room()
        except ResourceExhausted as error:
            raise BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, error.message) from error
        kind, _, token = request.path.partition("?")[0].removeprefix("/").partition("/")
        ticket = self._tickets.redeem(token)
        if ticket is None or _PATHS[type(ticket)] != kind:
            raise BadRequest(HTTPStatus.NOT_FOUND, "no such URL: each can be used once, within a minute")
        return ticket


async def _refuse(transport: TcpTransport, reason: BadRequest) -> None:
    await transport.write(make_answer(reason.status, reason.fields, str(reason)))
    await transport.part()


def _current_task() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task is not None
    return task


def tls_context(options: StreamingOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    files = [path for path in (options.tls_cert, options.tls_key, options.client_ca) if path is not None]
    try:
        for path in files:  # OpenSSL's errors name no file
            with path.open("rb"):
                pass
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        named = getattr(error, "filename", None) or ", ".join(map(str, files))
        words = error.strerror if error.filename else str(error)
        raise ConfigurationError(f"the streaming server's certificates can't be used: {named}: {words}") from error
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
