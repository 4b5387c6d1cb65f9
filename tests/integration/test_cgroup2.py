"""Limits, measurements, ends for want of memory, and freezing, on a host that has cgroup v2 alone."""

import contextlib
from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups
from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Json, Pod, confined, refused, until

pytestmark = pytest.mark.skipif(cgroups.version() != 2, reason="the files that are read here are of cgroup v2")
MIB = 1 << 20
LIMITS: Json = {
    "memory_limit_in_bytes": 64 * MIB,
    "cpu_shares": 512,
    "cpu_quota": 25000,
    "cpu_period": 50000,
    "cpuset_cpus": "0",
    "cpuset_mems": "0",
    "unified": {"memory.high": str(48 * MIB), "pids.max": "77"},
}


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


def directory(pod: Pod, container: str) -> Path:
    return Path(f"/sys/fs/cgroup{pod.node.daemon.cgroup}/{pod.id}/{container}")


def files(pod: Pod, container: str, *names: str) -> list[str]:
    return [(directory(pod, container) / name).read_text().strip() for name in names]


def test_limits_and_their_changes(pod: Pod) -> None:
    names = ("memory.max", "memory.high", "cpu.max", "cpuset.cpus", "pids.max")
    container = pod.start("sleep", "1000", linux=confined(LIMITS))
    assert files(pod, container, *names) == [str(64 * MIB), str(48 * MIB), "25000 50000", "0", "77"]
    assert 10 < int(files(pod, container, "cpu.weight")[0]) < 100
    change = {"memory_limit_in_bytes": 128 * MIB, "cpu_quota": 40000, "cpu_period": 100000}
    unified = {"unified": {"memory.high": str(96 * MIB)}}
    pod.node.call("UpdateContainerResources", container_id=container, linux=change | unified)
    assert files(pod, container, *names) == [str(128 * MIB), str(96 * MIB), "40000 100000", "0", "77"]
    told = pod.node.status(container)["resources"]["linux"]
    assert (int(told["memory_limit_in_bytes"]), told["unified"]["memory.high"]) == (128 * MIB, str(96 * MIB))
    lifted = {"cpu_quota": -1, "memory_limit_in_bytes": -1}
    pod.node.call("UpdateContainerResources", container_id=container, linux=lifted)
    assert files(pod, container, "cpu.max", "memory.max") == ["max 100000", "max"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("memory.none-such", "INVALID_ARGUMENT"),
        ("none-such", "INVALID_ARGUMENT"),
        ("none.such", "FAILED_PRECONDITION"),
    ],
)
def test_settings_that_there_are_not_are_refused(pod: Pod, name: str, code: str) -> None:
    """One that no kernel could have is the request's fault, one whose controller is off the host's."""
    container = pod.start("sleep", "1000", linux=confined(LIMITS))
    change: Json = {"memory_limit_in_bytes": 128 * MIB, "unified": {name: "1"}}
    with refused(code, f"'?{name}'? (does not exist|is not the name)"):
        pod.node.call("UpdateContainerResources", container_id=container, linux=change)
    assert files(pod, container, "memory.max") == [str(64 * MIB)], "nothing of the change is done"
    before = pod.node.daemon.query("SELECT count(*) FROM ledger")
    with refused(code, f"'?{name}'? (does not exist|is not the name)"):
        pod.create("true", linux=confined(change))
    assert pod.node.daemon.query("SELECT count(*) FROM ledger") == before


def test_it_sees_its_own_cgroup_and_can_not_write(pod: Pod) -> None:
    script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max; mkdir /sys/fs/cgroup/own 2>/dev/null || echo kept"
    assert pod.sh(script, linux=confined(LIMITS)).split() == ["0::/", str(64 * MIB), "kept"]


def test_stats(pod: Pod) -> None:
    script = """
        head -c 1000000 /dev/zero > /written; x=$(head -c 4000000 /dev/zero | tr '\\0' x)
        i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done
        echo ready; sleep 1000
    """
    container = pod.start("sh", "-c", script, linux=confined({"memory_limit_in_bytes": 64 * MIB}))
    until(lambda: pod.node.log(container))
    stats = pod.node.call("ContainerStats", container_id=container)["stats"]
    cpu, memory = stats["cpu"], stats["memory"]
    kernel = dict(line.split() for line in files(pod, container, "cpu.stat")[0].splitlines())
    assert int(kernel["usage_usec"]) * 500 < int(cpu["usage_core_nano_seconds"]["value"])
    assert 4_000_000 < int(memory["working_set_bytes"]["value"]) <= int(memory["usage_bytes"]["value"]) < 64 * MIB
    assert int(memory["available_bytes"]["value"]) == 64 * MIB - int(memory["working_set_bytes"]["value"])
    assert int(memory["page_faults"]["value"]) > 100
    if Path("/proc/pressure/cpu").exists():
        assert int(cpu["psi"]["Some"]["Total"]) > 0
        assert {"Full", "Some"} <= memory["psi"].keys() & stats["io"]["psi"].keys()
    of_pod = pod.node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]["linux"]
    assert int(of_pod["memory"]["usage_bytes"]["value"]) >= int(memory["working_set_bytes"]["value"])
    assert int(of_pod["process"]["process_count"]["value"]) >= 1
    metrics = pod.node.call("ListPodSandboxMetrics")["pod_metrics"][0]["container_metrics"][0]["metrics"]
    values = {one["name"]: int(one["value"]["value"]) for one in metrics}
    assert values["container_spec_memory_limit_bytes"] == 64 * MIB
    assert values["container_memory_usage_bytes"] > 4_000_000


@pytest.mark.parametrize("child", [False, True])
def test_want_of_memory_is_told(pod: Pod, child: bool) -> None:
    eat = "x=a; while true; do x=$x$x; done"
    script = f"sh -c '{eat}' & wait $!; exit 5" if child else eat
    container = pod.start("sh", "-c", script, linux=confined({"memory_limit_in_bytes": 16 * MIB}))
    status = pod.node.wait_exit(container)
    assert status["reason"] == "OOMKilled"
    assert status["exit_code"] != 0


def test_a_frozen_container_can_be_ended(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    (directory(pod, container) / "cgroup.freeze").write_text("1")
    until(lambda: "frozen 1" in files(pod, container, "cgroup.events")[0])
    pod.node.call("StopContainer", container_id=container, timeout=0)
    assert pod.node.status(container)["exit_code"] == 137


def test_what_an_exec_leaves_running_is_killed_at_its_deadline(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    with refused("DEADLINE_EXCEEDED", "had not ended"):
        pod.node.execute(container, "sh", "-c", "setsid sleep 555 & sleep 777", timeout=2)
    left = [path for path in directory(pod, container).rglob("cgroup.procs") if path.read_text()]
    names = [Path(f"/proc/{pid}/cmdline").read_text() for path in left for pid in path.read_text().split()]
    assert not any("555" in name or "777" in name for name in names)


def test_no_cgroup_is_left(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    pod.node.execute(container, "true")
    with contextlib.suppress(AssertionError):
        pod.node.execute(container, "false")
    inside = directory(pod, container)
    assert inside.is_dir()
    pod.node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert not inside.parent.exists()
