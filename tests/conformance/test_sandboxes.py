"""Pod sandboxes: what RunPodSandbox makes of its config, and the life of a sandbox."""

import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from conformance.node import OLD, UNKNOWN, Node, Pod, case, differs


def test_status_tells_what_was_asked(node: Node) -> None:
    before = time.time_ns()
    pod = node.run_pod(labels={"app": "a", "tier": "b"}, annotations={"x.y/z": "any text\n\t"})
    status = node.pod_status(pod)
    assert status["id"] == pod.id
    assert status["metadata"] == pod.config["metadata"]
    assert status["state"] == "SANDBOX_READY"
    assert before <= int(status["created_at"]) <= time.time_ns()
    assert (status["labels"], status["annotations"]) == (pod.config["labels"], pod.config["annotations"])
    assert status["runtime_handler"] == node.handler
    assert status["linux"]["namespaces"]["options"]["pid"] == "CONTAINER"


def test_verbose_status_has_more(node: Node, pod: Pod) -> None:
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["info"] == {}
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod.id, verbose=True)["info"]


@differs(containerd=OLD)
def test_status_tells_of_the_containers_too(node: Node, pod: Pod) -> None:
    container = node.create(pod, "true")
    answer = node.call("PodSandboxStatus", pod_sandbox_id=pod.id)
    assert container in [one["id"] for one in answer["containers_statuses"]]
    assert int(answer["timestamp"]) > 0


def test_the_list_shows_the_pod(node: Node) -> None:
    pod = node.run_pod(labels={"a": "b"}, annotations={"c": "d"})
    (listed,) = (one for one in node.call("ListPodSandbox")["items"] if one["id"] == pod.id)
    status = node.pod_status(pod)
    shared = ("id", "metadata", "state", "created_at", "labels", "annotations", "runtime_handler")
    assert {name: listed[name] for name in shared} == {name: status[name] for name in shared}


def test_ids_may_be_shortened(node: Node, pod: Pod) -> None:
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod.id[:13])["status"]["id"] == pod.id


def test_hostname(node: Node) -> None:
    pod = node.run_pod(hostname="given-name.example")
    assert node.script(pod, "hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["given-name.example"] * 3


def test_without_a_hostname_it_is_that_of_the_node(node: Node) -> None:
    assert node.script(node.run_pod(hostname=""), "hostname") == socket.gethostname()


@pytest.mark.parametrize(
    ("dns", "lines"),
    [
        case({"servers": ["10.0.0.1", "fd00::1"]}, {"nameserver 10.0.0.1", "nameserver fd00::1"}, name="servers"),
        case({"searches": ["a.example", "b.example"]}, {"search a.example b.example"}, name="searches"),
        case({"options": ["ndots:5", "edns0"]}, {"options ndots:5 edns0"}, name="options"),
        case({"servers": ["10.0.0.1"], "searches": ["x"]}, {"nameserver 10.0.0.1", "search x"}, name="together"),
    ],
)
def test_dns_config(node: Node, dns: Any, lines: set[str]) -> None:
    assert set(node.script(node.run_pod(dns_config=dns), "cat /etc/resolv.conf").splitlines()) == lines


def test_without_dns_config_it_is_that_of_the_node(node: Node, pod: Pod) -> None:
    assert node.script(pod, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text().strip()


def test_hosts_has_localhost(node: Node, pod: Pod) -> None:
    assert re.search(r"^127\.0\.0\.1\s.*localhost", node.script(pod, "cat /etc/hosts"), re.MULTILINE)


@differs(containerd="containerd copies the node's /etc/hosts and adds nothing; the kubelet brings its own file")
def test_hosts_has_the_pod(node: Node, pod: Pod) -> None:
    address = node.pod_status(pod)["network"]["ip"]
    assert re.search(rf"^{address}\s+{pod.config['hostname']}$", node.script(pod, "cat /etc/hosts"), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.core.somaxconn", "1234"),
        ("net.ipv4.ip_local_port_range", "20000\t20100"),
        ("net/ipv4/ip_forward", "1"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "9000"),
        ("kernel.sem", "32000\t1024000000\t500\t32001"),
        ("net.ipv4.conf.eth0.arp_filter", "1"),
        ("net.ipv4.conf.all.arp_ignore", "1"),
        ("net/ipv4/neigh/eth0/gc_stale_time", "61"),
    ],
)
def test_sysctls(node: Node, name: str, value: str) -> None:
    pod = node.run_pod(linux={"sysctls": {name: value}})
    assert node.script(pod, f"cat /proc/sys/{name.replace('.', '/')}") == value


@pytest.mark.parametrize(
    ("name", "namespaces"),
    [
        case("vm.swappiness", {}, name="host", containerd=UNKNOWN),
        case("kernel.panic", {}, name="kernel", containerd=UNKNOWN),
        case("net.core.somaxconn", {"network": "NODE"}, name="host-network", containerd=UNKNOWN),
        case("kernel.msgmax", {"ipc": "NODE"}, name="host-ipc", containerd=UNKNOWN),
        case("net.core.nonsense", {}, name="absent", containerd=UNKNOWN),
        case("../../etc/passwd", {}, name="no-sysctl", containerd=UNKNOWN),
    ],
)
def test_sysctls_of_the_host_are_refused(node: Node, name: str, namespaces: Any) -> None:
    config = node.pod_config(namespaces)
    config["linux"]["sysctls"] = {name: "1"}
    node.refuse("RunPodSandbox", "INVALID_ARGUMENT", config=config, runtime_handler=node.handler)


def test_cgroup_parent(node: Node) -> None:
    pod = node.run_pod()
    if "cgroup_parent" not in pod.config["linux"]:
        pytest.skip("no --cri-cgroup-parent")
    lines = node.script(pod, "cat /proc/self/cgroup").splitlines()
    own = [line for line in lines if pod.config["linux"]["cgroup_parent"] in line]
    assert own or all(line.endswith(":/") for line in lines), "neither there nor in a cgroup namespace"


@pytest.mark.parametrize(
    "security",
    [
        {"run_as_user": {"value": 1000}},
        {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}},
        {"readonly_rootfs": True},
        {"supplemental_groups": [5, 6]},
        {"privileged": True},
        {"seccomp": {"profile_type": "RuntimeDefault"}},
        {"seccomp": {"profile_type": "Unconfined"}},
        {"seccomp_profile_path": "runtime/default"},
        {"apparmor": {"profile_type": "Unconfined"}},
        {"supplemental_groups_policy": "Strict"},
    ],
    ids=lambda security: "-".join(security),
)
def test_security_of_the_sandbox_is_taken(node: Node, security: Any) -> None:
    assert node.pod_status(node.run_pod(security=security))["state"] == "SANDBOX_READY"


