"""The rules of the bridge network as nft commands, and a pod's part in them as elements.

Pods are ports of one bridge, but it only ever carries frames between a pod and the node: each pod has its address with
the whole length as prefix and reaches everything, its neighbours too, over the gateway. So all traffic of pods is
routed by the node and seen by its packet filter, whatever ``bridge-nf-call-iptables`` says; host ports keep the
client's address even when client and server are pods of the same node.

The ``bridge`` table decides what a pod may send: frames from its own MAC and addresses, to the node. The ``inet`` table
translates host ports and masquerades. A pod is some elements of their sets and maps; there are no rules of a pod's own.
"""

import hashlib
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crinoid.core.api.values.pod import Protocol
from crinoid.plugins.networks.bridge.interfaces import Address, Network
from crinoid.plugins.networks.bridge.netlink import pad
from crinoid.plugins.networks.bridge.nftables import BRIDGE, INET, Element, Elements, Place, Ruleset
from crinoid.plugins.networks.bridge.records import Record

SENDERS = {4: Place(BRIDGE, "senders4"), 6: Place(BRIDGE, "senders6")}
HAIRPINS = {4: Place(INET, "hairpins4"), 6: Place(INET, "hairpins6")}
PORTS = {4: Place(INET, "ports4"), 6: Place(INET, "ports6")}
ADDRESS_PORTS = {4: Place(INET, "address_ports4"), 6: Place(INET, "address_ports6")}
PLACES = tuple(place for places in (SENDERS, HAIRPINS, PORTS, ADDRESS_PORTS) for place in places.values())
_PROTOCOLS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP, Protocol.SCTP: socket.IPPROTO_SCTP}
_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules are written for: names, the bridge's MAC, the node's ranges, and where masquerading ends."""

    table: str
    bridge: str
    port_prefix: str
    bridge_mac: bytes
    ranges: tuple[Network, ...]
    masquerade: bool = True
    unmasqueraded: tuple[Network, ...] = ()


def write_ruleset(surroundings: Surroundings) -> Ruleset:
    """Return the commands that make both tables anew, without a pod's elements."""
    inet, bridge = _write_inet_chains(surroundings), _write_bridge_chains(surroundings)
    body = _write_table("inet", surroundings.table, _write_inet_sets(surroundings), inet)
    body += _write_table("bridge", surroundings.table, _BRIDGE_SETS, bridge)
    marker = "digest_" + hashlib.sha256(body.encode()).hexdigest()[:16]
    body += f"add chain inet {surroundings.table} {marker}\n"
    return Ruleset(body, marker, {INET: _count(inet), BRIDGE: _count(bridge)})


def pod_elements(record: Record) -> Elements:
    """Return what a pod's record puts into the sets and maps."""
    found: Elements = {}
    for address in record.addresses:
        found[_sender(record, address)] = b""
        found[Element(HAIRPINS[address.version], address.packed * 2)] = b""
    if any(address.version == 6 for address in record.addresses):
        found[_sender(record, link_local(record.mac))] = b""
    for address in record.addresses:
        found.update(_host_ports(record, address))
    return found


def link_local(mac: bytes) -> ipaddress.IPv6Address:
    """Return the address that the kernel makes of a MAC (RFC 4291, appendix A)."""
    halves = bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + halves)


def _sender(record: Record, address: Address) -> Element:
    name = record.link.encode().ljust(_NAME_BYTES, b"\0")
    return Element(SENDERS[address.version], name + pad(record.mac) + address.packed)


def _host_ports(record: Record, address: Address) -> Elements:
    """Return the entries that lead from host ports to this address of the pod."""
    found: Elements = {}
    for port in record.ports:
        where = ipaddress.ip_address(port.host_ip) if port.host_ip else None
        if where is not None and where.version != address.version:
            continue
        key = pad(bytes([_PROTOCOLS[port.protocol]])) + pad(port.host_port.to_bytes(2, "big"))
        data = address.packed + pad(port.container_port.to_bytes(2, "big"))
        if where is None or where.is_unspecified:
            found[Element(PORTS[address.version], key)] = data
        else:
            found[Element(ADDRESS_PORTS[address.version], where.packed + key)] = data
    return found


