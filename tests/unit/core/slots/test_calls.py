"""The wrapper around every hook: what a driver returns, raises and how long it takes."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from crinoid.core.api import hooks
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import (
    CommandFailed,
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    NotFound,
    Unavailable,
)
from crinoid.core.api.hooks.extension import ContainerAdjustment, PodView
from crinoid.core.api.host import Host
from crinoid.core.api.sessions import ExecSession
from crinoid.core.api.testing.fakes import (
    FakeExecSession,
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
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.core.api.values.runtime import (
    ContainerHandle,
    ContainerRequest,
    ExecRequest,
    ExecStreamRequest,
    PodSandbox,
)
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
from crinoid.core.slots.registry import BlobStream, RegistrySlot
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.running import HookCalls
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot

REQUEST = NetworkRequest(pod_id="p1", metadata=PodMetadata("a", "b", "c"), netns=None)
HANDLE = ContainerHandle("c1", "p1", Path("/bundle"), "/cgroup")
LABEL = 'network "default" (star)'


class Meter:
    """Instruments that remember."""

    tape = None

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
    async def attach(self, request: NetworkRequest) -> Attachment:  # type: ignore[override]  # without its plan
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


def _passed_on(function: Callable[..., object]) -> Callable[..., object]:
    """A decorator whose wrapper is no coroutine function, though what it wraps is one."""

    @functools.wraps(function)
    def call(driver: "_Wrapped", *_arguments: object) -> object:
        return driver.make()

    return call


class _Wrapped(FakeNetwork):
    make: Callable[[], object] = int

    @_passed_on
    @hooks.hookimpl
    async def status(self) -> NetworkStatus: ...  # type: ignore[override]

    @hooks.hookimpl
    def features(self) -> str:  # type: ignore[override]
        return self.make()  # type: ignore[return-value]


async def test_a_hook_that_is_no_coroutine_is_refused(tmp_path: Path) -> None:
    driver = _Wrapped(NoOptions(), fake_host(tmp_path, "default"))
    slot = network(driver)
    with pytest.raises(DriverError, match=r"status: returned int: the hook must be a coroutine"):
        await slot.status()
    with pytest.raises(DriverError, match=r"features: returned int where NetworkFeatures is due"):
        slot.features()


class _Awaitable:
    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make

    def __await__(self) -> Iterator[object]:
        yield from asyncio.sleep(0).__await__()
        return self.make()  # type: ignore[return-value]


async def test_an_awaitable_that_is_no_coroutine_is_as_good(tmp_path: Path) -> None:
    driver = _Wrapped(NoOptions(), fake_host(tmp_path, "default"))
    driver.make = lambda: _Awaitable(lambda: NetworkStatus(True))
    assert await network(driver).status() == NetworkStatus(True)
    driver.make = lambda: asyncio.ensure_future(_Awaitable(_stop))  # type: ignore[call-overload]
    with pytest.raises(DriverError, match="status: CancelledError, though nobody cancelled it"):
        await network(driver).status()


def _stop() -> object:
    raise asyncio.CancelledError


class _Custom(BaseException):
    """As a driver's library may have one."""


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _OtherStatus(Unavailable):
    grpc_status = "SOMEWHAT"


class _OkStatus(Unavailable):
    grpc_status = "OK"


class _MuteOfOurs(Unavailable):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _FixedText(Unavailable):
    def __str__(self) -> str:
        return "as always"


ENDS = (
    asyncio.CancelledError("theirs"),
    KeyboardInterrupt("key"),
    SystemExit(3),
    GeneratorExit(),
    _Custom("own"),
    BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("x")]),
    BaseExceptionGroup("one", [asyncio.CancelledError()]),
    StopIteration(1),
    StopAsyncIteration(),
    _Mute(),
    _OtherStatus("x"),
    _OkStatus("x"),
    _MuteOfOurs("x"),
)


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hook", ["status", "features"])
async def test_whatever_a_hook_raises_is_a_driver_error_with_its_name(
    tmp_path: Path, error: BaseException, hook: str
) -> None:
    def fail() -> object:
        raise error

    driver, meter = _Wrapped(NoOptions(), fake_host(tmp_path, "default")), Meter()
    slot = network(driver, meter)
    for make in (fail, lambda: _Awaitable(fail)) if hook == "status" else (fail,):
        driver.make = make
        with pytest.raises(DriverError) as caught:
            answer = getattr(slot, hook)()
            await answer
        assert caught.value.message.startswith(f"{LABEL} {hook}: ")
        assert meter.seen[-1] == ("network", "default", hook, "DriverError")
        assert slot.last_error is not None
        assert slot.last_error.hook == hook
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_cancelled_task_of_the_drivers_own_is_its_failure(tmp_path: Path) -> None:
    class Lost(FakeNetwork):
        @hooks.hookimpl
        async def status(self) -> NetworkStatus:
            work = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(work.cancel)
            await work
            return NetworkStatus(True)

    with pytest.raises(DriverError, match="status: CancelledError, though nobody cancelled it"):
        await network(Lost(NoOptions(), fake_host(tmp_path))).status()


