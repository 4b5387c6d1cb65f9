"""Pods in virtual machines: examples/crinoid-microvm in a real daemon, beside runc, on the bridge network.

One pod is tried wherever QEMU and a kernel are; the rest is for ``make test-microvm``, as each boot takes seconds.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from integration.conftest import BUSYBOX
from support.bridge import BridgeNode, fresh_node
from support.daemon import Daemon, container_config, pod_config
from support.examples import declare
from support.images import build_busybox
from support.microvm import IS_WANTED, find_kernel, guests
from support.patience import patient
from support.streaming import connect_forward, forward

KERNEL = find_kernel()
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or KERNEL is None, reason="wants QEMU and a kernel: make test-microvm"),
    pytest.mark.timeout(1800),
]
slow = pytest.mark.skipif(not IS_WANTED, reason="each boots a virtual machine: make test-microvm")
BOOT_S = patient(300)
SERVE = "echo hello from a guest > /tmp/index.html; echo ready; exec httpd -f -p 80 -h /tmp"
COUNT = "i=0; while true; do i=$((i + 1)); echo $i; sleep 0.2; done"
CONFIG = """
[network]
driver = "bridge"
[registries.layout]
driver = "layout"
options = {{ directory = "{layouts}" }}
[images]
sources = ["layout"]
[deadlines.runtime]
start_pod = {boot_s}
[runtimes.microvm]
driver = "microvm"
options = {{ kernel = "{kernel}", modules = "{modules}", acceleration = "tcg", boot_s = {boot_s} }}
[runtimes.no-qemu]
driver = "microvm"
options = {{ kernel = "{kernel}", modules = "{modules}", qemu = "/nowhere/qemu" }}
[runtimes.no-kernel]
driver = "microvm"
options = {{ kernel = "/nowhere/vmlinuz", modules = "{modules}" }}
"""


class Place:
    """The daemon, and what is done with it in each test."""

    def __init__(self, daemon: Daemon, logs: Path) -> None:
        self.daemon = daemon
        self.logs = logs

    def call(self, rpc: str, **fields: Any) -> Any:
        return self.daemon.cri.call(rpc, timeout_s=2 * BOOT_S, **fields)

    def run_pod(self, name: str, handler: str = "microvm", **more: Any) -> str:
        config = pod_config(name, log_directory=str(self.logs), **more)
        return str(self.call("RunPodSandbox", config=config, runtime_handler=handler)["pod_sandbox_id"])

    def start(self, pod: str, name: str, script: str, **more: Any) -> str:
        config = container_config(name, BUSYBOX, "sh", "-c", script, **more)
        made = self.call("CreateContainer", pod_sandbox_id=pod, config=config)["container_id"]
        self.call("StartContainer", container_id=made)
        return str(made)

    def execute(self, container: str, script: str) -> tuple[int, str]:
        answer = self.call("ExecSync", container_id=container, cmd=["sh", "-c", script], timeout=int(patient(60)))
        return answer["exit_code"], base64.b64decode(answer["stdout"]).decode()

    def status(self, container: str) -> Any:
        return self.call("ContainerStatus", container_id=container)["status"]

    def sandbox(self, pod: str) -> str:
        return str(self.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["state"])

    def until_exited(self, container: str) -> Any:
        self.until(lambda: self.status(container)["state"] == "CONTAINER_EXITED", "the container ends")
        return self.status(container)

    def log(self, name: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in (self.logs / f"{name}.log").read_text().splitlines()]

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + patient(120)
        while not true():
            assert time.monotonic() < deadline, f"it did not come to it: {what}\n{self.daemon.tail()}"
            time.sleep(0.1)

    def fetch(self, address: str) -> str:
        """Ask a pod for its page, from the node."""
        deadline = time.monotonic() + patient(60)
        while True:
            try:
                with socket.create_connection((address, 80), timeout=patient(20)) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return client.makefile().read()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "nobody listens in the guest"
                time.sleep(0.1)

    def remove(self, pod: str) -> None:
        self.call("RemovePodSandbox", pod_sandbox_id=pod)
        assert guests(self.daemon.run) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    assert KERNEL is not None
    directory = tmp_path_factory.mktemp("microvm")
    build_busybox(directory / "layouts" / "busybox", BUSYBOX)
    config = CONFIG.format(layouts=directory / "layouts", kernel=KERNEL[0], modules=KERNEL[1], boot_s=BOOT_S)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fresh_node())
        BridgeNode(directory, stack)
        path = declare(directory / "metadata", "crinoid-microvm")
        daemon = Daemon(directory / "daemon", config, environment={"PYTHONPATH": path})
        stack.callback(daemon.end)
        daemon.start(is_forked=False)
        daemon.cri.call("PullImage", image={"image": BUSYBOX})
        yield Place(daemon, directory / "logs")
        daemon.clean()
        assert daemon.leftovers() == []
        assert guests(daemon.run) == []


def test_a_pod_in_a_guest(place: Place, tmp_path: Path) -> None:
    """All that a pod has: its address, names, volumes, logs, exec, exit code, statistics."""
    (tmp_path / "file").write_text("of the node\n")
    volume = {"container_path": "/data", "host_path": str(tmp_path)}
    only_read = {"container_path": "/only", "host_path": str(tmp_path / "file"), "readonly": True}
    dns = {"servers": ["192.0.2.53"], "searches": ["example.test"]}
    pod = place.run_pod("whole", dns_config=dns)
    web = place.start(pod, "web", SERVE, mounts=[volume, only_read])
    address = place.call("PodSandboxStatus", pod_sandbox_id=pod)["status"]["network"]["ip"]
    assert "hello from a guest" in place.fetch(address)
    assert place.log("web") == ["stdout F ready"]
    tell = (
        "uname -r; hostname; cat /only; grep nameserver /etc/resolv.conf; echo new > /data/made; echo x > /only; exit 3"
    )
    code, said = place.execute(web, tell)
    release, *more = said.splitlines()
    assert release != os.uname().release, "it runs on the node's kernel"
    assert (code, more) == (3, ["whole", "of the node", "nameserver 192.0.2.53"])
    assert (tmp_path / "made").read_text() == "new\n"
    assert (tmp_path / "file").read_text() == "of the node\n"
    fails = place.start(pod, "fails", "echo out; echo err >&2; exit 7")
    status = place.until_exited(fails)
    assert (status["exit_code"], status["reason"]) == (7, "Error")
    assert sorted(place.log("fails")) == ["stderr F err", "stdout F out"]
    usage = place.call("PodSandboxStats", pod_sandbox_id=pod)["stats"]["linux"]
    assert int(usage["memory"]["working_set_bytes"]["value"]) > 20 << 20, "QEMU's, with the guest in it"
    of_container = place.call("ContainerStats", container_id=web)["stats"]
    assert 0 < int(of_container["memory"]["usage_bytes"]["value"]) < 20 << 20
    place.call("StopContainer", container_id=web, timeout=int(patient(10)))
    place.remove(pod)


@slow
def test_a_guest_outlives_the_daemon(place: Place) -> None:
    """Killed, stopped, taken over: containers run on, and logs go on; what ended meanwhile is told."""
    pod = place.run_pod("lasting")
    counting = place.start(pod, "counting", COUNT)
    ending = place.start(pod, "ending", "while ! [ -e /tmp/end ]; do sleep 0.1; done; exit 9")
    before = guests(place.daemon.run)
    place.until(lambda: place.log("counting"), "it counts")
    assert place.execute(ending, "(sleep 1; echo > /tmp/end) >/dev/null 2>&1 &")[0] == 0
    place.daemon.kill()
    lines = len(place.log("counting"))
    place.until(lambda: len(place.log("counting")) > lines + 10, "it counts on without the daemon")
    place.daemon.start(is_forked=False)
    assert place.until_exited(ending)["exit_code"] == 9
    place.daemon.stop()
    place.daemon.start(is_forked=False)
    former = place.daemon.take_over(is_forked=False)  # it passes on the calls of whoever is still connected
    former.terminate()
    former.wait(patient(60))
    assert guests(place.daemon.run) == before
    assert place.status(counting)["state"] == "CONTAINER_RUNNING"
    assert place.sandbox(pod) == "SANDBOX_READY"
    assert place.execute(counting, "echo still") == (0, "still\n")
    numbers = [int(line.split()[-1]) for line in place.log("counting")]
    assert numbers == list(range(1, len(numbers) + 1)), "no line was lost"
    log = place.logs / "counting.log"
    log.rename(log.with_suffix(".old"))
    place.call("ReopenContainerLog", container_id=counting)
    place.until(lambda: place.log("counting"), "the new log is written")
    place.remove(pod)


@slow
def test_a_guest_that_is_killed(place: Place) -> None:
    pod = place.run_pod("killed")
    container = place.start(pod, "killed", "sleep 1000")
    (qemu,) = guests(place.daemon.run)
    os.kill(qemu, signal.SIGKILL)
    status = place.until_exited(container)
    assert (status["exit_code"], status["reason"]) == (255, "ContainerStatusUnknown")
    place.until(lambda: place.sandbox(pod) == "SANDBOX_NOTREADY", "the pod is not ready any more")
    assert "its virtual machine has ended" in place.daemon.log.read_text()
    with pytest.raises(grpc.RpcError, match=r"has no virtual machine that runs|is not ready"):
        place.start(pod, "late", "true")
    place.remove(pod)


@slow
def test_a_guest_that_is_killed_while_the_daemon_is_gone(place: Place) -> None:
    pod = place.run_pod("both")
    container = place.start(pod, "both", "sleep 1000")
    (qemu,) = guests(place.daemon.run)
    place.daemon.kill()
    os.kill(qemu, signal.SIGKILL)
    place.daemon.start(is_forked=False)
    assert place.until_exited(container)["exit_code"] == 255
    place.until(lambda: place.sandbox(pod) == "SANDBOX_NOTREADY", "the pod is not ready any more")
    place.remove(pod)


@slow
def test_a_daemon_that_is_killed_while_a_guest_boots(place: Place) -> None:
    """The next one ends the guest, whose pod nobody has heard of."""
    asking = threading.Thread(target=_run_in_vain, args=[place])
    asking.start()
    place.until(lambda: guests(place.daemon.run), "QEMU runs")
    place.daemon.kill()
    asking.join()
    assert guests(place.daemon.run)
    place.daemon.start(is_forked=False)
    place.until(lambda: not guests(place.daemon.run), "the guest is ended")
    assert place.call("ListPodSandbox")["items"] == []
    assert place.daemon.leftovers() == []


def _run_in_vain(place: Place) -> None:
    with contextlib.suppress(grpc.RpcError):
        place.run_pod("interrupted")


@slow
async def test_a_port_forward(place: Place) -> None:
    pod = place.run_pod("forward")
    place.start(pod, "echo", "echo ready; while true; do nc -l -p 8080 -e cat; done")
    place.until(lambda: place.log("echo") == ["stdout F ready"], "it runs")
    url = str(place.call("PortForward", pod_sandbox_id=pod, port=[8080])["url"])
    async with connect_forward(url, "websocket") as client:
        deadline, got = time.monotonic() + patient(60), b""
        while not got:  # the first of them may come before somebody listens
            assert time.monotonic() < deadline, "nobody listens in the guest"
            one = await forward(client, 8080, str(deadline - time.monotonic()))
            await one.data.send(b"hello")
            got = await one.data.read()
            await one.data.close()
        assert got == b"hello"
        other = await forward(client, 8081, "1")
        assert b"Connection refused" in await other.error.read_all()
    place.remove(pod)


@slow
def test_limits(place: Place) -> None:
    """A container's are its own, the pod's are all containers', and neither is more than the guest has."""
    pod = place.run_pod("limits")
    eats = "head -c 100000000 /dev/zero | tail > /dev/null; exit $?"
    limit = {"memory_limit_in_bytes": 32 << 20}
    context = {"security_context": {"namespace_options": {"pid": "CONTAINER"}}}
    container = place.start(pod, "limited", f"exec sh -c '{eats}'", linux={"resources": limit, **context})
    status = place.until_exited(container)
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")
    place.call("UpdatePodSandboxResources", pod_sandbox_id=pod, resources={"memory_limit_in_bytes": 48 << 20})
    assert place.until_exited(place.start(pod, "bounded", eats))["exit_code"] == 137
    with pytest.raises(grpc.RpcError, match="can't grow to 1073741824"):
        place.call("UpdatePodSandboxResources", pod_sandbox_id=pod, resources={"memory_limit_in_bytes": 1 << 30})
    place.remove(pod)


