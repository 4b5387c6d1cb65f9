"""The node's side of the bridge network: the bridge, the tables, and a pod's way in and out. All of it blocks.

``Node`` knows the records of the pods that are attached, so that it can build everything anew when somebody removed it.
It is safe to call from several threads; the short lock is only held while the bridge itself is looked at or made.
"""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, DriverError, Unavailable
from crinoid.core.api.linux import libc
from crinoid.core.api.values.pod import Protocol
from crinoid.plugins.networks.bridge import conntrack, interfaces, nftables, rules, shaping, sysctls
from crinoid.plugins.networks.bridge.interfaces import Address, Link, Network, Pair
from crinoid.plugins.networks.bridge.netlink import ROUTE, Channel, NetlinkError
from crinoid.plugins.networks.bridge.records import Names, Record, gateway_of

_ELSEWHERE = tuple(map(ipaddress.ip_address, ("192.0.2.1", "2001:db8::1")))  # nobody's: they take the default route
_DEFAULT_MTU = 1500
_NEW_NETWORK = 0x40000000
_LOOPBACK_INDEX = 1
_LINK_LOCAL_PREFIX = 64
_PROBE_S, _PROBE_STEP_S = 0.1, 0.01
_DISCARD_PORT = 9
_DEFAULT_ROUTE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_TUNNELS = frozenset({"tun", "wireguard", "ipip", "sit", "gre", "vti", "xfrm"})
_PLAIN_KINDS = frozenset({"", "ifb", "dummy"})  # of links that nobody needs forwarding for


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about the node's side; ``mtu`` 0 is that of the default route."""

    names: Names
    mtu: int = 0
    masquerade: bool = True
    unmasqueraded: tuple[Network, ...] = ()


class AddressInUseError(Exception):
    """Somebody who is no pod of ours has the address that a pod was to get."""

    def __init__(self, address: Address, holder: str) -> None:
        self.address = address
        super().__init__(f"address {address} is in use by {holder}")


