"""Limits of containers, their changes while running, and what is measured of them (cgroup v1 here)."""

import resource
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.linux import cgroups
from integration.conftest import BUSYBOX, RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused, until
from support import cgroup_namespace
from support.daemon import Daemon, container_config, pod_config
from support.images import build_busybox

pytestmark = pytest.mark.skipif(cgroups.version() != 1, reason="the files that are read here are of cgroup v1")
MIB = 1 << 20
LIMITS = {
    "memory_limit_in_bytes": 64 * MIB,
    "cpu_shares": 512,
    "cpu_quota": 25000,
    "cpu_period": 50000,
    "cpuset_cpus": "0",
    "cpuset_mems": "0",
}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod(node: Node, runtime: str) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[runtime]))


def directory(pod: Pod, container: str, controller: str) -> Path:
    return Path(f"/sys/fs/cgroup/{controller}{pod.node.daemon.cgroup}/{pod.id}/{container}")


def limits(pod: Pod, container: str) -> dict[str, Any]:
    """Read the limits from the kernel, in the CRI's terms."""

    def read(controller: str, name: str) -> str:
        return (directory(pod, container, controller) / name).read_text().strip()

    return {
        "memory_limit_in_bytes": int(read("memory", "memory.limit_in_bytes")),
        "cpu_shares": int(read("cpu", "cpu.shares")),
        "cpu_quota": int(read("cpu", "cpu.cfs_quota_us")),
        "cpu_period": int(read("cpu", "cpu.cfs_period_us")),
        "cpuset_cpus": read("cpuset", "cpuset.cpus"),
        "cpuset_mems": read("cpuset", "cpuset.mems"),
    }


def told(pod: Pod, container: str) -> dict[str, Any]:
    resources = pod.node.status(container)["resources"]["linux"]
    return {name: int(resources[name]) if isinstance(LIMITS[name], int) else resources[name] for name in LIMITS}


def test_limits(pod: Pod) -> None:
    container = pod.start("sleep", "99", linux=confined(LIMITS))
    assert limits(pod, container) == told(pod, container) == LIMITS
    assert pod.node.execute(container, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes")[1] == f"{64 * MIB}\n"


def test_limits_are_changed_while_it_runs(pod: Pod) -> None:
    """What is not named stays; a limit can also be lifted; the status tells the new ones."""
    container = pod.start("sleep", "99", linux=confined(LIMITS))
    change = {"memory_limit_in_bytes": 128 * MIB, "cpu_shares": 2048, "cpu_quota": 40000, "cpu_period": 100000}
    pod.node.call("UpdateContainerResources", container_id=container, linux=change)
    assert limits(pod, container) == told(pod, container) == LIMITS | change
    pod.node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 100})
    assert limits(pod, container) == told(pod, container) == LIMITS | change | {"cpu_shares": 100}
    pod.node.call("UpdateContainerResources", container_id=container, linux={"cpu_quota": -1})
    assert limits(pod, container)["cpu_quota"] == told(pod, container)["cpu_quota"] == -1
    pod.node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": 32 * MIB})
    assert limits(pod, container)["memory_limit_in_bytes"] == 32 * MIB
    pod.node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": -1})
    assert limits(pod, container)["memory_limit_in_bytes"] > 1 << 60
    pod.node.call("UpdateContainerResources", container_id=container, linux={"cpuset_cpus": "0-1"})
    assert limits(pod, container)["cpu_quota"] == -1
    assert limits(pod, container)["cpuset_cpus"] == "0-1"


def test_limits_of_a_created_container_can_be_changed(pod: Pod) -> None:
    container = pod.create("sleep", "99", linux=confined(LIMITS))
    pod.node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 300})
    pod.node.call("StartContainer", container_id=container)
    assert limits(pod, container) == told(pod, container) == LIMITS | {"cpu_shares": 300}


def test_changes_that_are_refused(pod: Pod) -> None:
    """A change that fails changes nothing of what is told."""
    container = pod.start("sleep", "99", linux=confined(LIMITS))
    with refused("INVALID_ARGUMENT", "cpuset|invalid"):
        pod.node.call("UpdateContainerResources", container_id=container, linux={"cpuset_cpus": "4000"})
    with refused("INVALID_ARGUMENT", "memory_limit_in_bytes is -2"):
        pod.node.call("UpdateContainerResources", container_id=container, linux={"memory_limit_in_bytes": -2})
    assert limits(pod, container) == told(pod, container) == LIMITS
    pod.node.call("StopContainer", container_id=container, timeout=0)
    with refused("FAILED_PRECONDITION", "is exited, so its limits can't be changed"):
        pod.node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 300})
    with refused("NOT_FOUND", "f" * 64):
        pod.node.call("UpdateContainerResources", container_id="f" * 64, linux={"cpu_shares": 300})