@slow
def test_a_full_volume_and_a_full_log(place: Place, tmp_path: Path) -> None:
    """The container is told of the one; the other costs lines, and holds it up for nothing."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        volume = {"container_path": "/data", "host_path": str(small)}
        pod = place.run_pod("full")
        fills = place.start(pod, "fills", "dd if=/dev/zero of=/data/file bs=64k count=64", mounts=[volume])
        assert place.until_exited(fills)["exit_code"] == 1
        # By dd, as busybox' head knows of no reason ("I/O error") on any file system.
        assert any("No space left" in line for line in place.log("fills")), place.log("fills")
        place.remove(pod)
        logged = place.call(
            "RunPodSandbox", config=pod_config("chatty", log_directory=str(small / "logs")), runtime_handler="microvm"
        )["pod_sandbox_id"]
        talks = place.start(logged, "talks", "seq 100000; exit 4")
        assert place.until_exited(talks)["exit_code"] == 4
        place.remove(logged)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@slow
@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("no-qemu", r"/nowhere/qemu is not installed \(Debian: qemu-system-x86\)"),
        ("no-kernel", "/nowhere/vmlinuz is not there: see the options kernel and modules"),
    ],
)
def test_what_is_missing_is_said(place: Place, handler: str, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words):
        place.run_pod("never", handler)
    info = json.dumps(place.call("Status", verbose=True))
    assert handler in info
    assert place.call("ListPodSandbox")["items"] == []
    assert place.daemon.leftovers() == []


@slow
def test_a_pod_on_the_nodes_network_is_refused(place: Place) -> None:
    options = {"network": "NODE", "pid": "CONTAINER"}
    with pytest.raises(grpc.RpcError, match=r"on the node's network \(hostNetwork\) can't be a guest"):
        place.run_pod("never", linux={"security_context": {"namespace_options": options}})
    assert place.call("ListPodSandbox")["items"] == []
    assert place.daemon.leftovers() == []


@slow
def test_shared_processes(place: Place) -> None:
    """As with shareProcessNamespace, in the guest: and what outlives a container's first process ends with it."""
    shared: dict[str, Any] = {"linux": {"security_context": {"namespace_options": {"pid": "POD"}}}}
    pod = place.run_pod("shared", **shared)
    one = place.start(pod, "one", "sleep 4711", **shared)
    other = place.start(pod, "other", "sleep 4712 & sleep 4713", **shared)
    place.until(lambda: "sleep 4711" in place.execute(other, "ps")[1], "the other container's process is seen")
    place.call("StopContainer", container_id=other, timeout=0)
    place.until_exited(other)
    place.until(lambda: "sleep 471" in place.execute(one, "ps")[1], "there are processes")
    place.until(lambda: "sleep 4712" not in place.execute(one, "ps")[1], "what was left in the background has ended")
    place.remove(pod)