class Node:
    """The bridge of one slot and what belongs to it."""

    def __init__(self, settings: Settings, run_dir: Path, log: logging.Logger) -> None:
        self._settings = settings
        self._log = log
        self._names = settings.names
        self._tables = nftables.Tables(settings.names.table, rules.PLACES)
        self._forwarding = sysctls.Forwarding(run_dir / "sysctls.json")
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._ranges: set[Network] = set()
        self._bridge: Link | None = None
        self._mtu = 0
        self._own_ports: set[int] = set()
        self._links: set[str] = set()
        """Links of pods that are there, or leaving."""

    # What the driver calls, in the order of a pod's life.

    def look(self, ranges: Iterable[Network]) -> None:
        """See whether pods could be attached; repair what should be there. Raises CrinoidError, OSError.

        A kubelet asks for it each few seconds.
        """
        nftables.load_library()
        with Channel(ROUTE) as channel:
            if self._records:
                self._build(channel, set())
                self._tables.repair()
            else:
                found = interfaces.find_link(channel, self._names.bridge)
                _refuse_overlaps(channel, set(ranges), found.index if found else 0)
        self._tables.rest()

    def connect(self, record: Record) -> None:
        """Attach a pod. Call it in a thread that ends with it: it enters the pod's namespace.

        Raises AddressInUseError, CrinoidError, OSError; then ``disconnect`` and ``remove_links`` undo what was done.
        """
        with contextlib.ExitStack() as stack:
            netns_fd = os.open(record.netns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, netns_fd)
            channel = stack.enter_context(Channel(ROUTE))
            # The bridge, made or repaired where it is not the one we know.
            found, known = interfaces.find_link(channel, self._names.bridge), self._bridge
            is_known = found is not None and known is not None and found.index == known.index
            is_whole = is_known and set(record.ranges) <= self._ranges
            bridge = found if found is not None and is_whole else self._build(channel, set(record.ranges))
            self._refuse_foreign_addresses(channel, bridge, record)
            # The tables before the link, so that nothing that the pod sends is lost or goes where it may not.
            self._admit(record)
            self._links.add(record.link)
            self._make_link(channel, bridge, record, netns_fd)
            # From here on in the pod's namespace; the channel still speaks with the node's, where it was opened.
            libc.call("setns", netns_fd, _NEW_NETWORK, path=record.netns)
            _configure_pod(record)
            # A port forwards nothing until its link is up at both ends; else the pod's first packets would be lost.
            interfaces.wait_until_works(channel, record.link)
            if not bridge.works:  # as it was before its first port did
                interfaces.wait_until_works(channel, bridge.name)

    def disconnect(self, record: Record) -> None:
        """Take a pod's elements out of the tables: nothing leads to it any more and it can't send. Idempotent."""
        self._records.pop(record.pod_id, None)
        self._tables.remove(rules.pod_elements(record))
        _forget_datagrams(record)

    def remove_links(self, records: Iterable[Record]) -> None:
        """Remove pods' links, as far as their namespaces have not taken them along. Idempotent, tens of ms each."""
        names = [name for record in records for name in (record.link, record.buffer) if exists(name)]
        _delete_links(names)
        self._links.difference_update(names)

    def check(self, record: Record) -> None:
        """Compare a pod with its record; call it in a thread that ends with it. Raises DriverError, OSError."""
        with Channel(ROUTE) as channel:
            bridge = interfaces.find_link(channel, self._names.bridge)
            link = interfaces.find_link(channel, record.link)
        if bridge is None or link is None or link.master != bridge.index or not link.is_up:
            raise DriverError(f"link {record.link} of pod {record.pod_id} is no port of {self._names.bridge} any more")
        if missing := self._tables.find_missing(rules.pod_elements(record)):
            names = ", ".join(sorted({element.place.name for element in missing}))
            raise DriverError(f"the nft table lacks entries of pod {record.pod_id} in {names}")
        _check_pod(record)

    def collect(self, records: Iterable[Record]) -> None:
        """Take these for all pods there are; remove every other link and element. Raises CrinoidError, OSError."""
        self._records = {record.pod_id: record for record in records}
        self._links = {record.link for record in self._records.values()}
        own = {record.link for record in self._records.values()} | {r.buffer for r in self._records.values()}
        _delete_links([name for _, name in socket.if_nameindex() if self._is_ours(name) and name not in own])
        elements = {e: d for record in self._records.values() for e, d in rules.pod_elements(record).items()}
        self._tables.knows_all(elements)
        if self._records:
            with Channel(ROUTE) as channel:
                self._build(channel, {network for r in self._records.values() for network in r.ranges})
            self._tables.repair()

    def clear(self) -> None:
        """Remove bridge, tables and settings once no pod is left; stays where others use it. Idempotent."""
        if self._records or any(self._is_ours(name) for _, name in socket.if_nameindex()):
            return
        if self._tables.are_there():
            self._tables.drop()
        with self._lock, Channel(ROUTE) as channel:
            found = interfaces.find_link(channel, self._names.bridge)
            if found is not None and found.kind == "bridge":
                if interfaces.list_links(channel, found.index):
                    self._log.info("bridge %s stays: it has ports that are no pods'", self._names.bridge)
                    return
                channel.try_each([interfaces.delete_link(self._names.bridge)])
            self._bridge, self._ranges = None, set()
            if all(link.kind in _PLAIN_KINDS for link in interfaces.list_links(channel)):
                self._forwarding.restore()

    # The bridge.

    def _build(self, channel: Channel, ranges: set[Network]) -> Link:
        with self._lock:
            wanted = self._ranges | ranges
            found = interfaces.find_link(channel, self._names.bridge)
            if found is not None and found.kind != "bridge":
                raise DriverError(f"link {self._names.bridge} is of kind {found.kind!r}: rename or remove it")
            if found is None or not wanted <= self._ranges:
                _refuse_overlaps(channel, wanted, found.index if found else 0)
            self._mtu = self._settings.mtu or _default_mtu(channel)
            bridge = self._make_bridge(channel, found, wanted)
            self._take_ports(channel, bridge)
            if self._records and (found is None or not found.works):
                self._settle(channel, bridge, wanted)
            surroundings = rules.Surroundings(
                table=self._names.table,
                bridge=self._names.bridge,
                port_prefix=self._names.port_prefix,
                bridge_mac=self._names.bridge_mac,
                ranges=tuple(sorted(wanted, key=str)),
                masquerade=self._settings.masquerade,
                unmasqueraded=self._settings.unmasqueraded,
            )
            self._tables.require(rules.write_ruleset(surroundings))
            self._bridge, self._ranges = bridge, wanted
            return bridge

    def _make_bridge(self, channel: Channel, found: Link | None, ranges: set[Network]) -> Link:
        has_six = any(network.version == 6 for network in ranges)
        self._forwarding.enable(ipv6=has_six)
        if found is None:
            channel.execute([interfaces.make_bridge(self._names.bridge, self._names.bridge_mac, self._mtu)])
            found = interfaces.find_link(channel, self._names.bridge)
            assert found is not None
        elif not found.is_up or found.mtu != self._mtu:
            channel.execute([interfaces.set_up(found.index, self._mtu)])
        if has_six:
            sysctls.enable_ipv6(self._names.bridge)
        sysctls.open_loopback(self._names.bridge)
        wanted = {gateway_of(network): network.prefixlen for network in ranges}
        if has_six:
            wanted[rules.link_local(self._names.bridge_mac)] = _LINK_LOCAL_PREFIX
        lacks = wanted.keys() - interfaces.list_addresses(channel, found.index)
        channel.execute([interfaces.add_address(found.index, address, wanted[address]) for address in lacks])
        return found

    def _take_ports(self, channel: Channel, bridge: Link) -> None:
        """Make the links of known pods ports again, as they are after somebody removed the bridge."""
        ports = {link.name for link in interfaces.list_links(channel, bridge.index)}
        known = tuple(self._records.values())
        if lost := [record for record in known if record.link not in ports and exists(record.link)]:
            self._log.warning("bridge %s lacks the links of %d pods: putting them back", bridge.name, len(lost))
            channel.execute([interfaces.set_master(record.link, bridge.index) for record in lost])
            channel.execute([interfaces.set_port(record.link, f"pod {record.pod_id}") for record in lost])

    def _settle(self, channel: Channel, bridge: Link, ranges: set[Network]) -> None:
        """Let pods be reached at once over a bridge that was repaired, as over one that is new."""
        known = [record for record in tuple(self._records.values()) if exists(record.link)]
        channel.try_each(
            [interfaces.know_neighbour(bridge.index, a, record.mac) for record in known for a in record.addresses]
        )
        for name in [record.link for record in known] + [bridge.name] * bool(known):
            interfaces.wait_until_works(channel, name)
        for network in ranges:
            if network.version == 6 and known:
                interfaces.wait_until_local(channel, gateway_of(network))

    # One pod.

    def _admit(self, record: Record) -> None:
        """Put a pod into the tables; before it has a link, so that nothing it sends is lost."""
        self._records[record.pod_id] = record
        try:
            self._tables.add(rules.pod_elements(record))
        except nftables.TakenError as error:
            others = [one for one in tuple(self._records.values()) if one.pod_id != record.pod_id]
            found = (f"pod {one.pod_id}" for one in others if error.element in rules.pod_elements(one))
            holder = next(found, "another pod")
            raise Unavailable(f"a host port of pod {record.pod_id} is taken by {holder}") from error
        _forget_datagrams(record)

    def _make_link(self, channel: Channel, bridge: Link, record: Record, netns_fd: int) -> None:
        """Make the pair of links, one end in the pod, and limit what it carries."""
        pair = Pair(record.link, record.interface, record.mac, self._mtu, bridge.index, netns_fd)
        messages = [interfaces.make_pair(pair), interfaces.set_port(pair.name, f"pod {record.pod_id}")]
        messages += [interfaces.know_neighbour(bridge.index, address, record.mac) for address in record.addresses]
        refused = channel.try_each(messages)
        known = tuple(self._records.values())
        # A link of this name that is no other pod's was left by an attempt that died.
        is_left = all(one.link != record.link or one.pod_id == record.pod_id for one in known)
        if refused[0] is not None and refused[0].errno == errno.EEXIST and exists(record.link) and is_left:
            channel.execute([interfaces.delete_link(pair.name), *messages])
        elif error := next((error for error in refused if error is not None), None):
            raise error
        if record.ingress_bits_per_s:
            shaping.limit_link(channel, socket.if_nametoindex(record.link), record.ingress_bits_per_s)
        if record.egress_bits_per_s:
            index = socket.if_nametoindex(record.link)
            shaping.limit_sender(channel, index, record.buffer, self._mtu, record.egress_bits_per_s)

    def _refuse_foreign_addresses(self, channel: Channel, bridge: Link, record: Record) -> None:
        """Raise AddressInUseError where the node itself, or somebody else on the bridge, has an address of the pod."""
        for address in record.addresses:
            route = interfaces.find_route(channel, address)
            if route is None or route.interface != bridge.index or route.type != interfaces.UNICAST:
                raise AddressInUseError(address, "the node, or another network that the node has a route to")
        if self._has_foreign_ports(bridge):
            for address in record.addresses:
                if _answers(channel, bridge.index, address):
                    raise AddressInUseError(address, f"a port of {bridge.name} that is no pod's")

    def _has_foreign_ports(self, bridge: Link) -> bool:
        """Return whether our bridge has a port that is no known pod's: somebody's link, or that of a pod on no record.

        Each port's name is only looked up once.
        """
        ports = interfaces.list_port_indices(bridge.name)
        self._own_ports &= ports
        for index in ports - self._own_ports:
            with contextlib.suppress(OSError):
                if socket.if_indextoname(index) not in self._links:
                    return True
                self._own_ports.add(index)
        return False

    def _is_ours(self, name: str) -> bool:
        return len(name) == 15 and name.startswith((self._names.port_prefix, self._names.buffer_prefix))


