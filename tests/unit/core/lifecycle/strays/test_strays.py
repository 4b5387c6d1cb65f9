"""What is found on the host of pods and containers that are on no record: by crinoid's marks, and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups, mount
from crinoid.core.lifecycle.strays import strays
from crinoid.core.lifecycle.strays.strays import Repair, Stray, describe, find
from unit.core.lifecycle.conftest import FakeNode

POD, CONTAINER, OTHER = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a pod and a container below ``run``, and much beside that is not theirs."""
    root, run = tmp_path / "root", tmp_path / "run"
    points = [run / "pods" / POD / "ns/network", run / "pods" / POD / "shm", run / "containers" / CONTAINER / "rootfs"]
    for path in (*points, root / "containers" / CONTAINER, run / "pods/no-id", run / "pods" / OTHER / "ns"):
        path.mkdir(parents=True)
    (run / "pods" / POD / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n# x\n10.0.0.7\tname\nfd00::7 name\n")
    monkeypatch.setattr(mount, "mountpoints", lambda top: [one for one in points if one.is_relative_to(top)])
    named = [f"/x/{POD}", f"/x/{POD}/{CONTAINER}", f"/x/{OTHER}"]
    monkeypatch.setattr(
        cgroups, "find_named", lambda ids: [one for one in named if cgroups.owner_in_name(one) in set(ids)]
    )
    monkeypatch.setattr(cgroups, "processes", lambda path: (4711,) if path.endswith(CONTAINER) else ())
    return tmp_path


def found_on(host: Path, known: tuple[str, ...] = (OTHER,)) -> dict[str, Stray]:
    return {one.id: one for one in find(host / "root", host / "run", known.__contains__)}


def test_all_that_carries_the_marks_of_root_and_run_is_found(host: Path) -> None:
    found = found_on(host)
    assert found.keys() == {POD, CONTAINER}
    run = host / "run"
    assert found[POD].facts() == {
        "directories": [f"{run}/pods/{POD}"],
        "namespaces": [f"{run}/pods/{POD}/ns/network"],
        "mounts": [f"{run}/pods/{POD}/shm"],
        "cgroups": [f"/x/{POD}"],
        "addresses": ["10.0.0.7", "fd00::7"],
    }
    assert found[CONTAINER].facts() == {
        "processes": ["4711"],
        "directories": [f"{run}/containers/{CONTAINER}", f"{host}/root/containers/{CONTAINER}"],
        "mounts": [f"{run}/containers/{CONTAINER}/rootfs"],
        "cgroups": [f"/x/{POD}/{CONTAINER}"],
    }
    assert "2 addresses: 10.0.0.7, fd00::7" in list(describe(found.values()))


def test_what_is_on_record_is_none(host: Path) -> None:
    assert found_on(host, (POD, CONTAINER, OTHER)) == {}
    assert found_on(host.parent / "absent") == {}


def test_many_names_are_counted() -> None:
    stray = Stray(POD, snapshots=[("s", f"k{number}") for number in range(8)])
    assert list(describe([stray])) == ["8 snapshots: k0, k1, k2, k3, k4 and 3 more"]


@pytest.fixture
def monitor(host: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with the command line of a monitor."""
    bundle = host / "run/containers" / ("d" * 64)
    words = ["--bundle", str(bundle), f"--runtime-arg=--root={host}/run/rt/fast.crun/state"]
    process = subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_monitor_is_found_by_its_command_line(host: Path, monitor: "subprocess.Popen[bytes]") -> None:
    """Also where its directory is gone; that of another run is none of ours."""
    if Path("/proc/self").stat().st_uid == 0:
        assert found_on(host)["d" * 64].monitors == {monitor.pid: "fast.crun"}
    assert list(strays._monitors(host / "other")) == []


async def test_who_lives_is_adopted_and_the_rest_removed(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(strays, "_remove_from_host", lambda stray: removed.append(stray.id))
    monkeypatch.setattr(cgroups, "processes", lambda path: (4711,) if CONTAINER in path else ())
    run, store = fake_node.config.run, fake_node.now.store
    pin, bundle = run / "pods" / POD / "ns/network", run / "containers" / CONTAINER
    for path in (pin.parent, bundle, run / "containers" / OTHER):
        path.mkdir(parents=True)
    pin.touch()
    fake_node.machine.pins.add(pin)
    notes = {"sandbox-id": POD, "container-name": "app", "sandbox-name": "web", "sandbox-namespace": "n"}
    spec = {"annotations": {f"io.kubernetes.cri.{k}": v for k, v in notes.items()}, "linux": {"cgroupsPath": "/x/c"}}
    for path in (bundle, run / "containers" / OTHER):
        (path / "config.json").write_text(json.dumps(spec))
    fake_node.snapshotter.snapshots[CONTAINER] = None
    fake_node.snapshotter.snapshots[OTHER] = None
    pod = Stray(POD, directories=[pin.parent.parent], mounts=[pin])
    lives = Stray(CONTAINER, directories=[bundle], mounts=[bundle / "rootfs"], cgroups=[f"/x/{CONTAINER}"])
    dead = Stray(OTHER, directories=[run / "containers" / OTHER])
    done = await Repair(store, fake_node.now.slots, run, "/x").run([dead, lives, pod])
    assert done == [f"pod {POD}: adopted", f"{OTHER}: removed", f"container {CONTAINER} of pod {POD}: adopted"]
    assert removed == [OTHER]
    assert fake_node.snapshotter.snapshots == {CONTAINER: None}
    kinds = {(entry.owner, entry.kind) for entry in store.ledger.entries()}
    assert kinds == {
        *((POD, kind) for kind in ("directory", "namespaces")),
        *((CONTAINER, kind) for kind in ("directory", "snapshot", "mount", "container")),
    }
    await fake_node.crash()
    services = await fake_node.start()
    assert [one.config.metadata.name for one in services.store.pods] == ["web"]
    assert [(one.id, one.pod_id) for one in services.store.containers] == [(CONTAINER, POD)]
    await services.pods.remove(POD)
    assert services.store.ledger.entries() == []
    assert [*services.store.pods, *services.store.containers] == []
