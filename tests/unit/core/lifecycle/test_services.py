"""Pods and containers over fake drivers: whatever fails, at whatever step, nothing is left, and a retry works."""

import asyncio
import contextlib
import dataclasses
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from crinoid.core.api import backoff
from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeRefused,
)
from crinoid.core.api.linux import files
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode, PodMetadata
from crinoid.core.api.values.runtime import ExitStatus
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.lifecycle.resources import resources
from crinoid.core.lifecycle.resources.resources import CGROUP, CONTAINER, DEFERRED, DIRECTORY, MOUNT, NETWORK, SNAPSHOT
from crinoid.core.state.records import ContainerState, PodState
from crinoid.core.state.store import LedgerEntry
from unit.core.lifecycle.conftest import FakeNode, a_container, a_pod

POD_STEPS = [
    ("network", "plan"),
    ("network", "attach"),
    ("runtime", "start_pod"),
    ("extension", "pod_starting"),
    ("extension", "pod_started"),
]
SHARED_STEPS = [("runtime", "create"), ("runtime", "start")]
CONTAINER_STEPS = [
    ("extension", "adjust_container"),
    ("snapshotter", "create_snapshot"),
    ("runtime", "create"),
    ("extension", "container_created"),
]


async def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # of records, which have no events
            await asyncio.sleep(0.005)


def assert_nothing_left(node: FakeNode) -> None:
    assert node.machine.is_empty
    assert node.now.store.ledger.entries() == []
    assert list((node.config.run / "pods").iterdir()) == []
    assert not list((node.config.run).glob("containers/*"))


@pytest.mark.parametrize(("role", "hook"), POD_STEPS)
async def test_a_pod_that_fails_at_a_step_leaves_nothing(fake_node: FakeNode, role: str, hook: str) -> None:
    getattr(fake_node, role).fail(hook, DriverError("no luck"))
    with pytest.raises(DriverError, match=f"{hook}: no luck"):
        await fake_node.now.pods.run(a_pod(), "")
    assert fake_node.now.pods.list(PodFilter()) == []
    assert_nothing_left(fake_node)
    assert await fake_node.now.pods.run(a_pod(), "")


@pytest.mark.parametrize(("role", "hook"), SHARED_STEPS)
async def test_a_pod_whose_init_fails_leaves_nothing(fake_node: FakeNode, role: str, hook: str) -> None:
    getattr(fake_node, role).fail(hook, DriverError("no luck"))
    with pytest.raises(DriverError, match="no luck"):
        await fake_node.now.pods.run(a_pod(pid=NamespaceMode.POD), "")
    assert_nothing_left(fake_node)


@pytest.mark.parametrize(("role", "hook"), CONTAINER_STEPS)
async def test_a_container_that_fails_at_a_step_leaves_nothing(fake_node: FakeNode, role: str, hook: str) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    before = fake_node.now.store.ledger.entries()
    getattr(fake_node, role).fail(hook, DriverError("no luck"))
    with pytest.raises(DriverError, match=f"{hook}: no luck"):
        await fake_node.now.containers.create(pod, a_container(), None)
    assert fake_node.now.containers.list(ContainerFilter()) == []
    assert fake_node.now.store.ledger.entries() == before
    assert await fake_node.now.containers.create(pod, a_container(), None)


@pytest.mark.parametrize(("role", "hook"), [*POD_STEPS, *SHARED_STEPS])
async def test_a_crash_at_a_step_leaves_nothing_after_the_next_start(fake_node: FakeNode, role: str, hook: str) -> None:
    getattr(fake_node, role).hang(hook)
    pid = NamespaceMode.POD if (role, hook) in SHARED_STEPS else NamespaceMode.CONTAINER
    running = asyncio.create_task(fake_node.now.pods.run(a_pod(pid=pid), ""))
    await eventually(lambda: hook in getattr(fake_node, role).hooks_called)
    await fake_node.crash()
    await asyncio.gather(running, return_exceptions=True)
    getattr(fake_node, role).hang(hook, False)
    await fake_node.start()
    for record in fake_node.now.pods.list(PodFilter()):
        assert (role, hook) == ("extension", "pod_started")
        await fake_node.now.pods.remove(record.id)
    assert_nothing_left(fake_node)