async def test_a_text_without_end_is_cut(fake: FakeNetwork, caplog: pytest.LogCaptureFixture) -> None:
    slot = network(fake)
    fake.fail("attach", ValueError("a" * 10_000_000), Unavailable("b" * 10_000_000))
    for _ in range(2):
        with pytest.raises(CrinoidError) as caught:
            await slot.attach(REQUEST, {})
        assert len(caught.value.message) < 5000
        assert "characters …" in caught.value.message
    assert len(caplog.text) < 50_000


async def test_an_error_that_makes_its_text_itself_gets_the_name_as_a_note(fake: FakeNetwork) -> None:
    error = _FixedText()
    fake.fail("attach", error, error)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await network(fake).attach(REQUEST, {})
        assert caught.value.message == f"as always; raised by {LABEL} attach"


class _Stubborn(FakeNetwork):
    """Swallows its cancellations until it is let go."""

    def __init__(self, host: Host) -> None:
        super().__init__(NoOptions(), host)
        self.free, self.cancellations = asyncio.Event(), 0

    @hooks.hookimpl
    async def status(self) -> NetworkStatus:
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.cancellations += 1
        return NetworkStatus(True)


def stubborn(tmp_path: Path, grace_s: float, limit_s: float = 0.05) -> tuple[_Stubborn, NetworkSlot, HookCalls]:
    driver, calls = _Stubborn(fake_host(tmp_path, "default")), HookCalls(grace_s)
    installed = InstalledDriver("network", "star", "star-dist", "1.0", "star:Driver")
    binding = adopt(driver, installed, SlotConfig(driver="star"), driver.host, Meter(), calls)
    return driver, NetworkSlot(binding, NetworkDeadlines(status=limit_s)), calls


async def test_a_hook_that_swallows_its_cancellation_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver, slot, calls = stubborn(tmp_path, 0.05)
    with pytest.raises(DeadlineExceeded, match=r"status: no answer after 0\.05 s; .* it was left behind"):
        await slot.status()
    assert ([str(call) for call in calls.abandoned], calls.running) == ([f"{LABEL} status"], ())
    assert calls.abandoned_ever == 1
    assert f"{LABEL} status goes on although it was cancelled" in caplog.text
    driver.free.set()
    await asyncio.sleep(0.01)
    assert (calls.abandoned, calls.abandoned_ever, driver.cancellations) == ((), 1, 1)
    assert f"{LABEL} status, which was left behind, has ended" in caplog.text


async def test_what_a_hook_brings_while_it_is_cancelled_counts(tmp_path: Path) -> None:
    driver, slot, calls = stubborn(tmp_path, 60)
    asyncio.get_running_loop().call_later(0.1, driver.free.set)
    assert await slot.status() == NetworkStatus(True)
    assert (driver.cancellations, calls.abandoned_ever) == (1, 0)


async def test_a_caller_that_is_cancelled_is_not_held_by_a_hook_that_swallows_it(tmp_path: Path) -> None:
    driver, slot, calls = stubborn(tmp_path, 0.05, limit_s=60)
    task = asyncio.create_task(slot.status())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(calls.abandoned) == 1
    driver.free.set()


@pytest.mark.filterwarnings("error")
async def test_a_hook_whose_task_is_cancelled_before_it_begins(fake: FakeNetwork) -> None:
    call = asyncio.create_task(network(fake).attach(REQUEST, {}))
    await asyncio.sleep(0)
    (task,) = [each for each in asyncio.all_tasks() if each.get_name() == f"{LABEL} attach"]
    task.cancel()  # as asyncio.run does with all that is left at its end
    with pytest.raises(DriverError, match="attach: CancelledError, though nobody cancelled it"):
        await call
    assert fake.calls == []


