"""The few rtnetlink messages of the driver: links, addresses, routes, neighbours (rtnetlink(7)).

Functions that return a message do nothing; ``Channel.execute`` sends any number of them in one go. The others ask.
"""

import ctypes
import fcntl
import ipaddress
import socket
import struct
import time
from dataclasses import dataclass

from crinoid.plugins.networks.bridge.netlink import (
    CREATE,
    EXCL,
    REPLACE,
    Channel,
    Message,
    attribute,
    nest,
    number,
    parse,
    text,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UP = 0x1
UNICAST, LOCAL = 1, 2  # types of routes
_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _GET_ADDRESS = 20, 22
_NEW_ROUTE, _GET_ROUTE = 24, 26
_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")

_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_INFO, _IFLA_ALIAS = 1, 3, 4, 10, 18, 20
_IFLA_STATE, _STATE_UP = 16, b"\6"
_IFLA_NETNS_FD, _IFLA_EXT_MASK, _IFLA_TX_QUEUES, _IFLA_RX_QUEUES = 28, 29, 31, 32
_INFO_KIND, _INFO_DATA, _INFO_PORT_KIND, _INFO_PORT_DATA = 1, 2, 4, 5
_VETH_PEER = 1
_BRIDGE_FORWARD_DELAY, _BRIDGE_STP, _BRIDGE_SNOOPING = 1, 5, 23
_PORT_HAIRPIN = 4
_SKIP_STATISTICS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NO_DAD, _NO_PREFIX_ROUTE = 0x2, 0x200
_RTA_DESTINATION, _RTA_INTERFACE, _RTA_GATEWAY = 1, 4, 5
_MAIN_TABLE, _PROTOCOL_STATIC = 254, 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_NDA_DESTINATION, _NDA_LINK_ADDRESS = 1, 2
_KNOWN_NEIGHBOUR = 0x02 | 0x04 | 0x08 | 0x10  # reachable, stale, delay, probe
_SIOCDEVPRIVATE, _GET_PORT_LIST, _MOST_PORTS = 0x89F0, 7, 1024  # linux/if_bridge.h
_SETTLE_S, _LOCAL_S, _SETTLE_STEP_S = 1.5, 0.1, 0.00005
_STALE_NEIGHBOUR = 0x04
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as it is; ``master`` is the index of the bridge that it is a port of, 0 for none.

    ``works``: it is not only up, frames go through it.
    """

    index: int
    name: str
    is_up: bool
    mtu: int
    mac: bytes
    master: int
    kind: str
    works: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A route as it is: where to, over which interface, of what type: ``UNICAST``, ``LOCAL`` or another.

    ``interface`` 0: over several. ``is_direct``: those whom it leads to are on the link itself.
    """

    destination: Network
    interface: int
    type: int
    is_direct: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A veth pair to be made: ``name`` stays on the node, ``peer`` appears in the namespace ``netns_fd``."""

    name: str
    peer: str
    peer_mac: bytes
    mtu: int
    master: int
    netns_fd: int


def _header(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return _LINK.pack(family, 0, index, flags, change)


def make_bridge(name: str, mac: bytes, mtu: int) -> Message:
    """A bridge that is up and forwards at once, with a fixed MAC so that it doesn't change with its ports."""
    options = (number(_BRIDGE_FORWARD_DELAY, 0), number(_BRIDGE_STP, 0), attribute(_BRIDGE_SNOOPING, b"\0"))
    payload = (
        _header(flags=UP, change=UP)
        + text(_IFLA_NAME, name)
        + attribute(_IFLA_ADDRESS, mac)
        + number(_IFLA_MTU, mtu)
        + nest(_IFLA_INFO, text(_INFO_KIND, "bridge"), nest(_INFO_DATA, *options))
    )
    return Message(_NEW_LINK, payload, CREATE | EXCL, "make bridge", name)


def make_pair(pair: Pair) -> Message:
    """Both ends in one act: the one up and a port of the bridge, the other in the pod already."""
    queues = number(_IFLA_TX_QUEUES, 1) + number(_IFLA_RX_QUEUES, 1)  # the default is one for every processor
    peer = (
        _header()  # it can't be up before it is connected
        + text(_IFLA_NAME, pair.peer)
        + attribute(_IFLA_ADDRESS, pair.peer_mac)
        + number(_IFLA_MTU, pair.mtu)
        + number(_IFLA_NETNS_FD, pair.netns_fd)
        + queues
    )
    payload = (
        _header(flags=UP, change=UP)
        + text(_IFLA_NAME, pair.name)
        + number(_IFLA_MTU, pair.mtu)
        + number(_IFLA_MASTER, pair.master)
        + queues
        + nest(_IFLA_INFO, text(_INFO_KIND, "veth"), nest(_INFO_DATA, attribute(_VETH_PEER, peer)))
    )
    return Message(_NEW_LINK, payload, CREATE | EXCL, f"make {pair.name} and {pair.peer}")


def make_buffer(name: str, mtu: int) -> Message:
    """An intermediate functional block: a place to queue what comes in."""
    payload = (
        _header(flags=UP, change=UP)
        + text(_IFLA_NAME, name)
        + number(_IFLA_MTU, mtu)
        + nest(_IFLA_INFO, text(_INFO_KIND, "ifb"))
    )
    return Message(_NEW_LINK, payload, CREATE | EXCL, f"make {name} of kind ifb")


def set_master(name: str, master: int) -> Message:
    """Make an interface a port of the bridge."""
    payload = _header(flags=UP, change=UP) + text(_IFLA_NAME, name) + number(_IFLA_MASTER, master)
    return Message(_NEW_LINK, payload, 0, f"make {name} a port of the bridge")


def set_port(name: str, alias: str) -> Message:
    """Let a port of the bridge send a frame back where it came from, and name its pod."""
    payload = (
        _header()
        + text(_IFLA_NAME, name)
        + text(_IFLA_ALIAS, alias)
        + nest(
            _IFLA_INFO,
            text(_INFO_PORT_KIND, "bridge"),
            nest(_INFO_PORT_DATA, attribute(_PORT_HAIRPIN, b"\1")),
        )
    )
    return Message(_NEW_LINK, payload, 0, "set up the bridge's port", name)


def set_up(index: int, mtu: int = 0) -> Message:
    """Bring an interface up, and set its MTU where one is given."""
    payload = _header(index, UP, UP) + (number(_IFLA_MTU, mtu) if mtu else b"")
    return Message(_NEW_LINK, payload, 0, f"bring interface {index} up")


def delete_link(name: str) -> Message:
    """Remove an interface; one end of a pair takes the other along."""
    return Message(_DELETE_LINK, _header() + text(_IFLA_NAME, name), 0, "delete", name)


def find_link(channel: Channel, name: str = "", index: int = 0) -> Link | None:
    """Look at one interface, by name or index."""
    payload = _header(index) + (text(_IFLA_NAME, name) if name else b"") + number(_IFLA_EXT_MASK, _SKIP_STATISTICS)
    answer = channel.ask(Message(_GET_LINK, payload, 0, f"look at {name or index}"))
    return None if answer is None else _read_link(answer)


def wait_until_works(channel: Channel, name: str) -> None:
    """Wait until frames go through an interface that was brought up; a while at most, as the other end matters too.

    The kernel carries out what follows from a link's coming up in the background: starting its queue, letting the
    bridge forward to it. What is sent before is lost. Newer kernels do it at once when they are asked for the link.
    """
    deadline = time.monotonic() + _SETTLE_S
    while (link := find_link(channel, name)) is not None and not link.works and time.monotonic() < deadline:
        time.sleep(_SETTLE_STEP_S)


def list_links(channel: Channel, master: int = 0) -> list[Link]:
    """Look at all interfaces, or at the ports of a bridge."""
    payload = _header() + number(_IFLA_EXT_MASK, _SKIP_STATISTICS) + (number(_IFLA_MASTER, master) if master else b"")
    return [_read_link(entry) for _, entry in channel.dump(Message(_GET_LINK, payload, 0, "list interfaces"))]


def list_port_indices(bridge: str) -> set[int]:
    """Return the indices of a bridge's ports, by an old call of bridge-utils that costs a microsecond."""
    ports = (ctypes.c_int * _MOST_PORTS)()
    arguments = (ctypes.c_ulong * 4)(_GET_PORT_LIST, ctypes.addressof(ports), _MOST_PORTS, 0)
    request = struct.pack("16sP16x", bridge.encode(), ctypes.addressof(arguments))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        fcntl.ioctl(channel, _SIOCDEVPRIVATE, request)
    return set(ports[:]) - {0}


def _read_link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = parse(payload[_LINK.size :])
    info = parse(found.get(_IFLA_INFO, b""))
    return Link(
        index=index,
        name=_string(found.get(_IFLA_NAME, b"")),
        is_up=bool(flags & UP),
        mtu=_number(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b""),
        master=_number(found.get(_IFLA_MASTER)),
        kind=_string(info.get(_INFO_KIND, b"")),
        works=found.get(_IFLA_STATE) == _STATE_UP,
    )


def _string(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")


def _number(content: bytes | None) -> int:
    return struct.unpack("=I", content)[0] if content else 0


def add_address(index: int, address: Address, prefix_length: int, *, with_route: bool = True) -> Message:
    """Give an interface an address, usable at once: nobody else can have it, so the kernel need not ask around.

    Without ``with_route`` a prefix shorter than the whole address makes no route.
    """
    flags = _NO_DAD | (0 if with_route else _NO_PREFIX_ROUTE)
    payload = (
        _ADDRESS.pack(_FAMILY[address.version], prefix_length, flags & 0xFF, 0, index)
        + attribute(_IFA_LOCAL, address.packed)
        + attribute(_IFA_ADDRESS, address.packed)
        + number(_IFA_FLAGS, flags)
    )
    return Message(_NEW_ADDRESS, payload, CREATE | REPLACE, "add address", address)


def list_addresses(channel: Channel, index: int = 0) -> set[Address]:
    """Return the addresses of an interface, or of all."""
    message = Message(_GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, index), 0, "list addresses")
    found = set()
    for _, payload in channel.dump(message):
        if index in (0, _ADDRESS.unpack_from(payload)[4]):
            attributes = parse(payload[_ADDRESS.size :])
            found.add(ipaddress.ip_address(attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS]))
    return found


