"""The wrapper around every hook: what a driver returns, raises and how long it takes."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from crinoid.core.api import hooks
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import (
    CommandFailed,
    CorruptContent,
    DeadlineExceeded,
    DriverError,
    NotFound,
    Unavailable,
)
from crinoid.core.api.hooks.extension import ContainerAdjustment, PodView
from crinoid.core.api.testing.fakes import (
    FakeExtension,
    FakeNetwork,
    FakeRegistry,
    FakeRuntime,
    FakeSnapshotter,
    Recorder,
    fake_host,
)
from crinoid.core.api.testing.noops import NoopNetwork, NoopRuntime
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference
from crinoid.core.api.values.network import Attachment, NetworkRequest, NetworkStatus
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest, ExecRequest, PodSandbox
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.core.config.models import (
    ExtensionSlotConfig,
    NetworkDeadlines,
    RegistryDeadlines,
    RuntimeDeadlines,
    SlotConfig,
    SnapshotterDeadlines,
)
from crinoid.core.slots.binding import adopt
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.extension import ExtensionSlot, ExtensionSlots
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot

REQUEST = NetworkRequest(pod_id="p1", metadata=PodMetadata("a", "b", "c"), netns=None)
HANDLE = ContainerHandle("c1", "p1", Path("/bundle"), "/cgroup")
LABEL = 'network "default" (star)'


class Meter:
    """Instruments that remember."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, str]] = []
        self.spans: list[tuple[str, Mapping[str, str]]] = []

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        assert seconds >= 0
        self.seen.append((role, slot, hook, outcome))

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        self.spans.append((name, attributes))
        return nullcontext()


def bound(driver: Recorder, role: str, meter: Meter | None = None, config: SlotConfig | None = None) -> Binding:
    installed = InstalledDriver(role, "star", "star-dist", "1.0", "star:Driver")
    return adopt(driver, installed, config or SlotConfig(driver="star"), driver.host, meter or Meter())


def network(driver: FakeNetwork, meter: Meter | None = None, limit_s: float = 5.0) -> NetworkSlot:
    return NetworkSlot(bound(driver, "network", meter), NetworkDeadlines(default=limit_s, attach=limit_s))


@pytest.fixture
def fake(tmp_path: Path) -> FakeNetwork:
    return FakeNetwork(NoOptions(), fake_host(tmp_path, "default"))


async def test_an_answer_passes_with_its_measurement(fake: FakeNetwork) -> None:
    meter = Meter()
    slot = network(fake, meter)
    plan = await slot.plan(REQUEST)
    attachment = await slot.attach(REQUEST, plan)
    assert attachment.addresses == ("192.0.2.1",)
    assert fake.calls[1].arguments == {"request": REQUEST, "plan": plan}
    assert meter.seen == [("network", "default", hook, "ok") for hook in ("plan", "attach")]
    assert meter.spans[1][0] == "network.attach"
    assert meter.spans[1][1]["crinoid.driver"] == "star"
    assert slot.last_error is None


async def test_an_error_of_our_tree_keeps_its_class_and_gets_the_name(fake: FakeNetwork) -> None:
    meter = Meter()
    slot = network(fake, meter)
    fake.fail("attach", Unavailable("bridge plugin exit 1"))
    with pytest.raises(Unavailable) as caught:
        await slot.attach(REQUEST, {})
    assert str(caught.value) == f"{LABEL} attach: bridge plugin exit 1"
    assert meter.seen[-1][-1] == "Unavailable"
    assert slot.last_error is not None
    assert (slot.last_error.hook, slot.last_error.message) == ("attach", str(caught.value))


async def test_the_name_is_short_where_slot_and_driver_agree(tmp_path: Path) -> None:
    driver = FakeNetwork(NoOptions(), fake_host(tmp_path, "star"))
    driver.fail("status", Unavailable("down"))
    with pytest.raises(Unavailable, match=r'^network "star" status: down$'):
        await network(driver).status()