async def test_who_holds_the_loop_is_known_by_its_task(tmp_path: Path) -> None:
    held: list[str] = []
    calls = HookCalls()

    class Curious(FakeNetwork):
        @hooks.hookimpl
        async def status(self) -> NetworkStatus:
            await asyncio.sleep(0)
            held.append(str(calls.holding(asyncio.current_task())))
            return NetworkStatus(True)

        @hooks.hookimpl
        def features(self) -> NetworkFeatures:
            held.append(str(calls.holding(asyncio.current_task())))
            return NetworkFeatures()

    driver = Curious(NoOptions(), fake_host(tmp_path, "default"))
    installed = InstalledDriver("network", "star", "star-dist", "1.0", "star:Driver")
    slot = NetworkSlot(
        adopt(driver, installed, SlotConfig(driver="star"), driver.host, Meter(), calls), NetworkDeadlines()
    )
    await slot.status()
    slot.features()
    assert held == [f"{LABEL} status", f"{LABEL} features"]
    assert calls.holding(asyncio.current_task()) is None
    assert calls.running == ()


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


class _Scripted(FakeRegistry):
    """Its stream does as it is told, in each of its steps and in its closing."""

    steps: tuple[Callable[[], object], ...] = ()
    at_end: Callable[[], object] = int

    async def _stream(self, content: bytes) -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout(60):  # is entered and left in one task, or raises
                for step in self.steps:
                    yield await step() if inspect.iscoroutinefunction(step) else step()  # type: ignore[misc]
        finally:
            self.at_end()


def _raise(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


async def scripted(tmp_path: Path, limit_s: float = 5.0, **script: object) -> tuple[BlobStream, HookCalls]:
    driver, calls = _Scripted(NoOptions(), fake_host(tmp_path, "hub")), HookCalls(0.05)
    driver.blobs["sha256:1"] = b"x"
    for name, value in script.items():
        setattr(driver, name, value)
    installed = InstalledDriver("registry", "star", "star-dist", "1.0", "star:Driver")
    binding = adopt(driver, installed, SlotConfig(driver="star"), driver.host, Meter(), calls)
    return await RegistrySlot(binding, RegistryDeadlines(next_piece=limit_s)).open_blob(BLOB), calls


@pytest.mark.parametrize("error", ENDS[:7], ids=lambda error: type(error).__name__)
async def test_whatever_a_stream_raises_is_a_driver_error_with_its_name(tmp_path: Path, error: BaseException) -> None:
    stream, _ = await scripted(tmp_path, steps=(lambda: b"first", _raise(error)))
    assert await anext(stream) == b"first"
    with pytest.raises(DriverError, match=r'^registry "hub" \(star\) open_blob: '):
        await anext(stream)
    await stream.aclose()
    if isinstance(error, GeneratorExit):
        return  # that is how a generator is closed
    stream, _ = await scripted(tmp_path, steps=(lambda: b"first",), at_end=_raise(error))
    await anext(stream)
    with pytest.raises(DriverError, match=r'^registry "hub" \(star\) open_blob: '):
        await stream.aclose()
    await stream.aclose()


async def test_a_stream_runs_in_one_task_from_its_first_piece_to_its_closing(tmp_path: Path) -> None:
    tasks: list[asyncio.Task[object] | None] = []

    def note() -> bytes:
        tasks.append(asyncio.current_task())
        return b"x"

    stream, calls = await scripted(tmp_path, steps=(note, note, note), at_end=note)
    for _ in range(2):
        await asyncio.create_task(anext(stream))  # whoever asks
    await stream.aclose()
    assert len(tasks) == 3
    assert len(set(tasks)) == 1
    await asyncio.sleep(0.01)
    assert (calls.running, calls.abandoned) == ((), ())
    assert tasks[0] is not None
    assert tasks[0].done()


async def test_a_stream_that_swallows_its_cancellation_is_left_behind(tmp_path: Path) -> None:
    free = asyncio.Event()

    async def hold() -> bytes:
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()
        return b"late"

    stream, calls = await scripted(tmp_path, 0.05, steps=(hold,))
    with pytest.raises(DeadlineExceeded, match=r"open_blob: no answer after 0\.05 s; .* left behind"):
        await anext(stream)
    async with asyncio.timeout(10):
        await stream.aclose()
    assert len(calls.abandoned) == 1
    free.set()
    await asyncio.sleep(0.01)
    assert not calls.abandoned


async def test_a_reader_that_is_cancelled_closes_the_stream(tmp_path: Path) -> None:
    closed: list[bool] = []
    stream, _ = await scripted(tmp_path, steps=(asyncio.Event().wait,), at_end=lambda: closed.append(True))
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert closed == [True]
    await stream.aclose()


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


class _OddSession(FakeExecSession):
    """Its streams and itself do as they are told."""

    def __init__(self, request: ExecStreamRequest, act: Callable[[], object]) -> None:
        super().__init__(request)
        self.act = act
        for stream in (self.input, self.output, self.errors):
            stream.read = stream.write = stream.close = self.odd  # type: ignore[method-assign, assignment]
        self.resize = self.close = self.wait = self.odd  # type: ignore[method-assign, assignment]

    async def odd(self, *_: object) -> object:
        await asyncio.sleep(0)
        return self.act()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1), ValueError("x")])
