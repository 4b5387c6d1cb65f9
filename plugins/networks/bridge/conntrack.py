"""Forgets the connections that the kernel remembers of datagrams (linux/netfilter/nfnetlink_conntrack.h).

The kernel decides once where the datagrams of a client and port go. A client that goes on sending would reach the pod
that had the host port before, or nobody, for as long as it sends. So what is remembered of a host port is forgotten
when a pod gets it, and when one gives it up.
"""

import ipaddress
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from crinoid.plugins.networks.bridge.interfaces import Address
from crinoid.plugins.networks.bridge.netlink import NETFILTER, Channel, Message, attribute, nest, parse

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_HEADER = struct.Struct("!BBH")
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTOCOL = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)  # IPv4, IPv6
_NUMBER, _DESTINATION_PORT = 1, 3
_BY_ORIGINAL = 1
_BY_NUMBER_AND_PORT = 1 << 3 | 1 << 5


@dataclass(frozen=True, slots=True)
class _Flow:
    """One remembered connection: where the client sent to, who answers, and what names it to the kernel."""

    family: int
    sent_to: Address
    port: int
    answered_by: Address
    name: bytes


def forget_datagrams(ports: Collection[int], targets: Collection[Address], pods: Collection[Address]) -> None:
    """Forget UDP flows to these ports that were sent to one of the targets, or are answered by one of the pods."""
    with Channel(NETFILTER) as channel:
        flows = [
            flow
            for family in (socket.AF_INET, socket.AF_INET6)
            for port in ports
            for flow in _list(channel, family, port)
        ]
        stale = [flow for flow in flows if flow.sent_to in targets or flow.answered_by in pods]
        # One that has ended by itself meanwhile is no error.
        channel.try_each([Message(_DELETE, _HEADER.pack(flow.family, 0, 0) + flow.name) for flow in stale])


def _list(channel: Channel, family: int, port: int) -> list[_Flow]:
    """List the UDP flows to a port; kernels before 5.8 list everything, so look again."""
    protocol = attribute(_NUMBER, bytes([socket.IPPROTO_UDP])) + attribute(_DESTINATION_PORT, port.to_bytes(2, "big"))
    payload = (
        _HEADER.pack(family, 0, 0)
        + nest(_ORIGINAL, nest(_PROTOCOL, protocol))
        + nest(_FILTER, attribute(_BY_ORIGINAL, struct.pack("=I", _BY_NUMBER_AND_PORT)))
    )
    entries = channel.dump(Message(_GET, payload, 0, f"list connections to port {port}"))
    return [flow for _, entry in entries if (flow := _read(entry)) is not None and flow.port == port]


def _read(entry: bytes) -> _Flow | None:
    found = parse(entry[_HEADER.size :])
    original, reply = parse(found[_ORIGINAL]), parse(found[_REPLY])
    protocol = parse(original[_PROTOCOL])
    if protocol.get(_NUMBER) != bytes([socket.IPPROTO_UDP]):
        return None
    name = nest(_ORIGINAL, found[_ORIGINAL])
    name += b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    sent_to, answered_by = _address(original, _DESTINATIONS), _address(reply, _SOURCES)
    return _Flow(entry[0], sent_to, int.from_bytes(protocol[_DESTINATION_PORT], "big"), answered_by, name)


def _address(tuple_: dict[int, bytes], kinds: tuple[int, int]) -> Address:
    addresses = parse(tuple_[_IP])
    return ipaddress.ip_address(next(addresses[kind] for kind in kinds if kind in addresses))