@pytest.mark.skipif(bool(cgroups.hugepage_sizes()), reason="this host can limit huge pages")
def test_huge_pages_are_refused_where_they_can_not_be_limited(pod: Pod) -> None:
    """A limit of nothing asks for nothing: the kubelet sends one for every page size."""
    wanted = {"hugepage_limits": [{"page_size": "2MB", "limit": "4194304"}]}
    with refused("INVALID_ARGUMENT", "hugepage_limits: no limit for '2MB': the hugetlb .* is not in use"):
        pod.create("true", linux=confined(wanted))
    container = pod.start("sleep", "99", linux=confined({"hugepage_limits": [{"page_size": "2MB", "limit": "0"}]}))
    with refused("FAILED_PRECONDITION", "no hugetlb controller"):
        pod.node.call("UpdateContainerResources", container_id=container, linux=wanted)


def test_settings_of_the_other_cgroup_version_are_refused(pod: Pod) -> None:
    container = pod.start("sleep", "99")
    with refused("FAILED_PRECONDITION", "cgroup v1.*v2"):
        pod.node.call("UpdateContainerResources", container_id=container, linux={"unified": {"memory.high": "1"}})


def test_limits_that_the_kernel_refuses(pod: Pod) -> None:
    """As with containerd it is the start that fails. Nothing is left, and the next one of the name can be made."""
    before = pod.node.daemon.query("SELECT count(*) FROM ledger")
    container = pod.create("true", name="app", linux=confined({"cpuset_cpus": "4000"}))
    with refused("INVALID_ARGUMENT", "cpuset.cpus.*(invalid|out of range)"):
        pod.node.call("StartContainer", container_id=container)
    pod.node.call("RemoveContainer", container_id=container)
    assert pod.node.daemon.query("SELECT count(*) FROM ledger") == before
    pod.create("true", name="app", linux=confined({"cpuset_cpus": "0"}))


