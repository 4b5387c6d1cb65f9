"""Two nodes: their pods reach each other, and one goes on where the other, or its runtime, does not."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane
from cluster.kubelet import Json, wait_for
from cluster.pair import Pair
from cluster.test_static_pods import is_ready, only_crinoid
from cluster.test_workloads import WEB, template, workload
from support.cri import Cri
from support.daemon import Daemon
from support.patience import patient

NODES = ("node", "second")


@pytest.fixture(autouse=True)
def _clean(pair: Pair) -> Iterator[None]:
    yield
    pair.cluster.clear()


def spread(cluster: ControlPlane, name: str, replicas: int = 4, when: str = "DoNotSchedule") -> list[Json]:
    """Make a Deployment of web servers, as many on each node, and return its pods when they are ready."""
    apart = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": name}},
    }
    probe = {"httpGet": {"path": "/name", "port": 80}, "periodSeconds": 1}
    of_container = {"readinessProbe": probe}
    made = template(cluster, name, "sh", "-c", WEB, of_container=of_container, topologySpreadConstraints=[apart])
    cluster.make("Deployment", name, **workload(name, made, replicas=replicas))
    cluster.until("Deployment", name, lambda found: found["status"].get("readyReplicas") == replicas, 120)
    pods = cluster.pods(f"app={name}")
    assert sorted(one["spec"]["nodeName"] for one in pods) == sorted([*NODES] * (replicas // 2))
    return pods


def ask_from(cluster: ControlPlane, pod: str, *addresses: str, port: int = 80) -> list[str]:
    """Return what the web servers at these addresses say to a pod, in order."""
    # wget of a static busybox looks names up, and falls over it
    ask = f"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 2 $one {port} | tail -n 1"
    script = f"for one in {' '.join(addresses)}; do echo $({ask}); done"
    return cluster.kubectl("exec", pod, "--", "sh", "-c", script).splitlines()


def names(pods: list[Json]) -> list[str]:
    return [one["metadata"]["name"] for one in pods]


def test_pods_reach_those_of_the_other_node(pair: Pair) -> None:
    pods = spread(pair.cluster, "meshed")
    addresses = [one["status"]["podIP"] for one in pods]
    for name in names(pods):
        assert ask_from(pair.cluster, name, *addresses) == names(pods)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_services_lead_to_both_nodes(pair: Pair, mode: str) -> None:
    cluster, name = pair.cluster, f"served-{mode}"
    pods = spread(cluster, name, 2)
    ports = [{"port": 8080, "targetPort": 80}]
    cluster.make("Service", name, spec={"type": "NodePort", "selector": {"app": name}, "ports": ports})
    service = cluster.get("Service", name)
    assert service is not None
    address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["nodePort"]
    seen: dict[str, set[str]] = {}

    def ask() -> bool:
        for pod in names(pods):
            with contextlib.suppress(AssertionError):
                seen.setdefault(pod, set()).update(ask_from(cluster, pod, *[address] * 8, port=8080))
        for at, other in (pair.kubelets, pair.kubelets[::-1]):
            found = seen.setdefault(f"from {at.node} by a port of {other.node}", set())
            with contextlib.suppress(OSError):
                found.update(at.place.fetch(f"http://{other.place.address}:{port}/name").decode().split())
        return all(found >= set(names(pods)) for found in seen.values()) and len(seen) == 4

    with cluster.proxy(mode), cluster.proxy(mode, pair.kubelets[1]):
        wait_for(ask, lambda: f"{seen} of {names(pods)}\n" + cluster.tail("kube-proxy-second"), patient(90))


def test_a_drained_node_sends_its_pods_to_the_other(pair: Pair) -> None:
    cluster = pair.cluster
    before = spread(cluster, "moved", when="ScheduleAnyway")
    cluster.kubectl("drain", "second", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s")
    try:
        cluster.until("Deployment", "moved", lambda found: found["status"].get("availableReplicas") == 4, 90)
        pods = [one for one in cluster.pods("app=moved") if "deletionTimestamp" not in one["metadata"]]
        assert {one["spec"]["nodeName"] for one in pods} == {"node"}
        remain = {one["metadata"]["name"] for one in before if one["spec"]["nodeName"] == "node"}
        assert len(remain & set(names(pods))) == 2
        left = pair.kubelets[1]
        wait_for(lambda: not left.pods(), left.tail, patient(60))
        for call in ("ListPodSandbox", "ListContainers"):
            assert _of_runtime(pair, call) == []
    finally:
        cluster.kubectl("uncordon", "second")


def _of_runtime(pair: Pair, call: str) -> list[Json]:
    """Return what the second node's runtime lists; a kubelet removes pods a moment after their ends."""
    found: list[Json] = []
    client = Cri(pair.runtimes[1].socket)

    def look() -> bool:
        [listed] = client.call(call).values()
        found[:] = listed
        return not found

    try:
        wait_for(look, lambda: json.dumps(found), patient(60))
    finally:
        client.close()
    return found


def test_pods_serve_while_one_nodes_runtime_is_dead(pair: Pair) -> None:
    cluster, runtime = pair.cluster, pair.runtimes[1]
    if not isinstance(runtime, Daemon):
        pytest.skip(only_crinoid)
    pods = spread(cluster, "outlives", when="ScheduleAnyway")
    addresses = [one["status"]["podIP"] for one in pods]
    [asking, *_] = [one["metadata"]["name"] for one in pods if one["spec"]["nodeName"] == "node"]
    before = _containers(pods)
    runtime.kill()
    try:
        wait_for(lambda: "runtime" in _why_not_ready(cluster), lambda: _why_not_ready(cluster), patient(90))
        assert ask_from(cluster, asking, *addresses) == names(pods)
    finally:
        runtime.start()
    cluster.wait_for_node(pair.kubelets[1])
    cluster.kubectl("scale", "deployment/outlives", "--replicas=6")
    cluster.until("Deployment", "outlives", lambda found: found["status"].get("readyReplicas") == 6, 120)
    pods = cluster.pods("app=outlives")
    assert before.items() <= _containers(pods).items()
    assert {one["spec"]["nodeName"] for one in pods if one["metadata"]["name"] not in before} == set(NODES)
    addresses = [one["status"]["podIP"] for one in pods]
    assert all(map(is_ready, pods))
    assert ask_from(cluster, asking, *addresses) == names(pods)


def _why_not_ready(cluster: ControlPlane) -> str:
    node = cluster.ask("GET", "/api/v1/nodes/second")
    [ready] = [one for one in node["status"]["conditions"] if one["type"] == "Ready"]
    return "" if ready["status"] == "True" else json.dumps(ready)


def _containers(pods: list[Json]) -> dict[str, list[tuple[str, int]]]:
    """What changes when a container is restarted, by pod."""
    return {
        one["metadata"]["name"]: [
            (status["containerID"], status["restartCount"]) for status in one["status"]["containerStatuses"]
        ]
        for one in pods
    }
