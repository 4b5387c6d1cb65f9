"""The basic life of pods and containers with every combination of drivers and sources."""

import itertools
import json
import time
from pathlib import Path

import pytest

from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory
from integration.conftest import BUSYBOX, NETWORKS, RUNTIMES, SNAPSHOTTERS, Node
from integration.pods import QUICK, until
from support.patience import patient

RANGES = {"cni": "10.89.", "bridge": "10.90."}
MATRIX = [
    f"{runtime}-{network}-{snapshotter}"
    for runtime, network, snapshotter in itertools.product(RUNTIMES, NETWORKS, SNAPSHOTTERS)
]


@pytest.mark.parametrize("handler", MATRIX)
@pytest.mark.parametrize("source", ["layout", "distribution"])
def test_a_pod_lives_and_leaves_nothing(node: Node, handler: str, source: str) -> None:
    image = BUSYBOX
    if source == "distribution":
        image = node.registry.push(node.layouts / "busybox", BUSYBOX, "matrix/busybox:1")
    node.call("RemoveImage", image={"image": image})
    image_id = node.call("PullImage", image={"image": image})["image_ref"]
    assert image in [tag for one in node.call("ListImages")["images"] for tag in one["repo_tags"]]
    pod = node.run_pod(handler=handler)
    container = node.run_container(
        pod, "sh", "-c", "echo out; echo err >&2; echo data > /written; sleep 99", image=image
    )
    wait = "until [ -s /written ]; do sleep 0.01; done; cat /written"
    assert node.execute(container, "sh", "-c", wait) == (0, "data\n", "")
    status = node.status(container)
    assert (status["state"], status["image_id"]) == ("CONTAINER_RUNNING", image_id)
    log = Path(status["log_path"])
    until(lambda: log.read_text().count("\n") == 2)  # conmon may not have come to it yet
    assert sorted(line.split(" ", 1)[1] for line in log.read_text().splitlines()) == ["stderr F err", "stdout F out"]
    stats = node.call("ContainerStats", container_id=container)["stats"]
    assert int(stats["writable_layer"]["used_bytes"]["value"]) > 0
    address = node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
    network = next((name for name, start in RANGES.items() if address.startswith(start)), "host")
    assert network in handler
    node.call("StopContainer", container_id=container, timeout=0)
    assert node.status(container)["exit_code"] == 137
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["state"] == "SANDBOX_NOTREADY"
    node.call("RemoveContainer", container_id=container)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert node.call("ListPodSandbox")["items"] == []
    assert [line for line in node.daemon.leftovers() if "monitors" not in line and "process" not in line] == []


