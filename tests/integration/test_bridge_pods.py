"""A node without any network configuration: the daemon chooses the bridge, pods are reached through its lives, and a
network add-on's configuration that comes later is for new pods; or, where it is told so, pods wait for one."""

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import grpc
import pytest

from crinoid.core.api.linux import links, namespaces
from integration.conftest import BUSYBOX
from support import cgroup_namespace
from support.bridge import NODE, BridgeNode, fresh_node, run
from support.daemon import Daemon, container_config, pod_config
from support.images import build_busybox
from support.patience import patient

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or find_library("nftables") is None, reason="wants root and libnftables1"
)
needs_cni = pytest.mark.skipif(
    not Path("/usr/lib/cni/host-local").exists(), reason="wants the package containernetworking-plugins"
)
SERVE = "echo hello from a pod > /tmp/index.html; exec httpd -f -p 80 -h /tmp"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[BridgeNode]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        yield BridgeNode(tmp_path, stack)


@pytest.fixture
def options() -> str:
    """Return what the network's table has besides."""
    return ""


@pytest.fixture
def daemon(node: BridgeNode, tmp_path: Path, options: str) -> Iterator[Daemon]:
    """A daemon that lives in the node's network namespace."""
    layouts = tmp_path / "layouts"
    build_busybox(layouts / "busybox", BUSYBOX)
    config = f"""
        [network]
        driver = "auto"
        options.cni.conf_dir = "{tmp_path / "net.d"}"
        {options}
        [registries.layout]
        driver = "layout"
        options = {{ directory = "{layouts}" }}
        [images]
        sources = ["layout"]
    """
    with cgroup_namespace.held() as prefix:
        daemon = Daemon(tmp_path / "daemon", config, prefix)
        try:
            daemon.start()
            daemon.cri.call("PullImage", image={"image": BUSYBOX})
            yield daemon
        finally:
            daemon.end()


def run_server(daemon: Daemon, directory: Path) -> str:
    """Run a pod that serves a page at port 8080 of the node; return its id."""
    mapping = {"protocol": "TCP", "container_port": 80, "host_port": 8080}
    config = pod_config("web", log_directory=str(directory), port_mappings=[mapping])
    pod = str(daemon.cri.call("RunPodSandbox", config=config)["pod_sandbox_id"])
    wanted = container_config("httpd", BUSYBOX, "sh", "-c", SERVE)
    container = daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"]
    daemon.cri.call("StartContainer", container_id=container)
    return pod


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + patient(20)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def fetch(node: BridgeNode, address: str) -> str:
    """Ask for the page from outside the node, with patience for a server that starts."""
    deadline = time.monotonic() + patient(20)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        with namespaces.call_in(node.outside, lambda: socket.socket(family)) as client:
            client.settimeout(patient(2))
            try:
                client.connect((address, 8080))
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, f"nobody listens at {address}"
                time.sleep(0.05)
                continue
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.makefile().read()


def test_a_pod_is_reached_through_the_daemons_lives(node: BridgeNode, daemon: Daemon, tmp_path: Path) -> None:
    before = (links.names(), run("nft", "list", "ruleset"))
    pod = run_server(daemon, tmp_path / "logs")
    assert "network bridge: there is no CNI configuration in" in daemon.log.read_text()
    addresses = daemon.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]
    assert addresses["ip"].startswith("10.241.0.")
    assert addresses["additional_ips"][0]["ip"].startswith("fd00:10:241::")
    assert "hello from a pod" in fetch(node, NODE[4])
    daemon.kill()
    assert "hello from a pod" in fetch(node, NODE[6])
    daemon.start()
    run("nft", "flush", "ruleset")
    assert daemon.cri.call("Status")["status"]["conditions"][1]["status"] is True
    assert "hello from a pod" in fetch(node, NODE[4])
    daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)
    _check_that_ipv6_stays_off(daemon)
    daemon.stop()
    assert (links.names(), run("nft", "list", "ruleset")) == before


