"""A kubelet by itself over a unit's daemon, with each cgroup driver: slices and scopes that are there and go again.

``CLUSTER_BINARIES`` names the directory of a kubelet, as for tests/cluster.
"""

import subprocess
from collections.abc import Iterator

import pytest

from cluster.kubelet import Json
from crinoid.core.api.linux import cgroups
from integration.pods import until
from with_systemd.unit import systemctl, units
from with_systemd.whole_node import KUBELET, Driven, driven_by, manifest

MIB = 1 << 20
LIMITS = {1: ("memory.limit_in_bytes", "cpu.cfs_quota_us"), 2: ("memory.max", "cpu.max")}[cgroups.version()]
pytestmark = pytest.mark.skipif(not KUBELET.is_file(), reason="CLUSTER_BINARIES names no directory with a kubelet")


@pytest.fixture(scope="module")
def swap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Swap, where the kernel has cgroup v2: a kubelet says only there what pods may have of it."""
    if cgroups.version() == 1:
        yield
        return
    path = tmp_path_factory.mktemp("swap") / "file"
    subprocess.run(["fallocate", "-l", "256M", path], check=True)
    path.chmod(0o600)
    for command in ("mkswap", "swapon"):
        subprocess.run([command, path], check=True, capture_output=True)
    yield
    subprocess.run(["swapoff", path], check=True)


@pytest.fixture(scope="module", params=["systemd", "cgroupfs"])
def driven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, swap: None) -> Iterator[Driven]:
    more: Json = {}
    if cgroups.version() == 2:
        more = {"featureGates": {"MemoryQoS": True}, "memorySwap": {"swapBehavior": "LimitedSwap"}}
    with driven_by(str(request.param), tmp_path_factory.mktemp(str(request.param)), **more) as driven:
        yield driven


def container_of(driven: Driven, name: str, uid: str) -> str:
    """Wait until a pod runs; return its one container's cgroup."""
    found = driven.kubelet.until(name, lambda pod: pod["status"]["phase"] == "Running", 240)
    container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("crinoid://")
    unit = f"crinoid-{container}.scope" if driven.driver == "systemd" else container
    return f"{driven.cgroup(uid)}/{unit}"


def test_a_pods_cgroups(driven: Driven) -> None:
    """From its start, by a reload of systemd and restarts of the daemon, to its end."""
    kubelet, uid = driven.kubelet, "4a5b-one-6c7d"
    kubelet.run(manifest("one"))
    of_container, of_pod = container_of(driven, "one", uid), driven.cgroup(uid)

    def limits() -> list[str]:
        found = [cgroups.read_file(path, file) for path in (of_container, of_pod) for file in LIMITS]
        return [text.split()[0] for text in found if text]

    begun = [str(64 * MIB), "50000"] * 2
    assert limits() == begun, "the pod's own are the kubelet's"
    systemctl("daemon-reload")
    assert limits() == begun
    systemctl("reload", driven.daemon.unit)
    driven.daemon.kill()
    assert kubelet.pods()["one"]["status"]["containerStatuses"][0]["restartCount"] == 0

    def measured() -> list[str]:
        pods = kubelet.place.fetch_json("http://127.0.0.1:10255/stats/summary")["pods"]
        found = [one for pod in pods for one in pod.get("containers", ())]
        return [one["name"] for one in found if one.get("memory", {}).get("workingSetBytes")]

    assert until(measured, 120) == ["app"]
    kubelet.drop("one")
    until(lambda: not cgroups.exists(of_pod), 120)
    assert units("crinoid-*.scope") == []


def last(pod: Json) -> Json:
    """Return how a pod's one container has ended last."""
    state: Json = pod["status"]["containerStatuses"][0]
    return dict(state["state"].get("terminated") or state["lastState"].get("terminated") or {})


def test_want_of_memory_is_told(driven: Driven) -> None:
    driven.kubelet.run(manifest("hungry", command=["sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x)"]))
    found = driven.kubelet.until(
        "hungry", lambda pod: pod["status"].get("containerStatuses") and last(pod).get("reason"), 240
    )
    assert (last(found)["reason"], last(found)["exitCode"]) == ("OOMKilled", 137)
    driven.kubelet.drop("hungry")
    until(lambda: "hungry" not in driven.kubelet.pods(), 120)


@pytest.mark.skipif(cgroups.version() == 1, reason="of cgroup v2 alone")
def test_memory_of_cgroup_v2(driven: Driven) -> None:
    """What a kubelet asks for with ``unified``: throttling before the limit, no swap for static pods, one end."""
    kubelet = driven.kubelet
    kubelet.run(manifest("two", command=["sh", "-c", "x=$(head -c 4000000 /dev/zero | tr '\\0' x); sleep 100000; :"]))
    of_container = container_of(driven, "two", "4a5b-two-6c7d")

    def settings() -> list[int]:
        names = ("memory.high", "memory.swap.max", "memory.oom.group", "memory.max")
        return [int(cgroups.read_file(of_container, name) or -1) for name in names]

    high, swap_max, group, limit = begun = settings()
    assert high == (32 * MIB + (64 - 32) * MIB * 9 // 10) // 4096 * 4096, "MemoryQoS: request + 0.9 (limit - request)"
    # Static pods are critical ones, which LimitedSwap leaves out (pkg/kubelet/kuberuntime, GetContainerSwapBehavior).
    assert (swap_max, group, limit) == (0, 1, 64 * MIB)
    systemctl("daemon-reload")
    systemctl("reload", driven.daemon.unit)
    assert settings() == begun

    def measured() -> Json | None:
        pods = kubelet.place.fetch_json("http://127.0.0.1:10255/stats/summary")["pods"]
        [pod] = [pod for pod in pods if pod["podRef"]["name"] == "two-node"] or [{}]
        found = {"pod": pod} | {one["name"]: one for one in pod.get("containers", ())}
        return found if found.get("app", {}).get("memory", {}).get("workingSetBytes") else None

    found = until(measured, 240)
    for one in (found["app"], found["pod"]):
        assert one["swap"]["swapUsageBytes"] >= 0
        for resource in ("cpu", "memory", "io"):
            assert {"full", "some"} <= one[resource]["psi"].keys(), (resource, one)
    assert found["app"]["memory"]["workingSetBytes"] > 4_000_000
    kubelet.drop("two")
    until(lambda: not cgroups.exists(driven.cgroup("4a5b-two-6c7d")), 240)


@pytest.mark.skipif(cgroups.version() == 1, reason="of cgroup v2 alone")
def test_all_of_a_container_ends_for_want_of_memory(driven: Driven) -> None:
    """A child takes too much, and the first process, which waits for something else, ends with it."""
    script = "(x=$(head -c 400000000 /dev/zero | tr '\\0' x)) & sleep 100000"
    driven.kubelet.run(manifest("group", command=["sh", "-c", script]))
    found = driven.kubelet.until("group", lambda pod: pod["status"].get("containerStatuses") and last(pod), 300)
    assert (last(found)["reason"], last(found)["exitCode"]) == ("OOMKilled", 137)
    driven.kubelet.drop("group")
    until(lambda: "group" not in driven.kubelet.pods(), 120)
