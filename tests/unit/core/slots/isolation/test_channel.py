"""Calls over a socket: cancelled, failing, large, hostile; with objects, streams, sockets and files."""

import asyncio
import contextlib
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import DriverError, NotFound, ResourceExhausted, Unavailable
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.api.hooks.extension import Kernel, PodView
from crinoid.core.api.host import Host
from crinoid.core.api.linux.bulkheads import current_behalf, on_behalf_of
from crinoid.core.api.testing.fakes import FakeKernel, fake_host
from crinoid.core.api.testing.noops import NoopExtension, NoopNetwork, NoopRegistry, NoopRuntime, NoopSnapshotter
from crinoid.core.api.timeline import Act, acting, stage
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.core.api.values.runtime import PodSandbox
from crinoid.core.api.values.snapshot import LayerStream
from crinoid.core.slots.isolation import channel as channels
from crinoid.core.slots.isolation.channel import Channel, ConnectionLostError
from crinoid.core.slots.isolation.handshake import HOST, plugin_interface
from crinoid.core.slots.isolation.interfaces import Exported
from crinoid.core.slots.roles import ROLES
from support.isolation import ForkedProcess
from support.patience import patient


class Network(NoopNetwork):
    """Does what the plan says."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        match plan["do"]:
            case "wait":
                try:
                    self.waits = True
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    if plan.get("answers"):
                        return Attachment(("192.0.2.1",))
                    raise
            case "look":
                while not getattr(self, "waits", False):  # noqa: ASYNC110  # a driver has no event before its loop
                    await asyncio.sleep(0.01)
            case "raise":
                raise SystemExit("no driver may raise this")
            case "behalf":
                with stage("a stage of the driver's") as step:
                    step.note("a note")
                behalf = current_behalf()
                return Attachment((behalf.owner, behalf.subject))
        return Attachment((str(plan.get("text", ""))[:10],), plan)


class Registry(NoopRegistry):
    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        return self._pieces(request.offset)

    async def _pieces(self, count: int) -> AsyncIterator[bytes]:
        async with asyncio.timeout(1000):  # what is opened in one step is closed in the same task
            for number in range(count):
                yield bytes([number % 256]) * 100_000
            if count == 3:
                raise Unavailable("the mirror has gone")


class Runtime(NoopRuntime):
    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.sendall(b"hello")
        return ours


class Snapshotter(NoopSnapshotter):
    @hookimpl
    async def write_layer(self, key: str, stream: LayerStream) -> None:
        content = os.pread(stream.fd, 100, 0)
        opened = len(os.listdir("/proc/self/fd"))
        self.first = getattr(self, "first", opened)
        if opened > self.first + 5:
            raise DriverError("descriptors are left open")
        self._host.unremoved[key] = content.decode()


class Asking(NoopExtension):
    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @hookimpl
    async def pod_started(self, pod: PodView) -> None:
        pods = self._kernel.pods()  # no coroutine
        containers = await self._kernel.containers()
        await self._kernel.stop_container(f"{len(pods)} pods, {len(containers)} containers", "a test")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Put a driver into a forked child; return its process."""
    made: list[ForkedProcess] = []

    def start(role: str, driver: Any) -> ForkedProcess:
        def make(host: Host) -> object:
            return driver(NoOptions(), host)

        made.append(ForkedProcess(ROLES[role], make, fake_host(tmp_path, role)))
        return made[-1]

    yield start
    for process in made:
        process.end_now()


def frame(message: Any) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack("!II", len(text), 0) + text


LINE = {"object": 0, "method": "log", "arguments": {"logger": "", "level": 1, "message": "made"}}
ANSWER = {"answer": 1, "value": None}
PING = plugin_interface({}).method("ping")


REQUEST = NetworkRequest(pod_id="p", metadata=PodMetadata("n", "ns", "u"), netns=None)


async def attach(network: ForkedProcess, **plan: object) -> Attachment:
    proxy: Any = network.proxy
    made: Attachment = await proxy.attach(REQUEST, plan)
    return made


