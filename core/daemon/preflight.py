"""What would stop the start, found before it: for ``crinoid config check``. Nothing on the host is changed.

The services' own checks are asked: the socket's place and group, the streaming server's address and certificate, the
port of the metrics; then each driver is made, in directories that are thrown away (``slots.trial``).
"""

import os
import socket
from collections.abc import Callable, Iterator

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux.sockets import SocketPlace
from crinoid.core.config.loader import Loaded
from crinoid.core.config.origins import Problem
from crinoid.core.config.positions import KeyPath
from crinoid.core.slots.selection import ValidSlot
from crinoid.core.slots.trial import try_driver


def find_problems(loaded: Loaded, slots: tuple[ValidSlot, ...]) -> tuple[list[Problem], list[str]]:
    """Return what would stop the start, and what is only worth a line.

    Ports that are in use are no problem where a daemon serves the socket: it has them. Without root no driver is made.
    """
    config = loaded.config
    found = [Problem(key, message, loaded.origins.nearest(key)) for key, message in _problems_of_services(loaded)]
    if os.geteuid() != 0:
        return found, ["drivers were not made, nor their programs looked for: that needs root"]
    notes: list[str] = []
    for slot in slots:
        trial = try_driver(slot, loaded.origins, config.deadlines)
        found += trial.problems
        notes += trial.notes
    return found, notes


def _problems_of_services(loaded: Loaded) -> Iterator[tuple[KeyPath, str]]:
    from crinoid.core.cri.server import find_group  # it needs grpc, which takes long to import
    from crinoid.core.cri.streaming.server import StreamingOptions, tls_context

    config = loaded.config
    streaming = StreamingOptions(
        **{name: getattr(config.streaming, name) for name in type(config.streaming).model_fields}
    )
    host, _, port = config.metrics.listen.rpartition(":")
    checks: list[tuple[KeyPath, Callable[[], object]]] = [
        (("server", "socket"), lambda: SocketPlace(config.server.socket).check(taking_over=True)),
        (("server", "group"), lambda: find_group(config.server.group)),
        (("streaming",), lambda: tls_context(streaming)),
    ]
    if not _is_served(str(config.server.socket)):
        checks += [
            (("streaming", "port"), lambda: _listen(streaming.address, streaming.port)),
            (("metrics", "listen"), lambda: _listen(host, int(port)) if port else None),
        ]
    for key, check in checks:
        try:
            check()
        except ConfigurationError as error:
            yield key, error.message


def _listen(address: str, port: int) -> None:
    """Take a port and give it back. Raises ConfigurationError."""
    try:
        for family, _, _, _, place in socket.getaddrinfo(
            address.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[:1]:
            socket.create_server(place[:2], family=family).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"{address} port {port} can't be had: {getattr(error, 'strerror', error)}") from error


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True
