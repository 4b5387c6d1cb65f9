"""The event bus: order, several readers, slow readers, the end of the daemon, containers that end while they start."""

import asyncio
import dataclasses
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError, ResourceExhausted, Unavailable
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.pod import NamespaceMode, PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.core.lifecycle.events.events import MOVE_WITHIN_S, EventBus, EventReader, EventType
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState
from crinoid.core.state.store import Store
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

POD = PodRecord(
    id="p1",
    config=PodConfig(metadata=PodMetadata("web", "shop", "u1")),
    runtime_handler="",
    runtime="runc",
    network="default",
    snapshotter="default",
    state=PodState.READY,
    created_at_ns=1,
)
CONTAINER = ContainerRecord(
    id="c1",
    pod_id="p1",
    config=ContainerConfig(metadata=ContainerMetadata("app")),
    handle=ContainerHandle("c1", "p1", Path("/run/c1"), "/p1/c1"),
    image_id="i1",
    image_ref="i1",
    state=ContainerState.CREATED,
    created_at_ns=2,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "state.db")
    store.pods.put(POD)
    store.containers.put(CONTAINER)
    return store


async def take(reader: EventReader, count: int) -> list[tuple[str, EventType]]:
    async with asyncio.timeout(60):
        events = [await anext(reader) for _ in range(count)]
    return [(event.subject_id, event.type) for event in events]


async def test_every_reader_gets_all_from_its_subscription_on_in_order(store: Store) -> None:
    bus = EventBus(store)
    first = bus.subscribe()
    bus.notify_pod(EventType.CREATED, POD)
    second = bus.subscribe()
    bus.notify_container(EventType.CREATED, CONTAINER)
    bus.notify_container(EventType.STARTED, CONTAINER)
    expected = [("p1", EventType.CREATED), ("c1", EventType.CREATED), ("c1", EventType.STARTED)]
    assert await take(first, 3) == expected
    assert await take(second, 2) == expected[1:]


async def test_a_reader_waits_for_the_next_event(store: Store) -> None:
    bus = EventBus(store)
    reader = bus.subscribe()
    waiting = asyncio.create_task(take(reader, 1))
    await asyncio.sleep(0)
    bus.notify_pod(EventType.STOPPED, POD)
    assert await waiting == [("p1", EventType.STOPPED)]


async def test_an_event_holds_the_pod_and_its_containers_as_they_were(store: Store) -> None:
    bus = EventBus(store)
    reader = bus.subscribe()
    bus.notify_container(EventType.CREATED, CONTAINER)
    store.containers.drop("c1")
    bus.notify_container(EventType.DELETED, CONTAINER)
    created, deleted = await anext(reader), await anext(reader)
    assert (created.pod, created.containers) == (POD, (CONTAINER,))
    assert (deleted.pod, deleted.containers) == (POD, ())
    assert deleted.created_at_ns >= created.created_at_ns > 10**18


async def test_a_slow_reader_is_told_that_it_lost_events_and_the_others_are_not_held_up(store: Store) -> None:
    bus = EventBus(store, queue_length=2)
    slow, quick = bus.subscribe(), bus.subscribe()
    for _ in range(3):
        bus.notify_pod(EventType.STARTED, POD)
        assert await take(quick, 1) == [("p1", EventType.STARTED)]
    assert len(await take(slow, 2)) == 2
    for _ in range(2):
        with pytest.raises(ResourceExhausted, match=r"more than 2 events behind.*subscribe again"):
            await anext(slow)
    bus.notify_pod(EventType.STOPPED, POD)
    with pytest.raises(ResourceExhausted):
        await anext(slow)


async def test_the_end_of_the_daemon_ends_every_reading(store: Store) -> None:
    bus = EventBus(store)
    reader = bus.subscribe()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    bus.close()
    with pytest.raises(Unavailable, match="the daemon stops"):
        await waiting
    with pytest.raises(Unavailable):
        await anext(bus.subscribe())