def _check_that_ipv6_stays_off(daemon: Daemon) -> None:
    """A pod's own sysctls hold for the interface that the bridge has set up."""
    wanted = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.conf.eth0.arp_filter": "1"}
    pod = str(daemon.cri.call("RunPodSandbox", config=pod_config("four", linux={"sysctls": wanted}))["pod_sandbox_id"])
    config = container_config("idle", BUSYBOX, "sleep", "1000")
    container = daemon.cri.call("CreateContainer", pod_sandbox_id=pod, config=config)["container_id"]
    daemon.cri.call("StartContainer", container_id=container)
    read = ["cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "/proc/net/if_inet6"]
    answer = daemon.cri.call("ExecSync", container_id=container, cmd=read, timeout=int(patient(20)))
    assert base64.b64decode(answer["stdout"]) == b"1\n"
    daemon.cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def bring_configuration(directory: Path) -> Path:
    """Put a configuration where a network add-on does, of the plugins that Debian has."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.77.5.0/24"}]], "dataDir": str(directory / "leases")}
    plugins = [
        {"type": "bridge", "bridge": "cni-addon0", "isGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    file = directory / "net.d/10-addon.conflist"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "addon", "plugins": plugins}))
    return file


def network_ready(daemon: Daemon) -> dict[str, object]:
    condition: dict[str, object] = daemon.cri.call("Status")["status"]["conditions"][1]
    assert condition["type"] == "NetworkReady"
    return condition


def run_quiet_pod(daemon: Daemon, name: str, **fields: object) -> tuple[str, str]:
    """Run a pod without containers; return its id and address."""
    pod = str(daemon.cri.call("RunPodSandbox", config=pod_config(name, **fields))["pod_sandbox_id"])
    network = daemon.cri.call("PodSandboxStatus", pod_sandbox_id=pod)["status"].get("network", {})
    return pod, network.get("ip", "")


@needs_cni
def test_new_pods_get_the_network_that_an_add_on_brings(node: BridgeNode, daemon: Daemon, tmp_path: Path) -> None:
    before = (links.names(), run("nft", "list", "ruleset"))
    web = run_server(daemon, tmp_path / "logs")
    file = bring_configuration(tmp_path)
    assert wait_for(lambda: "network cni for new pods" in daemon.log.read_text())
    assert "CNI networks in" in daemon.log.read_text()
    assert network_ready(daemon)["status"] is True
    pod, address = run_quiet_pod(daemon, "after")
    assert address.startswith("10.77.5.")
    assert "hello from a pod" in fetch(node, NODE[4])  # the one of before keeps its network
    file.unlink()  # the add-on is being replaced, and the daemon starts anew just now
    daemon.restart()
    condition = network_ready(daemon)
    assert (condition["status"], condition["reason"]) == (False, "NoNetworkConfiguration")
    with pytest.raises(grpc.RpcError, match="no CNI configuration"):
        run_quiet_pod(daemon, "meanwhile")
    bring_configuration(tmp_path)
    assert network_ready(daemon)["status"] is True
    for leaving in (web, pod):
        daemon.cri.call("RemovePodSandbox", pod_sandbox_id=leaving)
    daemon.stop()
    run("ip", "link", "del", "cni-addon0")  # the plugin leaves it, and its chains
    assert links.names() == before[0]
    assert [path.name for path in (tmp_path / "leases/addon").glob("10.*")] == []


@needs_cni
@pytest.mark.parametrize("options", ['options.fallback = "none"'])
def test_pods_wait_for_an_add_on(daemon: Daemon, tmp_path: Path) -> None:
    condition = network_ready(daemon)
    assert (condition["status"], condition["reason"]) == (False, "NoNetworkConfiguration")
    assert f"no CNI configuration in {tmp_path / 'net.d'}" in str(condition["message"])
    on_host = {"security_context": {"namespace_options": {"network": "NODE"}}}
    addon, _ = run_quiet_pod(daemon, "addon", linux=on_host)  # what brings the configuration
    with pytest.raises(grpc.RpcError, match="no CNI configuration"):
        run_quiet_pod(daemon, "early")
    bring_configuration(tmp_path)
    assert network_ready(daemon)["status"] is True
    pod, address = run_quiet_pod(daemon, "late")
    assert address.startswith("10.77.5.")
    for leaving in (addon, pod):
        daemon.cri.call("RemovePodSandbox", pod_sandbox_id=leaving)
