"""Stats of containers and pods."""

import time
from typing import Any

import pytest

from conformance.node import OLD, Node, Pod, differs, wait_for


@pytest.fixture(scope="module")
def labelled(node_of_session: Node, pod: Pod) -> str:
    """A running container with labels and annotations, that uses some memory and disk."""
    script = "head -c 5000000 /dev/zero > /file; trap 'exit 0' TERM; sleep 1000 & wait"
    container = node_of_session.start(pod, "sh", "-c", script, labels={"a": "b"}, annotations={"c": "d"})
    wait_for(lambda: "file" in node_of_session.execute(container, "ls", "/")[1])
    return container


def _stats(node: Node, container: str) -> Any:
    return node.call("ContainerStats", container_id=container)["stats"]


def test_attributes(node: Node, labelled: str) -> None:
    attributes = _stats(node, labelled)["attributes"]
    status = node.status(labelled)
    assert attributes == {name: status[name] for name in ("id", "metadata", "labels", "annotations")}


def test_cpu(node: Node, labelled: str) -> None:
    before = int(_stats(node, labelled)["cpu"]["usage_core_nano_seconds"]["value"])

    def used() -> int:
        """Be busy for a moment; on a node with much else to do that is less of a processor's time."""
        node.execute(labelled, "timeout", "0.2", "sh", "-c", "while true; do :; done")
        after = _stats(node, labelled)["cpu"]
        assert abs(int(after["timestamp"]) - time.time_ns()) < 20_000_000_000
        return int(after["usage_core_nano_seconds"]["value"]) - before

    wait_for(lambda: used() > 50_000_000)
    assert used() < 10_000_000_000


def test_the_rate_of_cpu(node: Node, labelled: str) -> None:
    _stats(node, labelled)
    node.execute(labelled, "timeout", "0.3", "sh", "-c", "while true; do :; done")
    wait_for(lambda: int(_stats(node, labelled)["cpu"].get("usage_nano_cores", {}).get("value", 0)) > 0, 15)


@pytest.mark.parametrize("name", ["working_set_bytes", "usage_bytes", "rss_bytes"])
def test_memory(node: Node, labelled: str, name: str) -> None:
    memory = _stats(node, labelled)["memory"]
    assert 0 < int(memory[name]["value"]) < 1 << 30
    assert int(memory["timestamp"]) > 0


@pytest.mark.parametrize("name", ["page_faults", "major_page_faults", "available_bytes"])
def test_more_of_memory(node: Node, pod: Pod, name: str) -> None:
    container = node.idle(pod, resources={"memory_limit_in_bytes": 64 << 20})
    assert 0 <= int(_stats(node, container)["memory"][name]["value"]) <= 64 << 20


def test_writable_layer(node: Node, labelled: str) -> None:
    def layer() -> Any:
        return _stats(node, labelled)["writable_layer"]

    wait_for(lambda: int((layer().get("used_bytes") or {}).get("value", 0)) >= 5_000_000, 15)
    assert int(layer()["inodes_used"]["value"]) > 0
    assert layer()["fs_id"]["mountpoint"].startswith("/")


@differs(containerd=OLD)
def test_swap(node: Node, labelled: str) -> None:
    assert int(_stats(node, labelled)["swap"]["timestamp"]) > 0


@pytest.mark.parametrize("by", ["id", "short id", "pod", "label", "none"])
def test_the_list_is_filtered(node: Node, pod: Pod, labelled: str, by: str) -> None:
    filters: Any = {
        "id": {"id": labelled},
        "short id": {"id": labelled[:13]},
        "pod": {"pod_sandbox_id": pod.id},
        "label": {"label_selector": {"a": "b"}},
        "none": {"label_selector": {"a": "other"}},
    }
    found = [one["attributes"]["id"] for one in node.call("ListContainerStats", filter=filters[by])["stats"]]
    assert (labelled in found) is (by != "none")
    assert len(found) == 1 or by in ("pod", "none")


def test_a_pods_stats(node: Node, pod: Pod, labelled: str) -> None:
    stats = node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]
    assert stats["attributes"]["metadata"] == pod.config["metadata"]
    linux = stats["linux"]
    assert int(linux["cpu"]["usage_core_nano_seconds"]["value"]) > 0
    assert int(linux["memory"]["usage_bytes"]["value"]) > 0
    assert int(linux["process"]["process_count"]["value"]) >= 2
    assert labelled in [one["attributes"]["id"] for one in linux["containers"]]


def test_a_pods_network_stats(node: Node, pod: Pod) -> None:
    network = node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]["linux"]["network"]
    assert network["default_interface"]["name"] == "eth0"
    assert all(f"{way}_{what}" in network["default_interface"] for way in ("rx", "tx") for what in ("bytes", "errors"))


@pytest.mark.parametrize("by", ["id", "label", "none"])
def test_the_list_of_pods_is_filtered(node: Node, by: str) -> None:
    pod = node.run_pod(labels={"pod": "stats"})
    filters: Any = {
        "id": {"id": pod.id},
        "label": {"label_selector": {"pod": "stats"}},
        "none": {"label_selector": {"pod": "other"}},
    }
    found = [one["attributes"]["id"] for one in node.call("ListPodSandboxStats", filter=filters[by])["stats"]]
    assert found == ([] if by == "none" else [pod.id])


def test_stats_of_many_at_once(node: Node, pod: Pod) -> None:
    containers = {node.idle(pod) for _ in range(3)}
    found = {one["attributes"]["id"] for one in node.call("ListContainerStats")["stats"]}
    assert containers <= found
