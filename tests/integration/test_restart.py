"""The daemon stops, is killed at any moment, and comes back: pods live on, states are true, nothing leaks."""

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.conftest import BUSYBOX, RUNTIMES, Node
from integration.pods import until
from support.daemon import pod_config
from support.patience import patient


def test_pods_live_on_over_a_stop(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sh", "-c", "while true; do echo tick; sleep 0.05; done")
    before = node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]
    started, log = node.status(container)["started_at"], Path(node.status(container)["log_path"])
    assert node.daemon.stop() == 0
    assert not node.daemon.socket.exists()
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size)
    node.daemon.start()
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"] == before
    assert node.status(container)["started_at"] == started
    assert node.execute(container, "echo", "still here") == (0, "still here\n", "")
    node.call("StopContainer", container_id=container, timeout=0)
    assert node.status(container)["exit_code"] == 137


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_ends_that_nobody_watched_are_told(node: Node, runtime: str) -> None:
    pod = node.run_pod(handler=runtime)
    ends = node.run_container(pod, "sh", "-c", "sleep 0.5; echo late; exit 7", name="ends")
    runs = node.run_container(pod, "sleep", "1000", name="runs")
    waits = node.create(pod, "sh", "-c", "echo started late", name="waits")
    node.daemon.kill()
    time.sleep(patient(1))
    node.daemon.start()
    status = node.wait_exit(ends)
    assert (status["exit_code"], status["reason"]) == (7, "Error")
    assert int(status["finished_at"]) - int(status["started_at"]) < patient(900_000_000)
    assert node.log(ends) == "late\n"
    assert node.status(runs)["state"] == "CONTAINER_RUNNING"
    assert node.status(waits)["state"] == "CONTAINER_CREATED"
    node.call("StartContainer", container_id=waits)
    node.wait_exit(waits)
    assert node.log(waits) == "started late\n"


def test_containers_whose_monitor_was_killed_too(node: Node) -> None:
    """As after a crash of everything but the container, and of everything."""
    pod = node.run_pod()
    alone = node.run_container(pod, "sleep", "1000", name="alone")
    gone = node.run_container(pod, "sleep", "1000", name="gone")
    monitors = {container: monitor_of(container) for container in (alone, gone)}
    node.daemon.kill()
    for pid in monitors.values():
        os.kill(pid, signal.SIGKILL)
    for pid in node.daemon.cgroup_processes(pod):
        if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes() and gone in Path(f"/proc/{pid}/cgroup").read_text():
            os.kill(pid, signal.SIGKILL)
    node.daemon.start()
    status = node.wait_exit(gone)
    assert (status["exit_code"], status["reason"]) in ((255, "ContainerStatusUnknown"), (137, "Error"))
    assert node.status(alone)["state"] == "CONTAINER_RUNNING"
    node.call("StopContainer", container_id=alone, timeout=0)
    assert node.status(alone)["state"] == "CONTAINER_EXITED"


def monitor_of(container: str) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"conmon") and container.encode() in words:
            return int(path.parent.name)
    raise AssertionError(f"no monitor of {container}")


def test_a_restart_of_the_host_leaves_pods_not_ready(node: Node) -> None:
    """What a reboot takes away: processes, mounts, the run directory."""
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    node.daemon.kill()
    os.kill(monitor_of(container), signal.SIGKILL)
    for pid in node.daemon.cgroup_processes(pod):
        os.kill(pid, signal.SIGKILL)
    prefix = list(node.daemon.prefix)
    script = 'for m in $(grep -o "/run/$1/[^ ]*" /proc/self/mountinfo); do umount -l "$m"; done; rm -rf "/run/$1"'
    subprocess.run([*prefix, "sh", "-c", script, "sh", node.daemon.name], check=True)
    node.daemon.start()
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["state"] == "SANDBOX_NOTREADY"
    status = node.status(container)
    assert (status["state"], status["exit_code"]) == ("CONTAINER_EXITED", 255)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)


class Killer:
    """Kills the daemon a given time after a call was sent; the client stays, to see the call fail."""

    def __init__(self, node: Node, delay_s: float) -> None:
        assert node.daemon.process is not None
        self._node = node
        self._thread = threading.Timer(patient(delay_s), os.kill, (node.daemon.process.pid, signal.SIGKILL))

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._node.daemon.kill()


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 70, 90])
def test_killed_while_it_makes_and_removes(node: Node, delay_ms: int) -> None:
    """kill -9 at any instruction leaves what was answered, or nothing; a retry of what was not answered succeeds."""
    pod = node.run_pod("first")
    name = f"killed{delay_ms}"
    config = pod_config(name, log_directory=str(node.logs / name))
    with Killer(node, delay_ms / 1000):
        made = attempt(node, "RunPodSandbox", config=config)
        if made:
            attempt(node, "CreateContainer", pod_sandbox_id=made["pod_sandbox_id"], config=sleeping())
    node.daemon.start()
    known = [one["id"] for one in node.call("ListPodSandbox")["items"]]
    assert pod in known
    again = node.call("RunPodSandbox", config=config)["pod_sandbox_id"] if not made else made["pod_sandbox_id"]
    container = node.call("CreateContainer", pod_sandbox_id=again, config=sleeping("again"))["container_id"]
    node.call("StartContainer", container_id=container)
    with Killer(node, delay_ms / 1000):
        attempt(node, "RemovePodSandbox", pod_sandbox_id=again)
    node.daemon.start()
    owners = {row[0].partition("/")[0] for row in node.daemon.query("SELECT DISTINCT owner FROM ledger")}
    known = [one["id"] for one in node.call("ListPodSandbox")["items"]]
    known += [one["id"] for one in node.call("ListContainers")["containers"]]
    assert owners <= set(known)


def attempt(node: Node, rpc: str, **fields: Any) -> dict[str, Any]:
    """Call, and return nothing when the daemon dies meanwhile."""
    try:
        return node.call(rpc, **fields)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
        return {}


def sleeping(name: str = "app") -> dict[str, Any]:
    options = {"security_context": {"namespace_options": {"pid": "CONTAINER"}}}
    return {"metadata": {"name": name}, "image": {"image": BUSYBOX}, "command": ["sleep", "1000"], "linux": options}


def test_a_second_daemon_over_the_same_state_is_refused(node: Node) -> None:
    from support.daemon import Daemon

    second = Daemon(node.daemon.directory, node.daemon.config, node.daemon.prefix, name=node.daemon.name)
    second.launch()
    assert second.process is not None
    assert second.process.wait(patient(30)) != 0
    assert "another crinoid runs over" in second.tail()
    assert node.call("Version")["runtime_name"] == "crinoid"


def test_stopping_waits_for_requests_under_way(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    answers: list[tuple[int, str, str]] = []
    script = "echo > /begun; sleep 1; echo done"
    caller = threading.Thread(target=lambda: answers.append(node.execute(container, "sh", "-c", script)))
    caller.start()
    until(lambda: node.execute(container, "ls", "/begun")[0] == 0)
    assert node.daemon.process is not None
    os.kill(node.daemon.process.pid, signal.SIGTERM)
    caller.join()
    assert answers == [(0, "done\n", "")]
    assert node.daemon.process.wait(patient(30)) == 0


@pytest.fixture
def notify_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import socket

    path = f"/run/crt-notify-{secrets.token_hex(3)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listener
    Path(path).unlink()


def test_the_service_manager_is_told(node: Node, notify_socket: Any) -> None:
    node.daemon.restart()
    assert notify_socket.recv(4096).startswith(b"READY=1\n")
    node.daemon.stop()
    assert notify_socket.recv(4096) == b"STOPPING=1"