@pytest.mark.parametrize(("role", "hook"), CONTAINER_STEPS)
async def test_a_crash_while_a_container_is_made(fake_node: FakeNode, role: str, hook: str) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    getattr(fake_node, role).hang(hook)
    running = asyncio.create_task(fake_node.now.containers.create(pod, a_container(), None))
    await eventually(lambda: hook in getattr(fake_node, role).hooks_called)
    await fake_node.crash()
    await asyncio.gather(running, return_exceptions=True)
    getattr(fake_node, role).hang(hook, False)
    await fake_node.start()
    owners = {entry.owner for entry in fake_node.now.store.ledger.entries()}
    assert owners <= {pod, *(one.id for one in fake_node.now.containers.list(ContainerFilter()))}
    await fake_node.now.pods.remove(pod)
    assert_nothing_left(fake_node)


@pytest.mark.parametrize(("role", "hook"), [("runtime", "delete"), ("snapshotter", "remove_snapshot")])
async def test_a_kill_while_a_container_is_removed(fake_node: FakeNode, role: str, hook: str) -> None:
    """What was undone by then is not deleted yet, and is undone again."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    before = fake_node.now.store.ledger.entries(container)
    getattr(fake_node, role).hang(hook)
    running = asyncio.create_task(fake_node.now.containers.remove(container))
    await eventually(lambda: hook in getattr(fake_node, role).hooks_called)
    assert fake_node.now.store.ledger.entries(container) == before
    fake_node.now.store.ledger.delete = lambda *_: None  # type: ignore[method-assign]  # it was killed before that
    await fake_node.crash()
    await asyncio.gather(running, return_exceptions=True)
    getattr(fake_node, role).hang(hook, False)
    await fake_node.start()
    assert fake_node.now.store.ledger.entries(container) == before
    await fake_node.now.containers.remove(container)
    assert fake_node.now.store.ledger.entries(container) == []
    await fake_node.now.pods.remove(pod)
    assert_nothing_left(fake_node)


async def test_an_owner_is_struck_in_one_go(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """But an attachment at once: its address may soon be another's."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    ledger, deleted = fake_node.now.store.ledger, list[tuple[str, set[str]]]()
    strike = ledger.delete

    def note(*entries: LedgerEntry) -> None:
        deleted.extend([(entries[0].owner, {entry.kind for entry in entries})] if entries else [])
        strike(*entries)

    monkeypatch.setattr(ledger, "delete", note)
    await fake_node.now.pods.remove(pod)
    kinds = dict(deleted)
    assert [owner for owner, _ in deleted if owner == container] == [container]
    assert {"container", "snapshot", "directory"} <= kinds[container]
    assert (pod, {"network"}) in deleted
    assert len(deleted) == 3
    assert_nothing_left(fake_node)