async def test_an_error_with_a_constructor_of_its_own_survives(fake: FakeNetwork) -> None:
    fake.fail("attach", CommandFailed(("/opt/cni/bin/bridge", "ADD"), 2, "no such device"))
    with pytest.raises(CommandFailed) as caught:
        await network(fake).attach(REQUEST, {})
    assert str(caught.value) == f"{LABEL} attach: /opt/cni/bin/bridge ended with exit code 2: no such device"
    assert caught.value.exit_code == 2


async def test_notes_stay_on_the_error(fake: FakeNetwork) -> None:
    error = Unavailable("down")
    error.add_note("try later")
    fake.fail("attach", error)
    with pytest.raises(Unavailable) as caught:
        await network(fake).attach(REQUEST, {})
    assert caught.value.message == f"{LABEL} attach: down; try later"


async def test_an_error_that_is_raised_twice_is_named_once(fake: FakeNetwork) -> None:
    error = Unavailable("down")
    fake.fail("attach", error, error)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^network .* attach: down$"):
            await network(fake).attach(REQUEST, {})


@pytest.mark.parametrize("error", [KeyError("x"), TimeoutError("theirs"), SystemExit("bye"), OSError(5, "io")])
async def test_a_foreign_error_becomes_a_driver_error(fake: FakeNetwork, error: BaseException) -> None:
    fake.fail("attach", error)
    with pytest.raises(DriverError) as caught:
        await network(fake).attach(REQUEST, {})
    assert str(caught.value) == f"{LABEL} attach: {type(error).__name__}: {error}"
    assert caught.value.__cause__ is error


async def test_the_only_error_of_a_task_group_counts_as_itself(fake: FakeNetwork) -> None:
    fake.fail("attach", ExceptionGroup("tasks", [ExceptionGroup("inner", [CorruptContent("bad digest")])]))
    with pytest.raises(CorruptContent, match=r"attach: bad digest"):
        await network(fake).attach(REQUEST, {})


async def test_not_found_says_nothing_against_the_driver(tmp_path: Path) -> None:
    driver = FakeRuntime(NoOptions(), fake_host(tmp_path))
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines())
    with pytest.raises(NotFound):
        await slot.stats(HANDLE)
    assert slot.last_error is None


OTHERS = (
    HANDLE,
    ContainerHandle("c2", "p1", Path("/bundle"), "/cgroup"),
    ContainerHandle("c3", "p1", Path("/b"), "/c"),
)


async def running(driver: FakeRuntime) -> None:
    """Have the first and the last of ``OTHERS`` run."""
    for handle in (OTHERS[0], OTHERS[2]):
        await driver.create(ContainerRequest(handle=handle, spec={}))
    driver.calls.clear()


async def test_stats_of_many_are_one_call(tmp_path: Path) -> None:
    driver, meter = FakeRuntime(NoOptions(), fake_host(tmp_path)), Meter()
    await running(driver)
    found = await RuntimeSlot(bound(driver, "runtime", meter), RuntimeDeadlines()).stats_many(OTHERS)
    assert [one is None for one in found] == [False, True, False]
    assert driver.hooks_called == ("stats_many",)
    assert [outcome for *_, outcome in meter.seen] == ["ok"]


async def test_stats_of_many_where_the_driver_has_only_those_of_one(tmp_path: Path) -> None:
    driver = _WithoutStatsMany(NoOptions(), fake_host(tmp_path))
    await running(driver)
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines())
    found = await slot.stats_many(OTHERS)
    assert [one is None for one in found] == [False, True, False]
    assert driver.hooks_called == ("stats",) * 3
    driver.fail("stats", Unavailable("broken"))
    with pytest.raises(Unavailable, match="stats: broken"):
        await slot.stats_many(OTHERS)


class _WithoutStatsMany(FakeRuntime):
    stats_many = None  # type: ignore[assignment]


