"""Every flood against a live daemon, with the latency of ``Version`` and the daemon's memory meanwhile: a table.

By hand, as root: ``PYTHONPATH=tests .venv/bin/python -m chaos.streams``; ``--python`` runs another installation's
daemon, ``--only WORDS`` some floods, ``--seconds`` each for so long, ``--throughput`` measures transfers instead.
"""

import argparse
import contextlib
import math
import os
import secrets
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from crinoid.core.cri.streaming import frames
from integration.conftest import Node
from integration.own_nodes import own_node
from support.floods import FLOODS, OPEN_PORT, Flood, Pouring, _Connection

DEADLINE_S = 30
CONFIG = """
[networks.bridge]
driver = "bridge"
options = { subnets = ["10.91.%d.0/24"] }
[runtimes.bridged]
driver = "crun"
network = "bridge"
"""


@dataclass(frozen=True)
class Latency:
    """Of calls of one RPC, in milliseconds."""

    p50: float
    p99: float
    most: float
    calls: int

    def __str__(self) -> str:
        return f"{self.p50:8.1f} {self.p99:8.1f} {self.most:8.1f}"


def probe(node: Node, seconds: float, pause_s: float = 0.005) -> Latency:
    """Call ``Version`` for so long, one after the other."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        with contextlib.suppress(grpc.RpcError):  # unanswered: it counts with its deadline
            node.daemon.cri.raw("Version", b"", DEADLINE_S)
        took.append((time.monotonic() - began) * 1000)
        time.sleep(pause_s)
    took.sort()
    return Latency(statistics.median(took), took[math.ceil(len(took) * 0.99) - 1], took[-1], len(took))


def memory_mb(node: Node, field: str = "VmRSS") -> float:
    """Of the daemon."""
    assert node.daemon.process
    status = Path(f"/proc/{node.daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith(field))


def processor_s(node: Node) -> float:
    """What the daemon has used, in user and in kernel mode."""
    assert node.daemon.process
    fields = Path(f"/proc/{node.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def urls(node: Node, flood: Flood, pod: str, container: str) -> list[str]:
    """One for each connection of a flood."""
    wanted = {"stdin": flood.stdin, "stdout": True, "tty": flood.tty, "stderr": not flood.tty}

    def ask() -> str:
        if flood.ask == "forward":
            return str(node.call("PortForward", pod_sandbox_id=pod)["url"])
        if flood.ask == "attach":
            return str(node.call("Attach", container_id=container, **wanted)["url"])
        if flood.ask == "exec":
            return str(node.call("Exec", container_id=container, cmd=list(flood.command), **wanted)["url"])
        return str(node.call("PortForward", pod_sandbox_id=pod)["url"]).rsplit("/", 2)[0]

    return [ask() for _ in range(flood.connections if flood.ask else 1)]


@contextmanager
def target(node: Node, flood: Flood) -> Iterator[tuple[str, str]]:
    """A pod with a server on the open port, and a container that idles or, for an attach, runs the flood's command."""
    pod = node.run_pod("flooded", "bridged")
    command = flood.command if flood.ask == "attach" else ("sleep", "1000")
    config = {"log_path": ""} if flood.ask == "attach" else {}
    container = node.run_container(pod, *command, **config)
    listening = listen(node, container)
    try:
        yield pod, container
    finally:
        listening.close()
        node.call("RemovePodSandbox", pod_sandbox_id=pod)


def listen(node: Node, container: str) -> socket.socket:
    """A server in the container's network namespace that takes connections and reads nothing."""
    import json

    from crinoid.core.api.linux import namespaces

    info = json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])
    path = Path(f"/proc/{info['pid']}/ns/net")
    return namespaces.call_in(path, lambda: socket.create_server(("127.0.0.1", OPEN_PORT), backlog=4096))


def run(node: Node, name: str, seconds: float) -> tuple[Latency, float, float]:
    """One flood: the latency meanwhile, the most memory, and what was left of it 3 s after."""
    flood = FLOODS[name]
    assert node.daemon.process
    Path(f"/proc/{node.daemon.process.pid}/clear_refs").write_text("5")
    with target(node, flood) as (pod, container):
        wanted = urls(node, flood, pod, container)
        with Pouring(name, wanted) as pouring:
            ready = threading.Thread(target=pouring.wait_ready, daemon=True)
            ready.start()
            if flood.ask:
                ready.join(20)
            latency = probe(node, seconds)
        for _ in range(10):
            with contextlib.suppress(grpc.RpcError):
                node.daemon.cri.raw("Version", b"", DEADLINE_S)
                break
    time.sleep(3)
    return latency, memory_mb(node, "VmHWM"), memory_mb(node)


# throughput


