"""Exec, Attach and PortForward: what is refused at once, and what the streaming server is asked for."""

from types import SimpleNamespace

import pytest

from crinoid.core.api.errors import CrinoidError, InvalidArgument
from crinoid.core.cri.client import Client
from crinoid.core.lifecycle.streams import StreamChoice


class FakeUrls:
    """Remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def exec_url(self, container_id: str, command: tuple[str, ...], choice: StreamChoice, /) -> str:
        self.asked.append((container_id, command, choice))
        return "http://node/exec/1"

    def attach_url(self, container_id: str, choice: StreamChoice, /) -> str:
        self.asked.append((container_id, choice))
        return "http://node/attach/2"

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...], /) -> str:
        self.asked.append((pod_id, ports))
        return "http://node/portforward/3"


@pytest.fixture
def services(services: SimpleNamespace) -> SimpleNamespace:
    services.streams = FakeUrls()
    return services


async def test_urls(client: Client, services: SimpleNamespace) -> None:
    answer = await client.call("Exec", {"container_id": "c1", "cmd": ["ls", ""], "stdin": True, "tty": True})
    assert answer["url"] == "http://node/exec/1"
    answer = await client.call("Attach", {"container_id": "c1", "stdout": True, "stderr": True})
    assert answer["url"] == "http://node/attach/2"
    answer = await client.call("PortForward", {"pod_sandbox_id": "p", "port": [80, 443]})
    assert answer["url"] == "http://node/portforward/3"
    assert services.streams.asked == [
        ("c1", ("ls", ""), StreamChoice(stdin=True, terminal=True)),
        ("c1", StreamChoice(stdout=True, stderr=True)),
        ("p", (80, 443)),
    ]


@pytest.mark.parametrize(
    ("rpc", "fields", "words"),
    [
        ("Exec", {"cmd": ["ls"], "stdout": True}, "container_id"),
        ("Exec", {"container_id": "c1", "stdout": True}, "cmd"),
        ("Exec", {"container_id": "c1", "cmd": ["ls"]}, "none of stdin, stdout and stderr"),
        ("Exec", {"container_id": "c1", "cmd": ["ls"], "tty": True, "stderr": True}, "tty and stderr"),
        ("Attach", {"stdout": True}, "container_id"),
        ("Attach", {"container_id": "c1"}, "none of stdin, stdout and stderr"),
        ("Attach", {"container_id": "c1", "tty": True, "stdout": True, "stderr": True}, "tty and stderr"),
        ("PortForward", {}, "pod_sandbox_id"),
        ("PortForward", {"pod_sandbox_id": "p", "port": [80, 0]}, r"port\[1\]"),
        ("PortForward", {"pod_sandbox_id": "p", "port": [65536]}, r"port\[0\]"),
    ],
)
async def test_requests_that_have_no_meaning(
    client: Client, services: SimpleNamespace, rpc: str, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(CrinoidError, match=words) as refused:
        await client.call(rpc, fields)
    assert isinstance(refused.value, InvalidArgument)
    assert services.streams.asked == []