class _WrongStats(FakeRuntime):
    answer: object = None

    @hooks.hookimpl
    async def stats_many(self, handles: tuple[ContainerHandle, ...]) -> tuple[CgroupUsage | None, ...]:
        return self.answer  # type: ignore[return-value]  # what the test is about


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((CgroupUsage(timestamp_ns=1), None), "returned 2 values where 3 are due"),
        ((CgroupUsage(timestamp_ns=1), None, 7), "returned int where CgroupUsage is due"),
        ([None, None, None], "returned list where tuple is due"),
    ],
)
async def test_stats_of_many_have_their_places(tmp_path: Path, answer: object, words: str) -> None:
    driver = _WrongStats(NoOptions(), fake_host(tmp_path))
    driver.answer = answer
    with pytest.raises(DriverError, match=f"stats_many: {words}"):
        await RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines()).stats_many(OTHERS)


async def test_a_driver_that_hangs_is_cancelled_at_its_deadline(fake: FakeNetwork) -> None:
    meter = Meter()
    fake.hang("attach")
    with pytest.raises(DeadlineExceeded) as caught:
        await network(fake, meter, limit_s=0.05).attach(REQUEST, {})
    assert str(caught.value) == f"{LABEL} attach: no answer after 0.05 s"
    assert meter.seen[-1][-1] == "DeadlineExceeded"


async def test_a_cancellation_passes_through(fake: FakeNetwork) -> None:
    meter = Meter()
    fake.hang("attach")
    task = asyncio.create_task(network(fake, meter).attach(REQUEST, {}))
    await asyncio.sleep(0.01)
    assert fake.hooks_called == ("attach",)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert meter.seen == [("network", "default", "attach", "cancelled")]


class _Wrong(FakeNetwork):
    answer: object = None

    @hooks.hookimpl
    async def status(self) -> NetworkStatus:
        return self.answer  # type: ignore[return-value]  # what the test is about

    @hooks.hookimpl
    async def attach(self, request: NetworkRequest) -> Attachment:
        return self.answer  # type: ignore[return-value]

    @hooks.hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("hook", "answer", "why"),
    [
        ("status", "fine", "returned str where NetworkStatus is due"),
        ("status", None, "returned nothing where NetworkStatus is due"),
        ("attach", "x", "returned str where Attachment is due"),
        ("attach", Attachment(("::1",), {"a": Path("/x")}), "returned an object that is no JSON: "),
        ("plan", {"a": {1, 2}}, "returned an object that is no JSON: "),
        ("plan", [1], "returned list where a JSON object is due"),
    ],
)
async def test_an_answer_of_the_wrong_type_is_refused(tmp_path: Path, hook: str, answer: object, why: str) -> None:
    driver = _Wrong(NoOptions(), fake_host(tmp_path, "default"))
    driver.answer = answer
    slot = network(driver)
    calls: dict[str, Callable[[], object]] = {
        "status": slot.status,
        "plan": lambda: slot.plan(REQUEST),
        "attach": lambda: slot.attach(REQUEST, {}),
    }
    with pytest.raises(DriverError) as caught:
        await calls[hook]()  # type: ignore[misc]  # each is a coroutine
    assert str(caught.value).startswith(f"{LABEL} {hook}: {why}")


class _Plain(FakeNetwork):
    @hooks.hookimpl
    def status(self) -> NetworkStatus:  # type: ignore[override]  # no coroutine
        return NetworkStatus(True)

    @hooks.hookimpl
    def features(self) -> str:  # type: ignore[override]
        return "x"


async def test_a_hook_that_is_no_coroutine_is_refused(tmp_path: Path) -> None:
    slot = network(_Plain(NoOptions(), fake_host(tmp_path, "default")))
    with pytest.raises(DriverError, match=r"status: returned NetworkStatus: the hook must be a coroutine"):
        await slot.status()
    with pytest.raises(DriverError, match=r"features: returned str where NetworkFeatures is due"):
        slot.features()