async def test_whatever_a_session_raises_is_a_driver_error_with_its_name(tmp_path: Path, error: BaseException) -> None:
    class Odd(FakeRuntime):
        @hooks.hookimpl
        async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
            return _OddSession(request, _raise(error))

    driver = Odd(NoOptions(), fake_host(tmp_path, "default"))
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines())
    request = ExecStreamRequest(process={}, stdin=True, stdout=True, stderr=True)
    session = await slot.exec_stream(HANDLE, request)
    assert session.stdin is not None
    assert session.stdout is not None
    calls = (session.stdin.write(b"x"), session.stdin.close(), session.stdout.read(), session.wait(), session.close())
    for call in calls:
        with pytest.raises(DriverError, match=rf'^runtime "default" \(star\) exec_stream: {type(error).__name__}'):
            await call


async def test_a_session_passes_on_what_it_may_raise_and_a_cancellation(tmp_path: Path) -> None:
    driver = FakeRuntime(NoOptions(), fake_host(tmp_path))
    slot = RuntimeSlot(bound(driver, "runtime"), RuntimeDeadlines())
    await driver.create(ContainerRequest(handle=HANDLE, spec={}))
    session = await slot.exec_stream(HANDLE, ExecStreamRequest(process={}, stdin=True, stdout=True, stderr=False))
    assert session.stdin is not None
    assert session.stdout is not None
    assert session.stderr is None
    await session.stdin.close()
    with pytest.raises(BrokenPipeError):
        await session.stdin.write(b"x")
    reading = asyncio.ensure_future(session.stdout.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("late", [False, True], ids=["at that moment", "left behind"])
async def test_a_session_that_comes_for_nobody_is_closed(tmp_path: Path, late: bool) -> None:
    """Its caller was cancelled in the very round of the loop in which the driver answers, or long before: else the
    process that it belongs to would go on, and its descriptors stay open."""
    closed, free = asyncio.Event(), asyncio.Event()

    class Slow(FakeRuntime):
        @hooks.hookimpl
        async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
            while not free.is_set():
                with suppress(asyncio.CancelledError):
                    await free.wait()
            session = FakeExecSession(request)
            session.close = close  # type: ignore[method-assign]
            return session

    async def close() -> None:
        closed.set()

    driver, calls = Slow(NoOptions(), fake_host(tmp_path, "default")), HookCalls(0.05)
    installed = InstalledDriver("runtime", "star", "star-dist", "1.0", "star:Driver")
    binding = adopt(driver, installed, SlotConfig(driver="star"), driver.host, Meter(), calls)
    slot = RuntimeSlot(binding, RuntimeDeadlines())
    request = ExecStreamRequest(process={}, stdin=True, stdout=True, stderr=True)
    asking = asyncio.create_task(slot.exec_stream(HANDLE, request))
    await asyncio.sleep(0.01)
    if not late:
        free.set()
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    free.set()
    async with asyncio.timeout(10):
        await closed.wait()


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


async def test_all_are_told_of_an_end_though_the_client_has_gone(tmp_path: Path) -> None:
    """Nobody tells them again of what is removed: they would count it as there for ever."""
    drivers, slots = extensions(tmp_path, "ignore")
    drivers[0].hang("pod_removed")
    telling = asyncio.create_task(slots.pod_removed(POD))
    await asyncio.sleep(0.01)
    telling.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({telling})
    assert telling.cancelled()
    assert drivers[1].hooks_called == ("pod_removed",)


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
