"""Hostile clients of the streaming server, of all kinds that its protocols allow: others are answered all the same.

Each flood runs in a process of its own against a live daemon, while ``Version`` is called. ``chaos.streams`` runs the
same for longer, those of TLS too, and prints the figures; here the bounds leave room for a machine with much to do.
"""

import asyncio
import contextlib
import resource
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.streams import CONFIG, listen, memory_mb, probe, urls
from integration.conftest import Node
from integration.own_nodes import own_node
from support.floods import FLOODS, Flooding
from support.patience import patient
from support.streaming import connect_spdy, exit_code
from support.subnets import third_octet

pytestmark = pytest.mark.alone
FLOODED_S, HOARDED_S = 0.4, 2.0
HOARDING = ("attach unread, 60", "unread streams of a port forward, 400")
BUFFERS = 32 << 20
SHAPES = {"connections without a request, 1,000", "connections with a slow request, 500"}
"""These are made over and over, so they are under way at once, and never ready."""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    config = CONFIG % third_octet() + f"[streaming]\nmax_buffer_bytes = {BUFFERS}\n"
    with own_node(tmp_path_factory.mktemp("flooded"), config) as node:
        yield node


@pytest.fixture(scope="module")
def pod(flooded: Node) -> str:
    return flooded.run_pod("flooded", "bridged")


@pytest.fixture(scope="module")
def idle(flooded: Node, pod: str) -> Iterator[str]:
    """A container that does nothing; in its pod a server takes connections and reads nothing."""
    container = flooded.run_container(pod, "sleep", "100000", name="idle")
    with contextlib.closing(listen(flooded, container)):
        yield container


@pytest.fixture(scope="module")
def flooding() -> Iterator[Flooding]:
    with Flooding() as process:
        yield process


@contextlib.contextmanager
def pouring(flooding: Flooding, node: Node, pod: str, idle: str, name: str) -> Iterator[None]:
    """A flood, from when it flows. What is attached to is a container of its own that writes as fast as it can."""
    flood, container = FLOODS[name], idle
    if flood.ask == "attach":
        container = node.run_container(pod, *flood.command, name=f"w{secrets.token_hex(3)}", log_path="")
    with flooding.pouring(name, urls(node, flood, pod, container), ready=name not in SHAPES):
        yield
    if container != idle:
        node.call("RemoveContainer", container_id=container)


def check_latency(node: Node, seconds: float) -> None:
    """On a quiet machine the median is 40 ms at most and no call takes 100; without turns on the loop it is seconds to
    minutes."""
    latency = probe(node, seconds)
    assert latency.p50 < patient(250), latency
    assert latency.most < patient(1500), latency


async def test_without_descriptors_an_exec_says_so_and_later_ones_go_on(flooded: Node, idle: str) -> None:
    """The first of all: what floods have left in the kernel keeps its descriptors until it is read."""
    assert flooded.daemon.process
    pid = flooded.daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        async with contextlib.AsyncExitStack() as stack:
            words = ""
            for _ in range(60):
                words = await _begin(flooded, idle, stack)
                if words:
                    break
            assert "128 file descriptors" in words
            assert "RLIMIT_NOFILE" in words
        async with asyncio.timeout(patient(30)):
            while True:
                async with contextlib.AsyncExitStack() as stack:
                    if await _begin(flooded, idle, stack, "true") == "0":
                        break
                await asyncio.sleep(0.1)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", [name for name, flood in FLOODS.items() if name not in HOARDING and not flood.tls])
def test_others_are_answered_during_a_flood(flooding: Flooding, flooded: Node, pod: str, idle: str, name: str) -> None:
    with pouring(flooding, flooded, pod, idle, name):
        check_latency(flooded, FLOODED_S)


@pytest.mark.parametrize("name", HOARDING)
def test_memory_is_bounded_and_given_back(flooding: Flooding, flooded: Node, pod: str, idle: str, name: str) -> None:
    assert flooded.daemon.process
    before = memory_mb(flooded)
    Path(f"/proc/{flooded.daemon.process.pid}/clear_refs").write_text("5")  # the peak counts from here
    with pouring(flooding, flooded, pod, idle, name):
        check_latency(flooded, HOARDED_S)
    assert memory_mb(flooded, "VmHWM") - before < 100
    deadline = time.monotonic() + patient(20)
    while memory_mb(flooded) - before > 30:
        assert time.monotonic() < deadline, f"{before} MB before, {memory_mb(flooded)} MB after"
        time.sleep(0.2)


async def _begin(node: Node, container: str, stack: contextlib.AsyncExitStack, *command: str) -> str:
    """Begin an exec that lasts; return what went wrong, or for one that ends its exit code."""
    wanted = {"cmd": list(command or ("sh", "-c", "echo on; sleep 1000")), "stdout": True, "stderr": True}
    url = node.call("Exec", container_id=container, **wanted)["url"]
    try:
        async with asyncio.timeout(patient(5)):
            client = await stack.enter_async_context(connect_spdy(url, "v4.channel.k8s.io"))
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return "not accepted; see the log: " + node.daemon.tail()
    running = await client.start(stdout=True, stderr=True)
    if not command and await running.stdout.read():
        return ""
    status = await running.status()
    return str(status.get("message") or exit_code(status))
