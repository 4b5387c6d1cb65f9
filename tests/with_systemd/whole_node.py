"""A kubelet that has the whole machine, over a unit's daemon, with either cgroup driver.

``CLUSTER_BINARIES`` names the kubelet's directory, as for tests/cluster.
"""

import contextlib
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.kubelet import START_S, Json, Kubelet, wait_for
from cluster.place import NODE_IP, Place
from integration.conftest import BUSYBOX
from support.images import build_busybox
from support.network_namespace import NetworkNamespace
from support.registry import RunningRegistry
from with_systemd.unit import UNITS, UnitDaemon, show, systemctl

KUBELET = Path(os.environ.get("CLUSTER_BINARIES", "/nonexistent")) / "kubelet"


class Here(Place):
    """The machine itself, which is the test's own."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Nothing: commands run as they are."""
        return ()

    def fetch(self, url: str, method: str = "GET") -> bytes:
        """Ask a server that listens here."""
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.msg += f": {error.read().decode(errors='replace')}"
            raise

    def mounted_below(self, directory: Path) -> list[str]:
        """Return the mount points below a directory, the last made first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in reversed(points) if point.startswith(f"{directory}/")]


class WholeNode(Kubelet):
    """It is ``kubelet.service``, and its own setting of the cgroup driver is the other one than the runtime's."""

    unit = "kubelet.service"
    other_driver = ""

    def start(self) -> None:
        """Start by systemd, and wait until it answers."""
        command = " ".join(self.prepare())
        (UNITS / self.unit).write_text(
            f"[Service]\nExecStart={command}\nRestart=always\nStandardError=append:{self.log}\n"
        )
        systemctl("daemon-reload")
        systemctl("start", self.unit)
        wait_for(self._answers, lambda: f"the kubelet does not answer:\n{self.tail()}", START_S)

    def kill(self) -> None:
        """Kill it without warning, and have systemd start no other."""
        with contextlib.suppress(AssertionError):
            systemctl("kill", "--signal=KILL", self.unit)
        systemctl("stop", self.unit)

    def end(self) -> None:
        """Kill it, and undo what it made."""
        self.kill()
        super().end()
        (UNITS / self.unit).unlink()
        systemctl("daemon-reload")

    def _is_alive(self) -> bool:
        return show(self.unit, "NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}

    def _configuration(self) -> Json:
        found = super()._configuration()
        # Its own cAdvisor does not know crinoid.
        gates = {"PodAndContainerStatsFromCRI": True} | found.get("featureGates", {})
        return found | {"featureGates": gates, "cgroupRoot": "", "cgroupDriver": self.other_driver}


@dataclass
class Driven:
    """A kubelet, its daemon and the cgroup driver of both."""

    driver: str
    daemon: UnitDaemon
    kubelet: WholeNode

    def cgroup(self, uid: str) -> str:
        """Where a burstable pod lies below the mount point."""
        if self.driver == "cgroupfs":
            return f"/kubepods/burstable/pod{uid}"
        name = "kubepods-burstable"
        return f"/kubepods.slice/{name}.slice/{name}-pod{uid.replace('-', '_')}.slice"


@contextlib.contextmanager
def driven_by(driver: str, directory: Path, **settings: Any) -> Iterator[Driven]:
    """A daemon and a kubelet, for as long as the context lasts; ``settings`` are the kubelet's."""
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
    kubelet = WholeNode(KUBELET, place, daemon.socket, settings)
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
    """A burstable pod of one container; ``spec`` is what its specification has besides."""
    of_pod = more.pop("spec", {})
    limits = {"requests": {"memory": "32Mi", "cpu": "100m"}, "limits": {"memory": "64Mi", "cpu": "500m"}}
    app = {"name": "app", "image": BUSYBOX, "command": ["sleep", "100000"], "resources": limits} | more
    spec = {"hostNetwork": True, "terminationGracePeriodSeconds": 1, "containers": [app]} | of_pod
    return {"metadata": {"name": name, "namespace": "default", "uid": f"4a5b-{name}-6c7d"}, "spec": spec}
