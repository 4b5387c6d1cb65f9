"""Messages and attributes are laid out as netlink(7) says, byte by byte; and what comes back is read with care."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crinoid.plugins.networks.bridge import interfaces, netlink
from crinoid.plugins.networks.bridge.netlink import Channel, Message, NetlinkError


def test_an_attribute_has_its_true_length_and_is_padded() -> None:
    assert netlink.attribute(3, b"eth0\0") == struct.pack("=HH", 9, 3) + b"eth0\0" + bytes(3)
    assert netlink.text(3, "eth0") == netlink.attribute(3, b"eth0\0")
    assert netlink.number(4, 1500) == struct.pack("=HHI", 8, 4, 1500)
    assert netlink.nest(18, netlink.number(1, 2)) == struct.pack("=HHHHI", 12, 18 | 0x8000, 8, 1, 2)


def test_a_message_has_a_header() -> None:
    message = Message(16, b"12345", netlink.ACK)
    assert message.encode(7) == struct.pack("=IHHII", 21, 16, 0x5, 7, 0) + b"12345" + bytes(3)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back_as_they_were(attributes: list[tuple[int, bytes]]) -> None:
    content = b"".join(netlink.attribute(kind, value) for kind, value in attributes)
    assert list(netlink.iterate(content)) == attributes


@given(st.binary(max_size=80))
def test_rubbish_ends_the_attributes(content: bytes) -> None:
    for _, value in netlink.iterate(content):
        assert len(value) <= len(content)


def test_a_pair_is_made_in_one_message() -> None:
    """struct ifinfomsg, then name, MTU, master, queues, and the peer in the link's own data (rtnetlink(7), veth)."""
    pair = interfaces.Pair("cr0", "eth0", b"\x02\x43\x0a\0\0\2", 1400, 5, 9)
    payload = interfaces.make_pair(pair).payload
    assert payload[:16] == struct.pack("=BxHiII", 0, 0, 0, interfaces.UP, interfaces.UP)
    found = netlink.parse(payload[16:])
    assert found[3] == b"cr0\0"
    assert (found[4], found[10]) == (struct.pack("=I", 1400), struct.pack("=I", 5))
    info = netlink.parse(found[18])
    assert info[1] == b"veth\0"
    peer = netlink.parse(info[2])[1]
    assert peer[:16] == bytes(16), "the peer can't be up before it is connected"
    inner = netlink.parse(peer[16:])
    assert (inner[3], inner[1]) == (b"eth0\0", b"\x02\x43\x0a\0\0\2")
    assert inner[28] == struct.pack("=I", 9)


def test_an_address_is_usable_at_once() -> None:
    payload = interfaces.add_address(2, ipaddress.ip_address("fd00::2"), 128).payload
    assert payload[:8] == struct.pack("=BBBBI", 10, 128, 2, 0, 2)
    assert netlink.parse(payload[8:])[8] == struct.pack("=I", 2), "IFA_F_NODAD"


def test_routes_to_the_gateway_and_by_it() -> None:
    gateway = ipaddress.ip_address("10.0.0.1")
    direct = interfaces.add_route(ipaddress.ip_network("10.0.0.1/32"), 2).payload
    assert direct[:12] == struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 4, 253, 1, 0)
    default = interfaces.add_route(ipaddress.ip_network("0.0.0.0/0"), 2, gateway).payload
    assert default[:12] == struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 4, 0, 1, 0)
    assert netlink.parse(default[12:]) == {4: struct.pack("=I", 2), 5: gateway.packed}


def test_the_kernel_answers_about_loopback() -> None:
    with Channel(netlink.ROUTE) as channel:
        link = interfaces.find_link(channel, "lo")
        assert link is not None
        assert (link.index, link.name) == (1, "lo")
        assert link in interfaces.list_links(channel)
        assert interfaces.find_link(channel, "no-such-link") is None
        route = interfaces.find_route(channel, ipaddress.ip_address("127.0.0.1"))
        assert route is None or route.type == interfaces.LOCAL


def test_a_refusal_says_what_was_tried() -> None:
    """No link has the index 0x7fffffff; without privileges it is refused before that."""
    with Channel(netlink.ROUTE) as channel:
        with pytest.raises(
            NetlinkError, match=r"bring interface 2147483647 up: (No such device|Operation not permitted)"
        ):
            channel.execute([interfaces.set_up(0x7FFFFFFF)])
        assert [type(error) for error in channel.try_each([interfaces.set_up(0x7FFFFFFF)] * 3)] == [NetlinkError] * 3
        assert channel.try_each([]) == []
