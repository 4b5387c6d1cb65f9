"""What becomes of running containers when crinoid's own state has a bad day: lost, damaged, or not to be had."""

import contextlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import refused, until
from support import programs
from support.patience import patient
from support.subnets import third_octet

EX_TEMPFAIL = 75


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    subnet = f"10.87.{third_octet()}.0/28"
    config = (
        f"[networks.bridge]\ndriver = 'bridge'\noptions = {{ subnets = ['{subnet}'], linger_s = 0 }}\n"
        "[runtimes.bridged]\ndriver = 'crun'\nnetwork = 'bridge'\n"
        "[runtimes.runc]\ndriver = 'runc'\n"
    )
    with own_node(tmp_path_factory.mktemp("lost"), config) as node:
        yield node


def crinoid(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    daemon = node.daemon
    command = [*daemon.prefix, sys.executable, "-m", "crinoid", *arguments, "--config", str(daemon.config_file)]
    return programs.run(command, capture_output=True, text=True, check=False, timeout=patient(60))


def is_alive(node: Node, pod: str) -> bool:
    return any(b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in node.daemon.cgroup_processes(pod))


def address(node: Node, pod: str) -> str:
    return str(node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"])


@pytest.mark.parametrize("lost", ["state.db", "root"])
def test_containers_that_run_when_the_state_is_lost(own: Node, lost: str) -> None:
    """They are told and left alone, their addresses too; then adopted, shown, and removed as any other."""
    daemon = own.daemon
    pod = own.run_pod("lives", "bridged")
    container = own.run_container(pod, "sleep", "1000")
    theirs = address(own, pod)
    daemon.stop()
    if lost == "root":
        daemon.root.rename(daemon.directory / "moved")
    for path in daemon.root.glob("state.db*"):
        path.unlink()
    before = len(daemon.log.read_text())
    daemon.start()
    log = daemon.log.read_text()[before:]
    assert "2 pods and containers on this host are on no record" in log
    assert f"2 directories: {daemon.run}/pods/{pod}" in log or f"directories: {daemon.run}" in log
    assert f"1 addresses: {theirs}" in log
    assert own.call("ListContainers")["containers"] == []
    own.pull()
    others = [own.run_pod(f"new{number}", "bridged") for number in range(12)]  # all that the range has
    assert theirs not in [address(own, one) for one in others]
    assert is_alive(own, pod)
    check = json.loads(crinoid(own, "check", "--json").stdout)
    assert {one["verdict"] for one in check if one["area"] == "state"} == {"warning"}
    listed = crinoid(own, "doctor", "--json")
    assert listed.returncode == 1
    found = {one["id"]: one for one in json.loads(listed.stdout)["strays"]}
    assert found.keys() == {pod, container}
    assert found[pod]["addresses"] == [theirs]
    (link,) = found[pod]["links"]
    aliases = subprocess.run(["ip", "-d", "link", "show", link], capture_output=True, text=True, check=True).stdout
    assert f"alias pod {pod}" in aliases
    assert found[container]["processes"]
    stopped = crinoid(own, "doctor", "--repair")
    assert stopped.returncode == 1
    assert "stop it first" in stopped.stderr
    daemon.stop()
    repaired = crinoid(own, "doctor", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert f"pod {pod}: adopted" in repaired.stdout
    assert f"container {container} of pod {pod}: adopted" in repaired.stdout
    daemon.start()
    (shown,) = own.call("ListContainers")["containers"]
    assert (shown["id"], shown["state"], shown["metadata"]["name"]) == (container, "CONTAINER_UNKNOWN", "app")
    status = own.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]
    assert (status["state"], status["metadata"]["name"]) == ("SANDBOX_NOTREADY", "lives")
    assert is_alive(own, pod)
    assert crinoid(own, "doctor").stdout == "nothing is on this host that is on no record\n"
    own.call("StopContainer", container_id=container, timeout=0)
    assert not is_alive(own, pod)
    for one in [pod, *others]:
        own.call("RemovePodSandbox", pod_sandbox_id=one)
    daemon.restart()
    until(lambda: not [one for one in daemon.leftovers() if "process" not in one and "mount" not in one])


def test_what_is_left_of_the_dead_is_removed(own: Node) -> None:
    pod = own.run_pod("dies")
    own.run_container(pod, "sleep", "1000")
    own.daemon.stop()
    for path in own.daemon.root.glob("state.db*"):
        path.unlink()
    shutil.rmtree(own.daemon.run / "pods" / pod / "ns", ignore_errors=True)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (point := line.split()[4]).startswith(f"{own.daemon.run}/pods/{pod}/ns"):
            subprocess.run(["umount", point], check=True)
    repaired = crinoid(own, "doctor", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert f"{pod}: removed" in repaired.stdout
    assert own.daemon.leftovers() == []
    own.daemon.start()
    own.pull()


def test_containers_that_run_when_the_run_directory_is_lost(own: Node) -> None:
    """Their records are there, and say where their processes are: in a cgroup of their own."""
    pod = own.run_pod("wiped")
    container = own.run_container(pod, "sleep", "1000")
    own.daemon.stop()
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (point := line.split()[4]).startswith(str(own.daemon.run)):
            subprocess.run(["umount", "--lazy", point], check=True)
    for kind in ("pods", "containers", "rt"):
        shutil.rmtree(own.daemon.run / kind)
    own.daemon.start()
    assert is_alive(own, pod)
    status = own.status(container)
    assert (status["state"], status["reason"]) == ("CONTAINER_UNKNOWN", "FilesLost")
    assert own.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["state"] == "SANDBOX_NOTREADY"
    own.call("StopContainer", container_id=container, timeout=0)
    assert not is_alive(own, pod)
    assert own.status(container)["state"] == "CONTAINER_EXITED"
    own.call("RemovePodSandbox", pod_sandbox_id=pod)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_container_whose_record_is_damaged_lives_and_can_be_removed(own: Node, handler: str) -> None:
    pod = own.run_pod("damaged", handler)
    container = own.run_container(pod, "sleep", "1000")
    own.daemon.kill()
    with contextlib.closing(sqlite3.connect(own.daemon.root / "state.db")) as connection, connection:
        ((body,),) = connection.execute("SELECT body FROM containers").fetchall()
        connection.execute("UPDATE containers SET body = ?", (body[:200],))
    own.daemon.start()
    status = own.status(container)
    assert (status["state"], status["reason"]) == ("CONTAINER_UNKNOWN", "RecordUnreadable")
    assert f"containers/{container}" in status["message"]
    assert is_alive(own, pod)
    own.daemon.stop()
    own.daemon.change(f"UPDATE containers SET body = '{body}'")
    own.daemon.start()
    assert own.status(container)["state"] == "CONTAINER_RUNNING"
    assert own.execute(container, "echo", "whole") == (0, "whole\n", "")
    own.daemon.stop()
    own.daemon.change("UPDATE containers SET body = 'torn'")
    own.daemon.start()
    own.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert own.call("ListContainers")["containers"] == []
    assert not is_alive(own, pod)


NO_INODES = "i=0; while : > {root}/n$i; do i=$((i+1)); done 2>/dev/null"
FAULTS = {
    "no free inodes": ("size=64m,nr_inodes=80", NO_INODES, "{crinoid}", "No space left"),
    "a read-only file system": ("size=64m", "mount -o remount,ro {root}", "{crinoid}", "Read-only file system"),
    "a lock of another process": ("size=64m", "{holder} &\nsleep 2", "{crinoid}", "is locked: another process"),
    "no free descriptors": ("size=64m", ":", "ulimit -n 16; {crinoid}", "may have 16 files open"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_can_not_be_had_refuses_the_start_and_is_left_as_it_is(
    own: Node, tmp_path: Path, fault: str
) -> None:
    """Each for real, on a file system of its own that only this start sees."""
    options, prepare, start, said = FAULTS[fault]
    root, run, before = tmp_path / "root", Path(f"/run/crt{secrets.token_hex(3)}"), tmp_path / "before"
    for path in (root, before, run):
        path.mkdir()
    own.daemon.stop()
    for path in own.daemon.root.glob("state.db*"):
        shutil.copy(path, before)
    own.daemon.start()
    config = tmp_path / "config.toml"
    text = own.daemon.config_file.read_text().replace(str(own.daemon.root), str(root))
    config.write_text(text.replace(str(own.daemon.run), str(run)))
    held = f"import sqlite3, time; c = sqlite3.connect('{root}/state.db'); c.execute('BEGIN EXCLUSIVE'); time.sleep(60)"
    words: dict[str, Any] = {
        "root": root,
        "holder": f'{sys.executable} -c "{held}"',
        "crinoid": f"{sys.executable} -m crinoid serve --config {config}",
    }
    script = (
        f"mount -t tmpfs -o {options} tmpfs {root} && cp {before}/* {root}/ && touch {root}/lock || exit 99\n"
        f"sha256sum {root}/state.db\n{prepare.format(**words)}\n"
        f"({start.format(**words)}); echo code $?\nsha256sum {root}/state.db; ls {root}; kill %1 2>/dev/null; exit 0\n"
    )
    try:
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", script],
            capture_output=True,
            text=True,
            check=True,
            timeout=patient(60),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    finally:
        shutil.rmtree(run)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[2], done.stdout
    assert "Traceback" not in done.stderr
    assert lines[1] == f"code {EX_TEMPFAIL}", done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("crinoid: ")]
    assert re.search(said, told), told
    assert not [name for name in lines[3:] if "broken" in name or "salvag" in name]


def test_a_full_disk_is_no_reason_not_to_serve(own: Node, tmp_path: Path) -> None:
    """Whoever stops and removes pods frees some of it."""
    script = f"mount -t tmpfs -o size=64m tmpfs {own.daemon.root} && cp -a {tmp_path}/root/. {own.daemon.root}/"
    own.daemon.stop()
    subprocess.run(["cp", "-a", own.daemon.root, tmp_path / "root"], check=True)
    prefix = own.daemon.prefix
    fill = f"dd if=/dev/zero of={own.daemon.root}/fill bs=4k 2>/dev/null"
    own.daemon.prefix = (*prefix, "unshare", "--mount", "bash", "-c", f'{script} && ({fill}; true) && exec "$@"', "sh")
    try:
        own.daemon.start()
        assert own.call("ListPodSandbox")["items"] == []
        own.daemon.stop()
    finally:
        own.daemon.prefix = prefix
        own.daemon.start()


@pytest.mark.parametrize("cidr", ["10.88.0.0/32", "10.88.0.0/16,10.89.0.0/33", "nonsense"])
def test_address_ranges_that_the_network_refuses_are_not_kept(own: Node, cidr: str) -> None:
    """With the real driver: a range without room for a pod once kept the next daemon from starting."""
    with refused("INVALID_ARGUMENT", cidr.rpartition(",")[2]):
        own.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": cidr}})
    assert own.daemon.query("SELECT body FROM settings WHERE id = 'pod_cidrs'") == []
    own.daemon.restart()
    pod = own.run_pod("after", "bridged")
    assert address(own, pod)
    own.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_damage_that_shows_while_the_daemon_runs_is_told(own: Node) -> None:
    """Requests that need the file say so, Status too; what runs lives on, and the restart that it asks for mends it."""
    container = own.run_container(own.run_pod("runs"), "sleep", "1000")
    own.daemon.stop()
    with contextlib.closing(sqlite3.connect(own.daemon.root / "state.db")) as connection, connection:
        rows = [("pods", f"p{number}", "", "x" * 4000, 0) for number in range(1000)]  # more than SQLite keeps in memory
        connection.executemany("INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)", rows)
    own.daemon.start()
    with (own.daemon.root / "state.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    ready = conditions(own.call("Status", verbose=True))["RuntimeReady"]
    assert (ready["status"], ready["reason"]) == (False, "StateDamaged")
    assert "state.db is damaged" in ready["message"]
    assert "restart crinoid" in ready["message"]
    assert own.execute(container, "echo", "hello")[1] == "hello\n"
    own.daemon.restart()
    assert own.status(container)["state"] == "CONTAINER_RUNNING"
    assert conditions(own.call("Status"))["RuntimeReady"]["status"]
    assert [path.name for path in own.daemon.root.glob("state.db.broken-*")] != []
    own.remove_pods()


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["type"]: one for one in status["status"]["conditions"]}