def add_route(destination: Network, index: int, gateway: Address | None = None) -> Message:
    """Send what is for ``destination`` to the gateway, or straight onto the link."""
    scope = _SCOPE_LINK if gateway is None and destination.version == 4 else _SCOPE_UNIVERSE
    family = _FAMILY[destination.version]
    header = _ROUTE.pack(family, destination.prefixlen, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, scope, UNICAST, 0)
    payload = (
        header
        + (attribute(_RTA_DESTINATION, destination.network_address.packed) if destination.prefixlen else b"")
        + number(_RTA_INTERFACE, index)
        + (attribute(_RTA_GATEWAY, gateway.packed) if gateway else b"")
    )
    return Message(_NEW_ROUTE, payload, CREATE | REPLACE, "add route to", destination)


def find_route(channel: Channel, address: Address) -> Route | None:
    """Return the route that a packet to the address would take; ``None`` when there is none."""
    header = _ROUTE.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    message = Message(_GET_ROUTE, header + attribute(_RTA_DESTINATION, address.packed), 0, "find route to", address)
    try:
        answer = channel.ask(message)
    except OSError:  # unreachable, prohibited or a black hole: EHOSTUNREACH, EACCES, EINVAL, ENETUNREACH
        return None
    return None if answer is None else _read_route(answer)


