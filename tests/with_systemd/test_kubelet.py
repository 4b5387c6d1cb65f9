"""A kubelet by itself over a unit's daemon, with each cgroup driver: slices and scopes that are there and go again.

``CLUSTER_BINARIES`` names the directory of a kubelet, as for tests/cluster.
"""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.kubelet import Json, Kubelet
from cluster.place import NODE_IP, Place
from crinoid.core.api.linux import cgroups
from integration.conftest import BUSYBOX
from integration.pods import until
from support.images import build_busybox
from support.network_namespace import NetworkNamespace
from support.registry import RunningRegistry
from with_systemd.unit import UnitDaemon, systemctl, units

KUBELET = Path(os.environ.get("CLUSTER_BINARIES", "/nonexistent")) / "kubelet"
MIB = 1 << 20
LIMITS = {1: ("memory.limit_in_bytes", "cpu.cfs_quota_us"), 2: ("memory.max", "cpu.max")}[cgroups.version()]
pytestmark = pytest.mark.skipif(not KUBELET.is_file(), reason="CLUSTER_BINARIES names no directory with a kubelet")


class Here(Place):
    """The machine itself, which is the test's own."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Nothing: commands run as they are."""
        return ()

    def fetch(self, url: str, method: str = "GET") -> bytes:
        """Ask a server that listens here."""
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            return bytes(answer.read())

    def mounted_below(self, directory: Path) -> list[str]:
        """Return the mount points below a directory, the last made first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in reversed(points) if point.startswith(f"{directory}/")]


class WholeNode(Kubelet):
    """One that has the whole machine; its own setting of the cgroup driver is the other one than the runtime's."""

    other_driver = ""

    def _configuration(self) -> Json:
        gates = {"featureGates": {"PodAndContainerStatsFromCRI": True}}  # its own cAdvisor does not know crinoid
        return super()._configuration() | gates | {"cgroupRoot": "", "cgroupDriver": self.other_driver}


@dataclass
class Driven:
    """A kubelet, its daemon and the cgroup driver of both."""

    driver: str
    daemon: UnitDaemon
    kubelet: Kubelet

    def cgroup(self, uid: str) -> str:
        """Where a burstable pod lies below the mount point."""
        if self.driver == "cgroupfs":
            return f"/kubepods/burstable/pod{uid}"
        name = "kubepods-burstable"
        return f"/kubepods.slice/{name}.slice/{name}-pod{uid.replace('-', '_')}.slice"


@pytest.fixture(scope="module", params=["systemd", "cgroupfs"])
def driven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    driver = str(request.param)
    directory = tmp_path_factory.mktemp(driver)
    build_busybox(directory / "layouts/busybox", BUSYBOX)
    config = f"""
        pods.cgroup_driver = "{driver}"
        log.format = "auto"
        log.level = "info"
        network.driver = "host"
        [registries.layout]
        driver = "layout"
        options = {{ directory = "{directory}/layouts" }}
    """
    subprocess.run(["ip", "addr", "replace", f"{NODE_IP}/24", "dev", "lo"], check=True)
    daemon = UnitDaemon(directory / "daemon", config)
    place = Here(directory, NetworkNamespace(), Path(), RunningRegistry(""), "")
    kubelet = WholeNode(KUBELET, place, daemon.socket)
    kubelet.other_driver = "cgroupfs" if driver == "systemd" else "systemd"
    try:
        daemon.install()
        daemon.start()
        kubelet.start()
        yield Driven(driver, daemon, kubelet)
    finally:
        kubelet.end()
        daemon.end()


def manifest(name: str, **more: Any) -> Json:
    """A burstable pod of one container."""
    limits = {"requests": {"memory": "32Mi", "cpu": "100m"}, "limits": {"memory": "64Mi", "cpu": "500m"}}
    app = {"name": "app", "image": BUSYBOX, "command": ["sleep", "100000"], "resources": limits} | more
    spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "containers": [app]}
    return {"metadata": {"name": name, "namespace": "default", "uid": f"4a5b-{name}-6c7d"}, "spec": spec}


def test_a_pods_cgroups(driven: Driven) -> None:
    """From its start, by a reload of systemd and restarts of the daemon, to its end."""
    kubelet, uid = driven.kubelet, "4a5b-one-6c7d"
    kubelet.run(manifest("one"))
    found = kubelet.until("one", lambda pod: pod["status"]["phase"] == "Running", 120)
    [status] = found["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("crinoid://")
    of_pod = driven.cgroup(uid)
    name = f"crinoid-{container}.scope" if driven.driver == "systemd" else container

    def limits() -> list[str]:
        found = [cgroups.read_file(path, file) for path in (f"{of_pod}/{name}", of_pod) for file in LIMITS]
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


def test_want_of_memory_is_told(driven: Driven) -> None:
    driven.kubelet.run(manifest("hungry", command=["sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x)"]))

    def last(pod: Json) -> Json:
        state: Json = pod["status"]["containerStatuses"][0]
        return dict(state["state"].get("terminated") or state["lastState"].get("terminated") or {})

    found = driven.kubelet.until(
        "hungry", lambda pod: pod["status"].get("containerStatuses") and last(pod).get("reason"), 240
    )
    assert (last(found)["reason"], last(found)["exitCode"]) == ("OOMKilled", 137)
    driven.kubelet.drop("hungry")
    until(lambda: "hungry" not in driven.kubelet.pods(), 120)