async def test_calls_side_by_side_and_large_ones(start: Any) -> None:
    network = start("network", Network)
    numbers = await asyncio.gather(*(attach(network, do="", text=f"{number}") for number in range(200)))
    assert [one.addresses[0] for one in numbers] == [str(number) for number in range(200)]
    large = await attach(network, do="", text="x" * 5_000_000)
    assert len(str(large.data["text"])) == 5_000_000
    with pytest.raises(DriverError, match="is too large"):
        await attach(network, do="", text="x" * (17 << 20))
    assert (await attach(network, do="")).addresses == ("",)


async def test_a_call_that_is_cancelled_ends_in_the_driver(start: Any) -> None:
    network = start("network", Network)
    waiting = asyncio.create_task(attach(network, do="wait"))
    await attach(network, do="look")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    at_once = asyncio.create_task(attach(network, do="wait"))
    await asyncio.sleep(0)  # it is sent, and cancelled before the driver's task has begun
    at_once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(at_once, patient(20))


async def test_what_a_hook_answers_to_its_cancellation_counts(start: Any) -> None:
    network = start("network", Network)
    waiting = asyncio.create_task(attach(network, do="wait", answers=True))
    await attach(network, do="look")
    waiting.cancel()
    assert (await waiting).addresses == ("192.0.2.1",)


async def test_what_no_driver_may_raise_is_an_error_and_logged_with_its_lines(start: Any) -> None:
    network = start("network", Network)
    with pytest.raises(DriverError, match="SystemExit: no driver may raise this"):
        await attach(network, do="raise")
    await attach(network, do="")
    (line,) = [line for line in network.logged if "attach raised what no driver may raise" in line]
    assert "Traceback" in line


async def test_on_whose_behalf_and_the_drivers_stages(start: Any) -> None:
    network = start("network", Network)
    act = Act("RunPodSandbox", lambda _act, _step: None)
    with acting(act), stage("attach"), on_behalf_of("a pod", "a container"):
        assert (await attach(network, do="behalf")).addresses == ("a pod", "a container")
    assert [(step.name, step.parent, step.notes) for step in act.steps] == [
        ("attach", -1, []), ("a stage of the driver's", 0, ["a note"])
    ]  # fmt: skip
    assert act.steps[1].began_s >= act.steps[0].began_s


