"""Readings for streams: a few objects at a time, each once, whatever comes and goes meanwhile."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from crinoid.core.api.values.stats import NetworkUsage
from crinoid.core.lifecycle import metrics, stats
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "BATCH", 2)
    monkeypatch.setattr(metrics, "BATCH", 2)


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
    readings = {Path("/a"): NetworkUsage(1), Path("/gone"): OSError("it went"), Path("/b"): NetworkUsage(2)}

    def enter_each(kind: str, pins: Sequence[Path], _: Callable[[], NetworkUsage]) -> list[NetworkUsage | OSError]:
        assert kind == "network"
        return [readings[pin] for pin in pins]

    monkeypatch.setattr(stats, "call_in_each", enter_each)
    found = stats.read_networks([Path("/a"), None, Path("/gone"), Path("/b")])
    assert [None if one is None else one.timestamp_ns for one in found] == [1, None, None, 2]
    assert stats.read_networks([None, None]) == [None, None]


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
