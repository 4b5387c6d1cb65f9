"""Metrics: the address is taken at once, the tables are made later, and nothing that happened before is lost."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import MetricsConfig, TracingConfig
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.slots.running import HookCalls
from support.patience import patient

WATCHDOG = Watchdog(HookCalls(), 1.0)
"""Its loop does not run; it is asked only."""


def make(port: int) -> DaemonInstruments:
    return DaemonInstruments(MetricsConfig(listen=f"127.0.0.1:{port}"), TracingConfig(), "1", WATCHDOG)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
async def instruments(port: int) -> AsyncIterator[DaemonInstruments]:
    made = make(port)
    yield made
    await made.close()


async def ask(port: int, path: str = "/metrics") -> str:
    async with asyncio.timeout(patient(10)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer


async def test_what_happened_before_the_tables_were_made_is_counted(instruments: DaemonInstruments, port: int) -> None:
    instruments.observe("network", "default", "attach", 0.5, "ok")
    instruments.observe_rpc("Version", 0.002, "OK")
    asked = asyncio.create_task(ask(port))
    await asyncio.sleep(0)
    assert not asked.done()
    await instruments.open()
    instruments.observe_rpc("Version", 0.002, "OK")
    answer = await asked
    assert answer.startswith("HTTP/1.0 200 ")
    assert 'crinoid_hook_seconds_count{hook="attach",outcome="ok",role="network",slot="default"} 1.0' in answer
    assert 'crinoid_rpc_seconds_count{code="OK",rpc="Version"} 2.0' in await ask(port)
    assert "process_resident_memory_bytes" in answer


async def test_health_is_told_before_there_are_metrics_and_after(instruments: DaemonInstruments, port: int) -> None:
    for _ in range(2):
        answer = await ask(port, "/healthz?x=1")
        assert answer.startswith("HTTP/1.0 503 ")
        assert answer.endswith("\r\n\r\nstarting\n")
        await instruments.open() if instruments._metrics and not instruments._metrics._rpc else None
    measured = await ask(port)
    assert 'crinoid_loop_lag_seconds_bucket{le="+Inf"} 0.0' in measured
    assert "crinoid_hooks_abandoned_total 0.0" in measured


async def test_a_client_that_says_nothing_holds_up_nobody(instruments: DaemonInstruments, port: int) -> None:
    await instruments.open()
    _, silent = await asyncio.open_connection("127.0.0.1", port)
    assert (await ask(port)).startswith("HTTP/1.0 200 ")
    silent.close()


async def test_clients_that_say_nothing_take_a_bounded_number_of_threads(
    instruments: DaemonInstruments, port: int
) -> None:
    """Whoever can connect could else use up the threads and descriptors of the daemon."""
    await instruments.open()
    before = threading.active_count()
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    assert (await ask(port)).startswith("HTTP/1.0 200 ")
    clients[0].settimeout(patient(10))
    assert clients[0].recv(1) == b""
    async with asyncio.timeout(patient(10)):
        while threading.active_count() > before + 40:  # noqa: ASYNC110  # threads that end
            await asyncio.sleep(0.01)
    for client in clients:
        client.close()


async def test_an_address_that_is_taken_stops_the_start(instruments: DaemonInstruments, port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"metrics.listen '127.0.0.1:{port}': "):
        make(port)


@pytest.mark.parametrize("listen", ["nowhere.invalid:1", "192.0.2.1:0"])
def test_an_address_that_can_not_be_had_stops_the_start(listen: str) -> None:
    with pytest.raises(ConfigurationError, match=r"metrics\.listen"):
        DaemonInstruments(MetricsConfig(listen=listen), TracingConfig(), "1", WATCHDOG)


@pytest.mark.parametrize("opened", [True, False])
async def test_the_address_is_free_again_after_the_end(port: int, opened: bool) -> None:
    first = make(port)
    if opened:
        await first.open()
    await first.close()
    await first.close()
    await make(port).close()


async def test_without_an_address_nothing_is_measured() -> None:
    nothing = DaemonInstruments(MetricsConfig(), TracingConfig(), "1", WATCHDOG)
    nothing.observe("network", "default", "attach", 0.5, "ok")
    nothing.observe_rpc("Version", 0.002, "OK")
    await nothing.open()
    await nothing.close()
