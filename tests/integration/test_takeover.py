"""A new daemon takes over from the one that runs: clients see a pause, and neither a failure nor a lost event."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest

from crinoid.core.cri.wire import api_pb2
from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from integration.pods import refused, until
from support import programs, short_ages
from support.cri import Cri
from support.daemon import container_config, pod_config
from support.patience import patient

CREATED, STARTED, STOPPED, DELETED = (
    api_pb2.ContainerEventType.Value(f"CONTAINER_{name}_EVENT") for name in ("CREATED", "STARTED", "STOPPED", "DELETED")
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with own_node(tmp_path, f"[server]\ngraceful_stop_s = {patient(10)}\n") as node:
        yield node
        node.daemon.forget_client()  # a test may just have ended the daemon that it is connected to


@dataclass
class Calling:
    """A client that calls all the time, over one connection as a kubelet does, and never tries twice."""

    node: Node
    call: Callable[[Cri, int], object]
    failures: list[str] = field(default_factory=list)
    calls: int = 0
    longest_s: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Calling":
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Call no more. Idempotent."""
        self.stopped.set()
        self._thread.join()

    def _work(self) -> None:
        cri = Cri(self.node.daemon.socket)
        while not self.stopped.is_set():
            began_s = time.monotonic()
            try:
                self.call(cri, self.calls)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.calls += 1
        cri.close()


