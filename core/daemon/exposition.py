"""The address of ``/metrics``: taken at the start, as it may be somebody else's; answered once there is what to say."""

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

from crinoid.core.api.errors import ConfigurationError

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = logging.getLogger(__name__)
_PAUSE_S = 1.0  # after an error such as too many open files, which would be there at once again
_SILENCE_S = 30.0  # how long a connection may say nothing
_LOOPBACK = "127.0.0.1"


class MetricsEndpoint:
    """An HTTP server without a thread or a timer of its own: the event loop watches its socket.

    Each connection is answered in a thread that ends with it; those that come before ``open`` wait.
    """

    def __init__(self, listen: str) -> None:
        """Listen on ``host:port``. Raises ConfigurationError when the address can't be had."""
        host, _, port = listen.rpartition(":")
        try:
            self._socket = _listen(host.strip("[]") or _LOOPBACK, int(port))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"metrics.listen {listen!r}: {error}") from error
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> Any:
        """Where it listens, as the socket tells; ``Any``: a tuple by its family."""
        return self._socket.getsockname()

    def open(self, handler: "type[BaseHTTPRequestHandler]") -> None:
        """Answer who connects, in the running loop. Once."""
        from http.server import ThreadingHTTPServer  # with what it imports it takes ten milliseconds

        patient = type(handler.__name__, (handler,), {"timeout": _SILENCE_S})
        server = ThreadingHTTPServer(self.address, patient, bind_and_activate=False)
        server.socket.close()  # one of its own, that was never bound
        self._task = asyncio.create_task(self._accept(server), name="metrics")

    async def close(self) -> None:
        """Stop listening; answers under way are not waited for. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()

    async def _accept(self, server: "ThreadingHTTPServer") -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._socket)
                server.process_request(connection, address)
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                LOG.warning("a request of metrics could not be answered: %s", error)
                await asyncio.sleep(_PAUSE_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listener = socket.create_server((host, port), family=family)
    listener.setblocking(False)
    return listener
