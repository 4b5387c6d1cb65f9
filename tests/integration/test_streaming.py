"""Exec, attach and port forward with real containers, over SPDY and WebSocket, with both runtimes."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from crinoid.core.api.linux import namespaces
from integration.conftest import Node
from integration.pods import QUICK
from support.patience import patient
from support.streaming import (
    Command,
    Refused,
    SpdyClient,
    connect,
    connect_forward,
    connect_spdy,
    exit_code,
    forward,
)

RUNTIMES = ("runc", "crun")
WAYS = [("spdy", "v4.channel.k8s.io"), ("websocket", "v5.channel.k8s.io")]
PIECE = bytes(range(256)) * 256
MEMORY_BOUND_BYTES = 96 << 20


def run(node: Node, *command: str, handler: str = "runc", **config: Any) -> str:
    """Run a container in a pod of its own, which needs no network."""
    return node.run_container(node.run_pod(handler=QUICK[handler]), *command, **config)


def exec_url(node: Node, container: str, *command: str, **wanted: bool) -> str:
    answer = node.call("Exec", container_id=container, cmd=list(command), **wanted)
    return str(answer["url"])


@contextlib.asynccontextmanager
async def executing(
    node: Node, container: str, *command: str, way: tuple[str, str] = WAYS[0], **wanted: bool
) -> AsyncIterator[Command]:
    """An exec that has begun; with stdout and stderr unless a terminal is wanted."""
    wanted = {"stdout": True, "stderr": not wanted.get("tty"), **wanted}
    async with connect(exec_url(node, container, *command, **wanted), *way) as client:
        yield await client.start(**wanted, resize=wanted.get("tty", False))


@contextlib.asynccontextmanager
async def attached(
    node: Node, container: str, way: tuple[str, str] = WAYS[0], **wanted: bool
) -> AsyncIterator[Command]:
    wanted = {"stdout": True, "stderr": not wanted.get("tty"), **wanted}
    url = node.call("Attach", container_id=container, **wanted)["url"]
    async with connect(url, *way) as client:
        yield await client.start(**wanted, resize=wanted.get("tty", False))


async def until(true: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + patient(timeout_s)
    while not true():
        assert time.monotonic() < deadline, f"it did not come to it: {what}"
        await asyncio.sleep(patient(0.03))


async def read_until(stream: Any, wanted: bytes) -> bytes:
    """Read a stream until something has come."""
    got = b""
    async with asyncio.timeout(patient(60)):
        while wanted not in got:
            piece = await stream.read()
            assert piece, f"{wanted!r} did not come, but {got!r}"
            got += piece
    return got


# exec


@pytest.mark.parametrize("handler", RUNTIMES)
@pytest.mark.parametrize("way", WAYS)
async def test_outputs_are_apart_and_the_exit_code_is_exact(node: Node, handler: str, way: tuple[str, str]) -> None:
    container = run(node, "sleep", "1000", handler=handler)
    for code in (0, 1, 7, 126, 255):
        async with executing(node, container, "sh", "-c", f"echo out; echo err >&2; exit {code}", way=way) as command:
            assert await command.outcome() == (b"out\n", b"err\n", code)
    async with executing(node, container, "sh", "-c", "kill -9 $$", way=way) as command:
        assert await command.outcome() == (b"", b"", 137)


@pytest.mark.parametrize(
    ("transport", "protocol", "wanted"),
    [
        ("spdy", "", "command terminated with exit code 3"),
        ("spdy", "channel.k8s.io", "command terminated with exit code 3"),
        ("spdy", "v2.channel.k8s.io", "command terminated with exit code 3"),
        ("spdy", "v3.channel.k8s.io", "command terminated with exit code 3"),
        ("spdy", "v4.channel.k8s.io", 3),
        ("spdy", "v5.channel.k8s.io", 3),
        ("websocket", "", "command terminated with exit code 3"),
        ("websocket", "channel.k8s.io", "command terminated with exit code 3"),
        ("websocket", "base64.channel.k8s.io", "command terminated with exit code 3"),
        ("websocket", "v4.base64.channel.k8s.io", 3),
        ("websocket", "v4.channel.k8s.io", 3),
        ("websocket", "v5.channel.k8s.io", 3),
    ],
)
async def test_every_protocol(node: Node, transport: str, protocol: str, wanted: object) -> None:
    container = run(node, "sleep", "1000")
    way = (transport, protocol) if protocol else (transport,)
    script = "read line; echo got $line; echo err >&2; exit 3"
    async with executing(node, container, "sh", "-c", script, way=way, stdin=True) as command:  # type: ignore[arg-type]
        assert command.protocol == protocol
        await command.stdin.send(b"something\n")
        assert await command.outcome() == (b"got something\n", b"err\n", wanted)


@pytest.mark.parametrize("handler", RUNTIMES)
@pytest.mark.parametrize("way", WAYS)
async def test_input_comes_to_its_end_while_output_goes_on(node: Node, handler: str, way: tuple[str, str]) -> None:
    container = run(node, "sleep", "1000", handler=handler)
    script = "cat; echo and then; exit 2"
    async with executing(node, container, "sh", "-c", script, way=way, stdin=True) as command:
        await command.stdin.send(b"first ")
        assert await read_until(command.stdout, b"first ") == b"first "
        await command.stdin.send(b"last\n")
        await command.stdin.close()
        assert await command.outcome() == (b"last\nand then\n", b"", 2)


async def test_only_the_streams_that_are_wanted(node: Node) -> None:
    container = run(node, "sleep", "1000")
    script = "cat; echo out; echo err >&2; exit 4"
    async with executing(node, container, "sh", "-c", script, stderr=False) as command:
        assert await command.outcome() == (b"out\n", b"", 4)
    async with executing(node, container, "sh", "-c", script, stdout=False, stderr=True) as command:
        assert await command.outcome() == (b"", b"err\n", 4)
    async with executing(node, container, "sh", "-c", "cat > /in", stdin=True, stdout=False, stderr=False) as command:
        await command.stdin.send(b"text")
        await command.stdin.close()
        assert await command.outcome() == (b"", b"", 0)
    assert node.execute(container, "cat", "/in") == (0, "text", "")


@pytest.mark.parametrize("handler", RUNTIMES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_terminal_with_its_size(node: Node, handler: str, way: tuple[str, str]) -> None:
    container = run(node, "sleep", "1000", handler=handler)
    script = "tty; echo $TERM; read line; stty size; exit 6"
    async with executing(node, container, "sh", "-c", script, way=way, stdin=True, tty=True) as command:
        assert b"/dev/pts/" in await read_until(command.stdout, b"xterm\r\n")
        await command.resize(100, 40)
        await command.resize(123, 45)
        await asyncio.sleep(0.2)
        await command.stdin.send(b"go\n")
        assert (await command.outcome())[::2] == (b"go\r\n45 123\r\n", 6)


async def test_a_terminal_hangs_up_when_its_client_goes(node: Node) -> None:
    container = run(node, "sleep", "1000")
    script = "trap 'echo hung up > /hup; exit' HUP; echo ready; while :; do sleep 0.05; done"
    async with executing(node, container, "sh", "-c", script, stdin=True, tty=True) as command:
        await read_until(command.stdout, b"ready")
    await until(lambda: node.execute(container, "cat", "/hup")[1] == "hung up\n", "the process was told")


@pytest.mark.parametrize("way", WAYS)
async def test_without_a_client_a_process_meets_closed_streams(node: Node, way: tuple[str, str]) -> None:
    container = run(node, "sleep", "1000")
    script = "trap '' PIPE; cat; echo lost || echo ended > /end"
    async with executing(node, container, "sh", "-c", script, way=way, stdin=True) as command:
        await command.stdin.send(b"x")
        await read_until(command.stdout, b"x")
    await until(lambda: node.execute(container, "cat", "/end")[1] == "ended\n", "input has ended, output is refused")


async def test_a_client_that_vanishes_while_its_input_is_not_read(node: Node) -> None:
    container = run(node, "sleep", "1000")
    url = exec_url(node, container, "sh", "-c", "sleep 5; cat > /dev/null; echo ended > /end", stdin=True, stdout=True)
    async with connect_spdy(url, "v4.channel.k8s.io") as client:
        command = await client.start(stdin=True, stdout=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    await command.stdin.send(PIECE)
        client.wire.abort()  # type: ignore[attr-defined]
    await until(lambda: node.execute(container, "cat", "/end")[1] == "ended\n", "the process got its end of input")


async def test_what_is_left_in_the_background_is_not_waited_for(node: Node) -> None:
    """But for ``exec_drain_s``, ten seconds: all runtimes at the same time."""
    containers = [node.run_container(node.run_pod(name, QUICK[name]), "sleep", "1000") for name in RUNTIMES]

    async def execute(container: str) -> tuple[bytes, bytes, int]:
        script = "sleep 1001 & echo begun; exit 9"
        async with asyncio.timeout(patient(60)), executing(node, container, "sh", "-c", script) as command:
            return await command.outcome()

    assert await asyncio.gather(*map(execute, containers)) == [(b"begun\n", b"", 9)] * len(RUNTIMES)


async def test_a_process_that_does_not_want_its_input(node: Node) -> None:
    container = run(node, "sleep", "1000")
    async with executing(node, container, "head", "-c", "3", stdin=True) as command:
        sending = asyncio.ensure_future(_send_forever(command.stdin))
        assert await command.outcome() == (PIECE[:3], b"", 0)
        sending.cancel()


async def _send_forever(stream: Any) -> None:
    while True:
        await stream.send(PIECE)


@pytest.mark.parametrize("handler", RUNTIMES)
async def test_a_command_that_is_not_there(node: Node, handler: str) -> None:
    container = run(node, "sleep", "1000", handler=handler)
    for tty in (False, True):
        async with executing(node, container, "nowhere", tty=tty) as command:
            status = await command.status()
    assert (status["status"], status["reason"]) == ("Failure", "InternalError")
    assert "nowhere" in status["message"]


async def test_the_container_ends_during_an_exec(node: Node) -> None:
    container = run(node, "sleep", "1000")
    async with executing(node, container, "sh", "-c", "echo begun; sleep 1001") as command:
        await read_until(command.stdout, b"begun")
        node.call("StopContainer", container_id=container, timeout=0)
        assert exit_code(await command.status()) == 137


async def test_many_execs_at_once_leave_nothing_behind(node: Node) -> None:
    container = run(node, "sleep", "1000")

    async def one(number: int) -> None:
        way = WAYS[number % 2]
        async with executing(node, container, "sh", "-c", f"cat; exit {number}", way=way, stdin=True) as command:
            await command.stdin.send(b"%d" % number)
            await command.stdin.close()
            assert await command.outcome() == (b"%d" % number, b"", number)

    before = descriptors(node)
    await asyncio.gather(*(one(number) for number in range(12)))
    await until(lambda: descriptors(node) <= before + 3, "all descriptors are closed")
    assert [path for path in (node.daemon.run / "rt").glob("runc*/scratch/*") if path.is_dir()] == []


def descriptors(node: Node) -> int:
    return len(list(Path(f"/proc/{daemon_pid(node)}/fd").iterdir()))


def daemon_pid(node: Node) -> int:
    """The daemon itself, which a prefix may have started as its child; nsenter becomes it."""
    assert node.daemon.process is not None
    return node.daemon.process.pid


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"stdin": False}, "none of"), ({"tty": True, "stdout": True, "stderr": True}, "tty and stderr")],
)
def test_requests_that_have_no_meaning(node: Node, wanted: dict[str, bool], words: str) -> None:
    container = run(node, "sleep", "1000")
    for rpc, more in (("Exec", {"cmd": ["true"]}), ("Attach", {})):
        with pytest.raises(grpc.RpcError) as refused:
            node.call(rpc, container_id=container, **more, **wanted)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in refused.value.details()


def test_what_does_not_run_has_no_streams(node: Node) -> None:
    pod = node.run_pod()
    created, ended = node.create(pod, "true"), node.run_container(pod, "true", name="ended")
    node.wait_exit(ended)
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    for rpc, fields in (
        ("Exec", {"container_id": created, "cmd": ["true"], "stdout": True}),
        ("Exec", {"container_id": ended, "cmd": ["true"], "stdout": True}),
        ("Attach", {"container_id": ended, "stdout": True}),
        ("PortForward", {"pod_sandbox_id": pod}),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            node.call(rpc, **fields)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, rpc


async def test_a_url_works_once_and_for_its_own_purpose(node: Node) -> None:
    container = run(node, "sleep", "1000")
    url = exec_url(node, container, "true", stdout=True)
    for wrong in (url.replace("/exec/", "/attach/"), url, url + "x", url.rsplit("/", 1)[0]):
        with pytest.raises(Refused, match="404"):
            async with connect_spdy(wrong, "v4.channel.k8s.io"):
                pass
    with pytest.raises(Refused, match="403"):
        async with connect_spdy(exec_url(node, container, "true", stdout=True), "v9.channel.k8s.io"):
            pass


# attach


@pytest.mark.parametrize("handler", RUNTIMES)
@pytest.mark.parametrize("way", WAYS)
async def test_attach_carries_all_streams_until_the_end(node: Node, handler: str, way: tuple[str, str]) -> None:
    script = "while read line; do echo out $line; echo err $line >&2; done; sleep 0.2; exit 3"
    container = run(node, "sh", "-c", script, handler=handler, stdin=True, stdin_once=True)
    async with attached(node, container, way, stdin=True) as client:
        await client.stdin.send(b"one\n")
        await read_until(client.stdout, b"out one\n")
        await client.stdin.send(b"two\n")
        await client.stdin.close()
        assert await client.outcome() == (b"out two\n", b"err one\nerr two\n", 0)
    assert node.wait_exit(container)["exit_code"] == 3, "the end of input reached it"
    assert node.log(container).count("two") == 2, "the log has it all the same"


async def test_several_clients_see_the_same_and_input_stays_open(node: Node) -> None:
    container = run(node, "sh", "-c", "while read line; do echo got $line; done; echo over", stdin=True)
    async with attached(node, container, WAYS[1]) as watcher:
        for number in range(3):
            async with attached(node, container, WAYS[number % 2], stdin=True) as client:
                await client.stdin.send(b"%d\n" % number)
                await read_until(client.stdout, b"got %d\n" % number)
                await client.stdin.close()
        await read_until(watcher.stdout, b"got 2\n")
    assert node.status(container)["state"] == "CONTAINER_RUNNING"
    assert "over" not in node.log(container), "without stdin_once nobody closes the input"


async def test_one_who_only_watches_does_not_end_the_input(node: Node) -> None:
    container = run(node, "sh", "-c", "cat; echo over", stdin=True, stdin_once=True)
    for _ in range(2):
        async with attached(node, container):
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)
    assert node.status(container)["state"] == "CONTAINER_RUNNING"
    async with attached(node, container, stdin=True) as client:
        await client.stdin.send(b"text ")
        await read_until(client.stdout, b"text ")
    assert node.wait_exit(container)["exit_code"] == 0, "the end of the first one with input is its end"
    assert node.log(container) == "text over\n"


async def test_a_slow_client_holds_up_nobody(node: Node) -> None:
    """The quick one asks for each piece, so that it never falls behind, however busy the machine is."""
    size, pieces = 1_000_000, 100
    container = run(node, "sh", "-c", f"while read go; do head -c {size} /dev/zero; done", stdin=True, log_path="")
    url = node.call("Attach", container_id=container, stdout=True)["url"]
    async with connect_spdy(url, "v4.channel.k8s.io") as slow, attached(node, container, stdin=True) as quick:
        stalled = await slow.start(stdout=True)
        slow.flowing.clear()
        for _ in range(pieces):
            await quick.stdin.send(b"go\n")
            async with asyncio.timeout(patient(60)):
                left = size
                while left:
                    piece = await quick.stdout.read()
                    assert piece, "the quick one was dropped"
                    left -= len(piece)
        slow.flowing.set()
        async with asyncio.timeout(patient(60)):
            status = await stalled.status()
    assert "too slow" in status["message"]
    assert node.status(container)["state"] == "CONTAINER_RUNNING"


@pytest.mark.parametrize("handler", RUNTIMES)
async def test_attach_to_a_terminal(node: Node, handler: str) -> None:
    script = "while read line; do stty size; done"
    container = run(node, "sh", "-c", script, handler=handler, stdin=True, tty=True)
    async with attached(node, container, stdin=True, tty=True) as client:
        await client.resize(77, 33)
        await asyncio.sleep(0.3)
        await client.stdin.send(b"\n")
        await read_until(client.stdout, b"33 77\r\n")


async def test_attach_before_the_start_misses_nothing(node: Node) -> None:
    pod = node.run_pod()
    container = node.create(pod, "echo", "first words")
    async with attached(node, container) as client:
        node.call("StartContainer", container_id=container)
        assert await client.outcome() == (b"first words\n", b"", 0)


async def test_the_daemon_dies_and_comes_back(node: Node) -> None:
    container = run(node, "sh", "-c", "while read line; do echo got $line; done", stdin=True)
    script = "trap '' PIPE; cat; echo lost || echo ended > /end"
    async with (
        executing(node, container, "sh", "-c", script, stdin=True) as command,
        attached(node, container, stdin=True) as client,
    ):
        await command.stdin.send(b"x")
        await read_until(command.stdout, b"x")
        node.daemon.kill()
        assert await client.stdout.read_all() == b""
    node.daemon.start()
    await until(lambda: node.execute(container, "cat", "/end")[1] == "ended\n", "the exec met closed streams")
    async with attached(node, container, stdin=True) as client:
        await client.stdin.send(b"again\n")
        await read_until(client.stdout, b"got again\n")
    async with executing(node, container, "echo", "well") as command:
        assert await command.outcome() == (b"well\n", b"", 0)


# port forward


@contextlib.asynccontextmanager
async def echo_server(container: str, node: Node, address: str, port: int) -> AsyncIterator[None]:
    """A server inside a container's network namespace: it sends all back, says good-bye, and closes."""
    info = json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
            writer.write(b" good-bye")
            await writer.drain()
        writer.close()

    listening = namespaces.call_in(Path(f"/proc/{info['pid']}/ns/net"), listen)
    server = await asyncio.start_server(serve, sock=listening, limit=1 << 20)
    try:
        yield
    finally:
        server.close()