def _forget_datagrams(record: Record) -> None:
    """Let clients of the pod's UDP host ports be led anew."""
    ports = {port.host_port for port in record.ports if port.protocol is Protocol.UDP}
    if ports:
        with Channel(ROUTE) as channel:
            targets = interfaces.list_addresses(channel)
        conntrack.forget_datagrams(ports, targets, record.addresses)


def exists(name: str) -> bool:
    """Return whether there is a link of this name; microseconds."""
    try:
        return bool(socket.if_nametoindex(name))
    except OSError:
        return False


def _delete_links(names: Iterable[str]) -> None:
    messages = [interfaces.delete_link(name) for name in names]
    if not messages:
        return
    with Channel(ROUTE) as channel:
        for error in channel.try_each(messages):
            if error is not None and error.errno != errno.ENODEV:
                raise error


def _default_mtu(channel: Channel) -> int:
    """Return the MTU of the link that the default route leads over."""
    for address in _ELSEWHERE:
        route = interfaces.find_route(channel, address)
        link = interfaces.find_link(channel, index=route.interface) if route else None
        if link is not None:
            return link.mtu
    return _DEFAULT_MTU


def _refuse_overlaps(channel: Channel, ranges: set[Network], bridge: int) -> None:
    """Raise Unavailable when a range, or a part of it, is somebody else's by the node's routes.

    A wider route is no obstacle, such as the default one or a tunnel's, but for that of a network the node stands in.
    """
    for network in ranges:
        for route in interfaces.list_routes(channel, network.version):
            if route.interface in (bridge, 0) or not route.destination.overlaps(network):
                continue
            link = interfaces.find_link(channel, index=route.interface)
            is_neighbours = route.is_direct and link is not None and link.kind not in _TUNNELS
            if route.destination.prefixlen >= network.prefixlen or (is_neighbours and route.destination.prefixlen):
                raise Unavailable(
                    f"the pods' range {network} is in use: the node has a route to {route.destination} over "
                    f"{link.name if link else route.interface}; set subnets in the options of the network"
                )


