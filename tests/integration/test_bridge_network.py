"""The bridge network on a node that is a network namespace: real packets, damage, deaths, and nothing left behind."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path

import pytest

from crinoid.core.api.errors import CrinoidError, DriverError, Unavailable
from crinoid.core.api.linux import links, namespaces
from crinoid.core.api.values.pod import IdMapping, Protocol
from crinoid.plugins.networks.bridge import BridgeNetwork, shaping
from crinoid.plugins.networks.bridge.netlink import Channel
from crinoid.plugins.networks.bridge.rules import link_local
from support.bridge import NODE, OUTSIDE, SUBNETS, UNANSWERED_S, BridgeNode, Pod, ask, fresh_node, port, run, serve

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or find_library("nftables") is None, reason="wants root and libnftables1"
)
BRIDGE_CALLS = Path("/proc/sys/net/bridge")
GATEWAYS = {4: "10.88.77.1", 6: "fd00:88:77::1"}


@pytest.fixture(params=[0, 1], ids=["routed", "bridge-nf-call"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BridgeNode]:
    """A node, once with and once without the old detour of bridged packets through the packet filter."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            if (BRIDGE_CALLS / name).exists():
                (BRIDGE_CALLS / name).write_text(str(request.param))
            elif request.param:
                pytest.skip("no br_netfilter here")
        yield BridgeNode(tmp_path, stack)


@pytest.fixture
def plain_node(tmp_path: Path) -> Iterator[BridgeNode]:
    """A node, for what does not depend on how packets go."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        yield BridgeNode(tmp_path, stack)


@pytest.fixture
async def driver(plain_node: BridgeNode) -> AsyncIterator[BridgeNetwork]:
    yield plain_node.driver()


async def settle(is_so: Callable[[], bool]) -> bool:
    for _ in range(250):
        if is_so():
            return True
        await asyncio.sleep(0.02)
    return is_so()


def ours() -> list[str]:
    return [name for name in links.names() if name.startswith(("cb", "cr", "ci"))]


def tables() -> str:
    return run("nft", "list", "tables")


# Host ports.


async def test_host_ports_from_everywhere(node: BridgeNode) -> None:
    driver = node.driver()
    pod = await node.attach(driver, port(8080))
    other = await node.attach(driver)
    for version in (4, 6):
        with serve(pod.netns, version, 80):
            assert ask(node.outside, NODE[version], 8080) == OUTSIDE[version], "the client's address is kept"
            assert ask(None, NODE[version], 8080) == NODE[version]
            assert ask(other.netns, NODE[version], 8080) == other.address(version), "kept between pods, too"
            assert ask(other.netns, GATEWAYS[version], 8080) == other.address(version)
            assert ask(pod.netns, NODE[version], 8080) == GATEWAYS[version], "a pod that calls itself"
            if version == 4:
                assert ask(None, "127.0.0.1", 8080) == GATEWAYS[4]
            else:
                with pytest.raises(ConnectionRefusedError):  # not offered, and said so at once
                    ask(None, "::1", 8080)


async def test_host_ports_of_datagrams(node: BridgeNode) -> None:
    driver = node.driver()
    pod = await node.attach(driver, port(8053, 53, protocol=Protocol.UDP), port(8053, 54))
    for version in (4, 6):
        with serve(pod.netns, version, 53, Protocol.UDP):
            assert ask(node.outside, NODE[version], 8053, Protocol.UDP) == OUTSIDE[version]
            assert ask(pod.netns, NODE[version], 8053, Protocol.UDP) == GATEWAYS[version]
            if version == 4:
                assert ask(None, "127.0.0.1", 8053, Protocol.UDP) == GATEWAYS[4]


async def test_a_detach_that_failed_is_done_by_the_next_try(
    plain_node: BridgeNode, driver: BridgeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.collect_garbage(())  # as at the daemon's start: all that there is is known from here on
    pod, _stays = await plain_node.attach(driver, port(8080)), await plain_node.attach(driver)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "no buffer space")

    with monkeypatch.context() as patched, pytest.raises(DriverError, match="no buffer space"):
        patched.setattr(Channel, "send_batch", refuse)
        await driver.detach(pod.request, pod.attachment.data)
    await driver.detach(pod.request, pod.attachment.data)
    rules = run("nft", "list", "ruleset")
    assert pod.address(4) not in rules
    assert "8080" not in rules


async def test_a_pod_that_leaves_twice_with_a_collection_between_is_gone(
    plain_node: BridgeNode, driver: BridgeNetwork
) -> None:
    """As at a start that could not note that the pod was detached: it counts as attached, and is detached again."""
    await driver.collect_garbage(())
    pod, stays = await plain_node.attach(driver, port(8080)), await plain_node.attach(driver)
    await driver.detach(pod.request, pod.attachment.data)
    await driver.collect_garbage(tuple((one.request, one.attachment.data) for one in (pod, stays)))
    await driver.detach(pod.request, pod.attachment.data)
    rules = run("nft", "list", "ruleset")
    assert pod.address(4) not in rules
    assert stays.address(4) in rules


async def test_a_host_port_at_one_address(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, port(8080, host_ip="127.0.0.1"), port(8081, host_ip=NODE[4]))
    with serve(pod.netns, 4, 80):
        assert ask(None, "127.0.0.1", 8080) == GATEWAYS[4]
        assert ask(plain_node.outside, NODE[4], 8081) == OUTSIDE[4]
        for where, address, number in (
            (plain_node.outside, NODE[4], 8080),
            (None, "127.0.0.1", 8081),
            (None, NODE[4], 8080),
        ):
            with pytest.raises(OSError, match=r"refused|timed out"):
                ask(where, address, number, timeout_s=UNANSWERED_S)


async def test_a_host_port_of_another_pod_is_refused(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    first = await plain_node.attach(driver, port(8080))
    with pytest.raises(Unavailable, match=f"host port of pod pod2 is taken by pod {first.request.pod_id}"):
        await plain_node.attach(driver, port(8080))
    await driver.detach(first.request, first.attachment.data)
    third = await plain_node.attach(driver, port(8080))
    await driver.detach(first.request, first.attachment.data)  # once more: the port is another's now
    with serve(third.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]


async def test_a_datagram_client_follows_its_host_port(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    """A client that goes on sending from one port must reach the next pod, not the ghost of the last one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect((NODE[4], 8053))
        for _ in range(2):
            with contextlib.suppress(OSError):  # nobody is there yet
                client.send(b"hello?")
            pod = await plain_node.attach(driver, port(8053, 53, protocol=Protocol.UDP))
            with serve(pod.netns, 4, 53, Protocol.UDP):
                with contextlib.suppress(ConnectionRefusedError):
                    client.send(b"clear the error of the first one")
                client.send(b"hello!")
                assert client.recv(100).decode() == NODE[4]
            await driver.detach(pod.request, pod.attachment.data)


