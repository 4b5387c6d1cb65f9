"""The streaming server over fakes: protocols, refusals, flow control, timeouts, TLS."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import subprocess
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from crinoid.core.api.errors import ConfigurationError, NotFound, ResourceExhausted, Unavailable
from crinoid.core.api.testing.fakes import FakeAttachSession, FakeExecSession
from crinoid.core.api.values.runtime import AttachRequest, ExecStreamRequest, TerminalSize
from crinoid.core.cri.streaming import frames
from crinoid.core.cri.streaming.server import StreamingOptions, StreamingServer
from crinoid.core.cri.streaming.transports import READ_BYTES
from crinoid.core.cri.streaming.turns import SLICE_S
from crinoid.core.lifecycle.streams import StreamChoice, StreamService
from support.streaming import (
    ChannelClient,
    Command,
    Refused,
    SpdyClient,
    SpdyStream,
    WebSocketWire,
    connect,
    connect_spdy,
    connect_websocket,
    forward,
    upgrade,
)

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)
TERMINAL = StreamChoice(stdin=True, stdout=True, terminal=True)
WAYS = [("spdy", "v4.channel.k8s.io"), ("websocket", "v5.channel.k8s.io")]
SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}


class FakeStreams:
    """Containers and pods that are always there; ``echo`` is what a forwarded port leads to."""

    def __init__(self) -> None:
        self.execs: asyncio.Queue[FakeExecSession] = asyncio.Queue()
        self.attaches: asyncio.Queue[FakeAttachSession] = asyncio.Queue()
        self.error: Exception | None = None
        self.ports: dict[int, int] = {}
        self.asked: list[object] = []

    def check_exec(self, container_id: str, command: tuple[str, ...], /) -> str:
        if container_id == "none":
            raise NotFound("there is no container none")
        return f"{container_id}-full"

    def check_attach(self, container_id: str, /) -> str:
        return f"{container_id}-full"

    def check_forward(self, pod_id: str, /) -> str:
        return f"{pod_id}-full"

    async def execute(self, container_id: str, command: tuple[str, ...], choice: StreamChoice, /) -> FakeExecSession:
        self.asked.append((container_id, command, choice))
        if self.error:
            raise self.error
        request = ExecStreamRequest(process={}, stdin=choice.stdin, stdout=choice.stdout, stderr=choice.stderr)
        session = FakeExecSession(request)
        self.execs.put_nowait(session)
        return session

    async def attach(self, container_id: str, choice: StreamChoice, /) -> FakeAttachSession:
        session = FakeAttachSession(AttachRequest(stdin=choice.stdin, stdout=choice.stdout, stderr=choice.stderr))
        self.attaches.put_nowait(session)
        return session

    async def connect(self, pod_id: str, port: int, /) -> socket.socket:
        if port not in self.ports:
            raise Unavailable(f"port {port} of pod {pod_id} can't be reached")
        connected = socket.create_connection(("127.0.0.1", self.ports[port]))
        connected.setblocking(False)
        return connected


@contextlib.asynccontextmanager
async def serving(streams: FakeStreams, **options: Any) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(StreamingOptions(**options), cast(StreamService, streams))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        assert server.connections == 0


@pytest.fixture
def streams() -> FakeStreams:
    return FakeStreams()


@pytest.fixture
async def server(streams: FakeStreams) -> AsyncIterator[StreamingServer]:
    async with serving(streams) as running:
        yield running


@contextlib.asynccontextmanager
async def started(
    server: StreamingServer, streams: FakeStreams, way: tuple[str, str], choice: StreamChoice = ALL
) -> AsyncIterator[tuple[Command, FakeExecSession]]:
    """An exec that has begun, at both ends."""
    async with connect(server.exec_url("c", ("run",), choice), *way) as client:
        command = await client.start(
            stdin=choice.stdin, stdout=choice.stdout, stderr=choice.stderr, resize=choice.terminal
        )
        async with asyncio.timeout(60):
            yield command, await streams.execs.get()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", WAYS)
class TestCommands:
    async def test_streams_and_exit_code(
        self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]
    ) -> None:
        async with started(server, streams, way) as (command, process):
            await command.stdin.send(b"question")
            assert await process.input.read() == b"question"
            await command.stdin.close()
            assert await process.input.read() == b""
            await process.output.write(b"answer")
            await process.errors.write(b"warning")
            process.finish(42)
            assert await command.outcome() == (b"answer", b"warning", 42)
        await until(lambda: process.is_closed)
        assert streams.asked == [("c-full", ("run",), ALL)]

    async def test_sizes(self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]) -> None:
        async with started(server, streams, way, TERMINAL) as (command, process):
            await command.resize(80, 24)
            await command.streams["resize"].send(b'{"Width":100,"Hei')
            await command.streams["resize"].send(b'ght":50}{"Width":-1,"Height":2}[1]{"Width":101,"Height":51}')
            await until(lambda: len(process.sizes) == 3)
            assert process.sizes == [TerminalSize(80, 24), TerminalSize(100, 50), TerminalSize(101, 51)]
            process.finish()
            assert await command.status() == {"metadata": {}, "status": "Success"}

    async def test_what_can_not_be_started(
        self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]
    ) -> None:
        streams.error = NotFound("it has gone meanwhile")
        async with connect(server.exec_url("c", ("run",), ALL), *way) as client:
            status = await (await client.start(stdin=True, stdout=True, stderr=True)).status()
        assert (status["status"], status["message"], status["code"]) == ("Failure", "it has gone meanwhile", 500)

    async def test_a_client_that_leaves(
        self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]
    ) -> None:
        async with started(server, streams, way) as (_, process):
            pass
        await until(lambda: process.is_closed)
        await until(lambda: server.connections == 0)

    async def test_attach(self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]) -> None:
        async with connect(server.attach_url("c", ALL), *way) as client:
            command = await client.start(stdin=True, stdout=True, stderr=True)
            container = (await streams.attaches.get()).process
            await container.output.write(b"line")
            assert await command.stdout.read() == b"line"
            container.finish(3)
            assert await command.outcome() == (b"", b"", 0)

    async def test_the_end_of_the_daemon(
        self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]
    ) -> None:
        async with started(server, streams, way) as (command, process):
            await server.stop()
            assert await command.stdout.read_all() == b""
            assert process.is_closed


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({}, 400),
            ({"Connection": "Upgrade", "Upgrade": "h2c"}, 400),
            ({"Upgrade": "SPDY/3.1"}, 400),
            ({**SPDY, "X-Stream-Protocol-Version": "v7.channel.k8s.io"}, 403),
            ({**SPDY, "Content-Length": "5"}, 400),
            ({"Connection": "Upgrade", "Upgrade": "websocket"}, 426),
            ({**SPDY, "X-Long": "x" * 70_000 * 5}, 431),
        ],
    )
    async def test_requests(self, server: StreamingServer, fields: dict[str, str], status: int) -> None:
        with pytest.raises(Refused) as refused:
            await upgrade(server.exec_url("c", ("run",), ALL), fields)
        assert refused.value.status == status

    async def test_urls(self, server: StreamingServer) -> None:
        url = server.exec_url("c", ("run",), ALL)
        for wrong in (url.replace("exec", "attach"), url, url + "/", url.rpartition("/")[0] + "/guess"):
            with pytest.raises(Refused) as refused:
                await upgrade(wrong, SPDY)
            assert refused.value.status == 404

    async def test_nothing_is_promised_of_what_is_not_there(self, server: StreamingServer) -> None:
        with pytest.raises(NotFound):
            server.exec_url("none", ("run",), ALL)

    async def test_a_web_socket_for_forwarding_names_its_protocol(self, server: StreamingServer) -> None:
        with pytest.raises(Refused):
            async with connect_websocket(server.port_forward_url("p", ())):
                pass


class TestSpdy:
    async def test_pings_and_streams_without_a_meaning(self, server: StreamingServer, streams: FakeStreams) -> None:
        async with connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io") as client:
            await client.wire.write(frames.ping(1) + frames.ping(2) + frames.ping(3))
            odd = await client.open(streamtype="video")
            twice = [await client.open(streamtype="stdout") for _ in range(2)]
            for stream in (odd, twice[1]):
                assert await stream.read_all() == b""
                assert stream.was_reset
            assert client.pongs == [1, 3]
            assert not twice[0].was_reset

    async def test_rubbish_ends_the_connection(self, server: StreamingServer) -> None:
        async with connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io") as client:
            await client.wire.write(b"\x80\x02" + b"rubbish" * 10)
            async with asyncio.timeout(60):
                await client.ended.wait()
            assert client.goaway == frames.GoAway(0, frames.GOAWAY_PROTOCOL_ERROR)

    async def test_a_window_is_kept(self, server: StreamingServer, streams: FakeStreams) -> None:
        url = server.exec_url("c", ("run",), StreamChoice(stdout=True, stderr=True))
        async with asyncio.timeout(60), connect_spdy(url, "v4.channel.k8s.io", window=1000) as client:
            command = await client.start(stdout=True, stderr=True)
            process = await streams.execs.get()
            await process.output.write(b"x" * 5500)
            stdout: SpdyStream = command.stdout
            await until(lambda: stdout.pieces.qsize())
            await asyncio.sleep(0.1)
            assert sum(len(piece) for piece in stdout.pieces._queue) == 1000  # type: ignore[attr-defined,misc]
            await process.errors.write(b"others go on")
            assert await command.stderr.read() == b"others go on"
            process.finish()
            assert await stdout.read_all() == b"x" * 5500

    async def test_room_is_told_to_the_client(self, server: StreamingServer, streams: FakeStreams) -> None:
        seen: list[frames.Frame | None] = []
        async with connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io") as client:
            take = client._take
            client._take = lambda frame: (seen.append(frame), take(frame))[1]  # type: ignore[method-assign,func-returns-value]
            command = await client.start(stdin=True, stdout=True, stderr=True)
            process = await streams.execs.get()
            for _ in range(40):
                await command.stdin.send(b"y" * (1 << 15))
            got = 0
            while got < 40 << 15:
                got += len(await process.input.read())
            await until(lambda: sum(f.delta for f in seen if isinstance(f, frames.WindowUpdate)) >= 1 << 20)
            process.finish()

    async def test_input_that_nobody_reads_is_not_kept(self, server: StreamingServer, streams: FakeStreams) -> None:
        """The client is held back by TCP long before it has sent all of it."""

        async with connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io") as client:
            command = await client.start(stdin=True, stdout=True, stderr=True)
            process = await streams.execs.get()
            stuck = asyncio.Event()

            async def write(data: bytes) -> None:
                await stuck.wait()

            process.input.write = write  # type: ignore[method-assign]
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 64 << 20:
                        await command.stdin.send(b"z" * (1 << 16))
                        sent += 1 << 16
            assert 1 << 20 <= sent < 32 << 20
            process.finish()
            assert (await command.outcome())[2] == 0, "at the end the rest is dropped"


class TestForwarding:
    @pytest.fixture
    async def echo(self, streams: FakeStreams) -> AsyncIterator[None]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b" bye")
            writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        streams.ports[80] = listening.sockets[0].getsockname()[1]
        yield
        listening.close()

    @pytest.mark.usefixtures("echo")
    async def test_pairs_of_streams(self, server: StreamingServer) -> None:
        async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
            one, two = await forward(client, 80, "1"), await forward(client, 80, "2")
            for connection, text in ((two, b"two"), (one, b"one")):
                await connection.data.send(text)
                assert await connection.data.read() == text
                await connection.data.close()
                assert await connection.data.read_all() == b" bye"
                assert await connection.error.read_all() == b""

    @pytest.mark.usefixtures("echo")
    async def test_clients_without_request_ids(self, server: StreamingServer) -> None:
        async with connect_spdy(server.port_forward_url("p", ())) as client:
            for _ in range(2):
                await client.open(streamtype="error", port="80")
                data = await client.open(streamtype="data", port="80")
                await data.send(b"x")
                assert await data.read() == b"x"

    async def test_a_port_that_is_closed(self, server: StreamingServer) -> None:
        async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
            one = await forward(client, 81, "1")
            assert b"port 81 of pod p-full can't be reached" in await one.error.read_all()
            assert await one.data.read_all() == b""

    async def test_a_connection_that_breaks_in_the_pod(self, server: StreamingServer, streams: FakeStreams) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"some")
            await reader.read(1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by RST
            writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        streams.ports[80] = listening.sockets[0].getsockname()[1]
        async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
            one = await forward(client, 80, "1")
            assert await one.data.read() == b"some"
            await one.data.send(b"break")
            assert (await one.error.read_all()).endswith(b"the connection broke: Connection reset by peer")
            assert await one.data.read_all() == b""
        listening.close()

    @pytest.mark.usefixtures("echo")
    async def test_a_client_that_has_enough(self, server: StreamingServer) -> None:
        async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
            one = await forward(client, 80, "1")
            await one.data.send(b"some")
            assert await one.data.read() == b"some"
            await one.data.reset()
            assert await one.error.read_all() == b"", "that is no error"

    @pytest.mark.parametrize(
        "headers",
        [
            {"streamtype": "data", "port": "80000", "requestid": "1"},
            {"streamtype": "data", "port": "0", "requestid": "1"},
            {"streamtype": "data", "port": "http", "requestid": "1"},
            {"streamtype": "data", "requestid": "1"},
            {"streamtype": "stdin", "port": "80", "requestid": "1"},
        ],
    )
    async def test_streams_without_a_meaning(self, server: StreamingServer, headers: dict[str, str]) -> None:
        async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
            stream = await client.open(**headers)
            assert await stream.read_all() == b""
            assert stream.was_reset

    async def test_half_a_pair_expires(self, streams: FakeStreams) -> None:
        async with (
            serving(streams, creation_timeout_s=0.1) as server,
            connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client,
        ):
            half = await client.open(streamtype="data", port="80", requestid="1")
            async with asyncio.timeout(60):
                assert await half.read_all() == b""
            assert half.was_reset
            assert not client.ended.is_set()

    @pytest.mark.usefixtures("echo")
    async def test_in_a_tunnel(self, server: StreamingServer) -> None:
        url = server.port_forward_url("p", ())
        async with connect_websocket(url, "SPDY/3.1+portforward.k8s.io") as websocket:
            client = SpdyClient(WebSocketWire(websocket))
            one = await forward(client, 80, "1")
            await one.data.send(b"through")
            assert await one.data.read() == b"through"
            await client.close()

    @pytest.mark.usefixtures("echo")
    @pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
    async def test_the_old_web_socket_protocol(self, server: StreamingServer, protocol: str) -> None:
        async with connect_websocket(server.port_forward_url("p", (80, 81)), protocol) as websocket:
            client = ChannelClient(websocket, 4)
            for number, port in enumerate((80, 80, 81, 81)):
                assert await client.channels[number].read() == struct.pack("<H", port)
            await client.channels[0].send(b"old")
            assert await client.channels[0].read() == b"old"
            assert b"port 81" in await client.channels[3].read()
            await client.close()


class TestTime:
    async def test_streams_that_are_not_opened(self, streams: FakeStreams) -> None:
        async with (
            serving(streams, creation_timeout_s=0.1) as server,
            connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io") as client,
        ):
            await client.open(streamtype="error")
            async with asyncio.timeout(60):
                await client.ended.wait()
        assert streams.asked == []

    @pytest.mark.parametrize("way", WAYS)
    async def test_an_idle_connection(self, streams: FakeStreams, way: tuple[str, str]) -> None:
        async with serving(streams, idle_timeout_s=1.5) as server, started(server, streams, way) as (command, process):
            for _ in range(6):
                await process.output.write(b"tick")
                assert await command.stdout.read() == b"tick"
                await asyncio.sleep(0.4)
            assert await command.stdout.read_all() == b""
            await until(lambda: process.is_closed)


def break_off(client: SpdyClient) -> None:
    """Close by RST: a FIN would wait behind what the server does not read."""
    writer = client.wire.writer  # type: ignore[attr-defined]
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class TestBounds:
    async def test_strangers_are_few_and_the_oldest_goes(self, streams: FakeStreams) -> None:
        async with serving(streams, max_unauthenticated=5) as server:
            url = server.exec_url("c", ("run",), ALL)
            host, _, port = url.split("/")[2].partition(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
            async with asyncio.timeout(60):
                for reader, _ in silent[:15]:
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
            await until(lambda: server.connections == 5)
            async with connect_spdy(url, "v4.channel.k8s.io") as client:
                await client.start(stdin=True, stdout=True, stderr=True)
                process = await streams.execs.get()
                more = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
                await until(lambda: server.connections == 6)
                assert not process.is_closed, "who has shown a token is no stranger any more"
            for _, writer in (*silent, *more):
                writer.close()

    async def test_connections_are_counted(self, streams: FakeStreams) -> None:
        async with serving(streams, max_connections=2) as server:
            first, second, third = (server.exec_url("c", ("run",), ALL) for _ in range(3))
            async with connect_spdy(first, "v4.channel.k8s.io"), connect_spdy(second, "v4.channel.k8s.io"):
                with pytest.raises(Refused, match="max_connections") as refused:
                    await upgrade(third, SPDY)
                assert refused.value.status == 503
                with pytest.raises(ResourceExhausted, match="max_connections"):
                    server.exec_url("c", ("run",), ALL)
            await until(lambda: server.connections == 0)
            async with connect_spdy(third, "v4.channel.k8s.io"):
                pass

    async def test_streams_are_counted_also_what_resets_left(self, streams: FakeStreams) -> None:
        """A stream that was reset has gone, but half a pair of streams waits for its other half."""
        async with (
            serving(streams, max_streams=8) as server,
            connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client,
        ):
            opened = []
            for number in range(6):
                opened.append(await client.open(streamtype="data", port="80", requestid=str(number)))
                await opened[-1].reset()
            await opened[5].accepted.wait()
            assert [stream.was_reset for stream in opened] == [False] * 4 + [True] * 2

    async def test_input_of_all_connections_is_bounded(self, streams: FakeStreams) -> None:
        """Ten clients send what nobody reads; an eleventh, whose process reads, gets on."""
        async with serving(streams, max_buffer_bytes=4 << 20) as server, contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                client = await stack.enter_async_context(
                    connect_spdy(server.exec_url("c", ("run",), ALL), "v4.channel.k8s.io")
                )
                stack.callback(break_off, client)
                command = await client.start(stdin=True, stdout=True, stderr=True)
                process = await streams.execs.get()
                stuck = asyncio.Event()
                process.input.write = lambda data, stuck=stuck: stuck.wait()  # type: ignore[method-assign,misc]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await command.stdin.send(bytes(8 << 20))
            pool = server._upgrades._buffers
            assert 2 << 20 <= pool.held_bytes < (2 << 20) + 10 * (3 * READ_BYTES + (1 << 16))
            async with started(server, streams, WAYS[0]) as (command, process):
                sending = asyncio.create_task(command.stdin.send(bytes(1 << 20)))
                got = 0
                while got < 1 << 20:
                    got += len(await process.input.read())
                await sending
            await stack.aclose()
            await until(lambda: pool.held_bytes == 0)

    async def test_clients_that_nobody_reads_cost_little_beside_their_share(self, streams: FakeStreams) -> None:
        """What a process does not read stays in the kernel, and holds up the client there."""
        count, piece, stuck, writer = 20, bytes(1 << 16), asyncio.Event(), frames.FrameWriter()
        names = ("error", "stdin", "stdout", "stderr")
        opening = b"".join(writer.opening(2 * at + 1, {"streamtype": name}) for at, name in enumerate(names))
        opening += frames.data_head(3, frames.MAX_DATA_BYTES)
        async with serving(streams, max_buffer_bytes=1 << 20) as server, contextlib.AsyncExitStack() as stack:
            clients = []
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(count):
                wire, _ = await upgrade(server.exec_url("c", ("run",), ALL), SPDY)
                stack.callback(wire.abort)
                client = socket.socket(fileno=os.dup(wire.writer.get_extra_info("socket").fileno()))
                stack.enter_context(client)
                await wire.write(opening)
                process = await streams.execs.get()
                process.input.write = lambda data: stuck.wait()  # type: ignore[method-assign,assignment,return-value]
                clients.append(client)
            for _ in range(100):
                for client in clients:
                    with contextlib.suppress(BlockingIOError):
                        client.send(piece)
                await asyncio.sleep(0.005)
            taken = tracemalloc.get_traced_memory()[0] - before
            held = server._upgrades._buffers.held_bytes
        assert held >= count << 16
        assert taken - held < count * 200_000, (taken - held) // count

    @pytest.mark.parametrize("way", WAYS)
    async def test_a_host_without_descriptors(
        self, server: StreamingServer, streams: FakeStreams, way: tuple[str, str]
    ) -> None:
        streams.error = OSError(errno.EMFILE, "Too many open files")
        async with connect(server.exec_url("c", ("run",), ALL), *way) as client:
            status = await (await client.start(stdin=True, stdout=True, stderr=True)).status()
        assert "RLIMIT_NOFILE" in status["message"]

    @pytest.mark.alone
    async def test_a_flood_of_frames_lets_others_run(self, streams: FakeStreams) -> None:
        """Each of these made the loop stand still until all that had come was done."""
        floods = [frames.window_update(1, 1), frames.initial_window(9), frames.ping(1), frames.reset(1, 5)]
        async with serving(streams) as server:
            for frame in floods:
                async with connect_spdy(server.port_forward_url("p", ()), "portforward.k8s.io") as client:
                    for number in range(200):
                        await client.open(streamtype="data", port="80", requestid=str(number))
                    sending = asyncio.create_task(client.wire.write(frame * ((1 << 19) // len(frame))))
                    longest = 0.0
                    for _ in range(200):
                        began = time.thread_time()
                        await asyncio.sleep(0)
                        longest = max(longest, time.thread_time() - began)
                    assert longest < 0.1, frame
                    sending.cancel()


class TestAddresses:
    @pytest.mark.parametrize(("address", "wanted"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
    async def test_the_address_is_in_the_url(self, streams: FakeStreams, address: str, wanted: str) -> None:
        async with serving(streams, address=address) as server:
            assert server.exec_url("c", ("run",), ALL).startswith(wanted)

    @pytest.mark.parametrize("address", ["0.0.0.0", "::"])
    async def test_all_addresses_are_named_by_one(self, streams: FakeStreams, address: str) -> None:
        async with serving(streams, address=address) as server:
            url = server.exec_url("c", ("run",), ALL)
            assert f"//{address}:" not in url
            assert "[::]" not in url
            wire, _ = await upgrade(url, SPDY)
            await wire.close()

    async def test_an_address_that_can_not_be_had(self, streams: FakeStreams) -> None:
        with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
            await StreamingServer(StreamingOptions(address="192.0.2.1"), cast(StreamService, streams)).start()


def make_certificates(directory: Path) -> None:
    """An authority, and a certificate of it for 127.0.0.1 that serves both ends."""
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    openssl += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(openssl, check=True, capture_output=True)


class TestTls:
    async def test_both_ends_show_certificates(self, streams: FakeStreams, tmp_path: Path) -> None:
        make_certificates(tmp_path)
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        trusting = ssl.create_default_context(cafile=cert)
        showing = ssl.create_default_context(cafile=cert)
        showing.load_cert_chain(cert, key)
        async with serving(streams, tls_cert=cert, tls_key=key, client_ca=cert) as server:
            url = server.exec_url("c", ("run",), ALL)
            assert url.startswith("https://127.0.0.1:")
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await upgrade(url, SPDY, trusting)
            async with connect_spdy(url, "v4.channel.k8s.io", tls=showing) as client:
                command = await client.start(stdin=True, stdout=True, stderr=True)
                process = await streams.execs.get()
                await process.output.write(b"secret" * 100_000)
                process.finish(5)
                assert await command.outcome() == (b"secret" * 100_000, b"", 5)

    async def test_handshakes_leave_others_their_turn(self, streams: FakeStreams, tmp_path: Path) -> None:
        """Clients that all say hello at once are answered one after the other, and others run in between."""
        make_certificates(tmp_path)
        trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        rounds, hellos = 0, Counter[int]()

        def tick() -> None:
            nonlocal rounds
            rounds += 1
            loop.call_soon(tick)

        def work(*_: object) -> None:
            hellos[rounds] += 1
            time.sleep(2 * SLICE_S)  # so that it does not hang on how quick the machine is

        async with serving(streams, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem") as server:
            loop = asyncio.get_running_loop()
            assert server._tls is not None
            server._tls.sni_callback = work
            url = urlsplit(server.exec_url("c", ("run",), ALL))
            clients = [await asyncio.open_connection(url.hostname, url.port) for _ in range(20)]
            hello = ssl.MemoryBIO()
            handshake = trusting.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1")
            with contextlib.suppress(ssl.SSLWantReadError):
                handshake.do_handshake()
            said = hello.read()
            for _, writer in clients:
                writer.write(said)
            loop.call_soon(tick)
            await asyncio.gather(*(reader.readexactly(5) for reader, _ in clients))
            for _, writer in clients:
                writer.close()
        assert hellos.total() == 20
        assert max(hellos.values()) == 1

    async def test_a_certificate_that_can_not_be_read(self, streams: FakeStreams, tmp_path: Path) -> None:
        options = StreamingOptions(tls_cert=tmp_path / "none", tls_key=tmp_path / "none")
        with pytest.raises(ConfigurationError, match="certificates"):
            await StreamingServer(options, cast(StreamService, streams)).start()
