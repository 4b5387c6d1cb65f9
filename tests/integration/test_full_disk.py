"""The state directory's disk is full, has no inodes, or is broken: what ends is seen at once, and written later."""

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import refused, until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, on which the state directory lies."""
    disk, daemon = tmp_path / "disk", tmp_path / "daemon"
    disk.mkdir()
    daemon.mkdir()
    (daemon / "root").symlink_to(disk / "root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=4k", "small", disk], check=True)
    (disk / "root").mkdir(0o700)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def node(disk: Path, tmp_path: Path) -> Iterator[Node]:
    with own_node(tmp_path) as node:
        yield node


def fill(disk: Path) -> Path:
    """Take every block that can be had, as a container's log does."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


def make_containers(node: Node, count: int) -> tuple[str, list[str]]:
    pod = node.run_pod()
    return pod, [node.run_container(pod, "sleep", "600", name=f"c{number}") for number in range(count)]


def pid_of(node: Node, container: str) -> int:
    return int(json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])["pid"])


def begun_until_refused(node: Node) -> list[str]:
    """Run pods until the reserve would have to be used for one."""
    begun: list[str] = []
    with refused("RESOURCE_EXHAUSTED", "state.db is full: free some space"):
        begun.extend(node.run_pod(f"new{number}") for number in range(100))
    return begun


def test_all_that_ends_is_recorded_on_a_full_disk_and_nothing_new_is_begun(node: Node, disk: Path) -> None:
    """Eviction is what a kubelet does about a full disk: stops and removals have to work, and exits to be seen."""
    pod, (crashed, *stopped, survivor) = make_containers(node, 12)
    filler = fill(disk)
    begun = begun_until_refused(node)
    for number in range(20):
        with refused("RESOURCE_EXHAUSTED", "full|No space"):
            node.run_pod(f"more{number}")
        with refused("RESOURCE_EXHAUSTED", "full|No space"):
            node.create(pod, "true", name=f"more{number}")
    os.kill(pid_of(node, crashed), signal.SIGKILL)
    assert node.wait_exit(crashed)["exit_code"] == 137
    for container in stopped:
        node.call("StopContainer", container_id=container, timeout=0)
        assert node.status(container)["exit_code"] == 137
    for container in stopped[:5]:
        node.call("RemoveContainer", container_id=container)
    for one in begun:
        node.call("StopPodSandbox", pod_sandbox_id=one)
        node.call("RemovePodSandbox", pod_sandbox_id=one)
    node.daemon.kill()
    filler.unlink()  # a start is refused on a full disk
    node.daemon.start()
    listed = {one["id"]: one["state"] for one in node.call("ListContainers")["containers"]}
    assert listed == dict.fromkeys([crashed, *stopped[5:]], "CONTAINER_EXITED") | {survivor: "CONTAINER_RUNNING"}
    assert [one["id"] for one in node.call("ListPodSandbox")["items"]] == [pod]
    node.run_container(node.run_pod("new"), "true")


def test_without_inodes_what_ends_ends_and_what_can_not_be_made_leaves_nothing(node: Node, disk: Path) -> None:
    pod, (first, second) = make_containers(node, 2)
    (disk / "many").mkdir()
    with pytest.raises(OSError, match="No space"):
        for number in itertools.count():
            (disk / "many" / str(number)).touch()
    for number in range(3):
        with refused("RESOURCE_EXHAUSTED", "No space|no space"):
            node.create(pod, "true", name=f"new{number}")
    node.call("StopContainer", container_id=first, timeout=0)
    node.call("RemoveContainer", container_id=first)
    assert [one["id"] for one in node.call("ListContainers")["containers"]] == [second]
    shutil.rmtree(disk / "many")
    assert node.output(pod, "echo", "hello", name="new") == "hello\n"


def test_ends_that_can_not_be_written_hold_and_are_written_once_they_can_be(node: Node) -> None:
    """A limit of file sizes has each write of the database fail as on a broken disk: "disk I/O error"."""
    _pod, (crashed, stopped, _) = make_containers(node, 3)
    assert node.daemon.process is not None
    daemon = node.daemon.process.pid
    unlimited = resource.prlimit(daemon, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        pids = {one: pid_of(node, one) for one in (crashed, stopped)}
        os.kill(pids[crashed], signal.SIGKILL)
        assert node.wait_exit(crashed)["exit_code"] == 137
        node.call("StopContainer", container_id=stopped, timeout=0)
        assert node.status(stopped)["exit_code"] == 137
        with refused("UNAVAILABLE", "state.db can't be used"):
            node.run_pod("new")
        assert "exited" not in str(node.daemon.query("SELECT body FROM containers"))
    finally:
        resource.prlimit(daemon, resource.RLIMIT_FSIZE, unlimited)
    until(lambda: str(node.daemon.query("SELECT body FROM containers")).count('"exited"') == 2)
    node.run_pod("new")
