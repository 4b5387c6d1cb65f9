"""A power-off: pods end by the kubelet, the kubelet by systemd, and only then the daemon, which all of it needs.

Everything is as at a real one, by logind and ``shutdown.target``; but file systems stay mounted, and the machine on.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.testing.patience import patient
from integration.conftest import BUSYBOX, Node
from integration.pods import Pod, until
from with_systemd.conftest import RUNTIMES
from with_systemd.unit import UNITS, UnitDaemon, show, systemctl
from with_systemd.whole_node import KUBELET, Driven, driven_by, manifest

LOGIND = "systemd-logind.service"
_UNIT_STOPPED = "9d1aaa27d60140bd96365438aad20286"  # systemd's catalog of messages
POWER_OFF = "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\n"


@pytest.fixture
def power_off() -> Iterator[None]:
    """``systemctl poweroff`` stops every unit; after the test those are started again that tests need."""
    target = UNITS / "poweroff.target"
    target.write_text(POWER_OFF)
    systemctl("daemon-reload")
    systemctl("start", LOGIND)
    yield
    until(lambda: not systemctl("list-jobs", "--no-legend"), 120)
    systemctl("stop", target.name)
    systemctl("start", "basic.target", "dbus.socket", "dbus.service", LOGIND)
    target.unlink()
    systemctl("daemon-reload")


def power_off_and_wait() -> None:
    systemctl("poweroff")
    until(lambda: show("poweroff.target", "ActiveState")["ActiveState"] == "active", 300)


def stopped(*units: str) -> list[str]:
    """Return these units in the order in which systemd stopped them last."""
    subprocess.run(["journalctl", "--sync"], check=True)
    command = ["journalctl", "--output=json", f"MESSAGE_ID={_UNIT_STOPPED}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [json.loads(line).get("UNIT") for line in lines]
    return sorted((unit for unit in units if unit in found), key=lambda unit: len(found) - found[::-1].index(unit))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_kubelet_can_end_pods_while_it_is_stopped(
    node: Node, unit: UnitDaemon, power_off: None, runtime: str, tmp_path: Path
) -> None:
    """A stand-in removes a pod when it is stopped: crinoid serves, and D-Bus, by which runtimes reach systemd."""
    pod = Pod(node, node.run_pod("served", handler=runtime))
    pod.start("sleep", "1000")
    said = tmp_path / "said"
    ctl = f"{sys.executable} -m crinoid ctl --endpoint unix://{unit.socket} rmp --force {pod.id}"
    kubelet = UNITS / "kubelet.service"
    kubelet.write_text(
        f"[Service]\nExecStart=sleep infinity\nExecStop=sh -c 'sleep 3; exec {ctl}'\n"
        f"TimeoutStopSec={patient(60):g}\nStandardOutput=append:{said}\nStandardError=append:{said}\n"
    )
    try:
        systemctl("daemon-reload")
        systemctl("start", kubelet.name)
        power_off_and_wait()
        assert show(kubelet.name, "Result")["Result"] == "success", said.read_text()
        assert stopped("dbus.service", unit.unit, kubelet.name) == [kubelet.name, unit.unit, "dbus.service"], (
            unit.tail()
        )
    finally:
        kubelet.unlink()
    unit.start()
    assert pod.id not in {one["id"] for one in node.call("ListPodSandbox")["items"]}


@pytest.fixture(params=["systemd", "cgroupfs"])
def driven(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driven]:
    grace = {"shutdownGracePeriod": f"{patient(40):g}s", "shutdownGracePeriodCriticalPods": f"{patient(20):g}s"}
    with driven_by(str(request.param), tmp_path, **grace) as driven:
        yield driven


@pytest.mark.skipif(not KUBELET.is_file(), reason="CLUSTER_BINARIES names no directory with a kubelet")
def test_pods_end_in_order(power_off: None, driven: Driven, tmp_path: Path) -> None:
    """A kubelet's graceful node shutdown: ordinary pods, then critical ones, each with its grace period."""
    kubelet, daemon = driven.kubelet, driven.daemon
    (tmp_path / "ends").mkdir()
    for name, priority in (("critical", 2_000_001_000), ("ordinary", 0)):
        script = (
            f"trap 'sleep 2; echo {name} >>/ends/order; exit 3' TERM; touch /ends/{name}; while :; do sleep 0.1; done"
        )
        mounts = [{"name": "ends", "mountPath": "/ends"}]
        spec = {
            "priority": priority,
            "terminationGracePeriodSeconds": int(patient(15)),
            "volumes": [{"name": "ends", "hostPath": {"path": str(tmp_path / "ends")}}],
        }
        kubelet.run(manifest(name, command=["sh", "-c", script], volumeMounts=mounts, spec=spec))
    for name in ("critical", "ordinary"):
        until((tmp_path / "ends" / name).exists, 240)
    inhibitors = subprocess.run(["busctl", "call", *_LIST_INHIBITORS], check=True, capture_output=True, text=True)
    assert '"shutdown" "kubelet"' in inhibitors.stdout
    power_off_and_wait()
    assert (tmp_path / "ends/order").read_text() == "ordinary\ncritical\n", kubelet.tail()
    order = [kubelet.unit, daemon.unit, "dbus.service"]
    assert stopped(*reversed(order)) == order
    assert "Shutdown manager completed processing shutdown event" in kubelet.log.read_text()
    daemon.start()
    ended = {one["metadata"]["name"]: one for one in daemon.cri.call("ListContainers")["containers"]}
    assert {one["state"] for one in ended.values()} == {"CONTAINER_EXITED"}
    statuses = [daemon.cri.call("ContainerStatus", container_id=one["id"])["status"] for one in ended.values()]
    assert {(status["image"]["image"], status["exit_code"]) for status in statuses} == {(BUSYBOX, 3)}


_LIST_INHIBITORS = (
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "ListInhibitors",
)