@pytest.fixture
def gate(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Attaching waits until this is set."""
    gate, slot = asyncio.Event(), fake_node.now.slots.network
    attach = slot.attach

    async def wait_and_attach(request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        await gate.wait()
        return await attach(request, plan)

    monkeypatch.setattr(slot, "attach", wait_and_attach)
    return gate


async def test_a_retry_joins_what_is_under_way(fake_node: FakeNode, gate: asyncio.Event) -> None:
    first = asyncio.create_task(fake_node.now.pods.run(a_pod(), ""))
    await eventually(lambda: "plan" in fake_node.network.hooks_called)
    second = asyncio.create_task(fake_node.now.pods.run(a_pod(), ""))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    pod = await second
    assert [record.id for record in fake_node.now.pods.list(PodFilter())] == [pod]


async def test_a_different_request_of_the_same_name_is_refused(fake_node: FakeNode, gate: asyncio.Event) -> None:
    first = asyncio.create_task(fake_node.now.pods.run(a_pod(), ""))
    await eventually(lambda: "plan" in fake_node.network.hooks_called)
    with pytest.raises(AlreadyExists, match="differs"):
        await fake_node.now.pods.run(a_pod(pid=NamespaceMode.POD), "")
    gate.set()
    await first


async def test_an_answer_that_nobody_saw_is_claimed_by_the_retry_alone(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    assert await fake_node.now.pods.run(a_pod(), "") == pod
    container = await fake_node.now.containers.create(pod, a_container(), None)
    assert await fake_node.now.containers.create(pod, a_container(), None) == container
    fake_node.now.pods.acknowledge(pod)
    fake_node.now.containers.acknowledge(container)
    with pytest.raises(AlreadyExists, match=pod):
        await fake_node.now.pods.run(a_pod(), "")
    with pytest.raises(AlreadyExists, match=container):
        await fake_node.now.containers.create(pod, a_container(), None)


async def test_the_whole_story(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container(), None)
    await services.containers.start(container)
    assert services.containers.get(container).state is ContainerState.RUNNING
    fake_node.runtime.finish(container, 3)
    await eventually(lambda: services.containers.get(container).state is ContainerState.EXITED)
    record = services.containers.get(container)
    assert (record.exit_code, record.reason) == (3, "Error")
    await services.pods.remove(pod)
    assert_nothing_left(fake_node)
    told = [hook for hook in fake_node.extension.hooks_called if not hook.startswith("image")]
    assert told == [
        *("connect", "pod_starting", "pod_started", "adjust_container", "container_created", "container_starting"),
        *("container_started", "container_exited", "pod_stopping", "pod_stopped", "container_removed", "pod_removed"),
    ]


async def test_the_true_state_after_a_restart(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    ids = [await services.containers.create(pod, a_container(name), None) for name in ("runs", "ended", "lost", "new")]
    for container in ids[:3]:
        await services.containers.start(container)
    await fake_node.crash()
    fake_node.runtime.finish(ids[1], 7)
    fake_node.runtime.lose(ids[2])
    services = await fake_node.start()
    await eventually(lambda: services.containers.get(ids[1]).state is ContainerState.EXITED)
    states = [services.containers.get(container) for container in ids]
    assert [record.state.value for record in states] == ["running", "exited", "exited", "created"]
    assert [record.exit_code for record in states] == [0, 7, 255, 0]
    assert services.pods.get(pod).state is PodState.READY


async def test_a_pod_without_its_namespaces_is_not_ready(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.crash()
    fake_node.machine.pins.clear()
    services = await fake_node.start()
    assert services.pods.get(pod).state is PodState.NOT_READY
    with pytest.raises(FailedPrecondition, match="not ready"):
        await services.containers.create(pod, a_container(), None)


@pytest.mark.parametrize(
    ("driver", "hook"),
    [("network", "set_pod_cidrs"), ("network", "collect_garbage"), ("snapshotter", "list_snapshots")]
    + [("snapshotter", hook) for hook in ("probe", "list_unfinished", "list_layers")],
)
async def test_a_driver_that_fails_keeps_no_daemon_from_starting(fake_node: FakeNode, driver: str, hook: str) -> None:
    await fake_node.now.node.set_pod_cidrs(("10.0.0.0/8",))
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.crash()
    getattr(fake_node, driver).fail(hook, SystemExit(3))
    services = await fake_node.start()
    assert [record.id for record in services.store.pods] == [pod]
    assert getattr(fake_node, driver).hooks_called.count(hook) > 0


async def test_what_can_wait_is_deferred_and_undone_at_the_next_start(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    fake_node.network.fail("detach", DriverError("plugin is gone"))
    fake_node.snapshotter.fail("remove_snapshot", DriverError("busy"))
    await fake_node.now.pods.remove(pod)
    assert fake_node.now.pods.list(PodFilter()) == []
    network, snapshot = sorted(fake_node.now.resources.deferred(), key=lambda one: one.kind)
    name = f"pod {a_pod().metadata.namespace}/{a_pod().metadata.name}"
    assert (network.kind, network.whose) == ("network", f"{name} ({pod})")
    assert "plugin is gone" in network.reason
    assert (snapshot.kind, snapshot.owner) == ("snapshot", container)
    assert snapshot.whose == f"container {a_container().metadata.name} of {name} ({container})"
    assert 0 <= time.time_ns() - snapshot.since_ns < 60e9
    await fake_node.crash()
    services = await fake_node.start()
    assert services.resources.deferred() == []
    assert container not in fake_node.snapshotter.hooks_called
    assert_nothing_left(fake_node)


async def test_what_is_tried_again_at_the_start_waits_for_the_networks_garbage_collection(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes the attachment for a valid one, and would make again what is detached meanwhile."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.0)
    pod = await fake_node.now.pods.run(a_pod(), "")
    await fake_node.crash()
    with contextlib.closing(sqlite3.connect(fake_node.config.root / "state.db")) as connection, connection:
        connection.execute("DELETE FROM pods WHERE id = ?", (pod,))
    fake_node.network.fail("detach", DriverError("once"))
    services = await fake_node.start()
    await eventually(lambda: services.resources.deferred() == [])
    hooks = [hook for hook in fake_node.network.hooks_called if hook in ("detach", "collect_garbage")]
    assert hooks == ["collect_garbage", "detach", "collect_garbage", "detach"]  # the first is the first start's


async def test_what_can_not_be_undone_at_the_start_is_no_reason_not_to_start(fake_node: FakeNode) -> None:
    """Rows that are damaged, and a snapshotter that fails."""
    for kind in (CONTAINER, NETWORK, SNAPSHOT, MOUNT):
        fake_node.now.store.ledger.record("damaged", kind, "key", {})
    await fake_node.crash()
    fake_node.snapshotter.fail("list_snapshots", DriverError("its directory can't be read"))
    services = await fake_node.start()
    assert services.pods.list(PodFilter()) == []


async def test_what_hangs_while_it_is_undone_at_the_start_holds_up_nothing_else_of_that_kind(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred directory on a dead server, or with more files than are removed in a minute."""
    owner, end, removed = "a" * 64, threading.Event(), []
    dead, other = (fake_node.directory / owner / name for name in ("dead", "other"))
    monkeypatch.setattr(resources, "_UNDO_S", 0.1)
    monkeypatch.setattr(resources, "_QUIET_S", 0.1)
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)

    def remove(path: Path) -> None:
        if path == dead:
            end.wait(60)
        removed.append(path)

    monkeypatch.setattr(files, "remove_tree", remove)
    for path in (other, dead):
        fake_node.now.store.ledger.record(DEFERRED, DIRECTORY, str(path), {"owner": owner})
    await fake_node.crash()
    try:
        services = await fake_node.start()
        assert removed == [other]
        assert [entry.key for entry in services.resources.deferred()] == [str(dead)]
    finally:
        end.set()
    await eventually(lambda: services.resources.deferred() == [])