async def test_stages_that_make_no_sense_are_left_out_and_too_many() -> None:
    """They are read in the loop's turn, and kept; an hour of 400 digits failed the call."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    channel.attach()
    act = Act("RunPodSandbox", lambda _act, _step: None)
    good = ["good", 0.5, 1, -1, "ok", ["c" * 64, "x" * 1000, 7], ["a note", [7]] + ["more"] * 20]
    odd = [["odd", *other, "ok", [], []] for other in ([10**400, 0, -1], [0, float("nan"), -1], [0, 0, 10**400])]
    answer = frame({"answer": 1, "value": None, "steps": [*odd, good, *odd, *[good] * 500]})
    sending = asyncio.ensure_future(asyncio.to_thread(theirs.sendall, answer))
    with acting(act):
        await asyncio.wait_for(channel.call(0, "ping", PING, {"log_level": 1}), patient(20))
    await sending
    assert {step.name for step in act.steps} == {"good"}
    assert len(act.steps) <= 400
    assert (act.steps[0].subjects, act.steps[0].notes[:2]) == (("c" * 64,), ["a note", "more"])
    assert len(act.steps[0].notes) <= 16
    channel.end("the end of the test")
    theirs.close()


async def test_a_process_that_ends_fails_what_is_under_way_and_what_comes(start: Any) -> None:
    network = start("network", Network)
    waiting = asyncio.create_task(attach(network, do="wait"))
    await attach(network, do="")
    os.kill(network.pid, 9)
    for call in (waiting, attach(network, do="")):
        with pytest.raises(ConnectionLostError, match=r"it has hung up|the connection broke"):
            await call


def blob(count: int) -> BlobRequest:
    return BlobRequest(ImageReference.parse("registry.test/a:1"), Descriptor("t", "d", 1), None, count)


async def test_a_stream_of_a_blob(start: Any) -> None:
    proxy = start("registry", Registry).proxy
    pieces = [piece async for piece in await proxy.open_blob(blob(5))]
    assert [len(piece) for piece in pieces] == [100_000] * 5
    assert pieces[4] == b"\4" * 100_000
    early = await proxy.open_blob(blob(1000))
    assert len(await anext(early)) == 100_000
    await early.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(early)
    cancelled = await proxy.open_blob(blob(1000))
    assert len(await anext(cancelled)) == 100_000
    following = asyncio.ensure_future(anext(cancelled))
    await asyncio.sleep(0)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    await asyncio.wait_for(cancelled.aclose(), patient(20))
    broken = await proxy.open_blob(blob(3))
    with pytest.raises(Unavailable, match="the mirror has gone"):
        [piece async for piece in broken]


async def test_a_socket(start: Any) -> None:
    proxy = start("runtime", Runtime).proxy
    pod = PodSandbox("p", PodConfig(metadata=PodMetadata("n", "ns", "u")), {}, "")
    loop = asyncio.get_running_loop()
    with contextlib.closing(await proxy.forward_port(pod, 80)) as made:
        assert not made.getblocking()
        assert await loop.sock_recv(made, 10) == b"hello"
        assert await loop.sock_recv(made, 10) == b""  # nobody else has it open


async def test_files_are_lent_for_a_call(start: Any, tmp_path: Path) -> None:
    process = start("snapshotter", Snapshotter)
    file = tmp_path / "layer"
    file.write_text("content")
    with file.open("rb") as opened:
        for _ in range(60):
            await process.proxy.write_layer("key", LayerStream(opened.fileno(), 7, "t"))
        assert os.fstat(opened.fileno()).st_size == 7  # ours is open still
    assert process._host.unremoved == {"key": "content"}


async def test_what_an_extension_asks_the_kernel(start: Any) -> None:
    kernel = FakeKernel()
    process = start("extension", Asking)
    await process.proxy.connect(kernel)
    pod = PodView("p", PodConfig(metadata=PodMetadata("n", "ns", "u")), "")
    with pytest.raises(NotFound, match="container 0 pods, 0 containers is not there"):
        await process.proxy.pod_started(pod)


async def test_objects_are_released_with_what_stands_for_them(start: Any) -> None:
    process = start("extension", Asking)
    for _ in range(5):
        await process.proxy.connect(FakeKernel())
    exported = process.channel._objects._exported
    deadline_s = asyncio.get_running_loop().time() + patient(20)
    while len(exported) > 3:  # the root, and the last kernel with its documents
        assert asyncio.get_running_loop().time() < deadline_s, exported
        gc.collect()
        await process.proxy.connect(FakeKernel())
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes of JSON"),
        (struct.pack("!II", 2, 0) + b"[]", "whose JSON is no object"),
        (struct.pack("!II", 4, 0) + b"nope", "holds no JSON"),
        (struct.pack("!II", 2, 0) + b"{}", "a message of no known kind"),
        (struct.pack("!II", 0, 1 << 31), "bytes of JSON and 2147483648 beside it"),
        (b"[" * 100_000, "a frame of"),
        (struct.pack("!II", 100_000, 0) + b"[" * 100_000, "holds no JSON"),
    ],
)
async def test_what_is_not_of_the_protocol_ends_the_connection(sent: bytes, words: str) -> None:
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), ended.append)
    channel.attach()
    theirs.sendall(sent)
    theirs.close()
    deadline_s = asyncio.get_running_loop().time() + patient(20)
    while not ended:
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.01)
    assert words in ended[0]


@pytest.mark.parametrize(
    "message",
    [
        {"cancel": 1},
        {"cancel": []},
        {"release": 1},
        {"release": {}},
        {"answer": 1},
        {"answer": []},
        {"hello": 1},
        {"object": 0, "method": "log", "arguments": {"logger": "", "level": 1, "message": ""}},
        {"object": 0, "method": "log", "arguments": 5},
        {"call": 1, "object": 0, "method": "ping", "arguments": {"log_level": 1}},
        {"call": "x", "object": 0, "method": "ping", "arguments": {"log_level": 1}},
        {"call": 1, "object": 0, "method": "ping", "arguments": {"log_level": 1}, "during": []},
        {"call": 1, "object": 0, "method": "ping", "arguments": {"log_level": 1}, "during": 77},
    ],
)
async def test_a_descriptor_that_nobody_asked_for_is_closed(message: Any) -> None:
    """Else a driver's process could take all that the daemon may have."""
    ours, theirs = socket.socketpair()

    async def answer() -> None:
        """Answer nothing."""

    root = Exported(plugin_interface({}), lambda _name, _arguments: answer())
    if message.get("method") == "log":
        root = Exported(HOST, lambda _name, _arguments: None)
    channel = Channel(ours, root, lambda _why: None)
    channel.attach()
    reader, writer = os.pipe()
    text = json.dumps({**message, "descriptors": 1}).encode()
    socket.send_fds(theirs, [struct.pack("!II", len(text), 0) + text], [writer])
    os.close(writer)
    closed, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(reader, closed.set)  # it is at its end when nobody has the other one
    try:
        await asyncio.wait_for(closed.wait(), patient(20))
    finally:
        loop.remove_reader(reader)
        os.close(reader)
    channel.end("the end of the test")
    theirs.close()


