"""The server: both services on one unix socket, with the mode and group that the configuration says.

The socket is made beside its place and moved there once it has its mode and the server listens: no client ever meets
it half made. A stale socket is replaced; one that somebody serves is not.
"""

import grp
import os
import socket
import stat
from collections import Counter
from pathlib import Path

import grpc

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.frozen import dataclass
from crinoid.core.cri.calls import NO_HOOKS, CallHooks, Calls, generic_handler
from crinoid.core.cri.image_service import ImageService
from crinoid.core.cri.runtime_service import RuntimeService
from crinoid.core.cri.services import Services

_MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its NUL
_PROBE_TIMEOUT_S = 1.0
_MAX_METADATA_BYTES = 8 << 10
"""A kubelet sends some 300 bytes of headers, with a trace some 400."""
_HANDSHAKE_MS = 10_000
"""For a client on the same machine to say that it speaks HTTP/2, and to acknowledge our settings."""
_IDLE_MS = 300_000
"""After so long without a call a connection is closed, which its client makes anew when it needs one."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to serve. ``group`` is a name or a number, empty for the daemon's own.

    A larger request than ``max_request_bytes`` is answered RESOURCE_EXHAUSTED; so is a larger answer. An ExecSync may
    give 16 MiB on each of two streams. ``max_streams`` is how many calls one connection may have under way: further
    ones wait in a client that keeps to the protocol. ``max_requests`` is how many all may have: further ones are
    answered RESOURCE_EXHAUSTED. ``max_connections`` is how many clients may be connected: further ones are cut off.
    """

    path: Path
    mode: int = 0o660
    group: str = ""
    max_request_bytes: int = 16 << 20
    max_response_bytes: int = 64 << 20
    max_streams: int = 256
    max_requests: int = 1024
    max_connections: int = 256


class Server:
    """Serves the CRI from ``start`` to ``stop``, once."""

    def __init__(self, endpoint: Endpoint, services: Services, hooks: CallHooks = NO_HOOKS) -> None:
        self._endpoint = endpoint
        self._calls = Calls(hooks)
        self._server = grpc.aio.server(options=_options(endpoint), maximum_concurrent_rpcs=endpoint.max_requests)
        self._server.add_generic_rpc_handlers(
            (
                generic_handler("RuntimeService", RuntimeService(services), self._calls),
                generic_handler("ImageService", ImageService(services), self._calls),
            )
        )
        self._inode = 0

    @property
    def in_flight(self) -> Counter[str]:
        """How many calls are under way, by RPC."""
        return self._calls.in_flight

    async def start(self) -> None:
        """Listen. Raises ConfigurationError when the socket can't be made or another daemon serves it."""
        gid = _find_group(self._endpoint.group)
        passing = _claim(self._endpoint.path)
        try:
            self._server.add_insecure_port(f"unix:{passing}")
        except RuntimeError as error:
            raise ConfigurationError(f"can't listen on {passing}: {error}") from error
        await self._server.start()
        try:
            self._inode = _publish(passing, self._endpoint, gid)
        except ConfigurationError:
            await self._server.stop(None)  # takes the socket away again
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give those under way ``grace_s`` seconds, cancel the rest. Idempotent."""
        _withdraw(self._endpoint.path, self._inode)
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Wait until the server has been stopped."""
        await self._server.wait_for_termination()


def _options(endpoint: Endpoint) -> list[tuple[str, int]]:
    """What the transport takes of a client.

    Without a limit of streams, calls that are reset as soon as they are made pile up until other clients' calls are
    cancelled, and a header that is sent once and referred to thousands of times costs a megabyte a call, for as many
    calls as a client cares to begin. The transport counts a stream until it is gone, so the limit holds for both.
    """
    return [
        ("grpc.max_receive_message_length", endpoint.max_request_bytes),
        ("grpc.max_send_message_length", endpoint.max_response_bytes),
        ("grpc.max_concurrent_streams", endpoint.max_streams),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),  # between the two it is left to chance
        ("grpc.max_allowed_incoming_connections", endpoint.max_connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        (
            "grpc.http2.max_ping_strikes",
            0,
        ),  # a client that looks after its connection is not cut off; pings cost little
    ]


def _find_group(group: str) -> int:
    """Return the group's number; -1 leaves it as it is."""
    if not group:
        return -1
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"the socket's group {group!r} does not exist on this host; create it") from None


def _claim(path: Path) -> Path:
    """Make sure that the place is ours to take; return where to make the socket."""
    passing = path.with_name(f"{path.name}~")
    if len(os.fsencode(passing)) > _MAX_SOCKET_PATH:
        raise ConfigurationError(f"the socket's path {path} is too long: the kernel takes {_MAX_SOCKET_PATH - 1} bytes")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"can't make the folder of the socket {path}: {error}") from error
    if os.path.lexists(path):
        _check_stale(path)
    return passing


def _check_stale(path: Path) -> None:
    """Refuse to replace what is no socket, or a socket that somebody serves."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigurationError(f"{path} is there and is no socket; remove it or choose another path for the socket")
    if _is_served(path):
        raise ConfigurationError(f"another daemon serves {path}; stop it, or choose another path for the socket")


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its backlog is full, or we may not connect: somebody is there
            return True
        return True


def _publish(passing: Path, endpoint: Endpoint, gid: int) -> int:
    """Give the socket its group and mode and move it to its place; return its inode."""
    try:
        os.chown(passing, -1, gid)
        passing.chmod(endpoint.mode)
        passing.rename(endpoint.path)
        return endpoint.path.lstat().st_ino
    except OSError as error:
        raise ConfigurationError(f"can't put the socket at {endpoint.path}: {error}") from error


def _withdraw(path: Path, inode: int) -> None:
    """Remove the socket if it is still the one that we made."""
    try:
        if inode and path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass
