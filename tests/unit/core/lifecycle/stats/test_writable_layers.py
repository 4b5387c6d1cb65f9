"""Measurements of writable layers: each serves for a while, tells what time it is of, and is forgotten in the end."""

import time
from collections.abc import Callable

import pytest

from crinoid.core.api.errors import Unavailable
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.lifecycle.stats import writable_layers
from crinoid.core.lifecycle.stats.writable_layers import FRESH_S, WritableLayers
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod


class Clock:
    """Time passes when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(writable_layers, "time", clock)
    return clock


@pytest.fixture
async def layers(fake_node: FakeNode) -> WritableLayers:
    """Over a snapshotter that has the snapshots ``a`` and ``b``."""
    for key in ("a", "b"):
        await fake_node.now.slots.snapshotter.create_snapshot(key, None, False)
    return WritableLayers(fake_node.now.slots.snapshotters)


@pytest.fixture
def measured(fake_node: FakeNode) -> Callable[[], int]:
    """Tells how often the driver has measured."""
    return lambda: fake_node.snapshotter.hooks_called.count("usage")


async def test_a_figure_serves_for_ten_seconds(
    layers: WritableLayers, clock: Clock, measured: Callable[[], int]
) -> None:
    first = await layers.measure("default", "a")
    assert first.usage is not None
    assert first.timestamp_ns == clock.time_ns()
    clock.now_s += FRESH_S - 0.1
    assert await layers.measure("default", "a") is first
    assert measured() == 1
    clock.now_s += 0.2
    assert (await layers.measure("default", "a")).timestamp_ns == clock.time_ns() > first.timestamp_ns
    assert measured() == 2


async def test_each_layer_has_its_own(layers: WritableLayers, clock: Clock, measured: Callable[[], int]) -> None:
    await layers.measure("default", "a")
    await layers.measure("default", "b")
    assert measured() == 2


async def test_who_asks_for_one_container_gets_it_anew(
    layers: WritableLayers, clock: Clock, measured: Callable[[], int]
) -> None:
    await layers.measure("default", "a")
    clock.now_s += 1
    new = await layers.measure("default", "a", anew=True)
    assert new.timestamp_ns == clock.time_ns()
    assert await layers.measure("default", "a") is new
    assert measured() == 2


async def test_what_takes_long_to_measure_is_measured_seldom(
    layers: WritableLayers, fake_node: FakeNode, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = fake_node.snapshotter._enter

    async def walk(hook: str, **arguments: object) -> None:
        clock.now_s += 3
        await enter(hook, **arguments)

    monkeypatch.setattr(fake_node.snapshotter, "_enter", walk)
    first = await layers.measure("default", "a")
    clock.now_s += 59
    assert await layers.measure("default", "a") is first
    clock.now_s += 2
    assert await layers.measure("default", "a") is not first


async def test_a_failure_is_no_figure(layers: WritableLayers, fake_node: FakeNode, clock: Clock) -> None:
    fake_node.snapshotter.fail("usage", Unavailable("the disk is away"))
    failed = await layers.measure("default", "a")
    assert failed.usage is None
    assert failed.mountpoint
    assert (await layers.measure("default", "none")).usage is None
    assert (await layers.measure("no such slot", "a")).usage is None


async def test_what_is_gone_is_forgotten(layers: WritableLayers, clock: Clock, measured: Callable[[], int]) -> None:
    for key in ("a", "b"):
        await layers.measure("default", key)
    layers.keep({"b"})
    for key in ("a", "b"):
        await layers.measure("default", key)
    assert measured() == 3


async def test_all_that_tells_of_layers_measures_them_once(fake_node: FakeNode, measured: Callable[[], int]) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    made = [await services.containers.create(pod, a_container(f"c{number}"), None) for number in range(3)]
    before = time.time_ns()
    for _ in range(2):
        found = await services.stats.containers(ContainerFilter())
        assert sorted(one.record.id for one in found) == sorted(made)
        assert all(one.disk is not None and one.disk_timestamp_ns >= before for one in found)
        (whole,) = await services.stats.pods(PodFilter())
        assert len(whole.containers) == 3
        _, (report,) = await services.images.filesystems()
        assert report.usage.inodes == 3
        await services.metrics.pods()
    assert measured() == 3
    await services.stats.container(made[0])
    assert measured() == 4
