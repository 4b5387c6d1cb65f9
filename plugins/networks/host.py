"""The network driver ``host``: every pod of the slot shares the host's network, as a site's choice.

There is nothing to attach and nothing to undo; the driver tells the kernel so in its features, and tells the addresses
of the host: the source address of its default route of each family, IPv4 first.
"""

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus

LOOPBACK = "127.0.0.1"
# Documentation addresses (RFC 5737, RFC 3849): they are routed like the rest of the Internet and nobody has them.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def _check_address(text: str) -> str:
    return str(ipaddress.ip_address(text))


class HostOptions(DriverConfig):
    """What the host's addresses are, where its routes don't tell."""

    addresses: tuple[Annotated[str, AfterValidator(_check_address)], ...] = ()
    """The addresses of every pod, its primary one first; empty: those of the host's default routes, IPv4 first."""


class HostNetwork:
    """Gives pods the host's network and its addresses."""

    api_version = "1.0"
    Config = HostOptions

    def __init__(self, config: HostOptions, host: Host) -> None:
        self._config = config

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(host_network=True)

    @hookimpl
    async def status(self) -> NetworkStatus:
        return NetworkStatus(ready=True)

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        return {"host_network": True}

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        return Attachment(self._config.addresses or find_addresses(), dict(plan))

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Do nothing: the pod had nothing of its own."""


def find_addresses() -> tuple[str, ...]:
    """Return the host's addresses by its default routes, IPv4 first; the loopback address when there is no route."""
    found = tuple(address for family, elsewhere in _ELSEWHERE if (address := _source_address(family, elsewhere)))
    return found or (LOOPBACK,)


def _source_address(family: socket.AddressFamily, destination: str) -> str:
    """Ask the kernel which address it would send from; connecting a datagram socket sends nothing."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        probe.connect((destination, 9))
        return str(probe.getsockname()[0])
    return ""