async def test_what_fails_in_a_container_that_ends_meanwhile_is_no_failure_of_the_runtime(fake_node: FakeNode) -> None:
    services = fake_node.now
    pod = await services.pods.run(a_pod(), "")
    container = await services.containers.create(pod, a_container(), None)
    await services.containers.start(container)
    for hook in ("exec_sync", "update"):
        fake_node.runtime.fail(hook, *[DriverError("the container is not running") for _ in range(2)])

    async def act(name: str) -> None:
        if name == "exec":
            await services.containers.exec_sync(container, ("true",), None)
        else:
            await services.containers.update(container, LinuxResources(cpu_shares=5), {})

    for name in ("exec", "update"):
        with pytest.raises(DriverError, match="is not running"):
            await act(name)
    services.exit_monitor.expect(container)
    for name in ("exec", "update"):
        with pytest.raises(FailedPrecondition, match=f"container {container} has ended meanwhile .*is not running"):
            await act(name)


async def test_a_start_that_a_stop_comes_before_notes_no_error_of_the_start(fake_node: FakeNode) -> None:
    services = fake_node.now
    container = await services.containers.create(await services.pods.run(a_pod(), ""), a_container(), None)
    fake_node.runtime.fail("start", DriverError("cannot start a container that has stopped"))
    services.exit_monitor.expect(container)
    with pytest.raises(FailedPrecondition, match="has ended meanwhile"):
        await services.containers.start(container)
    assert services.containers.get(container).reason != "StartError"


async def test_a_process_that_can_not_be_removed_is_an_error_and_stays_on_record(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    fake_node.runtime.fail("delete", DriverError("it hangs"))
    with pytest.raises(DriverError, match="it hangs"):
        await fake_node.now.containers.remove(container)
    assert fake_node.now.containers.get(container)
    await fake_node.now.containers.remove(container)
    with pytest.raises(NotFound):
        fake_node.now.containers.get(container)


async def test_a_pod_whose_container_can_not_be_removed_stays_until_it_can(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    containers = [await fake_node.now.containers.create(pod, a_container(name), None) for name in ("one", "two")]
    fake_node.runtime.fail("delete", DriverError("it hangs"))
    with pytest.raises(DriverError, match="it hangs"):
        await fake_node.now.pods.remove(pod)
    assert [record.id for record in fake_node.now.pods.list(PodFilter())] == [pod]
    (left,) = fake_node.now.containers.list(ContainerFilter())
    assert left.id in containers, "they are removed at the same time, and either may be the first"
    await fake_node.now.pods.remove(pod)
    assert_nothing_left(fake_node)


async def test_a_container_that_outlives_sigkill_is_told(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)

    async def ignore(*_: object) -> None:
        """The signal has no effect."""

    monkeypatch.setattr(fake_node.now.slots.runtime(""), "kill", ignore)
    with pytest.raises(DeadlineExceeded, match=f"{container} has not ended"):
        await fake_node.now.containers.stop(container, 0)


async def test_a_container_that_can_not_be_waited_for_keeps_what_is_known_of_it(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = asyncio.Event()

    async def wait(_handle: object) -> ExitStatus:
        await lost.wait()
        raise DriverError("the monitor's file can't be read")

    monkeypatch.setattr(fake_node.now.slots.runtime(""), "wait", wait)
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    started = fake_node.now.containers.get(container)
    lost.set()
    await eventually(lambda: fake_node.now.containers.get(container).state is ContainerState.UNKNOWN)
    found = fake_node.now.containers.get(container)
    assert found == dataclasses.replace(started, state=ContainerState.UNKNOWN, message=found.message)
    assert "can't be read" in found.message
    assert started.started_at_ns > 0


async def test_a_start_that_fails_ends_the_container(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    fake_node.runtime.fail("start", DriverError("exec: no such file"))
    with pytest.raises(DriverError):
        await fake_node.now.containers.start(container)
    record = fake_node.now.containers.get(container)
    assert (record.state, record.exit_code, record.reason) == (ContainerState.EXITED, 128, "StartError")
    assert "no such file" in record.message
    with pytest.raises(FailedPrecondition, match="exited"):
        await fake_node.now.containers.start(container)


async def test_what_the_runtime_refuses_to_make_fails_at_the_start(fake_node: FakeNode) -> None:
    """Also where the daemon was restarted meanwhile. A node at fault is told at once, and leaves no container."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    fake_node.runtime.fail("create", RuntimeRefused("exec: no such file"))
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.crash()
    await fake_node.start()
    assert fake_node.now.containers.get(container).state is ContainerState.CREATED
    with pytest.raises(RuntimeRefused, match="no such file"):
        await fake_node.now.containers.start(container)
    record = fake_node.now.containers.get(container)
    assert (record.state, record.exit_code, record.reason) == (ContainerState.EXITED, 128, "StartError")
    fake_node.runtime.fail("create", DriverError("no memory"))
    with pytest.raises(DriverError):
        await fake_node.now.containers.create(pod, a_container("other"), None)
    assert [one.id for one in fake_node.now.containers.list(ContainerFilter())] == [container]


async def test_a_stop_that_is_faster_than_the_start(fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the runtime's that there is nothing to start any more."""
    containers, slot = fake_node.now.containers, fake_node.now.slots.runtime("")
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await containers.create(pod, a_container(), None)

    async def start(*_: object) -> None:
        await containers.stop(container, 0)
        raise DriverError("cannot start a container that has stopped")

    monkeypatch.setattr(slot, "start", start)
    with pytest.raises(FailedPrecondition, match="has ended meanwhile"):
        await containers.start(container)
    record = containers.get(container)
    assert (record.state, record.exit_code, record.reason) == (ContainerState.EXITED, 137, "Error")


async def test_stops_may_overlap_and_the_shortest_decides(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    container = await fake_node.now.containers.create(pod, a_container(), None)
    await fake_node.now.containers.start(container)
    patient = asyncio.create_task(fake_node.now.containers.stop(container, 60))
    await asyncio.sleep(0.01)
    await fake_node.now.containers.stop(container, 0)
    async with asyncio.timeout(30):
        await patient


async def test_an_init_comes_when_a_container_wants_to_share(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    assert fake_node.now.pods.get(pod).init is None
    fake_node.runtime.fail("create", DriverError("not now"))
    with pytest.raises(DriverError):
        await fake_node.now.containers.create(pod, a_container(pid=NamespaceMode.POD), None)
    assert fake_node.now.pods.get(pod).init is None
    await fake_node.now.containers.create(pod, a_container(pid=NamespaceMode.POD), None)
    assert fake_node.now.pods.get(pod).init is not None
    fake_node.runtime.finish(pod, 1)
    await eventually(lambda: fake_node.now.pods.get(pod).state is PodState.NOT_READY)
    await fake_node.now.pods.remove(pod)
    assert_nothing_left(fake_node)


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_the_unknown_is_stopped_and_removed_already(fake_node: FakeNode, verb: str) -> None:
    act: Callable[[str], Awaitable[None]] = getattr(fake_node.now.pods, verb)
    await act("none")
    with pytest.raises(InvalidArgument):
        await act("")


async def test_conditions_are_honest(fake_node: FakeNode) -> None:
    node = fake_node.now.node
    assert [condition.ready for condition in (await node.status(False)).conditions] == [True, True]
    fake_node.runtime.fail("probe", CrinoidError("runc is missing"))
    fake_node.network.fail("status", CrinoidError("netlink is broken"))
    runtime, network = (await node.status(True)).conditions
    assert (runtime.ready, runtime.reason) == (False, "RuntimeNotReady")
    assert "runc is missing" in runtime.message
    assert not network.ready
    assert "netlink is broken" in network.message
    assert [condition.ready for condition in (await node.status(False)).conditions] == [True, True]


async def test_an_unfit_snapshotter_is_told(fake_node: FakeNode) -> None:
    await fake_node.crash()
    fake_node.snapshotter.fail("probe", CrinoidError("no overlayfs"))
    services = await fake_node.start()
    runtime = (await services.node.status(False)).conditions[0]
    assert (runtime.ready, runtime.reason) == (False, "SnapshotterNotReady")
    assert "no overlayfs" in runtime.message


async def test_address_ranges_survive(fake_node: FakeNode) -> None:
    await fake_node.now.node.set_pod_cidrs(("10.1.0.0/24", "fd00::/64"))
    await fake_node.crash()
    services = await fake_node.start()
    assert services.pods.pod_cidrs() == ("10.1.0.0/24", "fd00::/64")
    assert fake_node.network.hooks_called.count("set_pod_cidrs") == 2


async def test_what_is_being_made_is_undone_only_once_it_is_made(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of the daemon cancels the request, but a thread that mounts can't be: the undoing has to wait for it."""
    began, go, made = threading.Event(), threading.Event(), threading.Event()

    def mount_slowly(_mount: Mount, target: Path) -> None:
        began.set()
        go.wait(5)
        fake_node.machine.mounts.append(target)
        made.set()

    monkeypatch.setattr(fake_node.machine, "mount", mount_slowly)
    making = asyncio.create_task(fake_node.now.pods.run(a_pod(), ""))
    await eventually(began.is_set)
    closing = asyncio.create_task(fake_node.now.pods.close())
    await asyncio.sleep(0.05)
    go.set()
    await closing
    await asyncio.gather(making, return_exceptions=True)
    await eventually(made.is_set)
    assert_nothing_left(fake_node)


async def test_the_cgroups_above_a_pods_parent_go_with_it(fake_node: FakeNode) -> None:
    fake_node.machine.cgroups.add("/there")
    pod = await fake_node.now.pods.run(dataclasses.replace(a_pod(), cgroup_parent="/there/new/parent"), "")
    assert "/there/new/parent" in fake_node.machine.cgroups
    await fake_node.now.pods.remove(pod)
    assert fake_node.machine.cgroups == {"/there"}
    assert fake_node.machine.killed == [], "nobody knows what else was put there"


async def test_a_parent_that_pods_share_goes_with_the_last_of_them(fake_node: FakeNode) -> None:
    shared = [
        dataclasses.replace(a_pod(), cgroup_parent="/shared/parent", metadata=PodMetadata(name, "ns", name))
        for name in "ab"
    ]
    first, second = [await fake_node.now.pods.run(config, "") for config in shared]
    fake_node.machine.make_cgroup("/shared/parent/container-of-the-second")
    await fake_node.now.pods.remove(first)
    assert "/shared/parent/container-of-the-second" in fake_node.machine.cgroups
    fake_node.machine.remove_cgroup("/shared/parent/container-of-the-second")
    await fake_node.now.pods.remove(second)
    assert fake_node.machine.cgroups == set()
    assert fake_node.machine.killed == []


async def test_a_pods_cgroup_is_not_in_anothers(fake_node: FakeNode) -> None:
    pod = await fake_node.now.pods.run(a_pod(), "")
    inside = dataclasses.replace(a_pod(), cgroup_parent=f"/crinoid/{pod}/below", metadata=PodMetadata("b", "ns", "b"))
    with pytest.raises(InvalidArgument, match=f"cgroup_parent .* lies in the cgroup of pod {pod}"):
        await fake_node.now.pods.run(inside, "")


async def test_a_slice_of_a_pods_own_goes_with_it(fake_node: FakeNode) -> None:
    """Two pods without a parent share nothing; one that the kubelet gave is the kubelet's to stop."""
    await fake_node.crash()
    fake_node.cgroup_driver = "systemd"
    await fake_node.start()
    pods = fake_node.now.pods
    one, other = [
        await pods.run(dataclasses.replace(a_pod(), metadata=PodMetadata(name, "ns", name)), "") for name in ("a", "b")
    ]
    given = await pods.run(
        dataclasses.replace(a_pod(), metadata=PodMetadata("c", "ns", "c"), cgroup_parent="kubepods-pod1.slice"), ""
    )
    paths = [f"/crinoid.slice/crinoid-{pod}.slice" for pod in (one, other)]
    fake_node.machine.cgroups.update(paths)  # as systemd does with the first scope in each
    assert fake_node.now.store.pods.find(one).cgroup_parent == f"crinoid-{one}.slice"
    await pods.remove(one)
    assert (fake_node.machine.killed, fake_node.machine.removed) == (paths[:1], paths[:1])
    await pods.remove(given)
    await fake_node.crash()
    await fake_node.start()
    await fake_node.now.pods.remove(other)
    assert (fake_node.machine.killed, fake_node.machine.removed) == (paths, paths)


@pytest.mark.parametrize(
    "made",
    [
        ["/"],
        [""],
        [".."],
        ["relative"],
        ["/foreign/../foreign"],
        ["/foreign"],
        "/foreign",
        7,
        None,
        [None, ["/foreign"]],
    ],
)
async def test_a_damaged_row_of_the_ledger_ends_nothing(fake_node: FakeNode, made: object) -> None:
    """Whatever it says, the cgroups that crinoid has not made stay, and the daemon starts."""
    fake_node.machine.cgroups.add("/foreign")
    for owner in ("f" * 64, "foreign", DEFERRED):
        fake_node.now.store.ledger.record(owner, CGROUP, "/foreign", {"made": made, "above": made, "owner": "foreign"})
    await fake_node.crash()
    await fake_node.start()
    assert fake_node.machine.cgroups == {"/foreign"}
    assert fake_node.machine.killed == []


async def test_what_could_not_go_with_the_last_pod_goes_with_the_daemon(
    fake_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says for a moment that cgroups are in use whose last process has just ended."""
    pod = await fake_node.now.pods.run(a_pod(), "")
    with monkeypatch.context() as patched:
        patched.setattr(fake_node.machine, "remove_marked_cgroup", lambda _: False)
        await fake_node.now.pods.remove(pod)
    assert fake_node.machine.cgroups == {"/crinoid"}
    await fake_node.now.close()
    assert fake_node.machine.is_empty
