"""LinuxContainerResources: limits, as the container's own cgroup shows them, and their update."""

import time
from pathlib import Path
from typing import Any

import pytest

from conformance.node import OLD, UNKNOWN, Node, Pod, case, differs, wait_for
from support.patience import patient

MIB = 1 << 20
FILES = {
    "memory": ("memory/memory.limit_in_bytes", "memory.max"),
    "shares": ("cpu/cpu.shares", "cpu.weight"),
    "quota": ("cpu/cpu.cfs_quota_us", "cpu.max"),
    "period": ("cpu/cpu.cfs_period_us", "cpu.max"),
    "cpus": ("cpuset/cpuset.cpus", "cpuset.cpus"),
    "mems": ("cpuset/cpuset.mems", "cpuset.mems"),
}


def _weight(shares: int) -> int:
    """cgroup v2's weight of cgroup v1's shares, as the OCI runtimes count."""
    return 1 + (shares - 2) * 9999 // 262142


def _limit(node: Node, container: str, name: str) -> str:
    """Read a limit of either version of cgroups, in the words of v1."""
    old, new = FILES[name]
    both = f"cat /sys/fs/cgroup/{old} 2>/dev/null || cat /sys/fs/cgroup/{new}"
    text = node.execute(container, "sh", "-c", both)[1].strip()
    if name in ("quota", "period") and " " in text:
        return text.split()[("quota", "period").index(name)].replace("max", "-1")
    return text.replace("max", "-1")


def _is(node: Node, container: str, name: str, wanted: int) -> bool:
    given = int(_limit(node, container, name))
    return given in (wanted, _weight(wanted)) if name == "shares" else given == wanted


LIMITS = [
    ({"memory_limit_in_bytes": 64 * MIB}, "memory", 64 * MIB),
    ({"cpu_shares": 512}, "shares", 512),
    ({"cpu_shares": 2}, "shares", 2),
    ({"cpu_quota": 50_000, "cpu_period": 100_000}, "quota", 50_000),
    ({"cpu_quota": 20_000, "cpu_period": 50_000}, "period", 50_000),
]
IDS = ["memory", "shares", "least-shares", "quota", "period"]


@pytest.mark.parametrize(("resources", "name", "wanted"), LIMITS, ids=IDS)
def test_limits(node: Node, pod: Pod, resources: Any, name: str, wanted: int) -> None:
    assert _is(node, node.idle(pod, resources=resources), name, wanted)


@pytest.mark.parametrize(("resources", "name", "wanted"), LIMITS, ids=IDS)
def test_update(node: Node, pod: Pod, resources: Any, name: str, wanted: int) -> None:
    container = node.idle(pod)
    node.call("UpdateContainerResources", container_id=container, linux=resources, annotations={"a": "b"})
    assert _is(node, container, name, wanted)


@pytest.mark.parametrize(("resources", "name", "wanted"), LIMITS, ids=IDS)
def test_status_tells_the_limits(node: Node, pod: Pod, resources: Any, name: str, wanted: int) -> None:
    container = node.idle(pod, resources=resources)
    told = node.status(container)["resources"]["linux"]
    assert {key: int(told[key]) for key in resources} == resources
    node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 100})
    told = node.status(container)["resources"]["linux"]
    assert {key: int(told[key]) for key in resources} == resources | ({"cpu_shares": 100} if name == "shares" else {})
    assert told["cpu_shares"] == "100"


def _both(node: Node, container: str) -> int | None:
    """Read the limit of memory and swap together; ``None`` where swap is not accounted for."""
    old, new = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/memory.swap.max"
    text = node.execute(container, "sh", "-c", f"cat {old} 2>/dev/null || cat {new} 2>/dev/null")[1].strip()
    if not text:
        return None
    more = 0 if node.execute(container, "test", "-e", old)[0] == 0 else int(_limit(node, container, "memory"))
    return int(text.replace("max", "-1")) + more


def test_a_memory_limit_alone_is_one_of_swap_too(node: Node, pod: Pod) -> None:
    """And may be raised above the older limit of both; the status tells them."""
    container = node.idle(pod, resources={"memory_limit_in_bytes": 64 * MIB})
    if _both(node, container) is None:
        pytest.skip("the kernel does not account for swap")
    assert _both(node, container) == 64 * MIB
    for limit in (128 * MIB, 32 * MIB):
        node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": limit})
        assert (int(_limit(node, container, "memory")), _both(node, container)) == (limit, limit)
        told = node.status(container)["resources"]["linux"]
        assert int(told["memory_limit_in_bytes"]) == int(told["memory_swap_limit_in_bytes"]) == limit
    node.call("UpdateContainerResources", container_id=container, linux={"memory_swap_limit_in_bytes": 96 * MIB})
    assert (int(_limit(node, container, "memory")), _both(node, container)) == (32 * MIB, 96 * MIB)


def test_cpuset(node: Node, pod: Pod) -> None:
    container = node.idle(pod, resources={"cpuset_cpus": "0", "cpuset_mems": "0"})
    assert [_limit(node, container, name) for name in ("cpus", "mems")] == ["0", "0"]
    assert "Cpus_allowed_list:\t0\n" in node.execute(container, "cat", "/proc/self/status")[1]


def test_update_of_cpuset(node: Node, pod: Pod) -> None:
    container = node.idle(pod)
    node.call("UpdateContainerResources", container_id=container, linux={"cpuset_cpus": "0"})
    assert _limit(node, container, "cpus") == "0"


