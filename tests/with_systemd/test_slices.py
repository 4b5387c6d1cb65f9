"""Pods that come without a cgroup parent, with the systemd cgroup driver: a slice of its own for each."""

import contextlib
import sqlite3

import pytest

from crinoid.core.api.linux import cgroups
from integration.conftest import Node
from integration.pods import Pod
from with_systemd.conftest import RUNTIMES
from with_systemd.unit import UnitDaemon, systemctl, units


def slice_of(pod: Pod) -> str:
    return f"crinoid-{pod.id}.slice"


def processes(pod: Pod) -> int:
    usage = pod.node.call("PodSandboxStats", pod_sandbox_id=pod.id)["stats"]["linux"]
    return int(usage["process"]["process_count"]["value"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pods_statistics_and_its_end_are_its_own(node: Node, unit: UnitDaemon, runtime: str) -> None:
    before = units("crinoid-*.slice")
    one, other = (Pod(node, node.run_pod(name, handler=runtime)) for name in ("one", "other"))
    for pod in (one, other, other):
        pod.start("sleep", "1000")
    assert (processes(one), processes(other)) == (1, 2)
    assert units("crinoid-*.slice") == sorted([*before, slice_of(one), slice_of(other)])
    systemctl("daemon-reload")
    unit.kill()
    node.call("RemovePodSandbox", pod_sandbox_id=one.id)
    assert units("crinoid-*.slice") == sorted([*before, slice_of(other)])
    assert not cgroups.exists(f"/crinoid.slice/{slice_of(one)}")
    assert processes(other) == 2
    node.call("RemovePodSandbox", pod_sandbox_id=other.id)
    assert units("crinoid-*.slice") == before


def test_what_a_dead_daemon_began_is_stopped_by_the_next(node: Node, unit: UnitDaemon) -> None:
    """The ledger has the slice before there is one, and whatever runs in it ends with it."""
    pod = Pod(node, node.run_pod("lost"))
    pod.start("sleep", "1000")
    unit.stop()
    with contextlib.closing(sqlite3.connect(unit.root / "state.db")) as state, state:
        state.execute("DELETE FROM pods WHERE id = ?", (pod.id,))
        state.execute("DELETE FROM containers WHERE body LIKE ?", (f"%{pod.id}%",))
    unit.start()
    assert units(slice_of(pod)) == []
    assert not cgroups.exists(f"/crinoid.slice/{slice_of(pod)}")