@pytest.mark.parametrize(
    "message",
    [
        {"call": 1, "object": 0, "method": "no method", "arguments": {}},
        {"call": 1, "object": 77, "method": "log", "arguments": {}},
        {"call": 1, "object": [], "method": "log", "arguments": {}},
        {"call": 1, "object": 0, "method": "log", "arguments": 5},
        {"call": 1, "object": 0, "method": "log", "arguments": {"logger": 5, "level": 1, "message": ""}},
    ],
)
async def test_a_call_that_makes_no_sense_fails_alone(message: Any) -> None:
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), ended.append)
    channel.attach()
    text = json.dumps(message).encode()
    theirs.sendall(struct.pack("!II", len(text), 0) + text)
    theirs.setblocking(False)
    answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(theirs, 1000), patient(20))
    assert "error" in json.loads(answer[8:])
    assert ended == []
    channel.end("the end of the test")
    theirs.close()


class Finalizing(socket.socket):
    """Runs something in the middle of a write, as the garbage collector does with finalizers."""

    act: Any = None

    def sendmsg(self, *arguments: Any) -> int:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().sendmsg(*arguments)


async def test_a_finalizer_in_the_middle_of_a_write() -> None:
    ours, theirs = socket.socketpair()
    connection = Finalizing(fileno=ours.detach())
    channel = Channel(connection, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    channel.attach()
    connection.act = lambda: channel.release(7)
    channel.notify(0, "log", HOST.method("log"), {"logger": "", "level": 1, "message": "first"})
    await asyncio.sleep(0)
    received, messages = theirs.recv(10_000), []
    while received:
        (length, _) = struct.unpack_from("!II", received)
        messages.append(json.loads(received[8 : 8 + length]))
        received = received[8 + length :]
    assert [next(iter(one)) for one in messages] == ["object", "release"]
    channel.end("the end of the test")
    theirs.close()


class Large(NoopSnapshotter):
    """Has more to tell than a loop should read in one turn."""

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(300_000))

    @hookimpl
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        return tuple((str(number), None) for number in range(80_000))


async def longest_turn(work: asyncio.Future[Any]) -> float:
    """Return how much of the processor's time this process took in the longest turn of its loop until then."""
    longest_s, before_s = 0.0, time.process_time()
    while not work.done():
        await asyncio.sleep(0)
        now_s = time.process_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    return longest_s


