"""Readings for streams: a few objects at a time, each once, whatever comes and goes meanwhile."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.testing import fakes
from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage, Pressure, PressureStats
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.lifecycle.stats import metrics, stats
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "BATCH", 2)
    monkeypatch.setattr(metrics, "BATCH", 2)


def stats_of(average: float) -> PressureStats:
    line = Pressure(1, average, 0.0, 0.0)
    return PressureStats(line, line)


async def test_containers(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    made = [await services.containers.create(pod, a_container(f"c{number}"), None) for number in range(5)]
    batches = services.stats.container_batches(ContainerFilter())
    first = [one.record.id for one in await anext(batches)]
    assert first == made[:2:-1]
    await services.containers.remove(made[0])
    added = await services.containers.create(pod, a_container("late"), None)
    rest = [[one.record.id for one in batch] async for batch in batches]
    assert rest == [[made[2], made[1]], []]
    assert added not in [one for batch in rest for one in batch]


async def test_pods(fake_node: FakeNode) -> None:
    services = fake_node.now
    pods = [await services.pods.run(a_pod(f"p{number}"), "") for number in range(3)]
    await services.pods.stop(pods[1])
    sizes = [[one.record.id for one in batch] async for batch in services.stats.pod_batches(PodFilter())]
    assert sizes == [[pods[2], pods[0]]]
    assert [one.pod_id for batch in [b async for b in services.metrics.batches()] for one in batch] == [
        pods[0],
        pods[2],
    ]
    assert sorted(one.pod_id for one in await services.metrics.pods()) == sorted([pods[0], pods[2]])


def test_networks_stay_with_their_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: dict[Path, NetworkUsage | OSError] = {
        Path("/a"): NetworkUsage(1),
        Path("/gone"): OSError("it went"),
        Path("/b"): NetworkUsage(2),
    }

    def enter_each(kind: str, pins: Sequence[Path], _: Callable[[], NetworkUsage]) -> list[NetworkUsage | OSError]:
        assert kind == "network"
        return [readings[pin] for pin in pins]

    monkeypatch.setattr(stats, "call_in_each", enter_each)
    found = stats.read_networks([Path("/a"), None, Path("/gone"), Path("/b")])
    assert [None if one is None else one.timestamp_ns for one in found] == [1, None, None, 2]
    assert stats.read_networks([None, None]) == [None, None]


async def test_a_pod_that_goes_down_has_no_statistics(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record says READY until its network is gone: half of that must not be shown meanwhile."""
    services = fake_node.now
    going, staying = [await services.pods.run(a_pod(f"p{number}"), "") for number in range(2)]
    whole = NetworkUsage(1, (InterfaceUsage("eth0", 1, 0, 1, 0),))
    monkeypatch.setattr(stats, "read_networks", lambda pins: [whole] * len(pins))
    fake_node.network.hang("detach")
    stop = asyncio.create_task(services.pods.stop(going))
    while "detach" not in fake_node.network.hooks_called:  # noqa: ASYNC110  # the fake has no event
        await asyncio.sleep(0)
    assert [one.record.id for one in await services.stats.pods(PodFilter())] == [staying]
    assert [[one.record.id for one in few] async for few in services.stats.pod_batches(PodFilter())] == [[staying]]
    assert [one.pod_id for one in await services.metrics.pods()] == [staying]
    assert ((await services.stats.pod(going)).network, (await services.stats.pod(staying)).network) == (None, whole)
    stop.cancel()
    await asyncio.gather(stop, return_exceptions=True)
    assert not services.pods.is_up(going)  # how far that stop came is anybody's guess
    fake_node.network.hang("detach", False)
    await services.pods.remove(going)
    assert [one.record.id for one in await services.stats.pods(PodFilter())] == [staying]


async def test_a_pod_that_goes_down_while_it_is_read(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    loop = asyncio.get_running_loop()

    def read_late(places: Sequence[object]) -> list[tuple[None, None]]:
        """Read what a pod has left once it has been stopped."""
        asyncio.run_coroutine_threadsafe(services.pods.stop(pod), loop).result(5)
        return [(None, None)] * len(places)

    monkeypatch.setattr(stats, "read_pods", read_late)
    assert await services.stats.pods(PodFilter()) == []


async def test_one_runtime_that_fails(fake_node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """The list goes on without its figures, and the log names it."""
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container("c"), None)
    await services.containers.start(container)
    caplog.set_level(logging.WARNING)
    for error in (Unavailable("no runtime today"), ValueError("a bug")):
        fake_node.runtime.fail("stats_many", error)
        (found,) = await services.stats.containers(ContainerFilter())
        assert (found.record.id, found.usage) == (container, None)
        assert 'runtime "runc" (fake) stats_many: ' in caplog.messages[-1]
        fake_node.runtime.fail("stats_many", error)
        (of_pod,) = await services.stats.pods(PodFilter())
        assert [one.usage for one in of_pod.containers] == [None]


@pytest.mark.parametrize(
    "odd",
    [
        {"cpu_ns": -1},
        {"memory_usage_bytes": 1 << 64},
        {"memory_rss_bytes": 1.5},
        {"pids": True},
        {"timestamp_ns": 0},
        {"timestamp_ns": 1 << 63},
        {"cpu_pressure": stats_of(math.nan)},
        {"io_pressure": stats_of(math.inf)},
        {"memory_pressure": "none"},
        {"swap_limit_bytes": float("nan")},
    ],
    ids=str,
)
async def test_figures_that_no_kubelet_can_take(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, odd: dict[str, Any]
) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container("c"), None)
    await services.containers.start(container)
    monkeypatch.setattr(fakes, "_usage", lambda: CgroupUsage(**({"timestamp_ns": 5} | odd)))
    (found,) = await services.stats.containers(ContainerFilter())
    assert found.usage is None
    assert f"{next(iter(odd)) if 'timestamp_ns' not in odd else 'time'}" in caplog.text
    assert 'runtime "runc" (fake) stats_many: returned a reading' in caplog.text


async def test_a_runtime_is_asked_once_for_all_its_containers(fake_node: FakeNode) -> None:
    services = fake_node.now
    pods = [await services.pods.run(a_pod(f"p{number}"), "") for number in range(2)]
    made = [await services.containers.create(pod, a_container("c"), None) for pod in pods for _ in range(1)]
    for one in made:
        await services.containers.start(one)
    waiting = await services.containers.create(pods[0], a_container("waiting"), None)
    fake_node.runtime.calls.clear()
    found = {one.record.id: one for one in await services.stats.containers(ContainerFilter())}
    assert {id_: one.usage is not None for id_, one in found.items()} == {made[0]: True, made[1]: True, waiting: False}
    of_pods = {one.record.id: [c.record.id for c in one.containers] for one in await services.stats.pods(PodFilter())}
    assert {id_: sorted(own) for id_, own in of_pods.items()} == {
        pods[0]: sorted([made[0], waiting]),
        pods[1]: [made[1]],
    }
    assert fake_node.runtime.hooks_called == ("stats_many", "stats_many")
