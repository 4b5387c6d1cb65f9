"""One pod's volume hangs, and no other pod notices; its own stop and removal answer, and so does SIGTERM.

The FUSE mounts here take requests and never answer: who waits for one hangs uninterruptibly.
"""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from support.daemon import container_config
from support.hung_mounts import MKDIR, OPEN, HungMount, hung_mount
from support.patience import patient

PATH_S = 1
PROMPT_S = patient(5)
"""What any call of another pod may take here: far more than it does, far less than the hang."""
QUICK = f"""
[server]
graceful_stop_s = 2
[pods]
path_timeout_s = {PATH_S}
kill_timeout_s = 3
[runtimes.runc]
driver = "runc"
options = {{ deadlines = {{ create_s = 4, kill_s = 1, exec_start_s = 4 }} }}
"""


@dataclass
class HungNode:
    """A daemon, and a mount without answers that was there before it."""

    node: Node
    mount: HungMount

    def volume(self, below: str = "") -> dict[str, Any]:
        """Return a volume on the mount."""
        return {"container_path": "/data", "host_path": str(self.mount.path / below)}


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungNode]:
    with hung_mount(tmp_path / "hung") as made, own_node(tmp_path, QUICK) as node:
        try:
            yield HungNode(node, made)
        finally:
            made.abort()
            if node.daemon.process is not None and node.daemon.process.poll() is not None:
                node.daemon.start()


def refused(call: Callable[[], object], limit_s: float = PROMPT_S) -> str:
    """Make a call that must fail in time; return what it says."""
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert time.monotonic() - began < limit_s, caught.value
    return str(caught.value.details())


def timed(call: Callable[[], object]) -> float:
    """Make a call that must succeed; return how long it took."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


@contextlib.contextmanager
def going_on(count: int, call: Callable[[int], object]) -> Iterator[list[Any]]:
    """Have calls under way during the block; their futures are yielded, and have ended after it."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(call, number) for number in range(count)]
        yield futures


def test_others_do_not_notice(hung: HungNode) -> None:
    node = hung.node
    sick, well = node.run_pod("sick"), node.run_pod("well")
    running = node.run_container(well, "sleep", "600")

    def create(number: int) -> str:
        limit_s = 60  # the client's: it would wait
        config = container_config(f"c{number}", BUSYBOX, "true", mounts=[hung.volume(f"{number}")])
        call = lambda: node.daemon.cri.call("CreateContainer", limit_s, pod_sandbox_id=sick, config=config)  # noqa: E731
        return refused(call, patient(30))

    with going_on(20, create) as creates:
        time.sleep(0.5)  # all of them are on their way; the paths take longer to be given up
        for _ in range(3):
            assert timed(lambda: node.call("Version")) < PROMPT_S
            assert timed(lambda: node.call("Status", verbose=True)) < PROMPT_S
            assert timed(lambda: node.execute(running, "true")) < PROMPT_S
            assert timed(lambda: node.call("ImageFsInfo")) < PROMPT_S
            assert timed(lambda: node.call("ListContainerStats", filter={})) < PROMPT_S
            assert timed(lambda: node.call("ListPodSandboxStats", filter={})) < PROMPT_S
        new: list[str] = []
        assert timed(lambda: new.append(node.run_container(well, "true", name="new"))) < PROMPT_S
        node.wait_exit(new[0])
        assert timed(lambda: node.call("StopPodSandbox", pod_sandbox_id=sick)) < PROMPT_S
    for number, future in enumerate(creates):
        assert f"{hung.mount.path}/{number} has not answered for {PATH_S} s" in future.result()
    assert hung.mount.requests > 0

    assert f"{hung.mount.path}/0 has not answered" in create(0) or "not ready" in create(0)
    assert timed(lambda: node.call("RemovePodSandbox", pod_sandbox_id=sick)) < PROMPT_S


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda path: {"mounts": [{"container_path": "/x", "host_path": path}]}, id="volume"),
        pytest.param(lambda path: {"mounts": [{"container_path": "/x", "host_path": f"{path}/sub"}]}, id="below"),
        pytest.param(
            lambda path: {"devices": [{"container_path": "/dev/x", "host_path": path, "permissions": "rwm"}]},
            id="device",
        ),
    ],
)
def test_what_hangs_is_named(hung: HungNode, config: Callable[[str], dict[str, Any]]) -> None:
    node, path = hung.node, str(hung.mount.path)
    pod = node.run_pod()
    more = config(path)
    if devices := more.pop("devices", None):
        more["devices"] = devices
    said = refused(lambda: node.create(pod, "true", **more), patient(20))
    assert re.search(f"container 'app': {re.escape(path)}\\S* has not answered for {PATH_S} s", said)
    again = time.monotonic()
    said = refused(lambda: node.create(pod, "true", **more), patient(20))
    assert path in said
    assert time.monotonic() - again < PATH_S, "a path that is known to hang is refused at once"
    assert node.create(pod, "true")