@dataclass
class Following:
    """A client of container events that subscribes again when its stream ends; ``ends`` has the ends' status."""

    node: Node
    events: list[tuple[str, int]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    """What was created and not started when the stream ended without an error: a kubelet would make that again."""
    _stopped: bool = False

    def __enter__(self) -> "Following":
        self._cri = Cri(self.node.daemon.socket)
        self._stream = self._cri.stream_raw("GetContainerEvents", b"", timeout_s=600)
        self._stream.initial_metadata()  # it has been subscribed
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._stream.cancel()
        self._thread.join()
        self._cri.close()

    def _work(self) -> None:
        while not self._stopped:
            try:
                for data in self._stream:
                    event = api_pb2.ContainerEventResponse.FromString(data)
                    self.events.append((event.container_id, event.container_event_type))
                self.ends.append("OK")
                self.waiting = {one for one, kind in self.events if kind == CREATED}
                self.waiting -= {one for one, kind in self.events if kind == STARTED}
            except grpc.RpcError as error:
                self.ends.append(error.code().name)
            if not self._stopped:
                self._stream = self._cri.stream_raw("GetContainerEvents", b"", timeout_s=600)


def run_and_remove(cri: Cri, number: int) -> None:
    config = pod_config(f"life{number}")
    pod = cri.call("RunPodSandbox", config=config)["pod_sandbox_id"]
    cri.call("StopPodSandbox", pod_sandbox_id=pod)
    cri.call("RemovePodSandbox", pod_sandbox_id=pod)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a daemon that was taken over, which passes calls on for some minutes otherwise."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(patient(30)) == 0


def test_a_client_that_calls_all_the_time_sees_no_failure(node: Node) -> None:
    pod = node.run_pod()
    staying = node.run_container(pod, "sleep", "600", name="stays")
    before = []
    execs: list[int] = []
    with contextlib.ExitStack() as clients:
        following = clients.enter_context(Following(node))
        ending = [node.run_container(pod, "sleep", str(number / 2), name=f"c{number}") for number in range(12)]
        callings = [
            clients.enter_context(Calling(node, call))
            for call in (
                lambda cri, _: cri.call("Version"),
                lambda cri, _: cri.call("ListPodSandbox"),
                lambda cri, _: cri.call("Status", verbose=True),
                lambda cri, _: cri.call("ExecSync", container_id=staying, cmd=["sleep", "0.2"], timeout=60),
                run_and_remove,
            )
        ]
        for _ in range(2):
            running = threading.Thread(target=lambda: execs.append(node.execute(staying, "sleep", "1")[0]))
            running.start()
            time.sleep(patient(0.3))
            before.append(node.daemon.take_over())
            running.join()
        until(lambda: {(one, STOPPED) for one in ending} <= set(following.events))
        until(lambda: min(calling.calls for calling in callings) > 5)  # how soon is the machine's to say
    assert [calling.failures for calling in callings] == [[]] * len(callings)
    assert execs == [0, 0]
    seen = Counter(event for event in following.events if event[0] in ending)
    assert seen == Counter((one, kind) for one in ending for kind in (CREATED, STARTED, STOPPED))  # each once
    assert following.ends == ["CANCELLED"], "its stream goes on until it leaves"
    for process in before:
        assert process.poll() is None  # clients are connected to it still
        end(process)
    assert node.status(staying)["state"] == "CONTAINER_RUNNING"
    print([(calling.calls, round(calling.longest_s, 2)) for calling in callings])  # with -s: how long the pause is


@dataclass
class Lives:
    """Leads lives of pods with a container; ``ids`` are those of which all was answered."""

    pause_s: float = 0.0
    ids: list[str] = field(default_factory=list)

    def __call__(self, cri: Cri, number: int) -> None:
        pod = cri.call("RunPodSandbox", config=pod_config(f"life{number}"))["pod_sandbox_id"]
        wanted = container_config("app", BUSYBOX, "sleep", "1000")
        container = cri.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"]
        cri.call("StartContainer", container_id=container)
        cri.call("StopContainer", container_id=container, timeout=0)
        cri.call("RemoveContainer", container_id=container)
        cri.call("StopPodSandbox", pod_sandbox_id=pod)
        cri.call("RemovePodSandbox", pod_sandbox_id=pod)
        self.ids += [pod, container]
        time.sleep(self.pause_s)

    def check(self, events: list[tuple[str, int]]) -> None:
        """Each event of each life once, in order."""
        told: dict[str, list[int]] = {}
        for subject, kind in events:
            told.setdefault(subject, []).append(kind)
        life = [CREATED, STARTED, STOPPED, DELETED]
        assert {one: told.get(one) for one in self.ids} == {one: life for one in self.ids}  # noqa: C420  # a list


def test_a_stream_of_events_goes_on_over_takeovers_with_each_event_once(node: Node) -> None:
    lives, before = Lives(), []
    with Following(node) as following, Calling(node, lives) as calling:

        def served(calls: int) -> bool:
            return calling.calls >= calls

        for number in range(1, 4):
            until(partial(served, number))
            before.append(node.daemon.take_over())
        until(partial(served, calling.calls + 2))
        calling.stop()
        until(lambda: (lives.ids[-2], DELETED) in following.events)  # the last pod's
        ends = list(following.ends)
    assert (calling.failures, ends) == ([], [])
    lives.check(following.events)
    for process in reversed(before):
        end(process)


def test_a_stream_moves_to_the_successor_before_the_earlier_daemon_ends(tmp_path: Path) -> None:
    """Once, without an error; the client subscribes again, and gets what has happened meanwhile, each event once."""
    age = {short_ages.AGE: str(patient(10)), "PYTHONPATH": str(Path(__file__).parents[1])}
    with own_node(tmp_path) as node:
        node.daemon.module, node.daemon.environment = short_ages.__name__, age
        node.daemon.restart()
        lives = Lives(pause_s=patient(0.3))
        with Following(node) as following, Calling(node, lives) as calling:
            before = node.daemon.take_over()
            assert before.wait(patient(90)) == 0
            served = calling.calls
            until(lambda: calling.calls > served + 1)
            calling.stop()
            until(lambda: (lives.ids[-2], DELETED) in following.events)
            ends = list(following.ends)
        assert (calling.failures, ends, following.waiting) == ([], ["OK"], set())
        lives.check(following.events)


def test_a_successor_that_can_not_start_leaves_the_daemon_as_it_is(node: Node) -> None:
    pod, before = node.run_pod(), node.daemon.process
    config = node.daemon.config
    for wrong in ("[network]\ndriver = 'nonsense'\n", "[server]\nnonsense = 1\n"):
        node.daemon.config = f"{config.partition('[network]')[0]}{wrong}"
        node.daemon.launch("--takeover")
        assert node.daemon.process is not None
        assert node.daemon.process.wait(patient(30)) == 78
        node.daemon.process, node.daemon.config = before, config
    assert [one["id"] for one in node.call("ListPodSandbox")["items"]] == [pod]
    assert node.daemon.serving_pid() == before.pid  # type: ignore[union-attr]


def test_what_outlasts_the_grace_is_told_to_ask_again(tmp_path: Path) -> None:
    with own_node(tmp_path, "[server]\ngraceful_stop_s = 1\n") as node:
        container = node.run_container(node.run_pod(), "sleep", "600")
        answers: list[str] = []

        def ask() -> None:
            with refused("UNAVAILABLE", "ExecSync had not ended when another crinoid took over: ask it again"):
                node.execute(container, "sleep", "300", timeout=600)
            answers.append("refused")

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: node.execute(container, "pidof", "sleep")[1].count(" ") == 1)
        end(node.daemon.take_over())
        asking.join()
        assert answers == ["refused"]
        assert node.execute(container, "true")[0] == 0