def test_update_leaves_the_rest(node: Node, pod: Pod) -> None:
    container = node.idle(pod, resources={"memory_limit_in_bytes": 64 * MIB, "cpu_shares": 300})
    node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": 96 * MIB})
    assert _is(node, container, "memory", 96 * MIB)
    assert _is(node, container, "shares", 300)


def test_update_of_a_created_container(node: Node, pod: Pod) -> None:
    container = node.create(pod, "sleep", "1000")
    node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": 64 * MIB})
    node.call("StartContainer", container_id=container)
    assert _is(node, container, "memory", 64 * MIB)


@pytest.mark.parametrize("adjustment", [0, 500, 1000])
def test_oom_score_adj(node: Node, pod: Pod, adjustment: int) -> None:
    written = node.script(pod, "cat /proc/self/oom_score_adj", resources={"oom_score_adj": adjustment})
    assert int(written) == adjustment


def test_an_oom_score_adj_below_the_daemons_is_no_error(node: Node, pod: Pod) -> None:
    """Without CAP_SYS_RESOURCE it can't be lowered; with it, it is what was asked for."""
    own = int(node.script(pod, "cat /proc/self/oom_score_adj", resources={"oom_score_adj": -998}))
    assert own == -998 or own <= 0


@pytest.mark.parametrize("first", [True, False])
def test_out_of_memory(node: Node, pod: Pod, first: bool) -> None:
    """Whether the first process is killed, or a child of it, which is the reason why it ends."""
    eat = "x=a; while true; do x=$x$x; done"
    command = ("sh", "-c", eat if first else f"sh -c '{eat}'; exit $?")
    container = node.start(pod, *command, resources={"memory_limit_in_bytes": 16 * MIB})
    status = node.wait_exit(container)
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")


def test_processors_are_throttled(node: Node, pod: Pod) -> None:
    container = node.idle(pod, resources={"cpu_quota": 10_000, "cpu_period": 100_000})
    node.execute(container, "timeout", "0.5", "sh", "-c", "while true; do :; done")
    stat = "cat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null || cat /sys/fs/cgroup/cpu.stat"
    fields = dict(line.split() for line in node.execute(container, "sh", "-c", stat)[1].splitlines())
    assert int(fields["nr_throttled"]) > 0


@pytest.mark.parametrize(
    "resources",
    [
        {"unified": {"memory.high": "50000000"}},
        {"memory_swap_limit_in_bytes": 64 * MIB, "memory_limit_in_bytes": 64 * MIB},
        {"hugepage_limits": [{"page_size": "2MB", "limit": 0}]},
        {"cpu_quota": -1},
        {"memory_limit_in_bytes": -1},
    ],
    ids=lambda resources: "-".join(resources),
)
def test_what_depends_on_the_kernel_is_taken(node: Node, pod: Pod, resources: Any) -> None:
    """Without cgroup v2, accounting of swap or the hugetlb controller these have no effect."""
    if node.runtime == "containerd" and "unified" in resources and not Path("/sys/fs/cgroup/cgroup.procs").exists():
        pytest.xfail("containerd hands cgroup v2's settings on to runc, which refuses them with cgroup v1")
    assert node.script(pod, "echo runs", resources=resources) == "runs"


@pytest.mark.parametrize(
    "resources",
    [
        case({"cpuset_cpus": "999"}, name="cpus", containerd=UNKNOWN),
        case({"cpuset_cpus": "nonsense"}, name="no-cpus", containerd=UNKNOWN),
        case({"memory_limit_in_bytes": 4096}, name="memory", containerd=UNKNOWN),
    ],
)
def test_limits_that_can_not_be(node: Node, pod: Pod, resources: Any) -> None:
    codes = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL")
    node.refuse_container(pod, *codes, resources=resources)


@pytest.mark.parametrize(
    "state", [case("exited", containerd="containerd takes no notice of an update of what has ended"), "removed"]
)
def test_update_of_what_has_ended(node: Node, pod: Pod, state: str) -> None:
    container = node.start(pod, "true")
    node.wait_exit(container)
    if state == "removed":
        node.call("RemoveContainer", container_id=container)
    codes = {"exited": "FAILED_PRECONDITION", "removed": "NOT_FOUND"}
    node.refuse("UpdateContainerResources", codes[state], container_id=container, linux={"cpu_shares": 100})


def test_more_memory_lets_it_go_on(node: Node, pod: Pod) -> None:
    container = node.idle(pod, resources={"memory_limit_in_bytes": 16 * MIB})
    fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=24 2>/dev/null && echo fits; rm -f /dev/shm/fill"
    node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": 64 * MIB})
    assert node.execute(container, "sh", "-c", fill)[1] == "fits\n"


@differs(containerd=OLD)
def test_update_of_a_pod(node: Node, pod: Pod) -> None:
    sizes = {"cpu_shares": 512, "memory_limit_in_bytes": 256 * MIB}
    node.call("UpdatePodSandboxResources", pod_sandbox_id=pod.id, resources=sizes, overhead={})
    node.refuse("UpdatePodSandboxResources", "NOT_FOUND", pod_sandbox_id="0" * 64, resources=sizes)


def test_times_of_a_busy_container_end(node: Node, pod: Pod) -> None:
    began = time.monotonic()
    container = node.start(pod, "sh", "-c", "while true; do :; done", resources={"cpu_quota": 10_000})
    wait_for(lambda: node.status(container)["state"] == "CONTAINER_RUNNING")
    node.call("StopContainer", container_id=container, timeout=0)
    assert time.monotonic() - began < patient(30)