def test_a_hung_log_directory(hung: HungNode) -> None:
    node = hung.node
    pod = node.run_pod(log_directory=str(hung.mount.path / "logs"))
    assert str(hung.mount.path) in refused(lambda: node.create(pod, "true"), patient(20))
    assert timed(lambda: node.call("RemovePodSandbox", pod_sandbox_id=pod)) < PROMPT_S


def test_a_log_directory_that_begins_to_hang(hung: HungNode, tmp_path: Path) -> None:
    node, logs = hung.node, tmp_path / "pod-logs"
    pod = node.run_pod(log_directory=str(logs))
    container = node.run_container(pod, "sleep", "600")
    logs.rename(tmp_path / "moved")
    logs.symlink_to(hung.mount.path)
    with going_on(
        3, lambda _: refused(lambda: node.call("ReopenContainerLog", container_id=container), patient(20))
    ) as ends:
        assert timed(lambda: node.call("Version")) < PATH_S
    assert all(str(logs) in end.result() for end in ends)
    assert node.execute(container, "true")[0] == 0
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)


def test_a_checkpoint_to_a_place_that_hangs(hung: HungNode) -> None:
    node = hung.node
    container = node.run_container(node.run_pod(), "sleep", "600")
    location = str(hung.mount.path / "here.tar")
    call = functools.partial(node.call, "CheckpointContainer", container_id=container, location=location)
    assert location in refused(call, patient(20))
    assert timed(lambda: node.call("Version")) < PROMPT_S


@pytest.mark.parametrize("at", [frozenset({MKDIR}), frozenset()], ids=["only-mkdir", "all"])
def test_a_checkpoint_to_a_place_that_begins_to_hang(hung: HungNode, at: frozenset[int]) -> None:
    """It answered the look, and hangs once something is made there: neither the loop nor others' threads wait."""
    node = hung.node
    hung.mount.hangs, hung.mount.hangs_at = _but_for_probes, at
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "600")

    def checkpoint(number: int) -> str:
        fields = {"container_id": container, "location": str(hung.mount.path / f"{number}.tar"), "timeout": 2}
        return refused(lambda: node.daemon.cri.call("CheckpointContainer", 60, **fields), patient(30))

    with going_on(20, checkpoint) as ends:
        wait_until(lambda: hung.mount.requests > 0)
        for _ in range(2):
            assert timed(lambda: node.call("Version")) < PROMPT_S
            assert timed(lambda: node.call("ImageFsInfo")) < PROMPT_S
            assert timed(lambda: node.execute(container, "true")) < PROMPT_S
    for end in ends:
        assert str(hung.mount.path) in end.result() or "was given up after 2 s" in end.result()
    assert timed(lambda: node.call("ImageFsInfo")) < PROMPT_S
    assert timed(lambda: node.call("StopPodSandbox", pod_sandbox_id=pod)) < PROMPT_S
    assert timed(lambda: node.call("RemovePodSandbox", pod_sandbox_id=pod)) < PROMPT_S
    first = node.daemon.process
    assert first is not None
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: has_ended(first.pid), 15)
    hung.mount.abort()
    subprocess.run([*node.daemon.prefix, "umount", "--lazy", str(hung.mount.path)], check=True)  # its namespace's own
    node.daemon.restart()
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []


@pytest.mark.parametrize("place", ["configuration", "execve"])
def test_a_network_whose_files_hang(tmp_path: Path, place: str) -> None:
    """CNI's configuration, or only the execve of a plugin, from the start on: no other pod waits, nor does SIGTERM."""
    with hung_mount(tmp_path / "hung") as made:
        made.hangs = _but_for_probes
        if place == "execve":  # by whomever
            made.hangs, made.hangs_at, made.has_programs = lambda _name: True, frozenset({OPEN}), True
        directory = tmp_path / "net.d"
        directory.mkdir()
        document = {"cniVersion": "1.0.0", "name": "hung", "plugins": [{"type": "bridge"}]}
        (directory / "10-hung.conflist").write_text(json.dumps(document))
        paths = {"conf_dir": made.path, "bin_dirs": [directory]} if place == "configuration" else {}
        paths = paths or {"conf_dir": directory, "bin_dirs": [made.path]}
        options = ", ".join(f"{key} = {json.dumps(value, default=str)}" for key, value in paths.items())
        table = f"[networks.hung]\ndriver = 'cni'\noptions = {{ {options}, status_timeout_s = 1 }}\n"
        handler = "[runtimes.hung]\ndriver = 'runc'\nnetwork = 'hung'\n"
        with own_node(tmp_path, f"{QUICK}{table}{handler}") as node:
            assert made.requests > 0
            well = node.run_container(node.run_pod("well"), "sleep", "600")
            count = 0 if place == "execve" else 8
            with going_on(8, lambda number: count and refused(lambda: node.run_pod(f"p{number}", "hung"))) as ends:
                assert timed(lambda: node.call("Version")) < PROMPT_S
                assert timed(lambda: node.execute(well, "true")) < PROMPT_S
                assert timed(lambda: node.run_pod("new")) < PROMPT_S
            assert all(str(made.path) in end.result() for end in ends if count)
            first = node.daemon.process
            assert first is not None
            os.kill(first.pid, signal.SIGTERM)
            wait_until(lambda: has_ended(first.pid), 15)
            made.abort()
            node.daemon.start()


