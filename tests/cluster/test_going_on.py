"""The runtime ends, starts anew and is upgraded under a kubelet: a client in Go, which calls all the time.

What the kubelet has to say of it is in its log, and what became of the pods is in their statuses.
"""

import re
from collections.abc import Iterator

import pytest

from cluster.control_plane import ControlPlane
from cluster.kubelet import Json, Kubelet, wait_for
from cluster.place import Place
from cluster.test_static_pods import container, is_in, is_ready, only_crinoid, pod
from support.containerd import Containerd
from support.daemon import Daemon
from support.patience import patient

PROBE = {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 1}
FAILED = re.compile(r"code = (?!NotFound)")
EVENTED = {"featureGates": {"EventedPLEG": True}}


@pytest.fixture
def daemon(runtime: Daemon | Containerd) -> Daemon:
    if not isinstance(runtime, Daemon):
        pytest.skip(only_crinoid)
    return runtime


@pytest.fixture(params=[{}, EVENTED], ids=["relisting", "evented"])
def any_kubelet(request: pytest.FixtureRequest, kubelet: Kubelet) -> Iterator[Kubelet]:
    """The kubelet, which learns of containers' ends by lists, or by the runtime's events."""
    kubelet.restart(**request.param)
    yield kubelet
    kubelet.restart()


def test_an_upgrade_is_nothing_to_a_kubelet(
    any_kubelet: Kubelet, place: Place, daemon: Daemon, request: pytest.FixtureRequest
) -> None:
    kubelet = any_kubelet
    mode = "evented" if kubelet.settings else "relisting"
    stays = f"stays-{mode}"
    kubelet.run(pod(stays, container(place, "sleep", "1000", livenessProbe=PROBE, readinessProbe=PROBE)))
    kubelet.until(stays, is_ready)
    before = kubelet.statuses(stays)["app"]
    logged = kubelet.log.stat().st_size
    names: list[str] = []
    formers = []
    for turn in range(3):
        for seconds in range(4):
            names.append(f"ends-{mode}-{turn}-{seconds}")
            kubelet.run(pod(names[-1], container(place, "sleep", str(seconds)), restartPolicy="Never"))
        # Calls are under way then, and containers created and not started. With evented PLEG these would be made again
        # if the stream of events ended: a kubelet believes its cache.
        kubelet.until(names[-4], _is_known)
        formers.append(daemon.take_over())
        request.addfinalizer(formers[-1].kill)  # also where the test fails
        for name in names[-4:]:
            kubelet.until(name, is_in("Succeeded"))
    failed = [line for line in kubelet.written_since(logged).splitlines() if FAILED.search(line)]
    after = kubelet.statuses(stays)["app"]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert failed == []
    if mode == "evented":
        for name in names:
            assert kubelet.received(name)[:3] == ["CREATED", "STARTED", "STOPPED"]
    assert [reason for reason, _ in kubelet.events(stays) if reason in ("Unhealthy", "Killing")] == []
    for name in names:
        reasons = [reason for reason, _ in kubelet.events(name)]
        assert [one for one in reasons if one in ("Created", "Started", "Failed")] == ["Created", "Started"]
    for name in (stays, *names):
        kubelet.drop(name)
    wait_for(lambda: not kubelet.pods(), kubelet.tail, patient(60))
    kubelet.restart(**kubelet.settings)  # its connection is to the first of them, which passes its calls on
    for former in formers:
        former.terminate()
        assert former.wait(patient(30)) == 0


def _is_known(found: Json) -> bool:
    return bool(found["status"].get("containerStatuses"))


def test_the_runtime_is_killed_while_a_deployment_grows_and_shrinks(cluster: ControlPlane) -> None:
    runtime = cluster.runtime
    if not isinstance(runtime, Daemon):
        pytest.skip(only_crinoid)
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 60}
    script = "trap 'exit 0' TERM; sleep 100000 & wait"
    app = container(cluster.place, "sh", "-c", script, livenessProbe=probe, readinessProbe=PROBE)
    made = {"metadata": {"labels": {"app": "lasting"}}, "spec": pod("", app)["spec"]}
    cluster.make(
        "Deployment", "lasting", spec={"selector": {"matchLabels": {"app": "lasting"}}, "template": made, "replicas": 2}
    )

    def has(available: int) -> None:
        def holds(found: Json) -> bool:
            return bool(found["status"].get("availableReplicas") == available == len(cluster.pods("app=lasting")))

        cluster.until("Deployment", "lasting", holds, 90)

    def ids() -> set[tuple[str, int]]:
        statuses = [one for found in cluster.pods("app=lasting") for one in found["status"]["containerStatuses"]]
        return {(one["containerID"], one["restartCount"]) for one in statuses}

    try:
        has(2)
        before = ids()
        for replicas in (6, 1, 5):
            cluster.kubectl("scale", "deployment/lasting", f"--replicas={replicas}")
            runtime.kill()
            runtime.start()
            has(replicas)
        assert before & ids(), "those that were there from the beginning go last"
        assert {restarts for _, restarts in ids()} == {0}
        sandboxes = {one["metadata"]["name"] for one in runtime.cri.call("ListPodSandbox")["items"]}
        assert sandboxes >= {one["metadata"]["name"] for one in cluster.pods("app=lasting")}
    finally:
        cluster.clear()
