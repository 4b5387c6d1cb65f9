"""A clock that jumps, no descriptors left, helpers that are killed: what runs lives on, and all is well afterwards."""

import contextlib
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
            for pid in unpackers(pid_of(node)):
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


def unpackers(daemon: int) -> list[int]:
    """The processes that unpack layers, below the one that forks them."""
    found = [daemon]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found[2:] if len(found) > 2 else []
