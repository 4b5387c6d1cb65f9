"""What a streamed exec, an attach and a port forward mean, over fake drivers and real sockets."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from crinoid.core.api.linux import namespaces
from crinoid.core.api.testing.fakes import FakeRuntime
from crinoid.core.api.values.runtime import AttachRequest, ExecStreamRequest
from crinoid.core.lifecycle.streams import StreamChoice, StreamService
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)
TERMINAL = StreamChoice(stdin=True, stdout=True, terminal=True)


@dataclasses.dataclass
class Bench:
    """A pod with a container that has not been started."""

    node: FakeNode
    streams: StreamService
    pod: str
    container: str

    @property
    def runtime(self) -> FakeRuntime:
        return self.node.runtime

    async def start(self) -> None:
        await self.node.now.containers.start(self.container)

    def request(self, hook: str) -> object:
        """What the runtime was asked last."""
        return next(call.arguments["request"] for call in reversed(self.runtime.calls) if call.hook == hook)


@pytest.fixture
async def bench(fake_node: FakeNode) -> AsyncIterator[Bench]:
    now = fake_node.now
    pod = await now.pods.run(a_pod(), "")
    config = dataclasses.replace(a_container(), stdin=True, envs=(("A", "b"),))
    container = await now.containers.create(pod, config, None)
    yield Bench(fake_node, StreamService(now.containers, now.pods), pod, container)


async def test_exec(bench: Bench) -> None:
    await bench.start()
    assert bench.streams.check_exec(bench.container[:12], ("ls",)) == bench.container
    session = await bench.streams.execute(bench.container, ("ls", "-l"), ALL)
    (driven,) = bench.runtime.execs  # the session carries the slot's name, and passes everything on
    assert session.stdin is not None
    await session.stdin.write(b"in")
    assert await driven.input.read() == b"in"
    driven.finish(3)
    assert await session.wait() == 3
    await session.close()
    assert driven.is_closed
    request = bench.request("exec_stream")
    assert isinstance(request, ExecStreamRequest)
    assert (request.stdin, request.stdout, request.stderr) == (True, True, True)
    assert (request.process["args"], request.process["terminal"]) == (["ls", "-l"], False)
    assert "A=b" in request.process["env"]
    assert not [entry for entry in request.process["env"] if entry.startswith("TERM=")]


async def test_a_terminal_has_a_kind_and_one_output(bench: Bench) -> None:
    await bench.start()
    choice = dataclasses.replace(TERMINAL, stderr=True)
    await bench.streams.execute(bench.container, ("sh",), choice)
    request = bench.request("exec_stream")
    assert isinstance(request, ExecStreamRequest)
    assert (request.process["terminal"], request.stderr) == (True, False)
    assert "TERM=xterm" in request.process["env"]


async def test_the_kind_of_terminal_that_the_image_tells(bench: Bench) -> None:
    await bench.start()
    file = bench.node.now.containers.get(bench.container).handle.bundle / "process.json"
    file.write_text(json.dumps({"env": ["TERM=vt100"]}))
    await bench.streams.execute(bench.container, ("sh",), TERMINAL)
    request = bench.request("exec_stream")
    assert isinstance(request, ExecStreamRequest)
    assert request.process["env"] == ["TERM=vt100"]


async def test_exec_where_nothing_runs(bench: Bench) -> None:
    with pytest.raises(FailedPrecondition, match="is created, so nothing can be executed"):
        bench.streams.check_exec(bench.container, ("ls",))
    with pytest.raises(FailedPrecondition):
        await bench.streams.execute(bench.container, ("ls",), ALL)
    for command in ((), ("",)):
        with pytest.raises(InvalidArgument):
            bench.streams.check_exec(bench.container, command)
    with pytest.raises(NotFound):
        bench.streams.check_exec("0" * 64, ("ls",))


async def test_attach(bench: Bench) -> None:
    assert bench.streams.check_attach(bench.container[:12]) == bench.container
    session = await bench.streams.attach(bench.container, ALL)
    (driven,) = bench.runtime.attaches
    await driven.process.output.write(b"out")
    assert session.stdout is not None
    assert await session.stdout.read() == b"out"
    assert bench.request("attach") == AttachRequest(stdin=True, stdout=True, stderr=True)
    await bench.start()
    await bench.streams.attach(bench.container, StreamChoice(stdout=True))
    assert bench.request("attach") == AttachRequest(stdin=False, stdout=True, stderr=False)


@pytest.mark.parametrize(("field", "wanted"), [("stdin", (False, True)), ("tty", (True, False))])
async def test_attach_gives_what_the_container_has(bench: Bench, field: str, wanted: tuple[bool, bool]) -> None:
    store = bench.node.now.store.containers
    record = store.find(bench.container)
    config = dataclasses.replace(record.config, stdin=field != "stdin", tty=field == "tty")
    store.put(dataclasses.replace(record, config=config))
    await bench.streams.attach(bench.container, ALL)
    request = bench.request("attach")
    assert isinstance(request, AttachRequest)
    assert (request.stdin, request.stderr) == wanted


async def test_attach_to_what_has_ended(bench: Bench) -> None:
    await bench.start()
    await bench.node.now.containers.stop(bench.container, 0)
    with pytest.raises(FailedPrecondition, match="exited"):
        bench.streams.check_attach(bench.container)


async def test_forwarding_in_the_pods_own_namespace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    def call_in(pin: Path, function: Callable[[], object]) -> object:
        entered.append(pin)
        return function()

    monkeypatch.setattr(namespaces, "call_in", call_in)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        writer.close()

    server = await asyncio.start_server(serve, "::1", 0)
    port = server.sockets[0].getsockname()[1]
    assert bench.streams.check_forward(bench.pod[:12]) == bench.pod
    with await bench.streams.connect(bench.pod, port) as connected:
        assert await asyncio.get_running_loop().sock_recv(connected, 100) == b"here"
    server.close()
    pin = bench.node.now.pods.get(bench.pod).namespaces["network"]
    assert entered == [pin, pin], "IPv4 first, then IPv6, both inside"


async def test_forwarding_where_nobody_listens(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "call_in", lambda _pin, function: function())
    with pytest.raises(Unavailable, match=r"port 1 of pod .*127\.0\.0\.1: Connection refused; ::1: Connection refused"):
        await bench.streams.connect(bench.pod, 1)
    await bench.node.now.pods.stop(bench.pod)
    with pytest.raises(FailedPrecondition):
        bench.streams.check_forward(bench.pod)
    with pytest.raises(FailedPrecondition):
        await bench.streams.connect(bench.pod, 1)