def test_a_second_successor_is_refused_and_takes_nothing(node: Node) -> None:
    container, before = node.run_container(node.run_pod(), "sleep", "600"), node.daemon.process
    assert before is not None
    exec_under_way = threading.Thread(target=lambda: node.execute(container, "sleep", str(patient(6)), timeout=60))
    exec_under_way.start()
    until(lambda: node.execute(container, "pidof", "sleep")[1].count(" ") == 1)
    node.daemon.launch("--takeover")
    first = node.daemon.process
    assert first is not None
    until(lambda: "taking over from the daemon that runs" in node.daemon.log.read_text())
    node.daemon.launch("--takeover")
    assert node.daemon.process is not None
    assert node.daemon.process.wait(patient(30)) == 78
    node.daemon.process = first
    exec_under_way.join()
    until(lambda: node.daemon.serving_pid() == first.pid)
    assert node.execute(container, "true")[0] == 0
    end(before)


@dataclass
class Notified:
    """What daemons told systemd, by the socket that it would give them (sd_notify(3))."""

    directory: Path

    def __enter__(self) -> "Notified":
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.path = self.directory / "notify"
        self._socket.bind(str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def take(self) -> list[str]:
        """The states since the last time, but for what is for people."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self._socket.recv(4096).decode().splitlines()
        return [state for state in found if not state.startswith("STATUS=")]


@pytest.fixture
def notified(node: Node, tmp_path: Path) -> Iterator[Notified]:
    with Notified(tmp_path) as notified:
        node.daemon.environment = {"NOTIFY_SOCKET": str(notified.path)}
        node.daemon.restart()
        yield notified


@dataclass
class Handing:
    """A takeover between ``go`` and ``gone``: the daemon that lets go waits for an exec under way. And a client."""

    before: "subprocess.Popen[bytes]"
    successor: "subprocess.Popen[bytes]"
    calling: Calling
    goes_on: Path

    def finish(self) -> None:
        """Let the exec end."""
        self.goes_on.touch()


@pytest.fixture
def handing(node: Node, notified: Notified) -> Iterator[Handing]:
    before = node.daemon.process
    assert before is not None
    container = node.run_container(node.run_pod(), "sleep", "600")
    status = json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])
    goes_on = Path(f"/proc/{status['pid']}/root/goes-on")
    codes: list[int] = []
    waits = "touch /waits; until [ -e /goes-on ]; do sleep 0.1; done"
    running = threading.Thread(target=lambda: codes.append(node.execute(container, "sh", "-c", waits, timeout=300)[0]))
    running.start()
    until(goes_on.with_name("waits").exists)
    assert notified.take() == ["READY=1", f"MAINPID={before.pid}"]
    with Calling(node, lambda cri, _: cri.call("Version")) as calling:
        until(lambda: calling.calls > 0)
        node.daemon.launch("--takeover")
        assert node.daemon.process is not None
        until(lambda: "another daemon takes over" in node.daemon.log.read_text())
        yield Handing(before, node.daemon.process, calling, goes_on)
    running.join()
    assert codes == [0], "a call under way is answered, whatever becomes of the takeover"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_successor_that_ends_before_it_serves_leaves_the_daemon_that_was(
    number: signal.Signals, node: Node, handing: Handing, notified: Notified
) -> None:
    """It serves again: its clients see a pause, and systemd never hears of the other."""
    handing.successor.send_signal(number)
    handing.successor.wait(patient(30))
    node.daemon.process = handing.before
    handing.finish()
    until(lambda: node.daemon.serving_pid() == handing.before.pid)
    served = handing.calling.calls
    until(lambda: handing.calling.calls > served + 1)
    assert handing.calling.failures == []
    assert "has ended before it served: this one serves again" in node.daemon.log.read_text()
    assert notified.take() == ["READY=1", f"MAINPID={handing.before.pid}"]
    (container,) = node.call("ListContainers")["containers"]
    assert node.execute(container["id"], "true")[0] == 0
    handing.calling.stop()
    end(node.daemon.take_over())
    assert notified.take() == ["READY=1", f"MAINPID={node.daemon.serving_pid()}"]


def test_a_daemon_that_is_stopped_while_another_takes_over_ends_both(node: Node, handing: Handing) -> None:
    """As ``systemctl stop`` does: for systemd the one that lets go is the main process still."""
    handing.before.send_signal(signal.SIGTERM)
    handing.finish()
    assert handing.before.wait(patient(30)) == 0
    assert handing.successor.wait(patient(30)) in (0, -signal.SIGTERM)
    handing.calling.stop()
    node.daemon.start()
    assert node.call("ListContainers")["containers"][0]["state"] == "CONTAINER_RUNNING"


def test_a_successor_that_can_not_serve_once_it_has_all_leaves_the_daemon_that_was(node: Node) -> None:
    container, before, config = (
        node.run_container(node.run_pod(), "sleep", "600"),
        node.daemon.process,
        node.daemon.config,
    )
    changed = node.daemon.config_file.parent / "conf.d/zz.toml"
    changed.write_text(f"[images]\npinned = ['{BUSYBOX}']\n")
    command = [sys.executable, "-m", "crinoid", "reload", "--config", str(node.daemon.config_file)]
    subprocess.run(command, check=True, capture_output=True, timeout=patient(60))
    changed.unlink()
    node.daemon.config = f"{config}[metrics]\nlisten = '192.0.2.1:1'\n"  # an address that no host has
    with Following(node) as following:
        node.daemon.launch("--takeover")
        assert node.daemon.process is not None
        assert node.daemon.process.wait(patient(60)) == 78
        node.daemon.process, node.daemon.config = before, config
        until(lambda: node.daemon.serving_pid() == before.pid)  # type: ignore[union-attr]
        assert node.execute(container, "true")[0] == 0
        (image,) = (one for one in node.call("ListImages")["images"] if BUSYBOX in one["repo_tags"])
        assert image["pinned"], "what was reloaded is in force still"
        lives = Lives()
        lives(node.daemon.cri, 0)
        until(lambda: (lives.ids[0], DELETED) in following.events)
        assert following.ends == [], "the stream of events goes on, too"
    lives.check(following.events)


def test_takeover_is_a_start_where_no_daemon_runs(node: Node) -> None:
    node.daemon.kill()
    node.daemon.launch("--takeover")
    until(lambda: node.daemon.serving_pid() == node.daemon.process.pid)  # type: ignore[union-attr]
    assert node.call("Version")


def test_upgrade_returns_once_the_successor_serves(node: Node, notified: Notified) -> None:
    before = node.daemon.process
    assert before is not None
    assert notified.take() == ["READY=1", f"MAINPID={before.pid}"]
    program = [*node.daemon.prefix, sys.executable, "-m", "crinoid"]
    command = [*program, "upgrade", "--config", str(node.daemon.config_file)]
    environment = os.environ | node.daemon.environment
    with node.daemon.log.open("ab") as log:  # which the successor goes on to write
        upgrade = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        states = until(notified.take)
        main = int(states[1].removeprefix("MAINPID="))
        parent = re.search(r"^PPid:\t(\d+)$", Path(f"/proc/{main}/status").read_text(), re.MULTILINE)
        said, _ = upgrade.communicate(timeout=patient(60))
    assert parent is not None
    assert int(parent[1]) != upgrade.pid, "systemd waits for the end of its own children alone"
    assert upgrade.returncode == 0
    assert stat.S_IMODE((node.daemon.run / "takeover.sock").stat().st_mode) & 0o077 == 0  # root's alone
    successor = node.daemon.serving_pid()
    assert said == f"process {successor} has taken over from {before.pid}\n"
    assert successor == main
    node.run_pod()
    end(before)
    os.kill(successor, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{successor}").exists())
    node.daemon.environment = {}
    node.daemon.start()
    refused = programs.run(
        [sys.executable, "-m", "crinoid", "upgrade", "--config", "/nonexistent/c.toml"],
        capture_output=True,
        check=False,
    )
    assert refused.returncode == 78