def test_stop_and_remove_are_idempotent(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    for _ in range(2):
        node.call("StopContainer", container_id=container, timeout=0)
    for _ in range(2):
        node.call("RemoveContainer", container_id=container)
    for _ in range(2):
        node.call("StopPodSandbox", pod_sandbox_id=pod)
    for _ in range(2):
        node.call("RemovePodSandbox", pod_sandbox_id=pod)
    for rpc, field in (("StopContainer", "container_id"), ("RemovePodSandbox", "pod_sandbox_id")):
        node.call(rpc, **{field: "0" * 64})


def test_removing_a_pod_ends_and_removes_its_containers(node: Node) -> None:
    pod = node.run_pod()
    for number in range(3):
        node.run_container(pod, "sleep", "1000", name=f"c{number}")
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert node.call("ListContainers")["containers"] == []


def test_filters(node: Node) -> None:
    first = node.run_pod("one", labels={"app": "a", "tier": "x"})
    second = node.run_pod("two", labels={"app": "b"})
    running = node.run_container(first, "sleep", "1000", labels={"k": "v"})
    created = node.create(second, "sleep", "1000")

    def pods(**fields: object) -> list[str]:
        return [pod["id"] for pod in node.call("ListPodSandbox", filter=fields)["items"]]

    def containers(**fields: object) -> list[str]:
        return [one["id"] for one in node.call("ListContainers", filter=fields)["containers"]]

    assert pods() == [second, first]
    assert pods(id=first[:12]) == pods(label_selector={"app": "a"}) == [first]
    assert pods(label_selector={"app": "a", "tier": "y"}) == []
    assert pods(state={"state": "SANDBOX_NOTREADY"}) == []
    assert containers(state={"state": "CONTAINER_RUNNING"}) == containers(label_selector={"k": "v"}) == [running]
    assert containers(pod_sandbox_id=second) == containers(id=created) == [created]
    node.call("StopPodSandbox", pod_sandbox_id=first)
    assert pods(state={"state": "SANDBOX_NOTREADY"}) == [first]


def test_two_containers_of_a_pod_meet_on_loopback_and_share_memory(node: Node) -> None:
    pod = node.run_pod()
    node.run_container(
        pod, "sh", "-c", "echo shared > /dev/shm/x; while true; do echo hi | nc -l -p 8080; done", name="a"
    )
    script = "until echo | nc -w 1 127.0.0.1 8080; do sleep 0.1; done; cat /dev/shm/x"
    assert node.output(pod, "sh", "-c", script, name="b").splitlines()[-2:] == ["hi", "shared"]


def test_exit_codes_and_reasons(node: Node) -> None:
    pod = node.run_pod()
    for name, script, code, reason in (
        ("ok", "exit 0", 0, "Completed"),
        ("bad", "exit 3", 3, "Error"),
    ):
        status = node.wait_exit(node.run_container(pod, "sh", "-c", script, name=name))
        assert (status["exit_code"], status["reason"]) == (code, reason)
        assert 0 < int(status["created_at"]) <= int(status["started_at"]) <= int(status["finished_at"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_out_of_memory_is_told(node: Node, runtime: str) -> None:
    pod = node.run_pod(handler=runtime)
    linux = {"resources": {"memory_limit_in_bytes": 16 << 20}}
    container = node.run_container(pod, "sh", "-c", "x=a; while true; do x=$x$x; done", linux=linux)
    status = node.wait_exit(container)
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")


def test_stop_waits_for_the_grace_period(node: Node) -> None:
    import time

    pod = node.run_pod()
    script = "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done"
    polite = node.run_container(pod, "sh", "-c", script, name="p")
    until(lambda: node.log(polite) == "ready\n")
    node.call("StopContainer", container_id=polite, timeout=int(patient(10)))
    assert node.status(polite)["exit_code"] == 5
    assert node.log(polite) == "ready\nbye\n"
    stubborn = node.run_container(pod, "sh", "-c", "trap '' TERM; echo deaf; while true; do sleep 0.05; done", name="s")
    until(lambda: node.log(stubborn) == "deaf\n")
    began = time.monotonic()
    node.call("StopContainer", container_id=stubborn, timeout=1)
    assert time.monotonic() - began >= 1
    assert node.status(stubborn)["exit_code"] == 137


@pytest.mark.parametrize("below", [False, True], ids=["paused", "below"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_frozen_can_be_stopped(node: Node, runtime: str, *, below: bool) -> None:
    """Somebody paused the container, or a privileged one has frozen a cgroup of its own: SIGKILL waits for the thaw."""
    pod = node.run_pod(handler=QUICK[runtime])
    container = node.run_container(pod, "sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    info = json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])
    freezer = cgroup_directory("freezer", info["cgroup"])
    assert freezer is not None
    frozen = freezer / "own" if below else freezer
    frozen.mkdir(exist_ok=True)
    if below:
        until(lambda: len((freezer / "cgroup.procs").read_text().split()) == 2)
        (frozen / "cgroup.procs").write_text((freezer / "cgroup.procs").read_text().split()[-1])
    old, new = frozen / "freezer.state", frozen / "cgroup.freeze"
    old.write_text("FROZEN") if old.exists() else new.write_text("1")
    begun = time.monotonic()
    node.call("StopContainer", container_id=container, timeout=1)
    assert time.monotonic() - begun < patient(15), "it was given up instead of thawed"
    assert node.status(container)["exit_code"] == 137
    node.call("RemoveContainer", container_id=container)
    assert not freezer.exists()


def test_stop_signal_of_the_container(node: Node) -> None:
    pod = node.run_pod()
    script = "trap 'exit 7' USR1; echo ready; while true; do sleep 0.05; done"
    container = node.run_container(pod, "sh", "-c", script, stop_signal="SIGNAL_SIGUSR1")
    until(lambda: node.log(container) == "ready\n")
    node.call("StopContainer", container_id=container, timeout=int(patient(10)))
    status = node.status(container)
    assert (status["exit_code"], status["stop_signal"]) == (7, "SIGNAL_SIGUSR1")


def test_image_defaults(node: Node) -> None:
    node.pull("docker.io/test/user:1")
    pod = node.run_pod()
    container = node.create(pod, image="docker.io/test/user:1")
    node.call("StartContainer", container_id=container)
    node.wait_exit(container)
    assert node.log(container) == "entry cmd\n"
    assert node.output(pod, "sh", "-c", "id; pwd", image="docker.io/test/user:1", name="b").splitlines() == [
        "uid=1000(alice) gid=1000(alice) groups=50(staff),51(extra),1000(alice)",
        "/home/alice",
    ]


def test_layers_and_whiteouts(node: Node) -> None:
    node.pull("docker.io/test/two:1")
    for handler in ("runc-cni-overlay", "runc-cni-native"):
        pod = node.run_pod(handler, handler=handler)
        script = "cat /extra; ls /bin/nc 2>/dev/null || echo gone"
        assert node.output(pod, "sh", "-c", script, image="docker.io/test/two:1") == "xgone\n"


def test_pid_namespaces(node: Node) -> None:
    shared = node.run_pod("shared", linux={"security_context": {"namespace_options": {"pid": "POD"}}})
    in_pod = {"security_context": {"namespace_options": {"pid": "POD"}}}
    first = node.run_container(shared, "sleep", "1234", name="a", linux=in_pod)
    assert "sleep 1234" in node.output(shared, "ps", name="b", linux=in_pod)
    target = {"security_context": {"namespace_options": {"pid": "TARGET", "target_id": first}}}
    assert "sleep 1234" in node.output(shared, "ps", name="c", linux=target)
    assert "sleep 1234" not in node.output(shared, "ps", name="d")
    host = {"security_context": {"namespace_options": {"pid": "NODE"}}}
    assert "sleep 1234" in node.output(shared, "ps", name="e", linux=host)


def test_a_pod_with_shared_processes_is_not_ready_without_its_init(node: Node) -> None:
    import os
    import signal

    pod = node.run_pod(linux={"security_context": {"namespace_options": {"pid": "POD"}}})
    in_pod = {"security_context": {"namespace_options": {"pid": "POD"}}}
    container = node.run_container(pod, "sleep", "1000", linux=in_pod)
    pids = node.daemon.cgroup_processes(pod)
    inits = [pid for pid in pids if b"/init" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(inits) == 1
    os.kill(inits[0], signal.SIGKILL)
    assert node.wait_exit(container)["exit_code"] == 137
    until(lambda: node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["state"] != "SANDBOX_READY")
