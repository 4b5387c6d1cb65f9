"""Every flood against a live daemon, with the latency of ``Version`` and the daemon's memory meanwhile: a table.

A second daemon, which nobody floods, is called at the same time: what that takes longer is the machine's load.

By hand, as root: ``PYTHONPATH=tests .venv/bin/python -m chaos.streams``; ``--python`` runs another installation's
daemon, ``--only WORDS`` some floods, ``--seconds`` each for so long, ``--throughput`` measures transfers instead.
"""

import argparse
import contextlib
import math
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from crinoid.core.cri.streaming import frames
from integration.conftest import Node
from integration.own_nodes import own_node
from support.floods import FLOODS, OPEN_PORT, Flood, Flooding, _Connection
from support.http2_floods import FLOODS as HTTP2_FLOODS
from support.http2_floods import MESSAGES
from support.subnets import third_octet

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
    """Of calls of one RPC, in milliseconds; ``queued`` is how long the daemon's loop waited for a processor meanwhile
    in the call that took longest, which says nothing of the daemon; ``own_`` is without such waits."""

    p50: float
    p99: float
    most: float
    queued: float
    own_p50: float
    own_most: float
    calls: int


def probe(node: Node, seconds: float, least: int = 5, pause_s: float = 0.005) -> Latency:
    """Call ``Version`` for so long, and so often at least, one call after the other."""
    took: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while len(took) < least or time.monotonic() < end:
        queued, began = queued_ms(node), time.monotonic()
        with contextlib.suppress(grpc.RpcError):  # unanswered: it counts with its deadline
            node.daemon.cri.raw("Version", b"", DEADLINE_S)
        took.append(((time.monotonic() - began) * 1000, queued_ms(node) - queued))
        time.sleep(pause_s)
    took.sort()
    figures, own = [one for one, _ in took], [one - queued for one, queued in took]
    p99 = figures[math.ceil(len(took) * 0.99) - 1]
    return Latency(statistics.median(figures), p99, *took[-1], statistics.median(own), max(own), len(took))


def queued_ms(node: Node) -> float:
    """How long the daemon's loop has waited for a processor."""
    assert node.daemon.process
    pid = node.daemon.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e6


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


@dataclass(frozen=True)
class Outcome:
    """Of one flood: the latency in the flooded daemon and, at the same time, in one that is left alone; the flooded
    one's memory in MB before, at its peak, and 3 s after."""

    flooded: Latency
    idle: Latency
    memory: tuple[float, float, float]


def measure(node: Node, idle: Node, seconds: float) -> tuple[Latency, Latency]:
    """Call both daemons meanwhile."""
    found: list[Latency] = []
    beside = threading.Thread(target=lambda: found.append(probe(idle, seconds, least=1)))
    beside.start()
    latency = probe(node, seconds, least=1)
    beside.join()
    return latency, found[0]


@contextmanager
def remembered(node: Node) -> Iterator[list[float]]:
    """Fill the list with the daemon's memory before, at its peak, and 3 s after."""
    assert node.daemon.process
    figures = [memory_mb(node)]
    Path(f"/proc/{node.daemon.process.pid}/clear_refs").write_text("5")
    yield figures
    for _ in range(10):
        with contextlib.suppress(grpc.RpcError):
            node.daemon.cri.raw("Version", b"", DEADLINE_S)
            break
    time.sleep(3)
    figures += [memory_mb(node, "VmHWM"), memory_mb(node)]


def run(node: Node, idle: Node, name: str, seconds: float) -> Outcome:
    """One flood of the streaming server."""
    flood = FLOODS[name]
    with target(node, flood) as (pod, container), remembered(node) as memory:
        wanted = urls(node, flood, pod, container)
        with Flooding() as flooding, flooding.pouring(name, wanted, ready=bool(flood.ask)):
            latencies = measure(node, idle, seconds)
    return Outcome(*latencies, (memory[0], memory[1], memory[2]))


def run_http2(node: Node, idle: Node, name: str, connections: int, seconds: float) -> Outcome:
    """One flood of the CRI socket."""
    command = [sys.executable, "-m", "support.http2_floods", name, str(node.daemon.socket), str(connections)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with remembered(node) as memory, subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        time.sleep(0.5)
        latencies = measure(node, idle, seconds)
        assert process.stdin
        process.stdin.close()
    return Outcome(*latencies, (memory[0], memory[1], memory[2]))


HTTP2 = {f"CRI socket: {name}": (name, 1) for name in (*HTTP2_FLOODS, *MESSAGES)}
HTTP2["CRI socket: references, 8 connections"] = ("references", 8)

COLUMNS = (
    "flood",
    "idle p50 ms",
    "idle max",
    "p50 ms",
    "p99",
    "max",
    "of it queued",
    "own max",
    "calls",
    "MB before",
    "peak",
    "after",
    "load",
)


def row(name: str, outcome: Outcome) -> str:
    """A line of a table in markdown."""
    flooded, idle = outcome.flooded, outcome.idle
    figures = [f"{one:.0f}" for one in (idle.p50, idle.most, flooded.p50, flooded.p99, flooded.most, flooded.queued)]
    figures.append(f"{flooded.own_most:.0f}")
    figures += [str(flooded.calls), *(f"{one:.0f}" for one in outcome.memory), f"{os.getloadavg()[0]:.1f}"]
    return f"| {name} | {' | '.join(figures)} |"


def secure(directory: Path) -> str:
    """A configuration of TLS, with a key of RSA's as many authorities give out: its signatures take the longest."""
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    openssl += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(openssl, check=True, capture_output=True)
    return f"[streaming]\ntls_cert = '{directory}/cert.pem'\ntls_key = '{directory}/key.pem'\n"


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
    acts: dict[str, Callable[[], float]] = {
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
    with tempfile.TemporaryDirectory(prefix="crinoid-chaos-") as directory, contextlib.ExitStack() as stack:

        def start(name: str, config: str = "") -> Node:
            own = Path(directory) / name
            return stack.enter_context(own_node(own, CONFIG % third_octet() + config, python=options.python))

        node = start("flooded")
        if options.throughput:
            throughput(node, options.rounds)
            return
        idle, secured = start("idle"), start("secured", secure(Path(directory)))
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        with remembered(node) as memory:
            calm = measure(node, idle, 2)
        print(row("(none)", Outcome(*calm, (memory[0], memory[1], memory[2]))), flush=True)
        for name in (*FLOODS, *HTTP2):
            if options.only and not any(words in name for words in options.only):
                continue
            if name in HTTP2:
                outcome = run_http2(node, idle, *HTTP2[name], options.seconds)
            else:
                outcome = run(secured if FLOODS[name].tls else node, idle, name, options.seconds)
            print(row(name, outcome), flush=True)


if __name__ == "__main__":
    main()