@pytest.fixture
def few_objects() -> Iterator[None]:
    """The garbage collector looks at none of the test run's own."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
async def test_a_large_answer_does_not_hold_the_loop(start: Any) -> None:
    process = start("snapshotter", Large)
    reading = asyncio.ensure_future(process.proxy.list_layers())
    assert await longest_turn(reading) < 0.05
    assert reading.result()[79_999] == ("79999", None)
    with pytest.raises(DriverError, match="300002 values, where at most 250000 are taken"):
        await process.proxy.list_snapshots()
    assert process.channel.ended is None


@pytest.mark.usefixtures("few_objects")
async def test_a_flood_of_messages_does_not_hold_the_loop() -> None:
    heard: list[str] = []
    ours, theirs = socket.socketpair()
    root = Exported(HOST, lambda _name, arguments: heard.append(arguments["message"]))
    channel = Channel(ours, root, lambda _why: None)
    text = b'{"object":0,"method":"log","arguments":{"logger":"","level":1,"message":"%06d"}}'
    frames = b"".join(struct.pack("!II", len(text) + 2, 0) + text % number for number in range(40_000))
    channel.attach()
    sending = threading.Thread(target=theirs.sendall, args=(frames,))
    sending.start()

    async def until_heard() -> None:
        while len(heard) < 40_000:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0)

    assert await longest_turn(asyncio.ensure_future(until_heard())) < 0.05
    assert heard == [f"{number:06}" for number in range(40_000)]
    sending.join()
    channel.end("the end of the test")
    theirs.close()


FLOOD = """
import socket, sys
client, lines = socket.socket(fileno=0), bytes.fromhex(sys.argv[1]) * 1000
while True:
    client.sendall(lines)
"""


async def test_a_flood_of_messages_leaves_the_loop_to_others() -> None:
    """What others do takes many turns of the loop: it is as slow as each of them is long."""
    heard = [0]

    def count(_name: str, _arguments: Any) -> None:
        heard[0] += 1

    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, count), lambda _why: None)
    channel.attach()
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD, frame(LINE).hex()], stdin=theirs.fileno(), stderr=subprocess.DEVNULL
    ) as flooding:
        theirs.close()
        while heard[0] < 1000:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0)
        before = heard[0]
        for _ in range(1000):
            await asyncio.sleep(0)
        in_turns = heard[0] - before
        channel.end("the end of the test")
        flooding.kill()
    assert in_turns < 10_000


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"answer": 1, "value": [0] * 300_000}, "a frame of 300"),
        ({"call": 1, "object": 0, "method": "log", "arguments": [0] * 30_000}, "a call of 30"),
    ],
)
async def test_more_than_a_driver_may_say_ends_the_connection(message: Any, words: str) -> None:
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), ended.append)
    channel.attach()
    text = json.dumps(message).encode()
    await asyncio.to_thread(theirs.sendall, struct.pack("!II", len(text), 0) + text)
    async with asyncio.timeout(patient(20)):
        while not ended:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0.01)
    assert f"it does not speak the protocol: {words}" in ended[0]
    theirs.close()


async def ask_in_thread(channel: Channel) -> None:
    await asyncio.to_thread(channel.call_within, patient(20), 0, "ping", PING, {"log_level": 1})


async def test_a_driver_that_takes_no_answers_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each further call would be a traceback in the daemon's log, as fast as the driver can send."""
    monkeypatch.setattr(channels, "_MAX_BACKLOG_BYTES", 1 << 20)
    ended: list[str] = []
    uncaught: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: uncaught.append(context))
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), ended.append)
    channel.attach()
    theirs.settimeout(patient(20))
    asked = frame({"call": 1, "object": 0, "method": "x" * 60, "arguments": {}}) * 100

    def flood() -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not uncaught:
                theirs.sendall(asked)

    await asyncio.to_thread(flood)
    theirs.close()
    assert not uncaught
    assert "it has not taken" in ended[0]


async def test_what_was_put_off_is_closed_with_the_connection() -> None:
    """A driver's process could take all descriptors that the daemon may have, some at each of its starts."""
    ended: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), ended.append)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    theirs.sendall(frame({"hello": 1}))
    socket.send_fds(theirs, [frame({**LINE, "descriptors": 1})], [writer])
    theirs.sendall(frame(ANSWER))
    os.close(writer)
    await ask_in_thread(channel)
    channel.attach()
    assert "a message of no known kind" in ended[0]
    assert os.read(reader, 1) == b"", "nobody has the other end"
    os.close(reader)
    theirs.close()