def _answers(channel: Channel, bridge: int, address: Address) -> bool:
    """Let the kernel ask on the bridge who has the address; tell whether anybody answers in time."""
    forget = [interfaces.forget_neighbour(bridge, address)]
    channel.try_each(forget)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe, contextlib.suppress(OSError):
        probe.sendto(b"", (str(address), _DISCARD_PORT))
    deadline = time.monotonic() + _PROBE_S
    while not (found := interfaces.has_neighbour(channel, bridge, address)) and time.monotonic() < deadline:
        time.sleep(_PROBE_STEP_S)
    channel.try_each(forget)
    return found


def _configure_pod(record: Record) -> None:
    """Bring up lo and the pod's link, and give it addresses and routes; in the pod's namespace."""
    index = socket.if_nametoindex(record.interface)
    if any(address.version == 6 for address in record.addresses):
        sysctls.enable_ipv6(record.interface)
    messages = [interfaces.set_up(_LOOPBACK_INDEX), interfaces.set_up(index)]
    for address, network in zip(record.addresses, record.ranges, strict=True):
        gateway = gateway_of(network)
        messages += [
            interfaces.add_address(index, address, address.max_prefixlen),
            interfaces.add_route(ipaddress.ip_network(gateway), index),
            interfaces.add_route(_DEFAULT_ROUTE[address.version], index, gateway),
        ]
    with Channel(ROUTE) as channel:
        channel.execute(messages)
        interfaces.wait_until_works(channel, record.interface)
        for address in record.addresses:
            if address.version == 6:
                interfaces.wait_until_local(channel, address)


def _check_pod(record: Record) -> None:
    """Compare what is in the pod's namespace; enters it."""
    with _opened(record.netns) as netns_fd:
        libc.call("setns", netns_fd, _NEW_NETWORK, path=record.netns)
    with Channel(ROUTE) as channel:
        link = interfaces.find_link(channel, record.interface)
        has = interfaces.list_addresses(channel, link.index) if link else set()
    if link is None or not link.is_up:
        raise DriverError(f"interface {record.interface} of pod {record.pod_id} is gone or down")
    if lacks := [str(address) for address in record.addresses if address not in has]:
        raise DriverError(f"interface {record.interface} of pod {record.pod_id} lost address {', '.join(lacks)}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def describe(error: OSError | CrinoidError | AddressInUseError) -> str:
    """Return what an operator should read of an error."""
    if isinstance(error, NetlinkError):
        return str(error.strerror)
    if isinstance(error, OSError):
        return f"{error.filename or 'the kernel'}: {error.strerror or error}"
    return error.message if isinstance(error, CrinoidError) else str(error)
