"""Exec, Attach and PortForward: the URL that is handed out, and what a WebSocket client finds there."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
import grpc
import pytest

from conformance.node import UNKNOWN, Node, Pod, differs
from support.patience import patient

T = TypeVar("T")
PROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS = range(4)
ALL = {"stdin": True, "stdout": True, "stderr": True}


def _run(node: Node, talk: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine where the node's streaming server listens."""
    return node.network.call(lambda: asyncio.run(asyncio.wait_for(talk(), patient(20))))


def _url(node: Node, rpc: str, **fields: Any) -> str:
    url: str = node.call(rpc, **fields)["url"]
    return url


async def _read(url: str, given: bytes = b"") -> dict[int, bytes]:
    """Return what comes on each channel until the connection ends."""
    received: dict[int, bytes] = defaultdict(bytes)
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=(PROTOCOL,)) as socket:
        assert socket.protocol == PROTOCOL
        if given:
            await socket.send_bytes(bytes([STDIN]) + given)
        async for message in socket:
            if isinstance(message.data, bytes) and message.data:
                received[message.data[0]] += message.data[1:]
    return received


def _execute(node: Node, container: str, *command: str, given: bytes = b"", **streams: bool) -> dict[int, bytes]:
    url = _url(node, "Exec", container_id=container, cmd=list(command), **(streams or ALL))
    return _run(node, lambda: _read(url, given))


def test_outputs_are_apart(node: Node, idle: str) -> None:
    received = _execute(node, idle, "sh", "-c", "echo out; echo err >&2")
    assert (received[STDOUT], received[STDERR]) == (b"out\n", b"err\n")
    assert json.loads(received[STATUS])["status"] == "Success"


@pytest.mark.parametrize("code", [1, 42, 255])
def test_exit_code(node: Node, idle: str, code: int) -> None:
    status = json.loads(_execute(node, idle, "sh", "-c", f"exit {code}")[STATUS])
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": str(code)}]


def test_input(node: Node, idle: str) -> None:
    assert _execute(node, idle, "head", "-n", "1", given=b"line\n")[STDOUT] == b"line\n"


def test_only_the_streams_that_are_wanted(node: Node, idle: str) -> None:
    received = _execute(node, idle, "sh", "-c", "echo out; echo err >&2", stdout=True)
    assert (received[STDOUT], received[STDERR]) == (b"out\n", b"")


def test_a_terminal(node: Node, idle: str) -> None:
    received = _execute(node, idle, "sh", "-c", "test -t 1 && echo yes", tty=True, stdin=True, stdout=True)
    assert received[STDOUT] == b"yes\r\n"


def test_attach(node: Node, pod: Pod) -> None:
    container = node.start(pod, "sh", "-c", "read line; echo got $line", stdin=True, stdin_once=True)
    url = _url(node, "Attach", container_id=container, **ALL)
    assert _run(node, lambda: _read(url, b"word\n"))[STDOUT] == b"got word\n"
    assert node.wait_exit(container)["exit_code"] == 0


def test_a_url_works_once(node: Node, idle: str) -> None:
    url = _url(node, "Exec", container_id=idle, cmd=["true"], **ALL)
    _run(node, lambda: _read(url))
    with pytest.raises(aiohttp.ClientError):
        _run(node, lambda: _read(url))


def test_port_forward_has_a_url(node: Node, pod: Pod) -> None:
    assert _url(node, "PortForward", pod_sandbox_id=pod.id, port=[8080]).startswith("http")


@pytest.mark.parametrize("rpc", ["Exec", "Attach"])
@pytest.mark.parametrize("streams", [{}, ALL | {"tty": True}], ids=["none", "stderr-of-a-terminal"])
def test_streams_that_can_not_be(node: Node, idle: str, rpc: str, streams: dict[str, bool]) -> None:
    command = {"cmd": ["true"]} if rpc == "Exec" else {}
    node.refuse(rpc, "INVALID_ARGUMENT", container_id=idle, **command, **streams)


@pytest.mark.parametrize(
    ("rpc", "fields"),
    [("Exec", {"cmd": ["true"], **ALL}), ("Attach", ALL), ("PortForward", {"port": [80]})],
    ids=["exec", "attach", "port-forward"],
)
def test_an_unknown_id_is_not_found(node: Node, rpc: str, fields: Any) -> None:
    name = "pod_sandbox_id" if rpc == "PortForward" else "container_id"
    node.refuse(rpc, "NOT_FOUND", **{name: "0" * 64}, **fields)


@pytest.mark.parametrize("rpc", ["Exec", "Attach"])
@differs(containerd=UNKNOWN)
def test_only_in_a_running_container(node: Node, pod: Pod, rpc: str) -> None:
    container = node.start(pod, "true")
    node.wait_exit(container)
    command = {"cmd": ["true"]} if rpc == "Exec" else {}
    with pytest.raises(grpc.RpcError) as caught:
        node.call(rpc, container_id=container, **command, **ALL)
    assert caught.value.code().name == "FAILED_PRECONDITION"
