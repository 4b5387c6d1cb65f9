"""The address of ``/metrics``, ``/healthz`` and ``/readyz``, taken at the start, as it may be somebody else's.

Answered from threads: a loop that stands still is what one wants to hear of most. ``/healthz`` (the daemon answers) and
``/readyz`` (a pod could be made now) are answered at once, 200 or 503 with the reason; ``/metrics`` once there is what
to say.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crinoid.core.api.errors import ConfigurationError

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

LOG = logging.getLogger(__name__)
HEALTH_PATH, READY_PATH = "/healthz", "/readyz"
_PAUSE_S = 1.0  # after an error such as too many open files, which would be there at once again
_SILENCE_S = 30.0  # how long a connection may say nothing
_MAX_CONNECTIONS = 32  # each has a thread; when more come, the oldest is closed: one of a monitoring lasts for moments
_LOOPBACK = "127.0.0.1"

Health = Callable[[], tuple[bool, str]]
"""Tells whether all is well, and a sentence about it. Called from any thread."""


class MetricsEndpoint:
    """An HTTP server whose one thread waits in ``accept``, without a timer; each connection has a thread of its own."""

    def __init__(self, listen: str, health: Health) -> None:
        """Listen on ``host:port``. Raises ConfigurationError when the address can't be had."""
        host, _, port = listen.rpartition(":")
        try:
            self._socket = _listen(host.strip("[]") or _LOOPBACK, int(port))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"metrics.listen {listen!r}: {error}") from error
        self._health = health
        self.ready: Health | None = None
        """Asked for ``/readyz`` where the health is good."""
        self._metrics: type[BaseHTTPRequestHandler] | None = None
        self._connections: dict[socket.socket, None] = {}  # the oldest first; changed from several threads
        self._opened, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._accept, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Any:
        """Where it listens, as the socket tells; ``Any``: a tuple by its family."""
        return self._socket.getsockname()

    def open(self, handler: "type[BaseHTTPRequestHandler]") -> None:
        """Let prometheus-client's handler answer all but ``/healthz``, also to those that wait for it. Once."""
        self._metrics = handler
        self._opened.set()

    def close(self) -> None:
        """Stop listening; answers under way are not waited for. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._socket.shutdown(socket.SHUT_RDWR)  # accept returns
            self._thread.join()
            self._socket.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, address = self._socket.accept()
                self._make_room()
                self._connections[connection] = None
                try:
                    threading.Thread(
                        target=self._answer, args=(connection, address), name="metrics", daemon=True
                    ).start()
                except RuntimeError:
                    self._forget(connection)
                    raise
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                if not self._closed.is_set():
                    LOG.warning("a request of metrics could not be answered: %s", error)
                    self._closed.wait(_PAUSE_S)

    def _make_room(self) -> None:
        there = list(self._connections)
        for oldest in there[: max(0, len(there) + 1 - _MAX_CONNECTIONS)]:
            self._connections.pop(oldest, None)
            with contextlib.suppress(OSError):  # its client has gone
                oldest.shutdown(socket.SHUT_RDWR)  # its thread learns of it and closes it

    def _forget(self, connection: socket.socket) -> None:
        self._connections.pop(connection, None)
        connection.close()

    def _answer(self, connection: socket.socket, address: object) -> None:
        from http.server import BaseHTTPRequestHandler  # with what it imports it takes ten milliseconds

        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _SILENCE_S

            def do_GET(self) -> None:  # as http.server wants it
                path = self.path.partition("?")[0]
                if path in (HEALTH_PATH, READY_PATH):
                    self._tell_health(is_ready_wanted=path == READY_PATH)
                elif endpoint._opened.wait(_SILENCE_S) and (metrics := endpoint._metrics) is not None:
                    self.registry = metrics.registry  # type: ignore[attr-defined]  # of prometheus-client's handler
                    metrics.do_GET(self)  # type: ignore[attr-defined]

            def _tell_health(self, *, is_ready_wanted: bool) -> None:
                is_well, text = endpoint._health()
                if is_ready_wanted and is_well:
                    is_well, text = endpoint.ready() if endpoint.ready is not None else (False, "starting")
                body = f"{text}\n".encode(errors="replace")
                self.send_response(200 if is_well else 503)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002
                """Say nothing."""

        try:
            Handler(connection, address, None)  # type: ignore[arg-type]  # it answers in being made
        except OSError as error:
            LOG.debug("a client of metrics has gone: %s", error)
        finally:
            self._forget(connection)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    return socket.create_server((host, port), family=family)
