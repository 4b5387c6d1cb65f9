"""What is not there, and what is done twice: status codes and idempotence of every RPC that takes an id."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conformance.node import EMPTY, OLD, Node, Pod, case, differs

NOBODY = "0" * 64
QUESTIONS = {
    "PodSandboxStatus": "pod_sandbox_id",
    "ContainerStatus": "container_id",
    "StartContainer": "container_id",
    "ReopenContainerLog": "container_id",
    "ContainerStats": "container_id",
    "ExecSync": "container_id",
}
ENDS = {
    "StopPodSandbox": "pod_sandbox_id",
    "RemovePodSandbox": "pod_sandbox_id",
    "StopContainer": "container_id",
    "RemoveContainer": "container_id",
}
MORE: Any = {"ExecSync": {"cmd": ["true"]}}
STRICT = dict.fromkeys(("StopPodSandbox", "StopContainer"), "containerd 1.6 fails to stop what it does not know")


@pytest.mark.parametrize("rpc", QUESTIONS)
def test_an_unknown_id_is_not_found(node: Node, rpc: str) -> None:
    message = node.refuse(rpc, "NOT_FOUND", **{QUESTIONS[rpc]: NOBODY}, **MORE.get(rpc, {}))
    assert NOBODY in message or "not found" in message


@pytest.mark.parametrize("rpc", [case(rpc, containerd=STRICT.get(rpc, "")) for rpc in ENDS])
def test_an_unknown_id_has_ended(node: Node, rpc: str) -> None:
    for _ in range(2):
        node.call(rpc, **{ENDS[rpc]: NOBODY})


@differs(containerd=EMPTY)
@pytest.mark.parametrize("rpc", [*QUESTIONS, *ENDS])
def test_an_id_is_needed(node: Node, rpc: str) -> None:
    node.refuse(rpc, "INVALID_ARGUMENT", **MORE.get(rpc, {}))


def test_an_unknown_pod_has_no_stats(node: Node) -> None:
    node.refuse("PodSandboxStats", "NOT_FOUND", pod_sandbox_id=NOBODY)


def test_a_container_needs_a_pod_that_is_there(node: Node, pod: Pod) -> None:
    config = node.container_config("true")
    codes = ("NOT_FOUND",) if node.runtime == "crinoid" else ("NOT_FOUND", "UNKNOWN")
    node.refuse("CreateContainer", *codes, pod_sandbox_id=NOBODY, config=config, sandbox_config=pod.config)


def test_a_container_needs_an_image_that_is_there(node: Node, pod: Pod) -> None:
    config = node.container_config("true", image="never-pulled:1")
    codes = ("NOT_FOUND", "FAILED_PRECONDITION") if node.runtime == "crinoid" else ("NOT_FOUND", "UNKNOWN")
    message = node.refuse("CreateContainer", *codes, pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    assert "never-pulled" in message or node.runtime == "containerd"


def test_an_image_is_named_by_its_id_too(node: Node, pod: Pod) -> None:
    config = node.container_config("echo", "x") | {"image": {"image": node.pull()}}
    container = node.create_config(pod, config)
    node.call("StartContainer", container_id=container)
    node.wait_exit(container)
    assert node.log(container) == "x\n"


@differs(containerd=OLD)
@pytest.mark.parametrize("rpc", ["ListMetricDescriptors", "ListPodSandboxMetrics"])
def test_metrics_are_served(node: Node, rpc: str) -> None:
    node.call(rpc)


@pytest.mark.parametrize("rpc", ["StopContainer", "RemoveContainer"])
def test_many_ask_for_the_same_end(node: Node, pod: Pod, rpc: str) -> None:
    container = node.idle(pod)
    failures = _at_once(6, lambda: node.call(rpc, container_id=container))
    if node.runtime == "crinoid":
        assert failures == []
    node.call("RemoveContainer", container_id=container)


def test_many_ask_for_the_end_of_a_pod(node: Node) -> None:
    pod = node.run_pod()
    node.idle(pod)
    failures = _at_once(4, lambda: node.call("StopPodSandbox", pod_sandbox_id=pod.id))
    if node.runtime == "crinoid":  # of containerd's, all but one may fail to delete the network
        assert failures == []
    assert node.pod_status(pod)["state"] == "SANDBOX_NOTREADY"


def _at_once(number: int, call: Callable[[], object]) -> list[BaseException]:
    """Make a call several times at the same time; return what the calls raised."""
    with ThreadPoolExecutor(number) as pool:
        calls = [pool.submit(call) for _ in range(number)]
    return [error for one in calls if (error := one.exception()) is not None]
