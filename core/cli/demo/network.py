"""The demo's pod network: a CNI configuration of Debian's bridge plugin, on a subnet that the host does not use."""

import ipaddress
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from crinoid.core.api.errors import ResourceExhausted

PLUGINS = Path("/usr/lib/cni")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_ROUTES = Path("/proc/net/route")
_CANDIDATES = IPv4Network("10.213.0.0/16")


def find_free_subnet() -> IPv4Network:
    """Return a /24 that no route of the host overlaps, default routes aside."""
    routes = list(_routes())
    for subnet in _CANDIDATES.subnets(new_prefix=24):
        if not any(subnet.overlaps(route) for route in routes):
            return subnet
    raise ResourceExhausted(f"the host has routes into all of {_CANDIDATES}: the demo finds no subnet for its pods")


def write_configuration(directory: Path, bridge: str, subnet: IPv4Network, state: Path) -> None:
    """Write the network: a bridge with the first address as gateway, masquerading; addresses are kept in ``state``."""
    ipam = {
        "type": "host-local",
        "dataDir": str(state),
        "ranges": [[{"subnet": str(subnet)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "ipam": ipam}
    directory.mkdir()
    document = {"cniVersion": "1.0.0", "name": bridge, "plugins": [plugin]}
    (directory / "10-demo.conflist").write_text(json.dumps(document, indent=2) + "\n")


@contextmanager
def kept_forwarding() -> Iterator[None]:
    """Put back whether the host forwards: the bridge plugin turns it on, and never off."""
    before = _FORWARDING.read_text()
    try:
        yield
    finally:
        _FORWARDING.write_text(before)


def _routes() -> Iterator[IPv4Network]:
    """Read the main table's routes; ``/proc/net/route`` has addresses and masks in the machine's byte order."""
    for line in _ROUTES.read_text().splitlines()[1:]:
        fields = line.split()
        mask = ipaddress.ip_address(_number(fields[7]))
        if int(mask):
            yield IPv4Network((IPv4Address(_number(fields[1])), str(mask)), strict=False)


def _number(text: str) -> bytes:
    return struct.pack("=I", int(text, 16))