async def test_sctp_host_ports_are_in_the_rules(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, port(9999, 99, protocol=Protocol.SCTP))
    listed = run("nft", "list", "map", "inet", driver.names.table, "ports4")
    assert f"sctp . 9999 : {pod.address(4)} . 99" in listed


# Other traffic.


async def test_pods_reach_each_other_the_node_and_the_outside(node: BridgeNode) -> None:
    driver = node.driver()
    first, second = [await node.attach(driver) for _ in range(2)]
    for version in (4, 6):
        with serve(first.netns, version, 80):
            assert ask(second.netns, first.address(version), 80) == second.address(version)
            assert ask(None, first.address(version), 80) == GATEWAYS[version]
        with serve(None, version, 81):
            assert ask(first.netns, GATEWAYS[version], 81) == first.address(version)
            assert ask(first.netns, NODE[version], 81) == first.address(version)
        with serve(node.outside, version, 82):
            assert ask(first.netns, OUTSIDE[version], 82) == NODE[version], "masqueraded"


async def test_masquerading_has_exceptions(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(masquerade_except=("192.168.77.0/24", "fd77::/64"))
    pod = await plain_node.attach(driver)
    enter = ("nsenter", f"--net={plain_node.outside}", "ip")
    run(*enter, "route", "add", "10.88.77.0/28", "via", NODE[4])
    run(*enter, "-6", "route", "add", "fd00:88:77::/124", "via", NODE[6])
    for version in (4, 6):
        with serve(plain_node.outside, version, 82):
            assert ask(pod.netns, OUTSIDE[version], 82) == pod.address(version)


async def test_the_mtu_is_that_of_the_default_route(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver)
    assert "mtu 1400" in pod.run("ip", "link", "show", "eth0")
    small = await plain_node.attach(plain_node.driver("small", mtu=1300, subnets=("10.88.78.0/24",)))
    assert "mtu 1300" in small.run("ip", "link", "show", "eth0")


# What a pod must not do.


def become(pod: Pod, *commands: str) -> None:
    for command in commands:
        pod.run(*command.split())


async def test_a_pod_sends_from_its_own_addresses_only(node: BridgeNode) -> None:
    driver = node.driver()
    pod, victim = [await node.attach(driver) for _ in range(2)]
    become(pod, "ip address add 10.88.77.9/32 dev eth0", "ip -6 address add fd00:88:77::9/128 dev eth0 nodad")
    run("ip", "route", "replace", "10.88.77.9", "dev", driver.names.bridge)
    for version, stolen in ((4, "10.88.77.9"), (6, "fd00:88:77::9")):
        with serve(None, version, 81), serve(victim.netns, version, 80):
            assert ask(pod.netns, GATEWAYS[version], 81, source=pod.address(version)) == pod.address(version)
            for target, number in ((GATEWAYS[version], 81), (victim.address(version), 80)):
                with pytest.raises(TimeoutError):
                    ask(pod.netns, target, number, source=stolen, timeout_s=UNANSWERED_S)


async def test_a_pod_sends_from_its_own_mac_only(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver)
    with serve(None, 4, 81):
        assert ask(pod.netns, GATEWAYS[4], 81)
        become(pod, "ip link set eth0 address 02:43:0a:58:4d:0e")
        with pytest.raises(OSError, match=r"timed out|No route"):
            ask(pod.netns, GATEWAYS[4], 81, timeout_s=UNANSWERED_S)


def send_frame(pod: Pod, frame: bytes) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)

    pod.call(send)


