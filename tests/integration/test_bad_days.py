"""A clock that jumps, no descriptors left, helpers that are killed: what runs lives on, and all is well afterwards."""

import contextlib
import json
import os
import resource
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import until
from support.images import Entry, build_image, busybox_layer, make_layer
from support.patience import patient

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
CODES = {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with own_node(tmp_path) as node:
        yield node


def pid_of(node: Node) -> int:
    assert node.daemon.process is not None
    return node.daemon.process.pid


@contextlib.contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """Give a process that runs less than it has, for a while."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


def live(node: Node, name: str) -> str:
    """A short life of a pod beside others; returns what came of its container."""
    pod = node.run_pod(name)
    container = node.run_container(pod, "sleep", "600")
    assert node.execute(container, "echo", "hello")[1] == "hello\n"
    began_s = time.monotonic()
    node.call("StopContainer", container_id=container, timeout=1)
    assert time.monotonic() - began_s < patient(20)  # a grace is no matter of the clock
    status = node.status(container)
    assert int(status["created_at"]) <= int(status["started_at"]) <= int(status["finished_at"])
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    return str(status["reason"])


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
def test_the_clock_jumps_forward_and_back(node: Node, tmp_path: Path) -> None:
    """Only the daemon's: by it records get their times, while monitors and kernel keep the true one."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = (
        *("env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1"),
        *("FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_SKIP_CMDS=conmon,crun,runc"),
    )
    node.daemon.stop()
    node.daemon.prefix += fake
    node.daemon.start()
    pod = node.run_pod("stays")
    running, ending = (node.run_container(pod, "sleep", "600", name=name) for name in ("running", "ending"))
    for number, jump in enumerate(("+30d", "-3650d")):
        clock.write_text(jump)
        assert live(node, f"at{number}") in {"Completed", "Error"}
        assert node.status(running)["state"] == "CONTAINER_RUNNING"
        assert node.call("ContainerStats", container_id=running)["stats"]["cpu"]["usage_core_nano_seconds"]
        if jump == "-3650d":
            node.call("StopContainer", container_id=ending, timeout=0)
            status = node.status(ending)
            assert int(status["created_at"]) <= int(status["started_at"]) <= int(status["finished_at"])
            node.daemon.restart()
    assert node.execute(running, "true")[0] == 0


def test_a_daemon_without_descriptors_refuses_and_recovers(node: Node) -> None:
    pod = node.run_pod("stays")
    running, ending = (node.run_container(pod, "sleep", "600", name=name) for name in ("running", "ending"))
    used = len(os.listdir(f"/proc/{pid_of(node)}/fd"))
    told = set()
    for spare in (0, 1, 2, 4, 8, 12):
        with limited(pid_of(node), resource.RLIMIT_NOFILE, used + spare):
            for number in range(3):
                try:
                    node.run_container(node.run_pod(f"new{spare}-{number}"), "sleep", "600")
                except grpc.RpcError as error:
                    told.add((error.code().name, error.details()[:300]))
            assert node.call("ListContainers")["containers"]
    assert {code for code, _ in told} <= CODES, told
    node.daemon.restart()  # what could not be removed then is deferred, and tried again at once so
    node.call("StopContainer", container_id=ending, timeout=0)
    assert node.status(ending)["exit_code"] == 137
    assert node.status(running)["state"] == "CONTAINER_RUNNING"
    assert live(node, "after") in {"Completed", "Error"}


def test_an_exit_that_comes_while_no_descriptor_is_left_is_seen(node: Node) -> None:
    pod = node.run_pod("stays")
    ending = node.run_container(pod, "sleep", "3")
    used = len(os.listdir(f"/proc/{pid_of(node)}/fd"))
    with limited(pid_of(node), resource.RLIMIT_NOFILE, used):
        time.sleep(patient(2))
    assert node.wait_exit(ending)["exit_code"] == 0


def test_unpackers_that_are_killed_for_memory_fail_one_pull_alone(node: Node) -> None:
    """As the kernel does when a memory cgroup is full: SIGKILL, at any moment."""
    layer = make_layer([Entry(path=f"f{number}", content=secrets.token_bytes(1 << 20)) for number in range(16)])
    build_image(node.layouts / "large", "docker.io/test/large:1", [busybox_layer(), layer])
    ended = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not ended.is_set():
            for pid in helpers(pid_of(node))[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(grpc.RpcError, match=r"unpack|killed|signal"):
            node.pull("docker.io/test/large:1")
    finally:
        ended.set()
        killer.join()
    assert killed
    node.pull("docker.io/test/large:1")
    assert node.output(node.run_pod(), "wc", "-c", "/f7", image="docker.io/test/large:1").split()[0] == str(1 << 20)


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A memory cgroup for helpers alone; what is in it at the end is moved back to where the daemon is."""
    top = Path("/sys/fs/cgroup/memory")
    if not (top / "memory.limit_in_bytes").exists():
        pytest.skip("memory is no controller of cgroup v1 here")
    directory = top / f"crt-narrow-{secrets.token_hex(3)}"
    directory.mkdir()
    (directory / "memory.limit_in_bytes").write_text(str(64 << 10))
    yield directory
    (directory / "memory.limit_in_bytes").write_text("-1")
    for pid in (directory / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (top / "cgroup.procs").write_text(pid)
    directory.rmdir()


def test_a_monitor_that_gets_no_memory_takes_no_container_along(node: Node, narrow: Path) -> None:
    """The kernel kills it for its next page; the container runs on, and its end is seen without it."""
    pod = node.run_pod("stays")
    container = node.run_container(pod, "sh", "-c", "while true; do echo a line of the log; done")
    info = json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])
    (monitor,) = (
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if (words := cmdline(path)) and "conmon" in words[0] and container in words and "--exec" not in words
    )
    (narrow / "cgroup.procs").write_text(str(monitor))
    until(lambda: not Path(f"/proc/{monitor}").exists() or cmdline(Path(f"/proc/{monitor}")) == [])
    assert Path(f"/proc/{info['pid']}").exists()
    assert node.status(container)["state"] == "CONTAINER_RUNNING"
    node.call("StopContainer", container_id=container, timeout=0)
    assert node.status(container)["state"] == "CONTAINER_EXITED"
    assert live(node, "after") in {"Completed", "Error"}


def cmdline(process: Path) -> list[str]:
    try:
        return [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def test_an_unpacker_that_gets_no_memory_fails_one_pull_alone(node: Node, narrow: Path) -> None:
    layer = make_layer([Entry(path=f"f{number}", content=secrets.token_bytes(1 << 20)) for number in range(16)])
    build_image(node.layouts / "large", "docker.io/test/large:1", [busybox_layer(), layer])
    ended = threading.Event()
    moved: set[int] = set()

    def narrow_down() -> None:
        while not ended.is_set():
            for pid in set(helpers(pid_of(node))) - moved:
                with contextlib.suppress(OSError):
                    (narrow / "cgroup.procs").write_text(str(pid))
                    moved.add(pid)

    narrowing = threading.Thread(target=narrow_down)
    narrowing.start()
    try:
        with pytest.raises(grpc.RpcError, match=r"unpack|killed|signal|memory"):
            node.pull("docker.io/test/large:1")
    finally:
        ended.set()
        narrowing.join()
    assert moved
    node.pull("docker.io/test/large:1")
    assert live(node, "after") in {"Completed", "Error"}


def helpers(daemon: int) -> list[int]:
    """The process that forks unpackers, which lives for some seconds after a pull, and the unpackers: a small layer's
    is too quick to be found."""
    found = [daemon]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found[1:]
