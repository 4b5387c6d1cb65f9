"""The systemd cgroup driver: slices as the kubelet names them, scopes, and limits that systemd keeps as they are."""

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount
from integration.conftest import Node
from integration.pods import Json, Pod, confined, refused, until
from with_systemd.conftest import RUNTIMES
from with_systemd.unit import UnitDaemon, show, start_slice, systemctl, units

pytestmark = pytest.mark.skipif(cgroups.version() != 2, reason="the files that are read here are of cgroup v2")
MIB = 1 << 20
NAMES = ("memory.max", "memory.swap.max", "memory.high", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max")
LIMITS: Json = {
    "memory_limit_in_bytes": 64 * MIB,
    "memory_swap_limit_in_bytes": 80 * MIB,
    "cpu_shares": 512,
    "cpu_quota": 25000,
    "cpu_period": 50000,
    "cpuset_cpus": "0",
    "unified": {"memory.high": str(48 * MIB), "pids.max": "77"},
}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def parent(slices: str) -> str:
    """A pod's slice below its class's, as the kubelet makes them; dashes of a pod's UID are underscores there."""
    name = f"{slices}-burstable-pod{secrets.token_hex(4)}_4a5b_{secrets.token_hex(2)}.slice"
    start_slice(f"{slices}.slice")
    start_slice(f"{slices}-burstable.slice", "Wants", "as", "1", f"{slices}.slice")
    start_slice(name, "Wants", "as", "1", f"{slices}-burstable.slice", "MemoryMax", "t", str(512 * MIB))
    return name


@pytest.fixture
def pod(node: Node, runtime: str, parent: str) -> Iterator[Pod]:
    """A pod in its slice; when it is removed no unit and no cgroup of it is left but the slice, which is not ours."""
    pod = Pod(node, run_in(node, runtime, parent, f"pod-{secrets.token_hex(3)}"))  # what a failure leaves has another
    yield pod
    containers = [one["id"] for one in node.call("ListContainers")["containers"] if one["pod_sandbox_id"] == pod.id]
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    for container in containers:
        assert units(f"crinoid-{container}*") == []
        assert not directory(parent, container).exists()
    assert Path(f"/sys/fs/cgroup{below_mount(parent)}").is_dir(), "it is the kubelet's to remove"


def run_in(node: Node, runtime: str, parent: str, name: str = "pod") -> str:
    """Run a pod with a cgroup parent."""
    linux = {"cgroup_parent": parent, "security_context": {"namespace_options": {"pid": "CONTAINER"}}}
    return node.run_pod(name, handler=runtime, linux=linux)


def scope(container: str) -> str:
    return f"crinoid-{container}.scope"


def directory(parent: str, container: str) -> Path:
    return Path(f"/sys/fs/cgroup{below_mount(f'{parent}:crinoid:{container}')}")


def files(parent: str, container: str, *names: str) -> list[str]:
    return [(directory(parent, container) / name).read_text().strip() for name in names or NAMES]


def test_the_kubelet_is_told(node: Node) -> None:
    """``auto`` is systemd here, and so are the runtimes without one word of configuration."""
    assert node.call("RuntimeConfig")["linux"]["cgroup_driver"] == "SYSTEMD"


def test_limits_are_systemds_and_stay(pod: Pod, parent: str) -> None:
    """Whatever is written beside systemd is lost when it applies the unit's properties the next time."""
    container = pod.start("sleep", "1000", linux=confined(LIMITS))
    weight = files(parent, container, "cpu.weight")[0]
    begun = [str(64 * MIB), str(16 * MIB), str(48 * MIB), "25000 50000", weight, "0", "77"]
    assert files(parent, container) == begun
    assert 10 < int(weight) < 100
    properties = ("MemoryMax", "MemoryHigh", "CPUQuotaPerSecUSec", "TasksMax", "Delegate", "Slice", "AllowedCPUs")
    assert show(scope(container), *properties) == {
        "MemoryMax": str(64 * MIB),
        "MemoryHigh": str(48 * MIB),
        "CPUQuotaPerSecUSec": "500ms",
        "TasksMax": "77",
        "Delegate": "yes",
        "Slice": parent,
        "AllowedCPUs": "0",
    }
    apply_again(parent, container)
    assert files(parent, container) == begun

    update(pod, container, memory_limit_in_bytes=128 * MIB, cpu_quota=40000, cpu_period=100000)
    changed = [str(128 * MIB), str(16 * MIB), str(48 * MIB), "40000 100000", weight, "0", "77"]
    found = files(parent, container)
    assert [found[0], *found[2:]] == [changed[0], *changed[2:]]
    apply_again(parent, container)
    assert files(parent, container) == found

    update(pod, container, unified={"memory.high": str(96 * MIB), "pids.max": "99"})
    changed = [found[0], found[1], str(96 * MIB), "40000 100000", weight, "0", "99"]
    assert files(parent, container) == changed
    apply_again(parent, container)
    assert files(parent, container) == changed

    update(pod, container, cpu_quota=-1, memory_limit_in_bytes=-1)
    lifted = files(parent, container, "memory.max", "cpu.max", "memory.high")
    assert (lifted[0], lifted[1].split()[0], lifted[2]) == ("max", "max", str(96 * MIB))
    apply_again(parent, container)
    assert files(parent, container, "memory.max", "cpu.max", "memory.high") == lifted


def test_swap_as_a_kubelet_limits_it(pod: Pod, parent: str) -> None:
    """LimitedSwap of a burstable pod: by ``unified``, beside a limit of memory that says nothing of swap."""
    kubelets = {
        "memory_limit_in_bytes": 64 * MIB,
        "unified": {"memory.swap.max": str(3 * MIB), "memory.oom.group": "1"},
    }
    container = pod.start("sleep", "1000", linux=confined(kubelets))
    names = ("memory.max", "memory.swap.max", "memory.oom.group")
    assert files(parent, container, *names) == [str(64 * MIB), str(3 * MIB), "1"]
    update(pod, container, cpu_shares=600)
    assert files(parent, container, *names) == [str(64 * MIB), str(3 * MIB), "1"]


def update(pod: Pod, container: str, **resources: object) -> None:
    pod.node.call("UpdateContainerResources", container_id=container, linux=resources)


def apply_again(parent: str, container: str) -> None:
    """Have systemd read all units again, and apply all that it knows of this one, as any change has it do."""
    systemctl("daemon-reload")
    (weight,) = files(parent, container, "cpu.weight")
    systemctl("set-property", "--runtime", scope(container), "MemoryMin=0", f"CPUWeight={weight}")


def test_it_is_seen_by_systemds_tools(pod: Pod, parent: str) -> None:
    container = pod.start("sleep", "123456")
    assert "sleep 123456" in systemctl("status", "--full", scope(container))
    assert parent in systemctl("status", "--full", scope(container))
    tree = subprocess.run(["systemd-cgls", "--no-pager", "--full"], check=True, capture_output=True, text=True).stdout
    assert scope(container) in tree


def test_devices_after_a_daemon_reload(pod: Pod) -> None:
    devices = [{"container_path": "/dev/fuse", "host_path": "/dev/fuse", "permissions": "rwm"}]
    container = pod.start("sleep", "1000", devices=devices)
    for _ in range(2):
        assert pod.node.execute(container, "sh", "-c", "echo x >/dev/null; : <>/dev/fuse")[0] == 0
        forbidden = "rm -f /kmsg; mknod /kmsg c 1 11 && dd if=/kmsg of=/dev/null count=0 2>&1"
        code, said, _ = pod.node.execute(container, "sh", "-c", forbidden)
        assert (code, "not permitted" in said) == (1, True), said
        systemctl("daemon-reload")


def test_what_is_executed_lies_in_the_scope(pod: Pod, parent: str) -> None:
    container = pod.start("sleep", "1000")
    code, out, _ = pod.node.execute(container, "cat", "/proc/self/cgroup")
    assert code == 0
    assert out.startswith("0::/")
    assert list(cgroups.processes(below_mount(f"{parent}:crinoid:{container}"))) == [pod.pid(container)]


def test_want_of_memory(pod: Pod, parent: str) -> None:
    """The kernel ends one container, and the group of its processes; systemd takes none of it for its own."""
    script = "sleep 1000 & x=$(head -c 100000000 /dev/zero | tr '\\0' x)"
    container = pod.start("sh", "-c", script, linux=confined({"memory_limit_in_bytes": 32 * MIB}))
    status = pod.node.wait_exit(container, 120)
    assert (status["reason"], status["exit_code"]) == ("OOMKilled", 137)
    for killed in (False, True):  # another of the pod, without want of memory
        other = pod.start("sh", "-c", "kill -9 $$" if killed else "exit 1")
        assert pod.node.wait_exit(other)["reason"] == "Error"
    other = pod.start("sleep", "1000")
    assert pod.node.status(other)["state"] == "CONTAINER_RUNNING"
    assert cgroups.processes(below_mount(f"{parent}:crinoid:{container}")) == ()


def test_want_of_memory_of_all_at_once(pod: Pod, parent: str) -> None:
    """As a kubelet has it: the kernel ends all of the cgroup, which systemd then removes with its counts."""
    script = "x=$(head -c 100000000 /dev/zero | tr '\\0' x) & sleep 1000"
    limits = {"memory_limit_in_bytes": 32 * MIB, "unified": {"memory.oom.group": "1"}}
    for _ in range(3):
        container = pod.start("sh", "-c", script, linux=confined(limits))
        status = pod.node.wait_exit(container, 30)
        assert (status["reason"], status["exit_code"]) == ("OOMKilled", 137)
        other = pod.start("sh", "-c", "exit 1")
        assert pod.node.wait_exit(other)["reason"] == "Error"


def test_statistics(pod: Pod, parent: str) -> None:
    # The shell would become its last command, and have let go of the memory.
    container = pod.start("sh", "-c", "x=$(head -c 4000000 /dev/zero | tr '\\0' x); echo ready; sleep 1000; true")
    until(lambda: pod.node.log(container))
    stats = pod.node.call("ContainerStats", container_id=container)["stats"]
    assert int(stats["memory"]["working_set_bytes"]["value"]) > 4_000_000
    assert int(stats["cpu"]["psi"]["Some"]["Total"]) >= 0
    assert {"Full", "Some"} <= stats["memory"]["psi"].keys() & stats["io"]["psi"].keys()
    of_pod = pod.node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]["linux"]
    assert int(of_pod["memory"]["working_set_bytes"]["value"]) >= int(stats["memory"]["working_set_bytes"]["value"])
    assert int(of_pod["memory"]["available_bytes"]["value"]) < 512 * MIB, "of the pod's own limit"
    assert int(of_pod["process"]["process_count"]["value"]) >= 1
    assert {"Full", "Some"} <= of_pod["memory"]["psi"].keys()


