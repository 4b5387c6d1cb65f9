"""A node without any network configuration: the daemon chooses the bridge, and pods are reached through its lives."""

import base64
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

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
SERVE = "echo hello from a pod > /tmp/index.html; exec httpd -f -p 80 -h /tmp"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[BridgeNode]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        yield BridgeNode(tmp_path, stack)


@pytest.fixture
def daemon(node: BridgeNode, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that lives in the node's network namespace."""
    layouts = tmp_path / "layouts"
    build_busybox(layouts / "busybox", BUSYBOX)
    config = f"""
        [network]
        driver = "auto"
        options.cni.conf_dir = "{tmp_path / "net.d"}"
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