async def test_an_optional_hook_that_is_left_out_does_nothing(tmp_path: Path) -> None:
    meter = Meter()
    installed = InstalledDriver("network", "noop", "d", "1", "d:D")
    host = fake_host(tmp_path)
    binding = adopt(NoopNetwork(NoOptions(), host), installed, SlotConfig(driver="noop"), host, meter)
    slot = NetworkSlot(binding, NetworkDeadlines())
    await slot.check(REQUEST, {})
    await slot.set_pod_cidrs(("10.0.0.0/8",))
    assert not slot.implements("check")
    assert meter.seen == []


async def test_waiting_has_no_deadline(tmp_path: Path) -> None:
    driver = FakeRuntime(NoOptions(), fake_host(tmp_path))
    driver.hang("wait")
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines(default=0.01))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slot.wait(HANDLE), 0.1)


async def test_exec_has_its_own_timeout_and_a_margin(tmp_path: Path) -> None:
    driver = FakeRuntime(NoOptions(), fake_host(tmp_path))
    driver.hang("exec_sync")
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines(exec_sync=0.05))
    with pytest.raises(DeadlineExceeded, match=r"exec_sync: no answer after 0\.15 s"):
        await slot.exec_sync(HANDLE, ExecRequest(process={}, timeout_s=0.1))


async def test_optional_pod_hooks_reach_a_driver_that_has_them(tmp_path: Path) -> None:
    driver = FakeRuntime(NoOptions(), fake_host(tmp_path))
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines())
    pod = PodSandbox("p", PodConfig(metadata=PodMetadata("a", "b", "c")), {}, "")
    await slot.start_pod(pod)
    assert driver.hooks_called == ("start_pod",)
    assert not hasattr(NoopRuntime, "start_pod")


BLOB = BlobRequest(ImageReference.parse("a/b"), Descriptor("x", "sha256:1", 200_000))


def registry(driver: FakeRegistry, limit_s: float = 5.0) -> RegistrySlot:
    return RegistrySlot(bound(driver, "registry"), RegistryDeadlines(next_piece=limit_s))


async def test_a_stream_gives_its_pieces_and_can_be_closed_twice(tmp_path: Path) -> None:
    driver = FakeRegistry(NoOptions(), fake_host(tmp_path))
    driver.blobs["sha256:1"] = bytes(range(256)) * 1000
    stream = await registry(driver).open_blob(BLOB)
    assert b"".join([piece async for piece in stream]) == driver.blobs["sha256:1"]
    await stream.aclose()
    await stream.aclose()


async def test_a_stream_that_fails_hangs_or_lies_is_named(tmp_path: Path) -> None:
    driver = FakeRegistry(NoOptions(), fake_host(tmp_path, "hub"))
    driver.blobs["sha256:1"] = b"x"
    driver.fail("piece", ConnectionError("cut"))
    with pytest.raises(DriverError, match=r'^registry "hub" \(star\) open_blob: ConnectionError: cut$'):
        await anext(await registry(driver).open_blob(BLOB))
    driver.hang("piece")
    with pytest.raises(DeadlineExceeded, match=r"open_blob: no answer after 0\.05 s"):
        await anext(await registry(driver, 0.05).open_blob(BLOB))


class _Texts(FakeRegistry):
    closed = False

    async def _stream(self, content: bytes) -> AsyncIterator[bytes]:
        try:
            yield "text"  # type: ignore[misc]  # what the test is about
        finally:
            type(self).closed = True


async def test_a_stream_of_other_things_is_refused_and_closed(tmp_path: Path) -> None:
    driver = _Texts(NoOptions(), fake_host(tmp_path))
    driver.blobs["sha256:1"] = b"x"
    stream = await registry(driver).open_blob(BLOB)
    with pytest.raises(DriverError, match="its stream gave str where bytes are due"):
        await anext(stream)
    await stream.aclose()
    assert _Texts.closed