def wait_until_local(channel: Channel, address: Address) -> None:
    """Wait until packets to an IPv6 address just added are taken in; the kernel sees to that in the background, too."""
    deadline = time.monotonic() + _LOCAL_S
    while time.monotonic() < deadline:
        route = find_route(channel, address)
        if route is not None and route.type == LOCAL:
            return
        time.sleep(_SETTLE_STEP_S)


def list_routes(channel: Channel, version: int) -> list[Route]:
    """Return the unicast routes of the main table."""
    message = Message(_GET_ROUTE, _ROUTE.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0), 0, "list routes")
    entries = channel.dump(message)
    routes = [_read_route(payload) for _, payload in entries if _ROUTE.unpack_from(payload)[4] == _MAIN_TABLE]
    return [route for route in routes if route.type == UNICAST]


def _read_route(payload: bytes) -> Route:
    family, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(payload)
    found = parse(payload[_ROUTE.size :])
    whole = bytes(4 if family == socket.AF_INET else 16)
    destination = ipaddress.ip_network((found.get(_RTA_DESTINATION, whole), length), strict=False)
    return Route(destination, _number(found.get(_RTA_INTERFACE)), kind, _RTA_GATEWAY not in found)


def has_neighbour(channel: Channel, index: int, address: Address) -> bool:
    """Return whether somebody on the link has answered for the address."""
    payload = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, 0, 0) + attribute(_NDA_DESTINATION, address.packed)
    answer = channel.ask(Message(_GET_NEIGHBOUR, payload, 0, "look for neighbour", address))
    if answer is None:
        return False
    state = _NEIGHBOUR.unpack_from(answer)[2]
    return bool(state & _KNOWN_NEIGHBOUR) and _NDA_LINK_ADDRESS in parse(answer[_NEIGHBOUR.size :])


def know_neighbour(index: int, address: Address, mac: bytes) -> Message:
    """Tell the kernel who has an address, so that the first packet need not wait for an answer. It will ask in time."""
    payload = _NEIGHBOUR.pack(_FAMILY[address.version], index, _STALE_NEIGHBOUR, 0, 0)
    payload += attribute(_NDA_DESTINATION, address.packed) + attribute(_NDA_LINK_ADDRESS, mac)
    return Message(_NEW_NEIGHBOUR, payload, CREATE | REPLACE, "know neighbour", address)


def forget_neighbour(index: int, address: Address) -> Message:
    """Drop what is known, or being asked, about an address."""
    payload = _NEIGHBOUR.pack(_FAMILY[address.version], index, 0, 0, 0) + attribute(_NDA_DESTINATION, address.packed)
    return Message(_DELETE_NEIGHBOUR, payload, 0, "forget neighbour", address)
