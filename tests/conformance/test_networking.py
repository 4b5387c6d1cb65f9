"""Networks: addresses, loopback, ports of the node."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from conformance.node import Node, Pod, wait_for
from support.patience import patient


def _serve(node: Node, pod: Pod, port: int = 8080) -> str:
    """Start a server that says hello; return its container."""
    script = f"while true; do echo hello | nc -l -p {port}; done"
    container = node.start(pod, "sh", "-c", f"trap 'exit 0' TERM; {script}")
    wait_for(lambda: f":{port:04X} " in node.execute(container, "cat", "/proc/net/tcp", "/proc/net/tcp6")[1])
    return container


def _ask(node: Node, address: str, port: int, timeout_s: float = 10) -> str:
    def connect() -> str:
        with socket.create_connection((address, port), timeout=patient(timeout_s)) as connection:
            return connection.makefile().readline().strip()

    return node.network.call(connect)


def _address(node: Node, pod: Pod) -> str:
    return str(node.pod_status(pod)["network"]["ip"])


def _ports(*mappings: Any) -> Any:
    return {"port_mappings": list(mappings)}


@pytest.fixture(scope="module", autouse=True)
def pods_with_cni(node_of_session: Node) -> Iterator[None]:
    """Give the pods of this file a network by CNI's binaries, as most nodes do, where other files' do without."""
    handler, cni = node_of_session.handler, node_of_session.cni_handler
    node_of_session.handler = handler if cni is None else cni
    yield
    node_of_session.handler = handler


@pytest.fixture(scope="module")
def server(node_of_session: Node, pod: Pod) -> str:
    """A server in the module's pod; its address."""
    _serve(node_of_session, pod)
    return _address(node_of_session, pod)


def test_a_pod_has_an_address(node: Node, pod: Pod) -> None:
    address = _address(node, pod)
    assert f"inet {address}/" in node.script(pod, "ip addr show eth0")


def test_loopback_is_up(node: Node, pod: Pod) -> None:
    assert "127.0.0.1/8" in node.script(pod, "ip addr show lo")
    assert "LOWER_UP" in node.script(pod, "ip link show lo")


def test_there_is_a_way_out(node: Node, pod: Pod) -> None:
    assert "default via" in node.script(pod, "ip route")


def test_containers_meet_on_loopback(node: Node, pod: Pod, server: str) -> None:
    assert node.script(pod, "nc -w 3 127.0.0.1 8080 < /dev/null") == "hello"


def test_the_node_reaches_the_pod(node: Node, server: str) -> None:
    assert _ask(node, server, 8080) == "hello"


def test_pods_reach_each_other(node: Node, server: str) -> None:
    other = node.run_pod()
    assert _address(node, other) != server
    assert node.script(other, f"nc -w 3 {server} 8080 < /dev/null") == "hello"


def test_unprivileged_ports_are_for_root_only_by_capability(node: Node, pod: Pod) -> None:
    """Both defaults are in use: peers let any user bind any port, or only root."""
    assert node.script(pod, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") in ("0", "1024")


@pytest.mark.parametrize("host_ip", ["", "127.0.0.1", "0.0.0.0", "127.0.0.3"])
def test_a_port_of_the_node(node: Node, host_ip: str) -> None:
    pod = node.run_pod(**_ports({"container_port": 8080, "host_port": 18080, "host_ip": host_ip}))
    _serve(node, pod)
    address = host_ip if host_ip.startswith("127") else "127.0.0.1"
    assert _ask(node, address, 18080) == "hello"


def test_a_port_is_free_again(node: Node) -> None:
    for _ in range(2):
        pod = node.run_pod(**_ports({"container_port": 8080, "host_port": 18081}))
        _serve(node, pod)
        assert _ask(node, "127.0.0.1", 18081) == "hello"
        node.call("StopPodSandbox", pod_sandbox_id=pod.id)
        with pytest.raises(OSError):
            _ask(node, "127.0.0.1", 18081, 1)


def test_many_ports(node: Node) -> None:
    ports = ({"container_port": 8080 + number, "host_port": 18090 + number} for number in range(3))
    pod = node.run_pod(**_ports(*ports))
    for number in range(3):
        _serve(node, pod, 8080 + number)
    assert [_ask(node, "127.0.0.1", 18090 + number) for number in range(3)] == ["hello"] * 3


def test_a_udp_port_of_the_node(node: Node) -> None:
    """Nobody listens: the pod's kernel counts what comes."""
    pod = node.run_pod(**_ports({"protocol": "UDP", "container_port": 8080, "host_port": 18082}))
    container = node.idle(pod)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", 18082))

    def unwanted() -> int:
        names, values = (
            line.split() for line in node.execute(container, "grep", "^Udp:", "/proc/net/snmp")[1].splitlines()
        )
        return int(values[names.index("NoPorts")])

    before = unwanted()
    node.network.call(send)
    wait_for(lambda: unwanted() == before + 1)


@pytest.mark.parametrize(
    "mapping",
    [
        {"container_port": 8080},
        {"container_port": 8080, "host_port": 0, "protocol": "TCP"},
        {"container_port": 8080, "host_port": 18083, "protocol": "SCTP"},
        {"container_port": 8080, "host_port": 18083, "host_ip": "::1"},
    ],
    ids=["none", "zero", "sctp", "ipv6"],
)
def test_mappings_that_are_taken(node: Node, mapping: Any) -> None:
    assert _address(node, node.run_pod(**_ports(mapping)))


def test_on_the_nodes_network_mappings_mean_nothing(node: Node) -> None:
    pod = node.run_pod({"network": "NODE"}, **_ports({"container_port": 18084, "host_port": 18084}))
    config = {"security": {"namespace_options": {"network": "NODE", "pid": "CONTAINER"}}}
    node.start(pod, "sh", "-c", "echo hello | nc -l -p 18084", **config)

    def answers() -> bool:
        try:
            return _ask(node, "127.0.0.1", 18084) == "hello"
        except OSError:
            return False

    wait_for(answers)


def test_a_stopped_pod_answers_no_more(node: Node) -> None:
    pod = node.run_pod()
    _serve(node, pod)
    address = _address(node, pod)
    assert _ask(node, address, 8080) == "hello"
    node.call("StopPodSandbox", pod_sandbox_id=pod.id)
    with pytest.raises(OSError):
        _ask(node, address, 8080, 1)


@pytest.mark.parametrize("number", range(2))
def test_bandwidth_is_taken(node: Node, number: int) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"}
    assert _address(node, node.run_pod(annotations=limits if number else {}))
