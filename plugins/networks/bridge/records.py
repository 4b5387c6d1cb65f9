"""What is written down of a pod: the plan before anything is done, and the record with its addresses afterwards.

Both are one JSON object: a plan is a record that has no addresses yet. Everything that undoing needs is in it.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, IPvAnyAddress, IPvAnyNetwork, ValidationError

from crinoid.core.api.errors import DriverError, InvalidArgument
from crinoid.core.api.host import Host
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PortMapping, Protocol
from crinoid.plugins.networks.bridge.interfaces import Address, Network

# Of those that everybody may use at home.
_MAC_PREFIX = b"\x02\x43"
_BRIDGE_MAC_PREFIX = b"\x06\x43"
_LINK = re.compile(r"c[ri][0-9a-f]{13}")


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class HostPort(_Recorded):
    """A port of the node that leads to the pod; ``host_ip`` empty: at all addresses of the node."""

    host_ip: str = ""
    protocol: Protocol
    host_port: int
    container_port: int


class Record(_Recorded):
    """A pod's attachment. ``link`` is its end on the node, ``buffer`` the queue of a pod whose sending is limited.

    ``ranges`` are those that the addresses come from, in the same order; the first address of each is the gateway.
    """

    pod_id: str
    netns: str
    interface: str
    link: str
    buffer: str
    ranges: tuple[IPvAnyNetwork, ...]
    wanted: tuple[IPvAnyAddress, ...] = ()
    ports: tuple[HostPort, ...] = ()
    ingress_bits_per_s: int = 0
    egress_bits_per_s: int = 0
    addresses: tuple[IPvAnyAddress, ...] = ()

    @classmethod
    def read(cls, data: Mapping[str, object]) -> "Record":
        """Read a recorded plan or attachment; raise DriverError when it is none."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DriverError(f"the record of a bridge attachment does not parse: {error}") from error

    def require_own(self, pod_id: str) -> None:
        """Raise DriverError unless this is the record of that pod, and names none but its own links.

        Links are removed by their names, and a record may be damaged. The prefix is not compared: that of a record
        holds, wherever the daemon keeps its state today.
        """
        own = _own_name(self.pod_id, self.interface)
        if self.pod_id != pod_id or any(_LINK.fullmatch(one) is None or one[6:] != own for one in self.links):
            raise DriverError(f"the record of pod {pod_id}'s attachment names what is another's: {self.links}")

    @property
    def links(self) -> tuple[str, str]:
        """The names of what the pod may have on the node."""
        return self.link, self.buffer

    def write(self) -> dict[str, object]:
        """Return the record as a JSON object."""
        return self.model_dump(mode="json")

    def with_addresses(self, addresses: Sequence[Address]) -> "Record":
        """Return the record of a pod that has these addresses."""
        return self.model_copy(update={"addresses": tuple(addresses)})

    @property
    def mac(self) -> bytes:
        """The pod's MAC: made of its first address, so that it stays true for whoever gets the address next."""
        return _MAC_PREFIX + self.addresses[0].packed[-4:] if self.addresses else b""


def gateway_of(network: Network) -> Address:
    """Return the node's own address in a range: the first one."""
    return network.network_address + 1


@dataclass(frozen=True, slots=True)
class Names:
    """What a slot's things on the node are called; another daemon on the same node must not take them for its own.

    ``port_prefix`` begins the names of pods' links, ``buffer_prefix`` those of their queues. All fit 15 bytes.
    """

    table: str
    bridge: str
    port_prefix: str
    buffer_prefix: str
    bridge_mac: bytes

    @classmethod
    def of(cls, host: Host) -> "Names":
        """Derive the names from where the daemon keeps its state, whichever driver of ours the slot has."""
        digest = hashlib.sha256(f"{host.state_dir.parent}\n{host.slot}".encode()).digest()
        own = digest.hex()[:4]
        return cls(
            table=f"crinoid_{host.slot}_{own}",
            bridge=f"cb{own}-{host.slot[:8]}",
            port_prefix=f"cr{own}",
            buffer_prefix=f"ci{own}",
            bridge_mac=_BRIDGE_MAC_PREFIX + digest[:4],
        )


def plan_record(request: NetworkRequest, names: Names, ranges: Sequence[Network]) -> Record:
    """Write down what is going to be done for a pod. Raises InvalidArgument for what can't be asked for."""
    if request.netns is None:
        raise InvalidArgument(f"pod {request.pod_id} has no network namespace to attach")
    if not 0 < len(request.interface.encode()) < 16 or set(request.interface) & set("/: \0"):
        raise InvalidArgument(f"{request.interface!r} can't be the name of a network interface")
    if not request.pod_id or len(request.pod_id) > 200 or "\0" in request.pod_id:  # a link's target (``addresses``)
        raise InvalidArgument(f"pod id {request.pod_id!r} can't be recorded")
    own = _own_name(request.pod_id, request.interface)
    return Record(
        pod_id=request.pod_id,
        netns=str(request.netns),
        interface=request.interface,
        link=names.port_prefix + own,
        buffer=names.buffer_prefix + own,
        ranges=tuple(ranges),
        wanted=_check_wanted(request.ips, ranges),
        ports=_check_ports(request.port_mappings),
        ingress_bits_per_s=request.ingress_bits_per_s,
        egress_bits_per_s=request.egress_bits_per_s,
    )


def _own_name(pod_id: str, interface: str) -> str:
    """Return what the names of a pod's links end with."""
    return hashlib.sha256(f"{pod_id}/{interface}".encode()).hexdigest()[:9]


def _check_wanted(ips: Sequence[str], ranges: Sequence[Network]) -> tuple[Address, ...]:
    found = []
    for ip in ips:
        try:
            address = ipaddress.ip_address(ip.partition("/")[0])
        except ValueError as error:
            raise InvalidArgument(f"the pod asks for address {ip!r}: {error}") from error
        if not any(address in network for network in ranges):
            listed = ", ".join(map(str, ranges))
            raise InvalidArgument(f"the pod asks for address {ip}, which is not in the node's ranges: {listed}")
        found.append(address)
    if len({address.version for address in found}) != len(found):
        raise InvalidArgument(f"the pod asks for two addresses of one family: {', '.join(ips)}")
    return tuple(found)


def _check_ports(mappings: Sequence[PortMapping]) -> tuple[HostPort, ...]:
    """Return the mappings that have a port of the host; the others only name what a container listens at."""
    found: dict[tuple[str, Protocol, int], HostPort] = {}
    for mapping in mappings:
        if mapping.host_port <= 0:
            continue
        for number in (mapping.host_port, mapping.container_port):
            if not 0 < number < 1 << 16:
                raise InvalidArgument(f"port {number} of a port mapping is not between 1 and 65535")
        try:
            host_ip = str(ipaddress.ip_address(mapping.host_ip)) if mapping.host_ip else ""
        except ValueError as error:
            raise InvalidArgument(f"host address of port {mapping.host_port}: {error}") from error
        port = HostPort(
            host_ip=host_ip,
            protocol=mapping.protocol,
            host_port=mapping.host_port,
            container_port=mapping.container_port,
        )
        if found.setdefault((host_ip, port.protocol, port.host_port), port) != port:
            raise InvalidArgument(f"host port {mapping.host_port}/{mapping.protocol.value} is asked for twice")
    return tuple(found.values())
