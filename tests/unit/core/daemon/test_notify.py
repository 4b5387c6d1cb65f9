"""What systemd is told, and what a successor takes over of it."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.daemon.notify import notify, ping_watchdog, watchdog_of


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_states_are_one_datagram(systemd: socket.socket) -> None:
    notify("READY=1", "STATUS=x")
    assert systemd.recv(100) == b"READY=1\nSTATUS=x"


async def test_the_loop_answers_the_watchdog(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000")
    pinging = asyncio.create_task(ping_watchdog())
    for _ in range(3):
        assert await asyncio.to_thread(systemd.recv, 100) == b"WATCHDOG=1"
    pinging.cancel()


@pytest.mark.parametrize("value", ["", "0", "soon"])
async def test_where_no_watchdog_waits_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", value)
    async with asyncio.timeout(10):
        await ping_watchdog()


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process id of a process with systemd's variables."""
    environment = {**os.environ, "NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "60000000"}
    with subprocess.Popen(["sleep", "100"], env=environment) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_successor_that_systemd_started_knows_the_watchdog(service: int, systemd: socket.socket) -> None:
    assert watchdog_of(service) == {"WATCHDOG_USEC": "60000000"}


def test_systemd_has_to_start_the_successor_of_its_service(service: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with pytest.raises(ConfigurationError, match=f"process {service} is a service of systemd.*systemctl reload"):
        watchdog_of(service)


def test_a_daemon_without_systemd_has_nothing_to_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "100"], env={}) as process:
        assert watchdog_of(process.pid) == {}
        process.kill()
    assert watchdog_of(process.pid) == {}
