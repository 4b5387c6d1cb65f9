"""Filters of the lists of pods and containers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from conformance.node import Node, Pod


@dataclass(frozen=True)
class Population:
    """Two pods, one stopped; a running, an exited and a created container in the other."""

    ready: Pod
    stopped: Pod
    running: str
    exited: str
    created: str


def told(value: object) -> str:
    """A test's name must not depend on a set's order, which changes from one run to the next."""
    return ",".join(sorted(value)) if isinstance(value, set) else str(value)


@pytest.fixture(scope="module")
def population(node_of_session: Node) -> Iterator[Population]:
    node = node_of_session
    ready, stopped = node.run_pod(labels={"app": "one", "set": "x"}), node.run_pod(labels={"app": "two", "set": "x"})
    node.call("StopPodSandbox", pod_sandbox_id=stopped.id)
    exited = node.start(ready, "true", labels={"kind": "job", "part": "y"})
    node.wait_exit(exited)
    created = node.create(ready, "true", labels={"kind": "idle", "part": "y"})
    yield Population(ready, stopped, node.idle(ready, labels={"kind": "server", "part": "y"}), exited, created)
    node.remove_pods()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {"ready", "stopped"}),
        ({"id": "ready"}, {"ready"}),
        ({"id": "short"}, {"ready"}),
        ({"id": "0" * 64}, set()),
        ({"state": {"state": "SANDBOX_READY"}}, {"ready"}),
        ({"state": {"state": "SANDBOX_NOTREADY"}}, {"stopped"}),
        ({"label_selector": {"set": "x"}}, {"ready", "stopped"}),
        ({"label_selector": {"set": "x", "app": "two"}}, {"stopped"}),
        ({"label_selector": {"set": ""}}, set()),
        ({"label_selector": {"none": "x"}}, set()),
        ({"label_selector": {"set": "x"}, "state": {"state": "SANDBOX_READY"}}, {"ready"}),
        ({"id": "ready", "state": {"state": "SANDBOX_NOTREADY"}}, set()),
    ],
    ids=told,
)
def test_pods(node: Node, population: Population, wanted: Any, expected: set[str]) -> None:
    names = {population.ready.id: "ready", population.stopped.id: "stopped"}
    words = {"ready": population.ready.id, "short": population.ready.id[:13]}
    query = wanted | ({"id": words.get(wanted["id"], wanted["id"])} if "id" in wanted else {})
    found = [one["id"] for one in node.call("ListPodSandbox", filter=query)["items"]]
    assert {names.get(one, "") for one in found} - {""} == expected
    assert len(found) == len(expected) or not wanted


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {"running", "exited", "created"}),
        ({"id": "running"}, {"running"}),
        ({"id": "short"}, {"running"}),
        ({"id": "0" * 64}, set()),
        ({"state": {"state": "CONTAINER_RUNNING"}}, {"running"}),
        ({"state": {"state": "CONTAINER_EXITED"}}, {"exited"}),
        ({"state": {"state": "CONTAINER_CREATED"}}, {"created"}),
        ({"state": {"state": "CONTAINER_UNKNOWN"}}, set()),
        ({"label_selector": {"part": "y"}}, {"running", "exited", "created"}),
        ({"label_selector": {"part": "y", "kind": "job"}}, {"exited"}),
        ({"label_selector": {"kind": "none"}}, set()),
        ({"state": {"state": "CONTAINER_RUNNING"}, "label_selector": {"kind": "job"}}, set()),
    ],
    ids=told,
)
@pytest.mark.parametrize("narrowed", [True, False])
def test_containers(node: Node, population: Population, wanted: Any, expected: set[str], narrowed: bool) -> None:
    names = {getattr(population, name): name for name in ("running", "exited", "created")}
    words = {"running": population.running, "short": population.running[:13]}
    query = wanted | ({"id": words.get(wanted["id"], wanted["id"])} if "id" in wanted else {})
    query |= {"pod_sandbox_id": population.ready.id} if narrowed else {}
    found = [one["id"] for one in node.call("ListContainers", filter=query)["containers"]]
    assert {names.get(one, "") for one in found} - {""} == expected
    assert len(found) == len(expected) or not narrowed


def test_containers_of_another_pod(node: Node, population: Population) -> None:
    assert node.call("ListContainers", filter={"pod_sandbox_id": population.stopped.id})["containers"] == []