def _write_table(family: str, name: str, sets: Sequence[str], chains: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that replaces the one of its name, in the same transaction."""
    lines = [f"add table {family} {name}", f"delete table {family} {name}", f"table {family} {name} {{", *sets]
    for head, rules in chains:
        lines += [f"chain {head}", *rules, "}"]
    return "\n".join([*lines, "}", ""])


def _count(chains: Iterable[tuple[str, Sequence[str]]]) -> int:
    return sum(len(rules) for _, rules in chains)


_BRIDGE_SETS = (
    "set senders4 { typeof iifname . ether saddr . ip saddr; }",
    "set senders6 { typeof iifname . ether saddr . @nh,64,128; }",  # raw, so that an advertised address fits too
)
_IS_GROUP = "ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00"
_IS_NO_GROUP = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"


def _write_bridge_chains(surroundings: Surroundings) -> list[tuple[str, list[str]]]:
    """A pod's frames: to the node only, and from nobody but itself. Router advertisements are not a pod's to send."""
    port = f'"{surroundings.port_prefix}*"'
    own4, own6 = "iifname . ether saddr . {} @senders4", "iifname . ether saddr . {} @senders6"
    unspecified = "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept"
    from_pod = [
        f"{_IS_NO_GROUP} ether daddr != {surroundings.bridge_mac.hex(':')} drop",
        "ether type ip ip daddr 127.0.0.0/8 drop",
        f"ether type ip {own4.format('ip saddr')} accept",
        f"ether type arp {own4.format('arp saddr ip')} iifname . arp saddr ether . arp saddr ip @senders4 accept",
        "ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop",
        f"ether type ip6 icmpv6 type nd-neighbor-advert {_not(own6).format('@th,64,128')} drop",
        f"ether type ip6 {own6.format('@nh,64,128')} accept",
        f"ether type ip6 {unspecified}",
        "drop",
    ]
    return [
        ("from_pod {", from_pod),
        ("prerouting { type filter hook prerouting priority -300; policy accept;", [f"iifname {port} jump from_pod"]),
        (
            "forward { type filter hook forward priority 0; policy accept;",
            [f"iifname {port} oifname {port} {_IS_GROUP} drop"],
        ),
    ]


def _not(expression: str) -> str:
    return expression.replace("@senders", "!= @senders")


def _write_inet_sets(surroundings: Surroundings) -> list[str]:
    sets = []
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        key, data = "inet_proto . inet_service", f"{kind} . inet_service"
        near = (*surroundings.ranges, *surroundings.unmasqueraded)
        sets += [
            f"set hairpins{version} {{ type {kind} . {kind}; }}",
            f"map ports{version} {{ type {key} : {data}; }}",
            f"map address_ports{version} {{ type {kind} . {key} : {data}; }}",
            _write_ranges(f"ranges{version}", kind, version, surroundings.ranges),
            _write_ranges(f"near{version}", kind, version, near),
        ]
    return sets


def _write_ranges(name: str, kind: str, version: int, networks: Iterable[Network]) -> str:
    """A set of networks; those that lie in others are left out, as such a set takes no overlaps."""
    if version == 4:
        found = ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
        listed = [str(network) for network in found]
    else:
        listed = [
            str(network)
            for network in ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
        ]
    elements = f" elements = {{ {', '.join(listed)} }};" if listed else ""
    return f"set {name} {{ type {kind}; flags interval;{elements} }}"


def _write_inet_chains(surroundings: Surroundings) -> list[tuple[str, list[str]]]:
    bridge = f'"{surroundings.bridge}"'
    host_ports = [
        "meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @address_ports4",
        "meta nfproto ipv6 dnat ip6 to ip6 daddr . meta l4proto . th dport map @address_ports6",
        "fib daddr type != local return",
        "ip6 daddr ::1 return",  # an answer to it could not come back: the kernel takes ::1 from lo only
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4",
        "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6",
    ]
    # The node's loopback must stay out of reach of pods, as route_localnet is on. Redirects would tell a pod to go
    # straight to a neighbour, which the bridge table forbids.
    return [
        ("host_ports {", host_ports),
        (
            "guard { type filter hook prerouting priority -300; policy accept;",
            [f"iifname {bridge} ip daddr 127.0.0.0/8 drop"],
        ),
        ("prerouting { type nat hook prerouting priority -100; policy accept;", ["jump host_ports"]),
        ("output { type nat hook output priority -100; policy accept;", ["jump host_ports"]),
        (
            "no_redirects { type filter hook output priority 0; policy accept;",
            [f"oifname {bridge} icmp type redirect drop", f"oifname {bridge} icmpv6 type nd-redirect drop"],
        ),
        ("postrouting { type nat hook postrouting priority 100; policy accept;", _write_masquerading(surroundings)),
    ]


def _write_masquerading(surroundings: Surroundings) -> list[str]:
    """Who needs the node's address: the node's loopback, a pod that calls itself, and whoever leaves the ranges."""
    bridge = f'"{surroundings.bridge}"'
    rules = [
        f"oifname {bridge} ip saddr 127.0.0.0/8 masquerade",
        "ip saddr . ip daddr @hairpins4 masquerade",
        "ip6 saddr . ip6 daddr @hairpins6 masquerade",
    ]
    if surroundings.masquerade:
        rules += [
            f"oifname != {bridge} ip saddr @ranges4 ip daddr != @near4 ip daddr != 224.0.0.0/4 masquerade",
            f"oifname != {bridge} ip6 saddr @ranges6 ip6 daddr != @near6 ip6 daddr != ff00::/8 masquerade",
        ]
    return rules
