"""Pods that come without a cgroup parent, with the systemd cgroup driver: a slice of its own for each."""

import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from crinoid.core.api.linux import cgroups
from crinoid.plugins.runtimes.processes import pidfds
from integration.conftest import Node
from integration.pods import Pod, until
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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_executed_joins_the_scope_without_the_binary(node: Node, unit: UnitDaemon, runtime: str) -> None:
    pod = Pod(node, node.run_pod("joined", handler=runtime))
    filtered = {"security_context": {"seccomp": {"profile_type": "RuntimeDefault"}}}
    container = pod.start("sleep", "1000", linux=filtered)
    scope = f"/crinoid.slice/{slice_of(pod)}/crinoid-{container}.scope"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(node.execute, container, "sleep", "4321", timeout=3)
        until(lambda: executed_by(unit, "sleep 4321"))
        (pid,) = executed_by(unit, "sleep 4321")
        first, own = (Path(f"/proc/{one}/cgroup").read_text().splitlines() for one in (pod.pid(container), pid))
        assert any(line.endswith(scope) for line in first)
        assert [mine.startswith(line) for line, mine in zip(first, own, strict=True)] == [True] * len(first), own
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
        assert isinstance(running.exception(), grpc.RpcError), "it takes too long"
    until(lambda: cgroups.processes(scope) == (pod.pid(container),))
    node.call("RemovePodSandbox", pod_sandbox_id=pod.id)


def executed_by(unit: UnitDaemon, command: str) -> list[int]:
    """The processes of a command that the daemon's own process has executed."""
    helpers = [pid for pid in pidfds.children(unit.main_pid) if "joining.helper" in command_line(pid)]
    return [pid for helper in helpers for pid in pidfds.children(helper) if command_line(pid) == command]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


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