def test_open_files_are_limited_as_services_are(pod: Pod, runtime: str) -> None:
    """Neither the daemon's own limit, which it raises to all it may have, nor that of the shell it was started from.

    What is executed gets the hard one alone here: runc before 1.2 sets the limits before Go's start in the child, which
    raises the soft one, or after it.
    """
    container = pod.node.run_container(pod.id, "sleep", "1000")
    hard = min(524288, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    soft, found = pod.node.execute(container, "sh", "-c", "ulimit -Sn; ulimit -Hn")[1].split()
    assert (found, soft) == (str(hard), "1024" if runtime == "crun" else soft)
    (pid,) = cgroups.processes(f"{pod.node.daemon.cgroup}/{pod.id}/{container}")
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (1024, hard)


# What the site says


@pytest.fixture
def site(node: Node, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of its own with limits for all."""
    build_busybox(tmp_path / "layouts/busybox", BUSYBOX)
    config = (
        "[pods]\nshm_size_bytes = 1048576\npids_limit = 20\ndefault_ulimits = ['nofile=100:200', 'core=0']\n"
        "default_env = { SITE = 'yes' }\ndefault_sysctls = { 'net.ipv4.tcp_syncookies' = '0' }\n"
        "default_capabilities = ['CAP_KILL']\nread_only_tmpfs = true\nunset_seccomp = 'runtime-default'\n"
        "enable_unprivileged_ports = false\n"
        f"[network]\ndriver = 'cni'\noptions = {{ conf_dir = '{node.daemon.directory.parent / 'net.d'}' }}\n"
        f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{tmp_path / 'layouts'}' }}\n"
        "[runtimes.crun]\ndriver = 'crun'\n"
    )
    with cgroup_namespace.held() as prefix:
        daemon = Daemon(tmp_path / "daemon", config, prefix)
        try:
            yield daemon.start()
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_defaults_of_the_site(site: Daemon, runtime: str, tmp_path: Path) -> None:
    site.cri.call("PullImage", image={"image": BUSYBOX})
    config = pod_config(f"site-{secrets.token_hex(2)}", log_directory=str(tmp_path))
    pod = site.cri.call("RunPodSandbox", config=config, runtime_handler=runtime)["pod_sandbox_id"]
    script = """
        df -k /dev/shm | awk 'END { print $2 }'; cat /sys/fs/cgroup/pids/pids.max; ulimit -n; ulimit -Hn; ulimit -c
        echo $SITE; cat /proc/sys/net/ipv4/tcp_syncookies /proc/sys/net/ipv4/ip_unprivileged_port_start
        awk '/^CapBnd|^Seccomp:/ { print $2 }' /proc/self/status; touch /run/x /tmp/x /var/tmp/x && echo scratch
        for i in $(seq 30); do sleep 9 & done
    """
    wanted = container_config("app", BUSYBOX, "sh", "-c", script, linux=confined(readonly_rootfs=True))
    container = site.cri.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"]
    site.cri.call("StartContainer", container_id=container)
    log = tmp_path / "app.log"
    until(lambda: "fork" in log.read_text())
    lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
    assert lines[:11] == ["1024", "20", "100", "200", "0", "yes", "0", "1024", f"{1 << 5:016x}", "2", "scratch"]


# What is measured


def test_stats_of_a_container(pod: Pod) -> None:
    """Plausible for what it does: some memory held, some time burnt, some bytes written, three processes."""
    script = """
        head -c 1000000 /dev/zero > /written; x=$(head -c 4000000 /dev/zero | tr '\\0' x)
        i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done
        sleep 99 & sleep 99 & echo ready; wait
    """
    words = {"labels": {"a": "b"}, "annotations": {"c": "d"}}
    container = pod.start("sh", "-c", script, linux=confined({"memory_limit_in_bytes": 64 * MIB}), **words)
    until(lambda: pod.node.log(container))
    stats = pod.node.call("ContainerStats", container_id=container[:12])["stats"]
    assert stats["attributes"]["id"] == container
    assert {name: stats["attributes"][name] for name in words} == words
    cpu, memory, disk = stats["cpu"], stats["memory"], stats["writable_layer"]
    kernel = int((directory(pod, container, "cpuacct") / "cpuacct.usage").read_text())
    assert kernel / 2 < int(cpu["usage_core_nano_seconds"]["value"]) <= kernel
    assert 4_000_000 < int(memory["working_set_bytes"]["value"]) <= int(memory["usage_bytes"]["value"]) < 64 * MIB
    assert int(memory["available_bytes"]["value"]) == 64 * MIB - int(memory["working_set_bytes"]["value"])
    assert 3_000_000 < int(memory["rss_bytes"]["value"]) < 64 * MIB
    assert int(memory["page_faults"]["value"]) > 100
    assert 1_000_000 <= int(disk["used_bytes"]["value"]) < 2_000_000
    assert 1 <= int(disk["inodes_used"]["value"]) < 10
    assert Path(disk["fs_id"]["mountpoint"]).is_dir()
    times = [int(part["timestamp"]) for part in (cpu, memory, disk)]
    assert max(times) - min(times) < 5e9


def test_the_rate_of_cpu_use(pod: Pod) -> None:
    """Told from the second look on, over at least a second: a busy loop takes about one core or its quota."""
    busy = pod.start("sh", "-c", "while true; do :; done", linux=confined({"cpu_quota": 20000, "cpu_period": 100000}))

    def rate() -> int:
        stats = pod.node.call("ContainerStats", container_id=busy)["stats"]
        return int((stats["cpu"].get("usage_nano_cores") or {"value": 0})["value"])

    assert rate() == 0
    assert 50_000_000 < until(rate) < 350_000_000


def test_stats_of_a_pod(node: Node) -> None:
    """The sum of its containers, its network and its processes."""
    pod = Pod(node, node.run_pod(labels={"a": "b"}))
    containers = [pod.start("sh", "-c", "echo; exec sleep 99") for _ in range(2)]
    address = node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["network"]["ip"]
    with pytest.raises(ConnectionRefusedError):  # which takes a packet each way
        socket.create_connection((address, 9), timeout=5)
    stats = node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]
    assert stats["attributes"]["labels"] == {"a": "b"}
    linux = stats["linux"]
    assert {one["attributes"]["id"] for one in linux["containers"]} == set(containers)
    for part, name in (("cpu", "usage_core_nano_seconds"), ("memory", "usage_bytes")):
        together = sum(int(one[part][name]["value"]) for one in linux["containers"])
        assert 0 < together <= int(linux[part][name]["value"])
    assert int(linux["process"]["process_count"]["value"]) >= 2
    assert linux["network"]["default_interface"]["name"] == "eth0"
    assert int(linux["network"]["default_interface"]["tx_bytes"]["value"]) > 0
    assert int(linux["network"]["default_interface"]["rx_bytes"]["value"]) > 0


def test_lists_of_stats(node: Node) -> None:
    """By id, pod and labels; what has ended or is stopped is left out of lists."""
    one, two = (Pod(node, node.run_pod(name, handler=QUICK[name], labels={"pod": name})) for name in RUNTIMES)
    first = one.start("sleep", "99", labels={"k": "1"})
    second = two.start("sleep", "99", labels={"k": "2"})
    ended = two.start("true")
    node.wait_exit(ended)

    def containers(**fields: Any) -> set[str]:
        return {stats["attributes"]["id"] for stats in node.call("ListContainerStats", filter=fields)["stats"]}

    def pods(**fields: Any) -> set[str]:
        return {stats["attributes"]["id"] for stats in node.call("ListPodSandboxStats", filter=fields)["stats"]}

    assert containers() == {first, second}
    assert (
        containers(id=first[:10])
        == containers(pod_sandbox_id=one.id)
        == containers(label_selector={"k": "1"})
        == {first}
    )
    assert containers(id=first, pod_sandbox_id=two.id) == set()
    assert pods() == {one.id, two.id}
    assert pods(id=one.id[:10]) == pods(label_selector={"pod": "runc"}) == {one.id}
    node.call("StopPodSandbox", pod_sandbox_id=one.id)
    assert pods() == {two.id}
    assert containers() == {second}
    gone = node.call("ContainerStats", container_id=ended)["stats"]
    assert int(gone["writable_layer"]["used_bytes"]["value"]) >= 0
    assert "cpu" not in gone
    for rpc, field in (("ContainerStats", "container_id"), ("PodSandboxStats", "pod_sandbox_id")):
        with refused("NOT_FOUND", "f" * 64):
            node.call(rpc, **{field: "f" * 64})