def test_ends_and_starts_of_the_daemon(pod: Pod, parent: str, unit: UnitDaemon) -> None:
    container = pod.start("sleep", "1000")
    created = pod.create("true")
    unit.kill()
    systemctl("reload", unit.unit)
    assert pod.node.status(container)["state"] == "CONTAINER_RUNNING"
    pod.node.call("StartContainer", container_id=created)
    assert pod.node.wait_exit(created)["exit_code"] == 0
    pod.node.call("StopContainer", container_id=container, timeout=0)
    assert pod.node.status(container)["exit_code"] == 137


def test_a_frozen_container_can_be_ended(pod: Pod, parent: str) -> None:
    container = pod.start("sleep", "1000")
    systemctl("freeze", scope(container))
    pod.node.call("StopContainer", container_id=container, timeout=1)
    assert pod.node.status(container)["state"] == "CONTAINER_EXITED"


@pytest.mark.parametrize("name", ["-.slice", "/", ""])
def test_other_parents(node: Node, name: str, runtime: str) -> None:
    pod = Pod(node, run_in(node, runtime, name))
    container = pod.start("sleep", "1000")
    path = f"/crinoid.slice/crinoid-{pod.id}.slice" if name == "" else ""
    assert Path(f"/sys/fs/cgroup{path}/{scope(container)}/cgroup.procs").read_text().split() == [
        str(pod.pid(container))
    ]
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert units(f"crinoid-{container}*") == []
    assert not Path(f"/sys/fs/cgroup{path}/{scope(container)}").exists()


@pytest.mark.parametrize("name", ["/kubepods/pod1", "a--b.slice", "a-.slice"])
def test_parents_that_are_no_slices(node: Node, name: str) -> None:
    with refused("INVALID_ARGUMENT", "is no slice"):
        run_in(node, "runc", name)


def test_an_init_of_a_shared_pid_namespace(node: Node, runtime: str, parent: str) -> None:
    linux = {"cgroup_parent": parent, "security_context": {"namespace_options": {"pid": "POD"}}}
    pod = Pod(node, node.run_pod("shared", handler=runtime, linux=linux))
    shared = {"security_context": {"namespace_options": {"pid": "POD"}}}
    container = pod.start("sleep", "1000", linux=shared)
    assert pod.node.status(container)["state"] == "CONTAINER_RUNNING"
    assert len(units("crinoid-*.scope")) >= 2
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert units(f"crinoid-{pod.id}*") == units(f"crinoid-{container}*") == []