async def test_an_answer_that_crosses_its_cancellation_is_closed() -> None:
    """What comes with an answer, such as a session's piece, is a driver's to choose: descriptors, too."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    channel.attach()
    asking = asyncio.create_task(channel.call(7, "ping", PING, {"log_level": 1}))
    await asyncio.sleep(0)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    socket.send_fds(theirs, [frame({**ANSWER, "descriptors": 1})], [writer])
    os.close(writer)
    channel._readable()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert os.read(reader, 1) == b"", "nobody has the other end"
    os.close(reader)
    channel.end("the end of the test")
    theirs.close()


async def test_a_driver_may_log_much_while_it_is_made() -> None:
    heard: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, arguments: heard.append(arguments["message"])), heard.append)
    sending = threading.Thread(target=theirs.sendall, args=(frame(LINE) * 3000 + frame(ANSWER),), daemon=True)
    sending.start()
    await ask_in_thread(channel)
    sending.join()
    channel.attach()
    async with asyncio.timeout(patient(20)):
        while len(heard) < 3000:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0.001)
    assert heard == ["made"] * 3000
    channel.end("the end of the test")
    theirs.close()


async def test_what_came_before_an_answer_is_taken_before_what_came_after_it() -> None:
    """Else a cancellation may come before its call, and is lost."""
    heard: list[str] = []
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, arguments: heard.append(arguments["message"])), heard.append)
    channel.attach()
    lines = [frame({**LINE, "arguments": {"logger": "", "level": 1, "message": f"{number}"}}) for number in range(2)]

    def call() -> None:
        theirs.sendall(lines[0] + frame(ANSWER))
        channel.call_now(0, "ping", PING, {"log_level": 1})
        theirs.sendall(lines[1])

    theirs.sendall(frame({"release": 1}))  # so that the loop reads right after the call, in the same turn
    asyncio.get_running_loop().call_soon(call)
    async with asyncio.timeout(patient(20)):
        while len(heard) < 2:  # noqa: ASYNC110  # nothing else tells of it
            await asyncio.sleep(0.001)
    assert heard == ["0", "1"]
    channel.end("the end of the test")
    theirs.close()


async def test_what_comes_before_an_answer_is_bounded_by_its_bytes() -> None:
    """The daemon keeps it: a thousand messages of 64 MiB each would be all of the node's memory."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    text = json.dumps(LINE).encode()
    large = struct.pack("!II", len(text), 3 << 20) + text + bytes(3 << 20)

    def send() -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            theirs.sendall(large * 2 + frame(ANSWER))

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    with pytest.raises(ConnectionLostError, match="bytes of messages before its answer"):
        await ask_in_thread(channel)
    sending.join()
    theirs.close()


async def test_a_large_answer_for_which_there_is_no_thread_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing more would be heard of the driver."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    channel.attach()

    async def refuse(*_: object) -> None:
        raise ResourceExhausted("no thread can be started: can't start new thread")

    monkeypatch.setattr(asyncio, "to_thread", refuse)
    asking = asyncio.create_task(channel.call(0, "ping", PING, {"log_level": 1}))
    sending = threading.Thread(target=theirs.sendall, args=(frame({"answer": 1, "value": [0] * 30_000}),), daemon=True)
    sending.start()
    with pytest.raises(ConnectionLostError, match="can't be read: no thread can be started"):
        await asyncio.wait_for(asking, patient(20))
    sending.join()
    theirs.close()


async def test_a_number_that_is_none_in_a_large_answer_fails_its_call_alone() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, Exported(HOST, lambda _name, _arguments: None), lambda _why: None)
    channel.attach()
    stats = plugin_interface(hooks_of(ROLES["runtime"].specification)).method("stats_many")
    line = {"total_us": 0, "avg10": 10**400, "avg60": 0, "avg300": 0}
    usage = {"timestamp_ns": 0, "cpu_pressure": {"full": line, "some": line}}
    asking = asyncio.create_task(channel.call(0, "stats_many", stats, {"handles": ()}))
    sending = threading.Thread(
        target=theirs.sendall, args=(frame({"answer": 1, "value": [usage] * 4000}),), daemon=True
    )
    sending.start()
    with pytest.raises(DriverError, match="avg10: returned int where float is due"):
        await asyncio.wait_for(asking, patient(20))
    sending.join()
    pinging = asyncio.create_task(channel.call(0, "ping", PING, {"log_level": 1}))
    theirs.sendall(frame({"answer": 2, "value": None}))
    await asyncio.wait_for(pinging, patient(20))
    channel.end("the end of the test")
    theirs.close()
