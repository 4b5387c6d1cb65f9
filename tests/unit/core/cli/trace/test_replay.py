"""Traces of a node over fakes, replayed: the same codes, hooks and state; and what the replay of another code says."""

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import CommandFailed, InvalidArgument, Unavailable
from crinoid.core.api.testing.fakes import (
    FakeExtension,
    FakeNetwork,
    FakeRegistry,
    FakeRuntime,
    FakeSnapshotter,
    Recorder,
    fake_host,
)
from crinoid.core.cli.trace.machine import FakeMachine
from crinoid.core.cli.trace.model import Trace
from crinoid.core.cli.trace.places import Places
from crinoid.core.cli.trace.replay import Outcome, replay
from crinoid.core.cli.trace.view import show
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config, ExtensionSlotConfig, PodsConfig, RuntimeSlotConfig, SlotConfig
from crinoid.core.config.origins import NO_ORIGINS
from crinoid.core.cri.calls import CallHooks
from crinoid.core.cri.local import Answer, LocalServer
from crinoid.core.daemon import recording
from crinoid.core.daemon.composition import Composition, compose
from crinoid.core.daemon.redaction import Secrets
from crinoid.core.lifecycle.events.exit_monitor import ExitMonitor
from crinoid.core.lifecycle.pods.pods import PodService
from crinoid.core.slots.binding import adopt, assemble
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.instruments import NoInstruments
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Store

IMAGE = ImageRecord(id="sha256:" + "1" * 64, tags=("docker.io/test/img:1",), config='{"config": {"Cmd": ["/run"]}}')
POD = {"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "hostname": "web"}
CONTAINER = {
    "metadata": {"name": "app"},
    "image": {"image": "test/img:1"},
    "envs": [
        {"key": "TOKEN", "value": base64.b64encode(b"hunter2-and-more").decode()},
        {"key": "PLACE", "value": base64.b64encode(b"the-cellar").decode()},
    ],
    "annotations": {"site/owner": "somebody-else"},
}


class Instruments(NoInstruments):
    tape: Any = None


@dataclass
class Recorded:
    """A node over fakes that can be recorded."""

    directory: Path
    instruments: Instruments = field(default_factory=Instruments)

    def __post_init__(self) -> None:
        options = NoOptions()
        self.runtime = FakeRuntime(options, fake_host(self.directory, "runc"))
        self.network = FakeNetwork(options, fake_host(self.directory, "default"))
        self.snapshotter = FakeSnapshotter(options, fake_host(self.directory, "default"))
        self.registry = FakeRegistry(options, fake_host(self.directory, "layout"))
        self.extension = FakeExtension(options, fake_host(self.directory, "watcher"))
        root, run = self.directory / "root", self.directory / "run"
        root.mkdir()
        (run / "pods").mkdir(parents=True)
        self.config = Config(
            root=root,
            run=run,
            pods=PodsConfig(init_binary="/bin/true", kill_timeout_s=0.2),
            extensions={"watcher": ExtensionSlotConfig(driver="fake", on_failure="fail")},
        )

    async def start(self) -> None:
        store = Store(self.config.root / "state.db")
        store.images.put(IMAGE)
        store.close()
        self.node: Composition = compose(self.config, assemble(self.config, self._bindings()), "0", FakeMachine())
        await self.node.recover()
        self.loaded = Loaded(self.config, NO_ORIGINS, ())
        self.recordings = recording.Recordings(lambda: self.loaded, self.config.run, self.node, self.instruments)  # type: ignore[arg-type]  # all that it needs
        self.server = LocalServer(self.node, CallHooks(tape=lambda: self.instruments.tape))

    async def call(self, rpc: str, **request: Any) -> Answer:
        """Call in a task of its own, as a server does."""
        answer = await asyncio.create_task(self.server.call(rpc, request))
        assert answer is not None
        return answer

    async def make(self, rpc: str, **request: Any) -> str:
        """Call what answers with an id."""
        answer = await self.call(rpc, **request)
        assert answer.code == "OK", answer
        assert answer.content is not None
        return str(next(iter(answer.content.values())))

    async def begin(self, size: int = 1 << 24) -> None:
        await self.recordings.command(f"start 600 {size}")

    async def end(self) -> Trace:
        told = json.loads(await self.recordings.command("stop"))
        self.path = Path(told["path"])
        return Trace.read(self.path)

    def _bindings(self) -> list[Binding]:
        slots: list[tuple[str, Recorder, SlotConfig]] = [
            ("runtime", self.runtime, RuntimeSlotConfig(driver="fake")),
            ("network", self.network, SlotConfig(driver="fake")),
            ("snapshotter", self.snapshotter, SlotConfig(driver="fake")),
            ("registry", self.registry, SlotConfig(driver="fake")),
            ("extension", self.extension, ExtensionSlotConfig(driver="fake", on_failure="fail")),
        ]
        return [
            adopt(
                driver,
                InstalledDriver(
                    role=role, name="fake", distribution="fakes", version="1", target="x:y", api_version=API_VERSION
                ),
                config,
                driver.host,
                self.instruments,
            )
            for role, driver, config in slots
        ]


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorded]:
    monkeypatch.setattr(recording, "_learn", lambda _: Secrets())  # the fakes are not installed
    recorded = Recorded(tmp_path)
    await recorded.start()
    yield recorded
    await recorded.node.close()


