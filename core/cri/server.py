"""The server: CRI's services, and our own beside them, on one unix socket with the mode and group that are configured.

How the socket comes to its place and goes is ``core.api.linux.sockets``'.
"""

import asyncio
import grp
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux.sockets import SocketPlace
from crinoid.core.cri.calls import NO_HOOKS, CallHooks, Calls, generic_handler
from crinoid.core.cri.forwarding import ENDLESS, Forwarder
from crinoid.core.cri.image_service import ImageService
from crinoid.core.cri.node_explain import NodeExplain
from crinoid.core.cri.node_images import NodeImages
from crinoid.core.cri.runtime_service import RuntimeService
from crinoid.core.cri.services import Services
from crinoid.core.cri.trimming import Trimmer

_MAX_METADATA_BYTES = 8 << 10
"""A kubelet sends some 300 bytes of headers, with a trace some 400."""
_LEAST_PENDING = 768
"""All that a connection may have, and one of each other, by default; grpc's own limits are 1,000 and 3,000. Each may
hold a MiB. Further calls end CANCELLED, anybody's, so it stays where calls of a connection are limited to fewer."""
_HANDSHAKE_MS = 10_000
"""For a client on the same machine to say that it speaks HTTP/2, and to acknowledge our settings."""
_STREAMS_END_S = 5.0
"""How long streams of events may take to end: a client may be slow to read what is left."""
AGE_S = 30.0
"""After so long, a tenth more or less, a client is asked to make its connection anew, without the loss of a call. So a
client that lets its connections lie, as critest does two of each test, does not come to ``max_connections``, which
would cut a kubelet off, too; and a daemon which was taken over has no client some time later. grpc closes an idle
connection without asking: a call that is on its way then fails, a kubelet's as well."""
RELAY_S = 2 * AGE_S
"""After so long no client's connection is one to a daemon that was taken over, but for streams that don't end: a tenth
more than the age, and the 20 s that grpc waits for an answer to its asking."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to serve. ``group`` is a name or a number, empty for the daemon's own.

    A larger request than ``max_request_bytes`` is answered RESOURCE_EXHAUSTED; so is a larger answer. An ExecSync may
    give 16 MiB on each of two streams. ``max_streams`` is how many calls one connection may have in flight: a
    client that keeps to our SETTINGS holds further ones back, another's are refused with REFUSED_STREAM.
    ``max_requests`` is how many all may have: further ones are answered RESOURCE_EXHAUSTED. ``max_connections`` is how
    many clients may be connected, each for ``age_s`` and what it has in flight: further ones are cut off. So requests
    take ``max_requests`` times ``max_request_bytes`` of memory at most; the transport knows no limit of all together.
    """

    path: Path
    mode: int = 0o660
    group: str = ""
    max_request_bytes: int = 8 << 20
    max_response_bytes: int = 64 << 20
    max_streams: int = 512
    max_requests: int = 1024
    max_connections: int = 256
    age_s: float = AGE_S


class Listener:
    """A socket that gRPC listens on: connections wait in it until the server starts."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.server = grpc.aio.server(options=_options(endpoint), maximum_concurrent_rpcs=endpoint.max_requests)
        self.place = SocketPlace(endpoint.path)
        self._endpoint = endpoint
        self._is_published = False

    async def listen(self, *, taking_over: bool = False) -> None:
        """Listen beside the socket's place, which may be another daemon's still with ``taking_over``.

        Raises ConfigurationError when the socket can't be made or another daemon serves it.
        """
        await asyncio.to_thread(self.place.claim, taking_over=taking_over)
        try:
            self.server.add_insecure_port(f"unix:{self.place.passing}")
        except RuntimeError as error:
            self.place.release()
            raise ConfigurationError(f"can't listen on {self.place.passing}: {error}") from error

    def publish(self) -> None:
        """Move the socket to its place: clients that connect from now on are this daemon's. Once."""
        if not self._is_published:
            self.place.publish(self._endpoint.mode, find_group(self._endpoint.group))
            self._is_published = True