def forward_url(node: Node, pod: str, *ports: int) -> str:
    return str(node.call("PortForward", pod_sandbox_id=pod, port=list(ports))["url"])


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_connections_into_the_pod(node: Node, transport: str, address: str) -> None:
    pod = node.run_pod(handler="runc-cni-overlay")
    container = node.run_container(pod, "sleep", "1000")
    async with (
        echo_server(container, node, address, 8080),
        connect_forward(forward_url(node, pod), transport) as client,
    ):
        for number in range(3):
            one = await forward(client, 8080, str(number))
            await one.data.send(b"hello")
            await read_until(one.data, b"hello")
            await one.data.close()
            assert await one.data.read_all() == b" good-bye", "a connection that is half closed still carries"
            assert await one.error.read_all() == b""


async def test_a_pod_on_the_network_of_the_host(node: Node) -> None:
    options = {"namespace_options": {"network": "NODE", "pid": "CONTAINER"}}
    pod = node.run_pod(linux={"security_context": options})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"from the host")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connect_forward(forward_url(node, pod), "spdy") as client:
        one = await forward(client, port, "1")
        assert await one.data.read_all() == b"from the host"
    server.close()


async def test_many_connections_at_once(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")

    async def carry(client: SpdyClient, number: int) -> None:
        one = await forward(client, 8080, str(number))
        sending = asyncio.ensure_future(_send_and_close(one.data, PIECE, 8))
        received = await one.data.read_all()
        await sending
        assert received == PIECE * 8 + b" good-bye"

    async with (
        echo_server(container, node, "127.0.0.1", 8080),
        connect_forward(forward_url(node, pod), "spdy") as client,
    ):
        await asyncio.gather(*(carry(client, number) for number in range(40)))


async def test_nobody_listens_and_others_go_on(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    async with (
        echo_server(container, node, "127.0.0.1", 8080),
        connect_forward(forward_url(node, pod), "spdy") as client,
    ):
        good, bad = await forward(client, 8080, "good"), await forward(client, 9, "bad")
        message = (await bad.error.read_all()).decode()
        assert "port 9" in message
        assert "refused" in message
        assert await bad.data.read_all() == b""
        await good.data.send(b"still there")
        await read_until(good.data, b"still there")
        reset = await forward(client, 8080, "reset")
        await reset.data.send(b"x")
        await reset.data.reset()
        assert await reset.error.read_all() == b""
        await good.data.send(b"and still")
        await read_until(good.data, b"and still")


# bulk


def peak_memory(node: Node) -> int:
    status = Path(f"/proc/{daemon_pid(node)}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def forget_peak(node: Node) -> None:
    Path(f"/proc/{daemon_pid(node)}/clear_refs").write_text("5")


async def _send_and_close(stream: Any, piece: bytes, count: int) -> None:
    for _ in range(count):
        await stream.send(piece)
    await stream.close()


async def _there_and_back(data: Any, back: Any, total_bytes: int) -> None:
    """Send so much, and see that the same comes back."""
    sending = asyncio.ensure_future(_send_and_close(data, PIECE, total_bytes // len(PIECE)))
    sent, size = PIECE * 256, 0
    while size < total_bytes:
        got = await back.read()
        assert got, f"it ended after {size} bytes"
        # Compared where it stands: digests of a gibibyte cost seconds. The echo server's good-bye may be in the last.
        is_same = sent.startswith(got[: total_bytes - size], size % len(PIECE))
        assert is_same, f"{len(got)} bytes after {size} are not what was sent"
        size += len(got)
    await sending


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("way", "size_bytes"), [(WAYS[0], 1 << 30), (WAYS[1], 1 << 28)])
async def test_a_gibibyte_through_exec(node: Node, way: tuple[str, str], size_bytes: int) -> None:
    container = run(node, "sleep", "1000")
    forget_peak(node)
    before = peak_memory(node)
    async with executing(node, container, "cat", way=way, stdin=True) as command:
        await _there_and_back(command.stdin, command.stdout, size_bytes)
        assert exit_code(await command.status()) == 0
    assert peak_memory(node) - before < MEMORY_BOUND_BYTES


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("transport", "size_bytes"), [("spdy", 1 << 30), ("websocket", 1 << 28)])
async def test_a_gibibyte_through_a_port_forward(node: Node, transport: str, size_bytes: int) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    forget_peak(node)
    before = peak_memory(node)
    async with (
        echo_server(container, node, "127.0.0.1", 8080),
        connect_forward(forward_url(node, pod), transport) as client,
    ):
        one = await forward(client, 8080, "1")
        await _there_and_back(one.data, one.data, size_bytes)
    assert peak_memory(node) - before < MEMORY_BOUND_BYTES
