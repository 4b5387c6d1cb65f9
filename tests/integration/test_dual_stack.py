"""Pods with addresses of both families, ports of every protocol on one address, and pinned images."""

import json
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from integration.pods import Pod, until
from support.images import ImageConfig, build_busybox

SUBNETS = ("10.89.251.0/24", "fd00:89:251::/64")
PAUSE, OTHER = "docker.io/test/pause:1", "docker.io/test/other:1"


def conflist(directory: Path, bridge: str) -> None:
    """A CNI network of both families, with ports."""
    ranges = [[{"subnet": subnet}] for subnet in SUBNETS]
    ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(directory / "ipam"), "ranges": ranges}
    ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    (directory / "net.d").mkdir()
    document = {"cniVersion": "1.0.0", "name": bridge, "plugins": plugins}
    (directory / "net.d" / "10-both.conflist").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory, bridge = tmp_path_factory.mktemp("both"), f"crt{secrets.token_hex(3)}"
    conflist(directory, bridge)
    config = (
        f"[networks.both]\ndriver = 'cni'\noptions = {{ conf_dir = '{directory / 'net.d'}' }}\n"
        "[runtimes.both]\ndriver = 'runc'\nnetwork = 'both'\n"
        f"[images]\npinned = ['docker.io/library/*']\n[pods]\npause_image = '{PAUSE}'\n"
    )
    try:
        with own_node(directory, config) as node:
            yield node
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def no_pods_left(both: Node) -> Iterator[None]:
    yield
    both.remove_pods()


def test_a_pod_has_addresses_of_both_families(both: Node) -> None:
    pod = Pod(both, both.run_pod(handler="both"))
    network = both.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["network"]
    (second,) = network["additional_ips"]
    assert network["ip"].startswith("10.89.251.")
    assert second["ip"].startswith("fd00:89:251::")
    hosts = pod.sh("cat /etc/hosts; ip -6 addr show dev eth0", name="look")
    assert network["ip"] in hosts
    assert hosts.count(second["ip"]) >= 2


def answers(family: socket.AddressFamily, address: str, port: int) -> bool:
    with socket.socket(family) as client:
        client.settimeout(2)
        try:
            client.connect((address, port))
            return client.recv(100) == b"answer\n"
        except OSError:
            return False


def test_ports_of_both_families_and_every_protocol(both: Node) -> None:
    mappings = [
        {"container_port": 80, "host_port": 18480, "protocol": "TCP"},
        {"container_port": 80, "host_port": 18481, "protocol": "TCP", "host_ip": "::"},
        {"container_port": 80, "host_port": 18482, "protocol": "SCTP"},
        {"container_port": 80, "host_port": 18483, "protocol": "UDP", "host_ip": "127.0.0.1"},
    ]
    pod = Pod(both, both.run_pod(handler="both", port_mappings=mappings))
    pod.start("sh", "-c", "while true; do echo answer | nc -l -p 80; done")
    gateway = "10.89.251.1"
    until(lambda: answers(socket.AF_INET, gateway, 18480))
    until(lambda: answers(socket.AF_INET6, "fd00:89:251::1", 18481))
    rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True).stdout
    assert any("-p sctp" in line and "--dport 18482" in line for line in rules.splitlines())
    assert any("-p udp" in line and "--dport 18483" in line for line in rules.splitlines())
    both.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True).stdout
    assert "18482" not in rules


def test_images_are_pinned_by_the_configuration_and_the_pause_image_always(both: Node) -> None:
    for name in (PAUSE, OTHER):
        directory = both.layouts / name.replace("/", "-").replace(":", "-")
        build_busybox(directory, name, ImageConfig(labels={"name": name}))  # each with an id of its own
        both.pull(name)
    pinned = {tag: one["pinned"] for one in both.call("ListImages")["images"] for tag in one["repo_tags"]}
    assert pinned[BUSYBOX] is True
    assert pinned[PAUSE] is True
    assert pinned[OTHER] is False
    both.call("RemoveImage", image={"image": PAUSE})
    assert both.call("ImageStatus", image={"image": PAUSE}).get("image") is None