async def test_snapshots_are_checked_element_by_element(tmp_path: Path) -> None:
    class Wrong(FakeSnapshotter):
        @hooks.hookimpl
        async def list_snapshots(self) -> tuple[str, ...]:
            return ("a", 1)  # type: ignore[return-value]

        @hooks.hookimpl
        async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
            return (("a",),)  # type: ignore[return-value]

    slot = SnapshotterSlot(bound(Wrong(NoOptions(), fake_host(tmp_path)), "snapshotter"), SnapshotterDeadlines())
    with pytest.raises(DriverError, match="list_snapshots: returned int where str is due"):
        await slot.list_snapshots()
    with pytest.raises(DriverError, match="where a chain id and its parent are due"):
        await slot.list_layers()


POD = PodView("p1", PodConfig(metadata=PodMetadata("a", "b", "c")), "runc")


def extensions(tmp_path: Path, policy: str) -> tuple[list[FakeExtension], ExtensionSlots]:
    drivers = [FakeExtension(NoOptions(), fake_host(tmp_path, name)) for name in ("one", "two")]
    configs = [
        ExtensionSlotConfig.model_validate({"driver": "star", "on_failure": policy, "deadline_s": 0.05})
        for _ in drivers
    ]
    pairs = zip(drivers, configs, strict=True)
    return drivers, ExtensionSlots([ExtensionSlot(bound(d, "extension", config=c), c) for d, c in pairs])


async def test_extensions_are_told_in_order_and_a_failure_is_passed_over(tmp_path: Path) -> None:
    drivers, slots = extensions(tmp_path, "ignore")
    drivers[0].fail("pod_started", RuntimeError("no"))
    drivers[0].hang("pod_stopped")
    await slots.pod_started(POD)
    await slots.pod_stopped(POD)
    assert drivers[1].hooks_called == ("pod_started", "pod_stopped")
    assert slots.slots[0].last_error is not None
    assert slots.slots[0].last_error.message == 'extension "one" (star) pod_stopped: no answer after 0.05 s'


async def test_a_failure_of_an_extension_that_matters_is_raised(tmp_path: Path) -> None:
    drivers, slots = extensions(tmp_path, "fail")
    drivers[0].fail("pod_started", RuntimeError("no"))
    with pytest.raises(DriverError, match=r'extension "one" \(star\) pod_started: RuntimeError: no'):
        await slots.pod_started(POD)
    assert drivers[1].hooks_called == ()


async def test_adjustments_come_with_the_name_of_their_slot(tmp_path: Path) -> None:
    drivers, slots = extensions(tmp_path, "ignore")
    drivers[1].adjustment = ContainerAdjustment(envs=(("A", "1"),))
    view: object = None
    assert await slots.adjust_container(view) == (("two", drivers[1].adjustment),)  # type: ignore[arg-type]


FACADES: dict[str, type] = {
    "runtime": RuntimeSlot,
    "network": NetworkSlot,
    "snapshotter": SnapshotterSlot,
    "registry": RegistrySlot,
    "extension": ExtensionSlots,
}


@pytest.mark.parametrize("role", FACADES)
def test_a_facade_has_every_hook_with_the_same_parameters(role: str) -> None:
    for hook in ROLES[role].hooks:
        spec = getattr(ROLES[role].specification, hook)
        method = getattr(FACADES[role], hook)
        assert list(inspect.signature(method).parameters) == list(inspect.signature(spec).parameters)
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(spec)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "extension"])
def test_a_hook_may_be_left_out_where_its_specification_says_so(role: str) -> None:
    documented = {
        hook
        for hook in ROLES[role].hooks
        if (inspect.getdoc(getattr(ROLES[role].specification, hook)) or "").startswith("Optional.")
    }
    assert documented == ROLES[role].optional
