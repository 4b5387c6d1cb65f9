"""NamespaceOption: what a pod's containers share with each other and with the node."""

import os
from typing import Any

import pytest

from conformance.node import Node, Pod, differs, wait_for

PODS_OWN = ("net", "ipc", "uts")


def _link(node: Node, pod: Pod, kind: str, **config: Any) -> str:
    return node.script(pod, f"readlink /proc/self/ns/{kind}", **config)


def _options(**options: Any) -> Any:
    return {"namespace_options": options}


@pytest.mark.parametrize("kind", PODS_OWN)
def test_a_pods_containers_share(node: Node, pod: Pod, kind: str) -> None:
    first, second = (_link(node, pod, kind) for _ in range(2))
    assert first == second
    assert first != os.readlink(f"/proc/self/ns/{kind}")


@pytest.mark.parametrize("kind", ["mnt", "pid"])
def test_each_container_has_its_own(node: Node, pod: Pod, idle: str, kind: str) -> None:
    running = node.execute(idle, "readlink", f"/proc/self/ns/{kind}")[1].strip()
    assert len({running, _link(node, pod, kind), os.readlink(f"/proc/self/ns/{kind}")}) == 3


@pytest.mark.parametrize("kind", PODS_OWN)
def test_pods_are_apart(node: Node, pod: Pod, kind: str) -> None:
    assert _link(node, pod, kind) != _link(node, node.run_pod(), kind)


def test_the_nodes_network(node: Node) -> None:
    pod = node.run_pod({"network": "NODE"})
    security = _options(network="NODE", pid="CONTAINER")
    assert _link(node, pod, "net", security=security) == node.network.inode
    assert node.script(pod, "hostname", security=security) == os.uname().nodename
    status = node.pod_status(pod)
    assert status["linux"]["namespaces"]["options"]["network"] == "NODE"
    assert (status.get("network") or {}).get("ip", "") == ""


def test_the_nodes_ipc(node: Node) -> None:
    pod = node.run_pod({"ipc": "NODE"})
    security = _options(ipc="NODE", pid="CONTAINER")
    assert _link(node, pod, "ipc", security=security) == os.readlink("/proc/self/ns/ipc")
    assert node.pod_status(pod)["linux"]["namespaces"]["options"]["ipc"] == "NODE"


def test_the_nodes_processes(node: Node) -> None:
    pod = node.run_pod({"pid": "NODE"})
    assert _link(node, pod, "pid", security=_options(pid="NODE")) == os.readlink("/proc/self/ns/pid")
    assert node.pod_status(pod)["linux"]["namespaces"]["options"]["pid"] == "NODE"


def test_processes_of_its_own(node: Node, pod: Pod) -> None:
    assert node.script(pod, "echo $$") == "1"


@pytest.fixture(scope="module")
def sharing(node_of_session: Node) -> Pod:
    """A pod whose containers share their processes."""
    return node_of_session.run_pod({"pid": "POD"})


def test_shared_processes(node: Node, sharing: Pod) -> None:
    security = _options(pid="POD")
    node.start(sharing, "sleep", "4321", security=security)
    # The process of runc or crun becomes the container's a moment after StartContainer's answer.
    wait_for(lambda: "sleep 4321" in node.script(sharing, "ps", security=security))
    assert node.script(sharing, "echo $$", security=security) != "1"
    assert node.pod_status(sharing)["linux"]["namespaces"]["options"]["pid"] == "POD"


def test_shared_processes_end_with_their_container(node: Node, sharing: Pod) -> None:
    security = _options(pid="POD")
    container = node.start(sharing, "sh", "-c", "sleep 5432 & sleep 5433", security=security)
    node.call("StopContainer", container_id=container, timeout=0)
    assert node.status(container)["exit_code"] == 137
    assert "sleep 543" not in node.script(sharing, "ps | grep -v grep", security=security)


def test_a_container_may_keep_to_itself_in_a_sharing_pod(node: Node, sharing: Pod) -> None:
    assert node.script(sharing, "echo $$", security=_options(pid="CONTAINER")) == "1"


def test_the_processes_of_a_target(node: Node, pod: Pod) -> None:
    target = node.start(pod, "sleep", "6543")
    security = _options(pid="TARGET", target_id=target)
    wait_for(lambda: "sleep 6543" in node.script(pod, "ps", security=security))
    assert node.script(pod, "echo $$", security=security) != "1"


@pytest.mark.parametrize("target", ["none-such", ""])
def test_a_target_has_to_be_there(node: Node, pod: Pod, target: str) -> None:
    codes = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
    unknown = () if node.runtime == "crinoid" else ("UNKNOWN",)
    node.refuse_container(pod, *codes, *unknown, security=_options(pid="TARGET", target_id=target))


@differs(containerd="containerd takes a container of any pod as target")
def test_a_target_is_of_the_same_pod(node: Node, pod: Pod) -> None:
    target = node.idle(node.run_pod())
    codes = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
    node.refuse_container(pod, *codes, security=_options(pid="TARGET", target_id=target))


def test_shared_memory_is_the_pods(node: Node, pod: Pod) -> None:
    node.script(pod, "echo shared > /dev/shm/note")
    assert node.script(pod, "cat /dev/shm/note; df -k /dev/shm | tail -1 | awk '{print $2}'") == "shared\n65536"
    assert node.script(node.run_pod(), "ls /dev/shm") == ""


def test_shared_memory_is_for_every_user(node: Node, pod: Pod) -> None:
    security = {"run_as_user": {"value": 1000}}
    assert node.script(pod, "echo x > /dev/shm/mine && stat -c %a /dev/shm", security=security) == "1777"