def told(outcome: Outcome) -> dict[str, str]:
    """Each RPC with its code in the replay."""
    return {rpc.partition(" ")[0]: now for rpc, _then, now, _message in outcome.codes}


async def a_life(node: Recorded) -> str:
    """A pod of one container, from begin to end but for the pod's removal; return the container's id."""
    pod = await node.make("RunPodSandbox", config=POD)
    container = await node.make("CreateContainer", pod_sandbox_id=pod, config=CONTAINER, sandbox_config=POD)
    await node.call("StartContainer", container_id=container)
    await node.call("ListContainers")
    node.runtime.finish(container, 3)
    for _ in range(100):
        if node.node.containers.get(container).exit_code == 3:
            break
        await asyncio.sleep(0.01)
    await node.call("StopPodSandbox", pod_sandbox_id=pod)
    return container


async def test_a_life_is_replayed_as_it_was(node: Recorded) -> None:
    await node.begin()
    container = await a_life(node)
    trace = await node.end()
    assert [call.rpc for call in trace.rpcs] == [
        "RunPodSandbox", "CreateContainer", "StartContainer", "ListContainers", "StopPodSandbox",
    ]  # fmt: skip
    hooks = [call.key[2] for call in trace.hooks]
    assert hooks.index("attach") < hooks.index("create") < hooks.index("start") < hooks.index("detach")
    outcome = await replay(trace, 5)
    assert outcome.differences == []
    assert set(told(outcome).values()) == {"OK"}
    assert outcome.state == trace.tail["final"]
    assert outcome.state["containers"][container]["exit_code"] == 3


async def test_a_failure_of_a_driver_is_reproduced(node: Recorded) -> None:
    await node.begin()
    node.network.fail("attach", CommandFailed(("bridge",), 1, "no such device\n"), Unavailable("no address is left"))
    first = await node.call("RunPodSandbox", config=POD)
    second = await node.call("RunPodSandbox", config=POD)
    trace = await node.end()
    assert (first.code, second.code) == ("INTERNAL", "UNAVAILABLE")
    outcome = await replay(trace, 5)
    assert outcome.differences == []
    assert [(then, now) for _, then, now, _ in outcome.codes] == [("INTERNAL",) * 2, ("UNAVAILABLE",) * 2]
    assert "no such device" in outcome.codes[0][3]
    assert outcome.notes == []  # the words are the same, too
    assert any("INTERNAL (as recorded)" in line for line in show(trace, outcome))