def test_a_link_to_what_hangs(hung: HungNode, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(hung.mount.path)
    pod = hung.node.run_pod()
    volume = {"container_path": "/x", "host_path": str(link)}
    assert str(link) in refused(lambda: hung.node.create(pod, "true", mounts=[volume]), patient(20))


def test_a_runtime_that_hangs(hung: HungNode) -> None:
    """The volume answered, and hangs once the runtime binds it: its process can't be killed, and is left behind."""
    node, path = hung.node, str(hung.mount.path)
    hung.mount.hangs = lambda name: name.startswith("runc")
    sick, well = node.run_pod("sick"), node.run_pod("well")
    with going_on(1, lambda _: refused(lambda: _create(node, sick, "app", hung.volume()), patient(40))) as creates:
        wait_until(lambda: hung.mount.requests > 0)
        stopping = time.monotonic()
        node.call("StopPodSandbox", pod_sandbox_id=sick)  # has the create given up
        assert time.monotonic() - stopping < patient(20)
        assert timed(lambda: node.run_container(well, "true")) < PROMPT_S
    assert f"pod {sick} is being ended" in creates[0].result()
    said = refused(lambda: node.call("RemovePodSandbox", pod_sandbox_id=sick), patient(20))
    assert re.search(rf"have not ended 1 s after SIGKILL; the pod waits for container 'app' \(volumes: {path}\)", said)

    assert timed(node.daemon.stop) < patient(15)
    node.daemon.start()
    said = refused(lambda: node.call("RemovePodSandbox", pod_sandbox_id=sick), patient(20))
    assert "of an earlier run" in said
    hung.mount.abort()
    node.call("RemovePodSandbox", pod_sandbox_id=sick)
    node.call("RemovePodSandbox", pod_sandbox_id=well)
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []


def test_a_process_that_hangs(hung: HungNode) -> None:
    """A running container's volume begins to hang: execs, stops and removals answer, and say where it hangs."""
    node = hung.node
    hung.mount.hangs = lambda _name: False
    sick, well = node.run_pod("sick"), node.run_pod("well")
    app = node.run_container(sick, "sleep", "600", mounts=[hung.volume()], working_dir="/data")
    other = node.run_container(well, "sleep", "600")
    hung.mount.hangs = lambda _name: True
    refused(lambda: node.execute(app, "ls", "/data", timeout=1), patient(30))  # its working directory hangs, too
    assert timed(lambda: node.execute(other, "true")) < PROMPT_S
    assert timed(lambda: node.call("ListContainerStats", filter={})) < PROMPT_S
    for rpc in ("StopPodSandbox", "RemovePodSandbox"):
        said = refused(functools.partial(node.call, rpc, pod_sandbox_id=sick), patient(20))
        assert f"container {app} has not ended 3 s after SIGKILL" in said
        assert f"{hung.mount.path} has not answered for" in said
    assert timed(node.daemon.stop) < patient(15)
    node.daemon.start()
    hung.mount.abort()
    node.call("RemovePodSandbox", pod_sandbox_id=sick)


def test_a_thread_that_hangs(hung: HungNode) -> None:
    """The volume answered when it was probed, and hangs for the daemon itself: its thread is left behind."""
    node, path = hung.node, str(hung.mount.path)
    hung.mount.hangs = _but_for_probes
    sick, well = node.run_pod("sick"), node.run_pod("well")
    said = refused(lambda: _create(node, sick, "c0", hung.volume()), patient(20))
    assert f"container 'c0': {path} does not answer since {PATH_S} s" in said
    assert timed(lambda: node.run_container(well, "true")) < PROMPT_S
    assert timed(lambda: node.call("StopPodSandbox", pod_sandbox_id=sick)) < PROMPT_S
    said = refused(lambda: node.call("RemovePodSandbox", pod_sandbox_id=sick), patient(20))
    assert f"a thread that was left behind hangs: {path} does not answer since" in said
    assert f"the pod waits for container 'c0' (volumes: {path})" in said
    hung.mount.abort()
    node.call("RemovePodSandbox", pod_sandbox_id=sick)
    node.call("RemovePodSandbox", pod_sandbox_id=well)
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []


def test_a_thread_that_hangs_keeps_no_state_locked(hung: HungNode) -> None:
    """A process with a thread in an uninterruptible wait never quite ends; a new daemon can begin all the same."""
    node = hung.node
    hung.mount.hangs = _but_for_probes
    pod = node.run_pod()
    refused(lambda: _create(node, pod, "app", hung.volume()), patient(20))
    first = node.daemon.process
    assert first is not None
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: has_ended(first.pid), 15)
    node.daemon.start()
    assert first.poll() is None
    hung.mount.abort()
    first.wait(patient(20))
    node.call("RemovePodSandbox", pod_sandbox_id=pod)


def has_ended(pid: int) -> bool:
    """Return whether a child has come to its end, even if a thread of it hangs in the kernel, so it can't be reaped."""
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def _but_for_probes(name: str) -> bool:
    return name not in ("sh", "dash")


def wait_until(holds: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + patient(limit_s)
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_is_obeyed(hung: HungNode) -> None:
    node = hung.node
    pod = node.run_pod()
    with going_on(8, lambda number: refused(lambda: _create(node, pod, f"c{number}", hung.volume(f"{number}")), 60)):
        time.sleep(0.5)
        began = time.monotonic()
        assert node.daemon.stop() == 0
        assert time.monotonic() - began < patient(15)
    node.daemon.start()
    hung.mount.abort()
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []


def _create(node: Node, pod: str, name: str, volume: dict[str, Any]) -> str:
    return node.create(pod, "true", name=name, mounts=[volume])