def transfer_in(node: Node, container: str, total: int, way: str) -> float:
    """MB/s into an exec's standard input."""
    answer = node.call("Exec", container_id=container, cmd=["sh", "-c", "cat > /dev/null"], stdin=True, stdout=True)
    flood = Flood(lambda: iter(()), "exec", way)
    connection = _Connection(flood, answer["url"])
    connection.sock.setblocking(True)
    if way == "spdy":
        writer = frames.FrameWriter()
        for at, kind in enumerate(("error", "stdin", "stdout")):
            connection.sock.sendall(writer.opening(2 * at + 1, {"streamtype": kind}))
        piece = frames.data_head(3, 1 << 15) + bytes(1 << 15)
        end = frames.data_head(3, 0, fin=True)
    else:
        piece = struct.pack(">BBH", 0x82, 0xFE, (1 << 15) + 1) + b"abcd" + b"a" + bytes(1 << 15)
        end = b"\x82\x82" + bytes(4) + b"\xff\x00"
    began = time.monotonic()
    reading = threading.Thread(target=_read_to_status, args=(connection.sock,))
    reading.start()
    for _ in range(total >> 15):
        connection.sock.sendall(piece)
    connection.sock.sendall(end)
    reading.join(120)
    return total / (time.monotonic() - began) / 1e6


def _read_to_status(sock: socket.socket) -> None:
    seen = b""
    while b"Success" not in seen and (piece := sock.recv(1 << 18)):
        seen = seen[-100:] + piece


def transfer_out(node: Node, container: str, total: int, way: str) -> float:
    """MB/s out of an exec's standard output."""
    command = ["head", "-c", str(total), "/dev/zero"]
    answer = node.call("Exec", container_id=container, cmd=command, stdin=False, stdout=True)
    flood = Flood(lambda: iter(()), "exec", way)
    connection = _Connection(flood, answer["url"])
    connection.sock.setblocking(True)
    if way == "spdy":
        writer = frames.FrameWriter()
        for at, kind in enumerate(("error", "stdout")):
            connection.sock.sendall(writer.opening(2 * at + 1, {"streamtype": kind}))
    began = time.monotonic()
    _read_to_status(connection.sock)
    return total / (time.monotonic() - began) / 1e6


def transfer_forward(node: Node, pod: str, container: str, total: int, *, back: bool) -> float:
    """MB/s through a forwarded port, one way."""
    listening = listen(node, container)

    def serve() -> None:
        taken, _ = listening.accept()
        with taken:
            if back:
                for _ in range(total >> 16):
                    taken.sendall(bytes(1 << 16))
            else:
                left = total
                while left:
                    left -= len(taken.recv(1 << 18))

    url = node.call("PortForward", pod_sandbox_id=pod)["url"]
    connection = _Connection(Flood(lambda: iter(()), "forward", "spdy"), url)
    connection.sock.setblocking(True)
    writer = frames.FrameWriter()
    for at, kind in enumerate(("error", "data")):
        connection.sock.sendall(
            writer.opening(2 * at + 1, {"streamtype": kind, "port": str(OPEN_PORT), "requestid": "1"})
        )
    serving = threading.Thread(target=serve)
    serving.start()
    began = time.monotonic()
    got = 0
    if back:
        while got < total:
            got += len(connection.sock.recv(1 << 18))
    else:
        piece = frames.data_head(3, 1 << 15) + bytes(1 << 15)
        for _ in range(total >> 15):
            connection.sock.sendall(piece)
    serving.join(120)
    took = time.monotonic() - began
    connection.sock.close()
    listening.close()
    return total / took / 1e6


def throughput(node: Node, rounds: int) -> None:
    pod = node.run_pod("quick", "bridged")
    container = node.run_container(pod, "sleep", "1000")
    total = 1 << 29
    acts = {
        "exec stdin, SPDY": lambda: transfer_in(node, container, total, "spdy"),
        "exec stdin, WebSocket": lambda: transfer_in(node, container, total, "websocket"),
        "exec stdout, SPDY": lambda: transfer_out(node, container, total, "spdy"),
        "exec stdout, WebSocket": lambda: transfer_out(node, container, total, "websocket"),
        "port forward to the pod": lambda: transfer_forward(node, pod, container, total, back=False),
        "port forward from the pod": lambda: transfer_forward(node, pod, container, total, back=True),
    }
    for name, act in acts.items():
        before = processor_s(node)
        figures = [act() for _ in range(rounds)]
        used = (processor_s(node) - before) / (rounds * total / 1e9)
        all_figures = ", ".join(f"{one:.0f}" for one in figures)
        print(f"{name:30} {statistics.median(figures):8.0f} MB/s  ({all_figures})  {used:5.2f} s of processor a GB")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--python", default="")
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--only", action="append", default=[])
    arguments.add_argument("--throughput", action="store_true")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="crinoid-chaos-") as folder,
        own_node(Path(folder), CONFIG % secrets.randbelow(250), python=options.python) as node,
    ):
        if options.throughput:
            throughput(node, options.rounds)
            return
        calm = probe(node, 2)
        print(f"{'flood':45} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} {'calls':>6} {'most MB':>8} {'after MB':>8}")
        print(f"{'(none)':45} {calm} {calm.calls:6} {memory_mb(node):8.0f}")
        for name in FLOODS:
            if options.only and not any(words in name for words in options.only):
                continue
            latency, most, after = run(node, name, options.seconds)
            print(f"{name:45} {latency} {latency.calls:6} {most:8.0f} {after:8.0f}", flush=True)


if __name__ == "__main__":
    main()