async def overtaken(node: Recorded) -> Trace:
    """A StopContainer comes while StartContainer is under way, so the runtime's start fails."""
    pod = await node.make("RunPodSandbox", config=POD)
    container = await node.make("CreateContainer", pod_sandbox_id=pod, config=CONTAINER, sandbox_config=POD)
    await node.begin()
    is_killed = asyncio.Event()
    begin = node.runtime._enter

    async def enter(hook: str, **arguments: object) -> None:
        await begin(hook, **arguments)
        if hook == "start":
            await is_killed.wait()
            raise CommandFailed(("runc", "start"), 1, "cannot start an already stopped container")
        if hook == "kill":
            is_killed.set()

    node.runtime._enter = enter  # type: ignore[method-assign]  # a runtime that is overtaken
    starting = asyncio.create_task(node.call("StartContainer", container_id=container))
    await asyncio.sleep(0.05)
    await node.call("StopContainer", container_id=container, timeout="0")
    await starting
    return await node.end()


@contextlib.asynccontextmanager
async def _plain(*_: object, **__: object) -> AsyncIterator[None]:
    """The defect that 24fcc3e mended: what fails as the container is being ended counts as the runtime's failure."""
    yield


async def test_a_defect_is_reproduced_by_the_code_that_has_it_and_differs_in_the_code_that_has_not(
    node: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as faulty:
        faulty.setattr(ExitMonitor, "acting_on", _plain)
        trace = await overtaken(node)
        outcome = await replay(trace, 5)
        assert outcome.differences == []
        assert told(outcome) == {"StartContainer": "INTERNAL", "StopContainer": "OK"}
    mended = await replay(trace, 5)
    assert told(mended) == {"StartContainer": "FAILED_PRECONDITION", "StopContainer": "OK"}
    text = "\n".join(mended.differences)
    assert "StartContainer (#1) was INTERNAL: " in text
    assert "and is FAILED_PRECONDITION: " in text
    assert "has ended meanwhile" in text
    assert "not reproduced" in list(show(trace, mended))[-1]


async def test_a_hook_that_is_asked_no_more_and_one_that_is_new_are_named(
    node: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.begin()
    container = await a_life(node)
    trace = await node.end()
    stop = PodService._stop

    async def stop_otherwise(self: PodService, pod_id: str) -> None:
        await stop(self, pod_id)
        slot = self.runtime_of(self.get(pod_id))
        assert slot is not None
        await slot.kill(self._store.containers.find(container).handle, 15, everyone=True)

    async def nothing(*_: object, **__: object) -> None:
        """Stop nothing."""

    monkeypatch.setattr(PodService, "_stop", stop_otherwise)
    monkeypatch.setattr(RuntimeSlot, "stop_pod", nothing)
    outcome = await replay(trace, 1)
    asked = f'runtime "runc" kill of {container[:24]} is asked here, not in the trace (signal 15, everyone True)'
    assert asked in outcome.differences
    missing = [one for one in outcome.differences if one != asked]
    assert len(missing) == 1
    assert missing[0].startswith('runtime "runc" stop_pod of ')
    assert missing[0].endswith("is not asked here")


async def test_another_argument_is_named(node: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.begin()
    await node.call("RunPodSandbox", config=POD)
    trace = await node.end()
    monkeypatch.setattr(PodService, "pod_cidrs", lambda _: ("10.1.0.0/16",))
    outcome = await replay(trace, 1)
    assert outcome.differences == []
    assert any("attach" in one and "request.pod_cidrs" in one for one in outcome.notes)


async def test_no_secret_is_in_a_trace_and_it_can_be_replayed_all_the_same(node: Recorded) -> None:
    await node.begin()
    auth = {"username": "me", "password": "sesame-open", "auth": "bWU6c2VzYW1lLW9wZW4="}
    await node.call("PullImage", image={"image": "registry.test/none:1"}, auth=auth)
    pod = await node.make("RunPodSandbox", config={**POD, "annotations": {"x": "annotated-secret"}})
    container = await node.make("CreateContainer", pod_sandbox_id=pod, config=CONTAINER, sandbox_config=POD)
    await node.call("StartContainer", container_id=container)
    broken = await node.make("CreateContainer", pod_sandbox_id=pod, config={**CONTAINER, "metadata": {"name": "b"}})
    node.runtime.fail("start", CommandFailed(("runc",), 1, "TOKEN is hunter2-and-more, from the-cellar\n"))
    await node.call("StartContainer", container_id=broken)
    command = ["login", "--password=sesame-open", "Bearer abcdefghijkl"]
    await node.call("ExecSync", container_id=container, cmd=command)
    trace = await node.end()
    text = gzip.decompress(node.path.read_bytes()).decode()
    for secret in ("hunter2", "the-cellar", "sesame", "bWU6", "annotated", "somebody-else", "abcdefghijkl", "aHVudGVy"):
        assert secret not in text, next(line for line in text.splitlines() if secret in line)[:500]
    assert "TOKEN" in text  # names are told
    outcome = await replay(trace, 5)
    assert outcome.differences == []
    assert told(outcome)["StartContainer"] == "INTERNAL"
    assert told(outcome)["PullImage"] == "NOT_FOUND"


async def test_the_secrets_are_those_of_the_configuration_that_was_reloaded_last(
    node: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Loaded] = []

    def learn(loaded: Loaded) -> Secrets:
        learned.append(loaded)
        return Secrets()

    monkeypatch.setattr(recording, "_learn", learn)
    changed = node.config.images.model_copy(update={"pinned": ("registry.test/a:1",)})
    node.loaded = Loaded(node.config.model_copy(update={"images": changed}), NO_ORIGINS, ())
    await node.begin()
    trace = await node.end()
    assert learned == [node.loaded]
    assert trace.head["config"]["images"]["pinned"] == ["registry.test/a:1"]


async def test_what_was_there_before_the_recording_goes_on_in_the_replay(node: Recorded) -> None:
    pod = await node.make("RunPodSandbox", config=POD)
    container = await node.make("CreateContainer", pod_sandbox_id=pod, config=CONTAINER, sandbox_config=POD)
    await node.call("StartContainer", container_id=container)
    await node.begin()
    await node.call("ExecSync", container_id=container, cmd=["true"])
    await node.call("StopContainer", container_id=container, timeout="5")
    await node.call("RemoveContainer", container_id=container)
    await node.call("RemovePodSandbox", pod_sandbox_id=pod)
    trace = await node.end()
    assert any(call.is_early and call.key[2] == "wait" for call in trace.hooks)  # it began before
    outcome = await replay(trace, 5)
    assert outcome.differences == []
    assert outcome.notes == []
    assert outcome.state["pods"] == outcome.state["containers"] == {}


@pytest.mark.parametrize("place", ["bundle", "pin", "directory", "paths", "slot", "above"])
async def test_a_trace_made_by_hand_touches_nothing_but_the_scratch_directory(
    node: Recorded, place: str, tmp_path: Path
) -> None:
    """A maintainer replays what strangers send."""
    pod = await node.make("RunPodSandbox", config=POD)
    await node.make("CreateContainer", pod_sandbox_id=pod, config=CONTAINER, sandbox_config=POD)
    await node.begin()
    trace = await node.end()
    outside = tmp_path / "outside" / pod
    outside.mkdir(parents=True)
    (outside / "file").touch()
    target, state = str(outside / "made"), trace.head["state"]
    match place:
        case "bundle":
            state["containers"][0]["handle"]["bundle"] = target
        case "pin":
            state["pods"][0]["namespaces"]["network"] = target
        case "directory":  # without its owner it is removed at the start
            state["pods"], state["containers"] = [], []
            state["ledger"] = [{"owner": pod, "kind": "directory", "key": str(outside), "data": {}}]
        case "paths":
            state["pods"], state["containers"] = [], []
            state["ledger"] = [
                {"owner": pod, "kind": "namespaces", "key": pod, "data": {"paths": [str(outside / "file")]}}
            ]
        case "slot":
            trace.head["slots"][0]["name"] = target
        case "above":
            state["containers"][0]["handle"]["bundle"] = f"{trace.head['run']}/../../../../../../../..{target}"
    with pytest.raises(InvalidArgument, match="which is not below the root or run of its node"):
        await replay(trace, 1)
    assert [path.name for path in outside.iterdir()] == ["file"]


async def test_a_directory_for_logs_is_made_below_the_scratch_directory_alone(tmp_path: Path) -> None:
    head = {"root": "/r", "run": "/u", "passage": "/u"}
    places = Places(tmp_path / "scratch", head)
    for path in ("/var/log/pods/x", f"/../../../../../../../..{tmp_path}/outside", "/u/../../../../../outside"):
        made = Path(places.of_request({"log_directory": path})["log_directory"])
        assert made.resolve().is_relative_to(tmp_path / "scratch"), made
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


async def test_calls_at_the_same_time_and_one_whose_client_leaves(node: Recorded) -> None:
    await node.begin()
    node.network.hang("attach")
    first = asyncio.create_task(node.server.call("RunPodSandbox", {"config": POD}))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.wait({first})
    await asyncio.sleep(0.1)  # its pod goes on without it, as a retry may come
    node.network.hang("attach", hangs=False)
    others = [{**POD, "metadata": {"name": name, "namespace": "shop", "uid": name}} for name in ("a", "b", "c")]
    answers = await asyncio.gather(*(node.call("RunPodSandbox", config=one) for one in others))
    assert {answer.code for answer in answers} == {"OK"}
    trace = await node.end()
    assert [call.code for call in trace.rpcs].count("CANCELLED") == 1
    outcome = await replay(trace, 5)
    assert outcome.differences == []
    assert outcome.state == trace.tail["final"]


async def test_it_is_bounded_and_one_at_a_time(node: Recorded) -> None:
    assert json.loads(await node.recordings.command("status")) == {"recording": False, "traces": []}
    await node.begin(size=1)
    with pytest.raises(Exception, match="crinoid trace stop ends it"):
        await node.begin()
    await node.call("RunPodSandbox", config=POD)
    for _ in range(200):
        if node.instruments.tape is None:
            break
        await asyncio.sleep(0.02)
    assert node.instruments.tape is None
    for _ in range(200):
        status = json.loads(await node.recordings.command("status"))
        read = Trace.read(Path(status["traces"][0]))
        if read.tail:
            break
        await asyncio.sleep(0.02)
    assert read.tail["why"] == "it is full"
    for _ in range(3):
        await node.begin()
        await node.end()
    assert len(json.loads(await node.recordings.command("status"))["traces"]) == 2
    for wrong in ("start 0 1", "start 1 -1", "start x y", "go", ""):
        with pytest.raises(Exception, match="trace"):
            await node.recordings.command(wrong)


async def test_a_trace_that_is_cut_off_is_replayed_as_far_as_it_goes(node: Recorded, tmp_path: Path) -> None:
    await node.begin()
    await a_life(node)
    await node.end()
    lines = gzip.decompress(node.path.read_bytes()).splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl.gz"
    packed = gzip.compress(b"".join(lines[:-4]))
    cut.write_bytes(packed[:-9])
    trace = Trace.read(cut)
    assert trace.tail == {}
    outcome = await replay(trace, 1)
    assert outcome.differences == []
    assert "the trace was cut off" in outcome.notes[-1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no trace"),
        (b"hello", "is no trace"),
        (gzip.compress(b"[1]\n"), "is no trace"),
        (gzip.compress(b'{"crinoid trace": 99, "version": "7.0"}\n'), r"format 99, by crinoid 7\.0"),
    ],
    ids=["empty", "text", "no header", "a newer format"],  # packed bytes hold the time: workers would not agree
)
def test_what_is_no_trace(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=says):
        Trace.read(file)


async def test_nothing_is_taken_down_when_off(node: Recorded) -> None:
    await a_life(node)
    assert node.instruments.tape is None
    assert not (node.config.root / "trace").exists()