def test_overhead_and_resources_are_taken(node: Node) -> None:
    sizes = {"cpu_shares": 512, "memory_limit_in_bytes": 64 << 20}
    pod = node.run_pod(linux={"overhead": sizes, "resources": sizes})
    assert node.script(pod, "echo runs") == "runs"


def test_stop_and_remove(node: Node) -> None:
    pod = node.run_pod()
    container = node.idle(pod)
    for _ in range(2):
        node.call("StopPodSandbox", pod_sandbox_id=pod.id)
        assert node.pod_status(pod)["state"] == "SANDBOX_NOTREADY"
    assert node.status(container)["state"] == "CONTAINER_EXITED"
    for _ in range(2):
        node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    node.refuse("PodSandboxStatus", "NOT_FOUND", pod_sandbox_id=pod.id)
    node.refuse("ContainerStatus", "NOT_FOUND", container_id=container)


def test_a_ready_pod_can_be_removed(node: Node) -> None:
    pod = node.run_pod()
    container = node.idle(pod)
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    node.refuse("ContainerStatus", "NOT_FOUND", container_id=container)


@differs(containerd="containerd looks for the sandbox's process, and answers NotFound")
def test_a_stopped_pod_takes_no_container(node: Node) -> None:
    pod = node.run_pod()
    node.call("StopPodSandbox", pod_sandbox_id=pod.id)
    config = node.container_config("true")
    fields = {"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config}
    node.refuse("CreateContainer", "FAILED_PRECONDITION", **fields)


@differs(containerd=UNKNOWN)
def test_a_name_is_taken_once(node: Node) -> None:
    pod = node.run_pod()
    node.refuse("RunPodSandbox", "ALREADY_EXISTS", config=pod.config, runtime_handler=node.handler)


@pytest.mark.parametrize("field", ["name", "namespace", "uid", "attempt"])
def test_another_name_is_another_pod(node: Node, field: str) -> None:
    pod = node.run_pod()
    metadata = pod.config["metadata"] | {field: 1 if field == "attempt" else "other"}
    other = node.run_config(pod.config | {"metadata": metadata})
    assert other.id != pod.id
    assert node.pod_status(other)["metadata"] == metadata


def test_a_name_is_free_again_after_removal(node: Node) -> None:
    pod = node.run_pod()
    node.remove_pods(len(node.pods) - 1)
    assert node.run_config(pod.config).id != pod.id


@differs(containerd=UNKNOWN)
def test_an_unknown_runtime_handler_is_refused(node: Node) -> None:
    message = node.refuse("RunPodSandbox", "INVALID_ARGUMENT", config=node.pod_config(), runtime_handler="none-such")
    assert "none-such" in message


def test_windows_settings_are_no_hindrance(node: Node) -> None:
    windows = {"security_context": {"run_as_username": "x", "host_process": True}}
    assert node.pod_status(node.run_pod(windows=windows))["state"] == "SANDBOX_READY"
