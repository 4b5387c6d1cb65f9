"""Pod lives by the thousand, with lists, execs, statistics and events going on: does the daemon stay as small as it is?

By hand, as root: ``make soak`` or ``PYTHONPATH=tests .venv/bin/python -m chaos.soak``; ``--lives`` pods live (5,000),
``--clients`` at a time, or as many as ``--minutes`` allow. Prints the daemon's memory, descriptors, threads and files
as it goes, and ends with an error where the last third of the lives needs more than the one before it, or where a call
failed.
"""

import argparse
import contextlib
import itertools
import math
import os
import secrets
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import grpc

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from support.cri import Cri
from support.daemon import container_config, pod_config

HANDLERS = ("", "crun", "bridged")
CONFIG = """
[networks.bridge]
driver = "bridge"
options = {{ subnets = ["10.{net}.0.0/20"] }}
[runtimes.bridged]
driver = "crun"
network = "bridge"
"""
_ALLOWED = {"rss_kib": 6 << 10, "descriptors": 4, "threads": 4, "database_kib": 1 << 10, "log_kib": 12 << 10}
"""By how much the median of the last third may be above that of the second: a garbage collection, a log that waits."""


@dataclass(frozen=True)
class Sample:
    """What the daemon has; ``log_kib`` is SQLite's write-ahead log."""

    lives: int
    rss_kib: int
    descriptors: int
    threads: int
    database_kib: int
    log_kib: int

    @classmethod
    def take(cls, node: Node, lives: int) -> "Sample":
        """Read them."""
        assert node.daemon.process is not None
        process = Path(f"/proc/{node.daemon.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        database, log = (_kib(node.daemon.root / name) for name in ("state.db", "state.db-wal"))
        descriptors = len(os.listdir(process / "fd"))
        return cls(lives, int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]), database, log)


def _kib(path: Path) -> int:
    return path.stat().st_size >> 10 if path.exists() else 0


class Soak:
    """The clients, and what they have seen."""

    def __init__(self, node: Node, lives: int, until_s: float) -> None:
        self.node = node
        self.lives = lives
        self._until_s = until_s
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.events = 0
        self.ended = threading.Event()
        self._numbers = itertools.count(1)
        self._local = threading.local()

    def call(self, rpc: str, **more: object) -> dict[str, object]:
        """Call an RPC over this thread's own connection."""
        if not hasattr(self._local, "cri"):
            self._local.cri = Cri(self.node.daemon.socket)
        self.calls[rpc] += 1
        answer: dict[str, object] = self._local.cri.call(rpc, **more)
        return answer

    def live(self) -> None:
        """One pod after the other, until all have lived."""
        while time.monotonic() < self._until_s and (number := next(self._numbers)) <= self.lives:
            try:
                self._live(number)
            except grpc.RpcError as error:
                self.failures[f"{error.code().name}: {error.details()[:200]}"] += 1

    def _live(self, number: int) -> None:
        config = pod_config(f"p{number}", log_directory=str(self.node.logs / f"p{number % 64}"))
        handler = HANDLERS[number % len(HANDLERS)]
        pod = self.call("RunPodSandbox", config=config, runtime_handler=handler)["pod_sandbox_id"]
        try:
            wanted = container_config("c", BUSYBOX, "sh", "-c", "echo hello; sleep 600")
            container = self.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"]
            self.call("StartContainer", container_id=container)
            if number % 2:
                self.call("ExecSync", container_id=container, cmd=["echo", "hello"], timeout=60)
            if number % 3 == 0:
                self.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 512})
            if number % 4:
                self.call("StopContainer", container_id=container, timeout=0)
            self.call("StopPodSandbox", pod_sandbox_id=pod)
        finally:
            self.call("RemovePodSandbox", pod_sandbox_id=pod)

    def ask(self, call: Callable[[], object], every_s: float) -> None:
        """Ask the same again and again, as a kubelet and those who watch the node do."""
        while not self.ended.wait(every_s):
            with contextlib.suppress(grpc.RpcError):
                call()

    def follow(self) -> None:
        """Follow the events; what is slow here is cut off, and follows anew."""
        cri = Cri(self.node.daemon.socket)
        while not self.ended.is_set():
            with contextlib.suppress(grpc.RpcError):
                for _ in cri.stream_raw("GetContainerEvents", b"", timeout_s=30):
                    self.events += 1
        cri.close()


def run(node: Node, lives: int, clients: int, most_s: float) -> list[Sample]:
    """Let pods live; return what the daemon had, from time to time."""
    soak = Soak(node, lives, time.monotonic() + most_s)
    asking = [
        threading.Thread(target=soak.ask, args=(call, every_s), daemon=True)
        for call, every_s in (
            (lambda: soak.call("ListPodSandbox"), 0.2),
            (lambda: soak.call("ListContainers"), 0.2),
            (lambda: soak.call("ListContainerStats"), 1.0),
            (lambda: soak.call("ListPodSandboxStats"), 1.0),
            (lambda: soak.call("ListPodSandboxMetrics"), 5.0),
            (lambda: soak.call("Status", verbose=True), 1.0),
            (lambda: soak.call("ImageFsInfo"), 5.0),
            (lambda: soak.call("PullImage", image={"image": BUSYBOX}), 5.0),
        )
    ]
    asking.append(threading.Thread(target=soak.follow, daemon=True))
    for thread in asking:
        thread.start()
    samples, began_s = [Sample.take(node, 0)], time.monotonic()
    _print_row([field.name for field in fields(Sample)])
    with ThreadPoolExecutor(clients) as threads:
        living = [threads.submit(soak.live) for _ in range(clients)]
        while not all(one.done() for one in living):
            time.sleep(1)
            done = soak.calls["RemovePodSandbox"]
            if done - samples[-1].lives >= max(1, min(lives // 60, 50)):
                samples.append(Sample.take(node, done))
                if len(samples) % 5 == 0:
                    _print_row(list(map(str, asdict(samples[-1]).values())))
    took_s = time.monotonic() - began_s
    soak.ended.set()
    samples.append(Sample.take(node, soak.calls["RemovePodSandbox"]))
    _print_row(list(map(str, asdict(samples[-1]).values())))
    calls, lived = sum(soak.calls.values()), soak.calls["RemovePodSandbox"]
    print(f"{lived} lives in {took_s:.0f} s, {calls} calls, {soak.events} events; load {os.getloadavg()}")
    for failure, count in soak.failures.most_common():
        print(f"{count} times {failure}")
    assert not soak.failures
    assert soak.events >= lived * 6  # a pod and its container: created, started, stopped; and deleted
    return samples


def check(samples: list[Sample]) -> None:
    """Raise AssertionError where something has grown in the last third of the lives, and say by how much."""
    third = len(samples) // 3
    for name, allowed in _ALLOWED.items():
        before, last = (
            int(statistics.median(getattr(one, name) for one in part))
            for part in (samples[third : 2 * third], samples[2 * third :])
        )
        print(
            f"{name}: {getattr(samples[0], name)} at first, {before} in the second third, {last} in the last (medians)"
        )
        assert last - before <= allowed, f"{name} has grown from {before} to {last}"


def _print_row(cells: list[str]) -> None:
    print(" ".join(f"{cell:>12}" for cell in cells), flush=True)


def main() -> None:
    """Parse the arguments, soak, and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lives", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no further pod begins to live")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        own_node(Path(directory), CONFIG.format(net=100 + secrets.randbelow(100))) as node,
    ):
        check(run(node, given.lives, given.clients, given.minutes * 60))


if __name__ == "__main__":
    main()