def mac_of(pod: Pod) -> bytes:
    return bytes.fromhex(pod.run("ip", "-br", "link", "show", "eth0").split()[2].replace(":", ""))


async def test_a_pod_cannot_pose_as_a_neighbour(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    """By an ARP answer, by a neighbour advertisement: the node would send it the victim's traffic."""
    pod, victim = [await plain_node.attach(driver) for _ in range(2)]
    for version in (4, 6):
        with serve(victim.netns, version, 80):
            ask(None, victim.address(version), 80)
    before = mac_of(victim)
    mac, to = mac_of(pod), driver.names.bridge_mac
    stolen4, stolen6 = (socket.inet_pton(f, victim.address(v)) for f, v in ((socket.AF_INET, 4), (socket.AF_INET6, 6)))
    own6 = socket.inet_pton(socket.AF_INET6, pod.address(6))
    gateway4, gateway6 = socket.inet_aton(GATEWAYS[4]), socket.inet_pton(socket.AF_INET6, GATEWAYS[6])
    arp = b"\0\1\x08\0\6\4\0\2" + mac + stolen4 + to + gateway4
    send_frame(pod, to + mac + b"\x08\x06" + arp)
    send_frame(pod, to + mac + b"\x86\xdd" + icmp6(own6, gateway6, b"\x88\0", b"\x60\0\0\0" + stolen6 + b"\2\1" + mac))
    await asyncio.sleep(0.1)
    for version in (4, 6):
        known = run("ip", "neighbour", "show", victim.address(version))
        assert before.hex(":") in known
        assert mac.hex(":") not in known


def icmp6(source: bytes, target: bytes, head: bytes, body: bytes) -> bytes:
    """An IPv6 packet with an ICMPv6 message of this type and code."""
    message = head + b"\0\0" + body
    summed = source + target + len(message).to_bytes(4, "big") + b"\0\0\0\x3a" + message + bytes(len(message) % 2)
    total = sum(int.from_bytes(summed[at : at + 2], "big") for at in range(0, len(summed), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = head + (total ^ 0xFFFF).to_bytes(2, "big") + body
    return b"\x60\0\0\0" + len(message).to_bytes(2, "big") + b"\x3a\xff" + source + target + message


async def test_a_pod_cannot_reach_the_nodes_loopback(node: BridgeNode) -> None:
    driver = node.driver()
    pod = await node.attach(driver)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 8125))
        listener.settimeout(0.2)
        source = socket.inet_aton(pod.address(4))
        for target in ("127.0.0.1", GATEWAYS[4]):
            packet = udp4(source, socket.inet_aton(target), 8125, b"hello")
            send_frame(pod, driver.names.bridge_mac + mac_of(pod) + b"\x08\0" + packet)
            if target == GATEWAYS[4]:
                assert listener.recv(100) == b"hello", "the frame itself is good"
            else:
                with pytest.raises(TimeoutError):
                    listener.recv(100)


def udp4(source: bytes, target: bytes, number: int, content: bytes) -> bytes:
    length = 28 + len(content)
    header = b"\x45\0" + length.to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + source + target
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + (total ^ 0xFFFF).to_bytes(2, "big") + header[12:]
    return header + b"\x10\0" + number.to_bytes(2, "big") + (8 + len(content)).to_bytes(2, "big") + b"\0\0" + content


async def test_a_pod_cannot_advertise_itself_as_router(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod, victim = [await plain_node.attach(driver) for _ in range(2)]
    everyone = socket.inet_pton(socket.AF_INET6, "ff02::1")
    packet = icmp6(link_local(mac_of(pod)).packed, everyone, b"\x86\0", b"\x40\0\x07\x08" + bytes(8))
    send_frame(pod, b"\x33\x33\0\0\0\1" + mac_of(pod) + b"\x86\xdd" + packet)
    await asyncio.sleep(0.1)
    assert "proto ra" not in victim.run("ip", "-6", "route", "show", "default")


# Damage by others.

DAMAGES = {
    "ruleset": "nft flush ruleset",
    "rules": "nft flush table inet {table}",
    "sender rules": "nft flush table bridge {table}",
    "set": "nft flush map inet {table} ports4",
    "bridge": "ip link delete {bridge}",
    "bridge down": "ip link set {bridge} down",
    "bridge addresses": "ip address flush dev {bridge}",
    "forwarding": "sysctl -qw net.ipv4.ip_forward=0",
}


def do_damage(command: str, driver: BridgeNetwork, pod: Pod | None = None) -> None:
    netns = pod.netns if pod else ""
    run(*command.format(table=driver.names.table, bridge=driver.names.bridge, netns=netns).split())


@pytest.mark.parametrize("damage", DAMAGES)
async def test_status_repairs(damage: str, plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, port(8080))
    await driver.collect_garbage(((pod.request, pod.attachment.data),))
    with serve(pod.netns, 4, 80), serve(pod.netns, 6, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]
        do_damage(DAMAGES[damage], driver)
        if damage != "sender rules":  # without these pods may do more, not less
            with pytest.raises(OSError, match=r"refused|timed out|route"):
                ask(plain_node.outside, NODE[4], 8080, timeout_s=UNANSWERED_S)
        assert (await driver.status()).ready
        for version in (4, 6):
            assert ask(plain_node.outside, NODE[version], 8080) == OUTSIDE[version]
    await driver.check(pod.request, pod.attachment.data)


@pytest.mark.parametrize("damage", ["ruleset", "rules", "sender rules", "bridge"])
async def test_the_next_attachment_repairs(damage: str, plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    first = await plain_node.attach(driver, port(8080))
    await driver.collect_garbage(((first.request, first.attachment.data),))
    do_damage(DAMAGES[damage], driver)
    second = await plain_node.attach(driver)
    with serve(first.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]
        assert ask(second.netns, first.address(4), 80) == second.address(4)


def count_sockets() -> int:
    """Count this process's open sockets; the interpreter of rules keeps one."""
    return sum("socket:" in os.path.realpath(path) for path in Path("/proc/self/fd").iterdir())


async def test_a_look_frees_what_made_the_rules_and_they_can_be_made_again(
    plain_node: BridgeNode, driver: BridgeNetwork
) -> None:
    first = await plain_node.attach(driver, port(8080))
    await driver.collect_garbage(((first.request, first.attachment.data),))
    held = count_sockets()
    assert (await driver.status()).ready
    assert count_sockets() < held
    for _ in range(2):
        do_damage(DAMAGES["rules"], driver)
        assert (await driver.status()).ready
        await driver.check(first.request, first.attachment.data)
    assert count_sockets() < held


async def test_other_changes_of_the_rule_set_cost_nothing(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pods = []
    for index in range(3):
        run("nft", "add", "table", "ip", f"somebody{index}")
        pods.append(await plain_node.attach(driver, port(8080 + index)))
    before = run("nft", "list", "table", "inet", driver.names.table)
    await driver.status()
    assert run("nft", "list", "table", "inet", driver.names.table) == before
    for pod in pods:
        await driver.check(pod.request, pod.attachment.data)


@pytest.mark.parametrize(
    "damage", ["nft flush ruleset", "ip link delete {bridge}", "nsenter --net={netns} ip address flush dev eth0"]
)
async def test_check_tells_what_is_lost(damage: str, plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver)
    await driver.check(pod.request, pod.attachment.data)
    do_damage(damage, driver, pod)
    with pytest.raises(DriverError, match=r"lacks entries|is no port|lost address"):
        await driver.check(pod.request, pod.attachment.data)


# Addresses.


async def test_the_nodes_own_address_is_not_given_out(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    await plain_node.attach(driver)
    run("ip", "address", "add", "10.88.77.3/32", "dev", "up0")
    assert (await plain_node.attach(driver)).address(4) == "10.88.77.4"


async def test_an_address_that_somebody_answers_for_is_not_given_out(
    plain_node: BridgeNode, driver: BridgeNetwork
) -> None:
    await plain_node.attach(driver)
    foreign = plain_node.make_namespace("foreign")
    run("ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "eth0", "netns", str(foreign))
    run("ip", "link", "set", "foreign0", "master", driver.names.bridge, "up")
    enter = ("nsenter", f"--net={foreign}", "ip")
    run(*enter, "link", "set", "eth0", "up")
    run(*enter, "address", "add", "10.88.77.3/28", "dev", "eth0")
    run(*enter, "-6", "address", "add", "fd00:88:77::4/124", "dev", "eth0", "nodad")
    pod = await plain_node.attach(driver)
    assert pod.address(4) != "10.88.77.3"
    assert pod.address(6) != "fd00:88:77::4"
    run("ip", "link", "delete", "foreign0")


async def test_a_range_of_somebody_elses_is_refused(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(subnets=("192.168.77.0/24",))
    status = await driver.status()
    assert not status.ready
    assert "192.168.77.0/24 is in use" in status.message
    with pytest.raises(Unavailable, match="over up0; set subnets"):
        await plain_node.attach(driver)
    assert driver.names.bridge not in links.names()


async def test_pod_cidrs_are_used_unless_subnets_are_configured(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(subnets=())
    assert (await plain_node.attach(driver)).attachment.addresses == ("10.241.0.2", "fd00:10:241::2")
    await driver.set_pod_cidrs(("10.99.3.0/24",))
    told = await plain_node.attach(driver, port(8080))
    assert told.attachment.addresses == ("10.99.3.2",)
    request = await plain_node.attach(driver, pod_cidrs=("fd99::/112", "10.99.4.0/24"))
    assert request.attachment.addresses == ("fd99::2", "10.99.4.2")
    with serve(told.netns, 4, 80):
        assert ask(request.netns, "10.99.3.2", 80) == "10.99.4.2"
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]


async def test_an_address_that_was_asked_for(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, ips=("10.88.77.7",))
    assert pod.address(4) == "10.88.77.7"
    with pytest.raises(Unavailable, match=r"10.88.77.7, which pod pod1 has"):
        await plain_node.attach(driver, ips=("10.88.77.7",))


# Bandwidth.


async def test_bandwidth_is_limited_in_both_directions(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, ingress_bits_per_s=8_000_000, egress_bits_per_s=16_000_000)
    queues = run("tc", "qdisc", "show")
    assert "rate 8Mbit" in queues
    assert "rate 16Mbit" in queues
    for receiver, target, limit in ((pod.netns, pod.address(4), 1_000_000), (None, GATEWAYS[4], 2_000_000)):
        count, seconds = measure(pod, receiver, target)
        assert 0 < count < limit * seconds + BURST_BYTES, f"{count} bytes in {seconds:.1f} s, the limit is {limit}"
    await driver.detach(pod.request, pod.attachment.data)
    assert await settle(lambda: ours() == [driver.names.bridge])


BURST_BYTES = 1 << 20  # more than bucket and queue hold; an unlimited link carries a hundred times as much


def measure(pod: Pod, receiver: Path | None, target: str) -> tuple[int, float]:
    """Send for a while, to or from the pod; return how many bytes arrived in how many seconds."""
    with serve_nothing(pod, receiver) as listener, make_sender(pod, receiver) as sender:
        sender.connect((target, 9000))
        sender.setblocking(False)
        client, _ = listener.accept()
        with client:
            return _pump(sender, client)


def serve_nothing(pod: Pod, receiver: Path | None) -> socket.socket:
    def listen() -> socket.socket:
        return socket.create_server(("0.0.0.0", 9000))

    return pod.call(listen) if receiver else listen()


def make_sender(pod: Pod, receiver: Path | None) -> socket.socket:
    return socket.socket() if receiver else pod.call(socket.socket)


def _pump(sender: socket.socket, receiver: socket.socket) -> tuple[int, float]:
    receiver.settimeout(0.01)
    start, count = time.monotonic(), 0
    while (now := time.monotonic()) < start + 1:
        with contextlib.suppress(BlockingIOError):
            sender.send(bytes(1 << 16))
        with contextlib.suppress(TimeoutError):
            count += len(receiver.recv(1 << 20))
    return count, now - start


# Lives and deaths.


async def test_everything_goes_when_unused(plain_node: BridgeNode) -> None:
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    forward.write_text("0")
    before = (links.names(), run("nft", "list", "ruleset"))
    driver = plain_node.driver(linger_s=0.05)
    pods = [await plain_node.attach(driver, port(8080 + index)) for index in range(2)]
    assert forward.read_text() == "1\n"
    for pod in pods:
        await driver.detach(pod.request, pod.attachment.data)
    assert await settle(lambda: (links.names(), run("nft", "list", "ruleset")) == before)
    assert await settle(lambda: not any((plain_node.root / "state" / "default" / "addresses").iterdir()))
    again = await plain_node.attach(driver, port(8080))
    with serve(again.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]


async def test_forwarding_is_put_back_where_nobody_else_needs_it(tmp_path: Path) -> None:
    settings = [Path("/proc/sys/net", name) for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        for setting in settings:
            setting.write_text("0")
        node = BridgeNode(tmp_path, stack, outside=False)
        driver = node.driver(linger_s=60)
        pod = await node.attach(driver)
        assert [setting.read_text() for setting in settings] == ["1\n", "1\n"]
        await driver.detach(pod.request, pod.attachment.data)
        await driver.close()  # the daemon ends before the time is up
        assert (links.names(), tables()) == (("lo",), "")
        assert [setting.read_text() for setting in settings] == ["0\n", "0\n"]


async def test_the_end_of_the_daemon_leaves_pods_alone(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, port(8080))
    await driver.close()
    with serve(pod.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]


async def test_a_default_route_that_was_advertised_stays(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    """The kernel forgets it when forwarding is turned on, unless it is told not to."""
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("0")
    run("ip", "-6", "route", "delete", "default")
    outside = run("nsenter", f"--net={plain_node.outside}", "ip", "-br", "link", "show", "out0").split()[2]
    mac = bytes.fromhex(outside.replace(":", ""))
    everyone = socket.inet_pton(socket.AF_INET6, "ff02::1")
    router = link_local(mac)
    packet = icmp6(router.packed, everyone, b"\x86\0", b"\x40\0\x07\x08" + bytes(8))

    def advertise() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("out0", 0))
            raw.send(b"\x33\x33\0\0\0\1" + mac + b"\x86\xdd" + packet)

    namespaces.call_in(plain_node.outside, advertise)
    assert await settle(lambda: "proto ra" in run("ip", "-6", "route", "show", "default"))
    await plain_node.attach(driver)
    assert "proto ra" in run("ip", "-6", "route", "show", "default")


@pytest.mark.parametrize("version", [4, 6])
async def test_one_family_is_enough(version: int, plain_node: BridgeNode) -> None:
    driver = plain_node.driver(subnets=(SUBNETS[0] if version == 4 else SUBNETS[1],))
    pod = await plain_node.attach(driver, port(8080))
    assert pod.attachment.addresses == (pod.address(version),)
    with serve(pod.netns, version, 80):
        assert ask(plain_node.outside, NODE[version], 8080) == OUTSIDE[version]
        with pytest.raises(ConnectionRefusedError):
            ask(plain_node.outside, NODE[10 - version], 8080)


async def test_a_pod_with_a_user_namespace(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    """Its network namespace belongs to that."""
    ids = (IdMapping(100_000, 0, 65536),)
    user, netns = plain_node.root / "user", plain_node.root / "netns-of-user"
    namespaces.pin({"user": user, "network": netns}, uids=ids, gids=ids)
    try:
        request = replace(plain_node.request(port(8080)), netns=netns)
        attachment = await driver.attach(request, await driver.plan(request))
        await driver.check(request, attachment.data)
        for version in (4, 6):
            with serve(netns, version, 80):
                assert ask(plain_node.outside, NODE[version], 8080) == OUTSIDE[version]
    finally:
        for path in (netns, user):
            namespaces.unpin(path)


async def test_a_bridge_that_others_use_stays(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(linger_s=0.05)
    pod = await plain_node.attach(driver)
    run("ip", "link", "add", "foreign0", "type", "veth", "peer", "name", "foreign1")
    run("ip", "link", "set", "foreign0", "master", driver.names.bridge)
    await driver.detach(pod.request, pod.attachment.data)
    assert await settle(lambda: "crinoid" not in tables())
    assert await settle(lambda: ours() == [driver.names.bridge])


async def test_the_daemon_comes_back(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    kept, lost = [await plain_node.attach(driver, port(8080 + index)) for index in range(2)]
    before = run("nft", "-a", "list", "chain", "inet", driver.names.table, "host_ports")
    again = plain_node.driver()
    await again.collect_garbage(((kept.request, kept.attachment.data),))
    assert run("nft", "-a", "list", "chain", "inet", driver.names.table, "host_ports") == before, "rules stay in place"
    with serve(kept.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]
    with pytest.raises(OSError, match=r"refused|timed out"):
        ask(plain_node.outside, NODE[4], 8081, timeout_s=UNANSWERED_S)
    assert len(ours()) == 2
    await again.check(kept.request, kept.attachment.data)
    assert (await plain_node.attach(again)).attachment.addresses != kept.attachment.addresses
    assert lost.attachment.addresses


async def test_a_table_of_another_version_is_replaced(plain_node: BridgeNode, driver: BridgeNetwork) -> None:
    pod = await plain_node.attach(driver, port(8080))
    again = plain_node.driver(masquerade=False)
    await again.collect_garbage(((pod.request, pod.attachment.data),))
    rules = run("nft", "list", "table", "inet", driver.names.table)
    assert "@near4" not in rules
    assert "tcp . 8080" in rules


@pytest.mark.parametrize(
    "step", ["_build", "_refuse_foreign_addresses", "_admit", "_make_link", "limit_link", "limit_sender"]
)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_attachment_that_broke_off_is_undone_by_its_plan(
    step: str, moment: str, plain_node: BridgeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = plain_node.driver(linger_s=0.05)
    request = plain_node.request(port(8080), ingress_bits_per_s=8_000_000, egress_bits_per_s=8_000_000)
    plan = await driver.plan(request)
    place: object = shaping if step.startswith("limit") else driver._node
    whole = getattr(place, step)

    def broken(*arguments: object) -> object:
        if moment == "after":
            whole(*arguments)
        raise DriverError("broke off here")

    monkeypatch.setattr(place, step, broken)
    with pytest.raises(DriverError, match="broke off here"):
        await driver.attach(request, plan)
    await driver.detach(request, plan)
    addresses = plain_node.root / "state" / "default" / "addresses"
    assert await settle(lambda: not ours() and "crinoid" not in tables() and not any(addresses.iterdir()))


KILLED = """
import asyncio, logging, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from support.bridge import SUBNETS, port
from crinoid.core.api.host import Host
from crinoid.core.api.linux import namespaces
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions

async def main(root):
    host = Host("default", root / "state" / "default", root / "run" / "default", logging.getLogger())
    driver = BridgeNetwork(BridgeOptions(subnets=SUBNETS), host)
    print("ready", flush=True)
    for turn in range(1000):
        netns = root / f"netns-k{turn % 5}"
        request = NetworkRequest(
            pod_id=f"killed{turn}",
            metadata=PodMetadata("p", "n", "u"),
            netns=netns,
            port_mappings=(port(8080 + turn % 9),),
        )
        attachment = await driver.attach(request, await driver.plan(request))
        await driver.detach(request, attachment.data)
        await driver._release_addresses()

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_killed_daemon_leaves_nothing_that_the_next_one_does_not_find(plain_node: BridgeNode) -> None:
    for index in range(5):
        plain_node.make_namespace(f"k{index}")
    addresses = plain_node.root / "state" / "default" / "addresses"
    plain_node.host()
    before = (links.names(), run("nft", "list", "ruleset"))
    paths = [path for path in sys.path if path]
    for pause_s in (0.0, 0.005, 0.02, 0.5):
        command = [sys.executable, "-c", KILLED, str(plain_node.root), *paths]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            await asyncio.sleep(pause_s)
            process.send_signal(signal.SIGKILL)
        await plain_node.driver().collect_garbage(())
        assert await settle(lambda: (links.names(), run("nft", "list", "ruleset")) == before)
        assert not any(addresses.iterdir())


async def test_two_slots(plain_node: BridgeNode) -> None:
    drivers = {
        slot: plain_node.driver(slot, subnets=(subnet,), linger_s=0.05)
        for slot, subnet in (("one", "10.88.1.0/24"), ("another-one-with-a-long-name", "10.88.2.0/24"))
    }
    first, second = [await plain_node.attach(driver, port(8080 + i)) for i, driver in enumerate(drivers.values())]
    with serve(first.netns, 4, 80), serve(second.netns, 4, 80):
        assert ask(plain_node.outside, NODE[4], 8080) == OUTSIDE[4]
        assert ask(plain_node.outside, NODE[4], 8081) == OUTSIDE[4]
        await drivers["one"].detach(first.request, first.attachment.data)
        assert await settle(lambda: "crinoid_one" not in tables() and drivers["one"].names.bridge not in links.names())
        assert ask(plain_node.outside, NODE[4], 8081) == OUTSIDE[4]
    status = await plain_node.driver("third", subnets=("10.88.2.0/25",)).status()
    assert "10.88.2.0/25 is in use" in status.message


async def test_many_at_once(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(subnets=("10.88.77.0/24",), linger_s=0.05)
    pods = await asyncio.gather(*(plain_node.attach(driver, port(8080 + index)) for index in range(10)))
    with contextlib.ExitStack() as stack:
        for pod in pods:
            stack.enter_context(serve(pod.netns, 4, 80))
        for index in range(10):
            assert ask(plain_node.outside, NODE[4], 8080 + index) == OUTSIDE[4]
    await asyncio.gather(*(driver.detach(pod.request, pod.attachment.data) for pod in pods))
    assert await settle(lambda: not ours() and "crinoid" not in tables())


async def test_a_cancelled_attachment_can_be_undone(plain_node: BridgeNode) -> None:
    driver = plain_node.driver(linger_s=0.05)
    for pause_s in (0, 0.001, 0.004):
        request = plain_node.request(port(8080))
        plan = await driver.plan(request)
        task = asyncio.create_task(driver.attach(request, plan))
        await asyncio.sleep(pause_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, CrinoidError):
            await task
        await driver.detach(request, plan)
    assert await settle(lambda: not ours() and "crinoid" not in tables())