class Server:
    """Serves the CRI from ``start`` to ``stop``, once."""

    def __init__(
        self, endpoint: Endpoint, services: Services, hooks: CallHooks = NO_HOOKS, listener: Listener | None = None
    ) -> None:
        """``listener``: one that listens already."""
        self._endpoint = endpoint
        self._trimmer = Trimmer()
        self._calls = Calls(hooks, self._trimmer.note)
        self._listens = listener is not None
        self._listener = listener or Listener(endpoint)
        self._server = self._listener.server
        self._server.add_generic_rpc_handlers(
            (
                generic_handler("RuntimeService", RuntimeService(services), self._calls),
                generic_handler("ImageService", ImageService(services), self._calls),
                generic_handler("NodeImages", NodeImages(services, endpoint.max_request_bytes), self._calls),
                generic_handler("NodeExplain", NodeExplain(services, endpoint.max_response_bytes), self._calls),
            )
        )

    @property
    def in_flight(self) -> Counter[str]:
        """How many calls are under way, by RPC."""
        return self._calls.in_flight

    async def start(self) -> None:
        """Listen, and serve. Raises ConfigurationError when the socket can't be made or another daemon serves it."""
        find_group(self._endpoint.group)
        if not self._listens:
            await self._listener.listen()
        try:
            await self._server.start()
            self._listener.publish()
        except BaseException:
            self._listener.place.release()
            await self._server.stop(None)  # takes the socket away again
            raise

    async def hand_over(self, grace_s: float, end_streams: Callable[[], Awaitable[None]]) -> None:
        """Pass all calls from now on to the daemon that listens at the socket's path; return when none is left here.

        Those under way have ``grace_s`` seconds to end; then ``end_streams`` is to end this daemon's part of those that
        never do by themselves, whose clients have got by then all that came of the others. The other daemon goes on.
        """
        self._calls.forwarder = Forwarder(self._endpoint.path, time.monotonic() + RELAY_S)
        await self._calls.drain(grace_s, ENDLESS)
        await end_streams()
        await self._calls.drain(_STREAMS_END_S)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give those under way ``grace_s`` seconds, cancel the rest. Idempotent."""
        self._listener.place.withdraw()
        await self._server.stop(grace_s)
        self._trimmer.close()
        if self._calls.forwarder is not None:
            await self._calls.forwarder.close()

    async def wait(self) -> None:
        """Wait until the server has been stopped."""
        await self._server.wait_for_termination()


def _options(endpoint: Endpoint) -> list[tuple[str, int]]:
    """What the transport takes of a client.

    Without a limit of streams, calls that are reset as soon as they are made pile up until other clients' calls are
    cancelled, and a header that is sent once and referred to thousands of times costs a megabyte a call, for as many
    calls as a client cares to begin. So streams that are over and not gone yet are limited, too; without a limit of
    their own they count among the others, and a client that has its answers and goes on is refused, a gRPC client with
    UNAVAILABLE.

    The sizes of headers bind a client once it has acknowledged our SETTINGS, which it has ten seconds for; until then a
    call may have 16 MiB of them, by RFC 9113's initial values, and grpc hands it on with all of them although it
    refuses it. What holds then is how many calls of all connections wait for us.
    """
    pending = max(_LEAST_PENDING, endpoint.max_streams + endpoint.max_connections)
    return [
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),  # between the two it is left to chance
        ("grpc.max_receive_message_length", endpoint.max_request_bytes),
        ("grpc.max_send_message_length", endpoint.max_response_bytes),
        ("grpc.max_concurrent_streams", endpoint.max_streams),
        ("grpc.http2.max_deallocating_streams", endpoint.max_streams),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),  # between the two it is left to chance
        ("grpc.max_allowed_incoming_connections", endpoint.max_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        ("grpc.max_connection_age_ms", int(endpoint.age_s * 1000)),
        (
            "grpc.http2.max_ping_strikes",
            0,
        ),  # a client that looks after its connection is not cut off; pings cost little
    ]


def find_group(group: str) -> int:
    """Return the group's number; -1 leaves it as it is. Raises ConfigurationError."""
    if not group:
        return -1
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"the socket's group {group!r} does not exist on this host; create it") from None