async def test_the_end_of_a_container_comes_after_its_start(store: Store) -> None:
    bus = EventBus(store)
    reader = bus.subscribe()
    with bus.starting("c1"):
        bus.notify_container(EventType.STOPPED, CONTAINER)
        bus.notify_pod(EventType.STOPPED, POD)
        bus.notify_container(EventType.STARTED, CONTAINER)
    assert await take(reader, 3) == [
        ("p1", EventType.STOPPED),
        ("c1", EventType.STARTED),
        ("c1", EventType.STOPPED),
    ]


async def test_after_a_takeover_what_happens_is_kept_for_those_who_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    bus = EventBus(store)
    bus.keep(60)
    bus.notify_container(EventType.STOPPED, CONTAINER)
    first = bus.subscribe()
    bus.notify_pod(EventType.STOPPED, POD)
    wanted = [("c1", EventType.STOPPED), ("p1", EventType.STOPPED)]
    assert await take(first, 2) == await take(bus.subscribe(), 2) == wanted
    now_s += 61
    late = bus.subscribe()
    bus.notify_pod(EventType.DELETED, POD)
    assert await take(late, 1) == await take(first, 1) == [("p1", EventType.DELETED)]


async def test_of_more_than_can_be_kept_nobody_misses_a_part_unknowingly(store: Store) -> None:
    bus = EventBus(store, queue_length=2)
    bus.keep(60)
    for _ in range(4):
        bus.notify_pod(EventType.STARTED, POD)
    reader = bus.subscribe()
    assert len(await take(reader, 2)) == 2
    with pytest.raises(ResourceExhausted, match="list pods and containers"):
        await anext(reader)


async def test_a_successor_goes_on_after_all_that_was_queued(store: Store) -> None:
    bus = EventBus(store)
    reader = bus.subscribe()
    bus.notify_pod(EventType.STARTED, POD)
    bus.hand_over()
    assert [event.type async for event in reader] == [EventType.STARTED]
    assert [event.type async for event in reader] == []


class Relays:
    """A bus at a time that the test says, with readings that come over earlier daemons."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.now_s = store, 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self._note)
        self.bus = EventBus(store)
        self._due: list[tuple[float, Callable[[], None]]] = []

    def _note(self, seconds: float, callback: Callable[[], None]) -> "Relays":
        self._due = [(self.now_s + seconds, callback)]  # the bus has one timer
        return self

    def cancel(self) -> None:
        self._due.clear()

    def wait_until(self, now_s: float) -> None:
        """Let the time pass."""
        while self._due and self._due[0][0] <= now_s:
            self.now_s, callback = self._due.pop()
            callback()
        self.now_s = now_s


@pytest.fixture
async def relays(store: Store, monkeypatch: pytest.MonkeyPatch) -> Relays:
    store.containers.put(dataclasses.replace(CONTAINER, state=ContainerState.RUNNING))
    return Relays(store, monkeypatch)


async def drain(reader: EventReader) -> list[EventType]:
    return [event.type async for event in reader]


async def test_all_that_come_over_earlier_daemons_move_at_one_moment_and_miss_nothing(relays: Relays) -> None:
    bus = relays.bus
    late, early, direct = bus.subscribe(1900.0), bus.subscribe(1500.0), bus.subscribe()
    relays.wait_until(1499)
    bus.notify_pod(EventType.CREATED, POD)
    relays.wait_until(1501)
    bus.notify_pod(EventType.STARTED, POD)
    assert await drain(late) == await drain(early) == [EventType.CREATED]
    again = [bus.subscribe(), bus.subscribe()]
    bus.notify_pod(EventType.STOPPED, POD)
    for reader in again:
        assert await take(reader, 2) == [("p1", EventType.STARTED), ("p1", EventType.STOPPED)]
    assert [kind for _, kind in await take(direct, 3)] == [EventType.CREATED, EventType.STARTED, EventType.STOPPED]
    assert not direct.has_ended


async def test_nobody_moves_while_events_are_kept_from_another_moment(relays: Relays) -> None:
    bus = relays.bus
    bus.keep(60)
    relayed = bus.subscribe(1010.0)
    relays.wait_until(1059)
    assert not relayed.has_ended
    bus.notify_pod(EventType.CREATED, POD)
    relays.wait_until(1061)
    bus.notify_pod(EventType.STARTED, POD)
    assert await drain(relayed) == [EventType.CREATED]
    assert await take(bus.subscribe(), 1) == [("p1", EventType.STARTED)]


async def test_nobody_moves_between_a_container_s_creation_and_its_start_but_not_for_ever(relays: Relays) -> None:
    bus = relays.bus
    created = dataclasses.replace(CONTAINER, id="c2", state=ContainerState.CREATED)
    relays.store.containers.put(created)
    relayed = bus.subscribe(1010.0)
    relays.wait_until(1020)
    assert not relayed.has_ended
    relays.store.containers.put(dataclasses.replace(created, state=ContainerState.RUNNING))
    relays.wait_until(1021)
    assert relayed.has_ended
    relays.wait_until(1100)
    relays.store.containers.put(dataclasses.replace(created, id="c3"))
    forgotten = bus.subscribe(1110.0)
    relays.wait_until(1110 + MOVE_WITHIN_S - 1)
    assert not forgotten.has_ended
    relays.wait_until(1110 + MOVE_WITHIN_S + 1)
    assert forgotten.has_ended


async def test_a_reader_that_nobody_holds_is_forgotten(store: Store) -> None:
    bus = EventBus(store)
    gone = weakref.ref(bus.subscribe())
    bus.notify_pod(EventType.CREATED, POD)
    assert gone() is None


async def test_the_services_tell_each_step(fake_node: FakeNode) -> None:
    services = fake_node.now
    reader = services.events.subscribe()
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container(), None)
    await services.containers.start(container)
    fake_node.runtime.finish(container, 3)
    assert await take(reader, 5) == [
        (pod, EventType.CREATED),
        (pod, EventType.STARTED),
        (container, EventType.CREATED),
        (container, EventType.STARTED),
        (container, EventType.STOPPED),
    ]
    await services.pods.remove(pod)
    assert await take(reader, 3) == [
        (pod, EventType.STOPPED),
        (container, EventType.DELETED),
        (pod, EventType.DELETED),
    ]
    await services.pods.remove(pod)
    services.events.close()
    with pytest.raises(Unavailable):
        await anext(reader)


async def test_what_ends_once_the_streams_are_handed_over_is_the_successor_s_to_tell(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container(), None)
    await services.containers.start(container)
    reader = services.events.subscribe()
    await services.settle()
    services.events.hand_over()
    fake_node.runtime.finish(container, 3)
    await asyncio.sleep(0.05)
    assert await drain(reader) == []
    assert services.store.containers.find(container).state is ContainerState.RUNNING
    await services.close()
    successor = await fake_node.start()
    assert await successor.exit_monitor.happened(container, 60)
    assert successor.store.containers.find(container).exit_code == 3


async def test_a_container_that_could_not_start_has_stopped(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container(), None)
    reader = services.events.subscribe()
    fake_node.runtime.fail("start", DriverError("exec: no such file"))
    with pytest.raises(DriverError):
        await services.containers.start(container)
    event = await anext(reader)
    assert (event.subject_id, event.type) == (container, EventType.STOPPED)
    assert [one.reason for one in event.containers] == ["StartError"]


async def test_a_pod_that_lost_its_init_has_stopped(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(pid=NamespaceMode.POD), "")
    reader = services.events.subscribe()
    fake_node.runtime.finish(pod, 0)
    async with asyncio.timeout(60):
        event = await anext(reader)
    assert (event.subject_id, event.type) == (pod, EventType.STOPPED)
    assert event.pod is not None
    assert event.pod.state is PodState.NOT_READY


async def test_a_pod_that_was_never_made_is_not_told_of(fake_node: FakeNode) -> None:
    services = fake_node.now
    reader = services.events.subscribe()
    fake_node.network.fail("attach", DriverError("no"))
    with pytest.raises(DriverError):
        await services.pods.run(a_pod(), "")
    services.events.close()
    with pytest.raises(Unavailable):
        await anext(reader)
