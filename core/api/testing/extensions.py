"""The contract of the open role as tests: whoever writes an extension applies them to it.

Subclass the contract, and say how a driver is made::

    class TestMine(ExtensionContract):
        def make_driver(self, host: Host) -> object:
            return MyExtension(MyOptions(), host)

It wants pytest and pytest-asyncio, and runs no container: it tells the driver the lives of pods and containers in the
order in which the kernel does (``hooks.extension`` has that story), lives of which something went wrong too, and holds
each answer to what the kernel asks of it. ``make_driver`` is called again over the same host where a test restarts the
daemon; nothing is closed before, as in a kill, but for what ``killed`` does in the kernel's place. Override
``connected`` for a driver that works with others, such as clients of its own, and ``make_unwilling_driver`` for one
that refuses or fails by its configuration or its clients.
"""

import asyncio
import contextlib
import copy
import gc
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crinoid.core.api.adjustments import check_adjustment
from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, FailedPrecondition, Refused
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, ExtensionHooks, PodView, PullView
from crinoid.core.api.host import Host
from crinoid.core.api.testing.binding import bind_hooks, cuts
from crinoid.core.api.testing.contract import Contract
from crinoid.core.api.testing.fakes import FakeKernel
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.image import Descriptor, ImageReference
from crinoid.core.api.values.pod import LinuxResources, PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus

HOOKS = tuple(name for name, _ in inspect.getmembers(ExtensionHooks, inspect.isfunction))
_ANSWERS = {"adjust_container": ContainerAdjustment, "container_updating": LinuxResources, "image_pulling": str}
_DEFAULT_DEADLINE_S = 5.0
_TOGETHER = 5
_TRIES = 20
_SETTLE_S = patient(5.0)
_MAY_REFUSE = frozenset(
    {"pod_starting", "pod_updating", "adjust_container", "container_starting", "container_updating", "image_pulling"}
)
_ENDS = frozenset(
    {"close", "pod_stopping", "pod_stopped", "pod_removed", "container_exited", "container_removed", "image_removed"}
)

Step = Callable[["Life"], Awaitable[None]]


class BoundExtension:
    """A driver behind the hooks, called as the kernel calls it: by keyword, and none that it leaves out."""

    def __init__(self, driver: object) -> None:
        self.driver = driver
        self.deadline_s = float(getattr(driver, "deadline_s", _DEFAULT_DEADLINE_S))
        self._hooks = bind_hooks(driver, ExtensionHooks)

    async def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook within the deadline; check the answer, the error, and that the arguments stay as they were."""
        before = copy.deepcopy({name: value for name, value in arguments.items() if name != "kernel"})
        answers = getattr(self._hooks, hook)(**arguments)
        if not answers:
            return None
        assert inspect.isawaitable(answers[0]), f"{hook} is no coroutine"
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await answers[0]
        except TimeoutError:
            raise AssertionError(f"{hook} had no answer after {self.deadline_s:g} s") from None
        except CrinoidError as error:
            _check_error(hook, error)
            raise
        assert before == {name: arguments[name] for name in before}, f"{hook} has changed what it was told"
        _check_answer(hook, answer)
        return answer


def _check_answer(hook: str, answer: object) -> None:
    if answer is None:
        return
    assert hook in _ANSWERS, f"{hook} has no answer, and returned {answer!r}"
    assert isinstance(answer, _ANSWERS[hook]), f"{hook} returned {answer!r}"
    if isinstance(answer, ContainerAdjustment):
        check_adjustment(answer)


def _check_error(hook: str, error: CrinoidError) -> None:
    assert hook not in _ENDS, f"{hook} raised {error!r}: an end can't be prevented"
    assert hook in _MAY_REFUSE or not isinstance(error, Refused), f"{hook} can't refuse, and raised {error!r}"
    assert str(error), f"{hook} raised {type(error).__name__} without a word"


_LIVES = 20


class Life:
    """The life of a pod with a container, told step by step; what is on record is among what the kernel lists."""

    def __init__(self, extension: BoundExtension, kernel: FakeKernel, name: str = "pod") -> None:
        self._tell = extension.call
        self._kernel = kernel
        metadata = PodMetadata(name, "contract", f"uid-{name}")
        config = PodConfig(metadata=metadata, labels={"app": name}, annotations={"example.org/contract": name})
        self.pod = PodView(name * 3, config, "runc", namespaces={"ipc": Path("/run/ipc")}, cgroup_parent=f"/{name}")
        self.containers = 0
        self.container = self._next()

    async def start_pod(self) -> None:
        """RunPodSandbox."""
        await self._tell("pod_starting", pod=self.pod)
        self._kernel.known_pods.append(self.pod)
        await self._tell("pod_started", pod=self.pod)

    async def update_pod(self) -> None:
        """UpdatePodSandboxResources."""
        limits = LinuxResources(cpu_shares=99)
        await self._tell("pod_updating", pod=self.pod, resources=limits, overhead=None)
        self._note_pod(resources=limits)
        await self._tell("pod_updated", pod=self.pod)

    async def adjust(self) -> ContainerAdjustment | None:
        """The first half of CreateContainer."""
        self.container = self._next()
        adjustment: ContainerAdjustment | None = await self._tell("adjust_container", container=self.container)
        return adjustment

    async def create(self) -> None:
        """CreateContainer."""
        await self.adjust()
        self._note_container(state=ContainerStatus.CREATED, created_at_ns=1)
        await self._tell("container_created", container=self.container)

    async def start(self) -> None:
        """StartContainer."""
        await self._tell("container_starting", container=self.container)
        self._note_container(state=ContainerStatus.RUNNING, pid=4242, started_at_ns=2)
        await self._tell("container_started", container=self.container)

    async def update(self) -> None:
        """UpdateContainerResources."""
        resources = LinuxResources(cpu_shares=77, memory_limit_bytes=1 << 26)
        changed = await self._tell("container_updating", container=self.container, resources=resources)
        self._note_container(resources=resources if changed is None else changed)
        await self._tell("container_updated", container=self.container)

    async def end(self) -> None:
        """The container's process ends."""
        self._note_container(state=ContainerStatus.STOPPED, pid=0, finished_at_ns=3, exit_code=7, reason="Error")
        await self._tell("container_exited", container=self.container, status=ExitStatus(7, 3))

    async def remove(self) -> None:
        """RemoveContainer, also for one that came to nothing."""
        self._kernel.known_containers = [one for one in self._kernel.known_containers if not self._is_own(one)]
        await self._tell("container_removed", container=self.container)

    async def stop_pod(self) -> None:
        """StopPodSandbox."""
        await self._tell("pod_stopping", pod=self.pod)
        self._note_pod(ready=False)
        await self._tell("pod_stopped", pod=self.pod)

    async def remove_pod(self) -> None:
        """RemovePodSandbox, also for one that came to nothing."""
        self._kernel.known_pods = [one for one in self._kernel.known_pods if one.pod_id != self.pod.pod_id]
        await self._tell("pod_removed", pod=self.pod)

    async def run(self) -> None:
        """All of it."""
        for step in BEGINNING + ENDING:
            await step(self)

    def _next(self) -> ContainerView:
        self.containers += 1
        name = f"{self.pod.config.metadata.name}-{self.containers}"
        config = ContainerConfig(metadata=ContainerMetadata("app"), image="img:1", labels={"k": "v"})
        return ContainerView(name * 3, self.pod, config, "sha256:1", "img@sha256:2", spec=_spec(name))

    def _is_own(self, container: ContainerView) -> bool:
        return container.container_id == self.container.container_id

    def _note_container(self, **changes: Any) -> None:
        self.container = replace(self.container, **changes)
        others = [one for one in self._kernel.known_containers if not self._is_own(one)]
        self._kernel.known_containers = [*others, self.container]

    def _note_pod(self, **changes: Any) -> None:
        self.pod = replace(self.pod, **changes)
        others = [one for one in self._kernel.known_pods if one.pod_id != self.pod.pod_id]
        self._kernel.known_pods = [*others, self.pod]


BEGINNING: tuple[Step, ...] = (Life.start_pod, Life.update_pod, Life.create, Life.start, Life.update)
ENDING: tuple[Step, ...] = (Life.end, Life.stop_pod, Life.remove, Life.remove_pod)


class UnwillingKernel(FakeKernel):
    """One that can do nothing that it is asked for: containers end while one speaks of them."""

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        """Raise FailedPrecondition."""
        raise FailedPrecondition(f"container {container_id} has ended")

    async def stop_container(self, container_id: str, reason: str) -> None:
        """Raise DeadlineExceeded."""
        raise DeadlineExceeded(f"container {container_id} outlives SIGKILL")


@pytest.mark.asyncio
class ExtensionContract(Contract):
    """What every extension does; ``make_driver`` is the author's."""

    specification = ExtensionHooks

    def make_driver(self, host: Host) -> object:
        """Return a driver that takes part in every pod, over the host's directories, which may hold what is left."""
        raise NotImplementedError("say how a driver is made")

    def make_unwilling_driver(self, host: Host) -> object:
        """Return one that refuses, or whose hooks fail, for every pod or container in at least one hook."""
        pytest.skip("this driver is always willing")

    async def connected(self, extension: BoundExtension, host: Host) -> None:
        """Called once ``connect`` is done: bring in what the driver works with."""

    async def killed(self, driver: object) -> None:
        """Called where a daemon is killed and another one begins: close what the kernel closes then, such as a
        listening socket, and remove nothing."""

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """The driver's place on the node."""
        return _make_host(tmp_path, "contract")

    @pytest.fixture
    def kernel(self) -> FakeKernel:
        """What the driver may ask."""
        return FakeKernel()

    @pytest.fixture
    def driver(self, host: Host) -> object:
        """The driver under test, alone."""
        return self.make_driver(host)

    @pytest_asyncio.fixture
    async def extension(self, host: Host, kernel: FakeKernel) -> AsyncIterator[BoundExtension]:
        """The driver under test, connected."""
        extension = await self._connect(self.make_driver(host), host, kernel)
        yield extension
        await extension.call("close")

    @pytest.fixture
    def life(self, extension: BoundExtension, kernel: FakeKernel) -> Life:
        """A life to tell."""
        return Life(extension, kernel)

    async def test_its_deadline_is_above_zero(self, driver: object) -> None:
        assert BoundExtension(driver).deadline_s > 0

    async def test_a_whole_life(self, life: Life) -> None:
        await life.run()

    async def test_lives_at_the_same_time(self, extension: BoundExtension, kernel: FakeKernel) -> None:
        lives = [Life(extension, kernel, f"pod{number}") for number in range(_TOGETHER)]
        await asyncio.gather(*(life.run() for life in lives))

    async def test_a_container_is_made_again(self, life: Life) -> None:
        """As the kubelet does with one that has ended, in the same pod."""
        await life.start_pod()
        for _ in range(3):
            await life.create()
            await life.start()
            await life.end()
            await life.remove()
        await life.stop_pod()
        await life.remove_pod()

    async def test_images(self, extension: BoundExtension, kernel: FakeKernel) -> None:
        blob = Descriptor("application/vnd.oci.image.manifest.v1+json", f"sha256:{'0' * 64}", 2)
        reference = ImageReference.parse("example.org/app:1")
        with contextlib.suppress(Refused):
            await extension.call("image_pulling", image=PullView(reference, blob, blob, "near", kernel.documents))
            await extension.call("image_pulling", image=PullView(None, blob, blob, "archive", kernel.documents))
        await extension.call("image_pulled", reference="example.org/app:1", image_id="sha256:1")
        await extension.call("image_removed", image_id="sha256:1")

    async def test_ends_are_told_again(self, life: Life) -> None:
        """The kubelet calls stop and remove until they succeed, and again after that."""
        for step in BEGINNING:
            await step(life)
        for step in ENDING:
            await step(life)
            await step(life)

    async def test_ends_of_what_it_never_heard_of(self, life: Life) -> None:
        """It was not configured, or not there, when the pod was made."""
        for step in ENDING:
            await step(life)

    @pytest.mark.parametrize("after", range(len(BEGINNING)))
    async def test_a_life_may_end_at_any_step(self, life: Life, after: int) -> None:
        """The daemon drops what did not succeed, so removal may be the next that is heard."""
        for step in BEGINNING[: after + 1]:
            await step(life)
        await life.remove()
        await life.remove_pod()
        await Life.run(life)

    async def test_what_came_to_nothing_is_given_back(self, life: Life) -> None:
        """What an adjustment takes from a pool must not be lost with a container that was never made."""
        await life.start_pod()
        for _ in range(_TRIES):
            await life.adjust()
            await life.remove()
        await life.create()
        await life.remove()
        await life.remove_pod()
        for _ in range(_TRIES):
            await life.start_pod()
            await life.remove_pod()

    async def test_a_node_that_runs_pods_already(self, host: Host, kernel: FakeKernel) -> None:
        lives = await self._some_lives(kernel)
        extension = await self._connect(self.make_driver(host), host, kernel)
        for life in lives:
            heir = self._go_on(life, extension, kernel)
            for step in (*((Life.update,) if heir.container.pid else ()), *ENDING):
                await step(heir)
        await Life(extension, kernel, "new").run()
        await extension.call("close")

    async def test_ends_before_it_is_connected(self, host: Host, kernel: FakeKernel) -> None:
        """Containers that ended while the daemon was away are told of first."""
        extension = BoundExtension(self.make_driver(host))
        life = Life(extension, kernel)
        await life.end()
        await extension.call("connect", kernel=kernel)
        await self.connected(extension, host)
        await life.remove()
        await life.remove_pod()
        await extension.call("close")

    async def test_after_a_kill_another_daemon_goes_on(
        self, host: Host, kernel: FakeKernel, extension: BoundExtension
    ) -> None:
        life = Life(extension, kernel)
        for step in BEGINNING:
            await step(life)
        await self.killed(extension.driver)
        second = await self._connect(self.make_driver(host), host, kernel)
        heir = self._go_on(life, second, kernel)
        for step in ENDING:
            await step(heir)
        await Life(second, kernel, "new").run()
        await second.call("close")

    @pytest.mark.parametrize("step", BEGINNING, ids=lambda step: step.__name__)
    async def test_a_step_that_is_cancelled_is_undone(
        self, extension: BoundExtension, kernel: FakeKernel, step: Step
    ) -> None:
        """By its deadline, or because the client has gone: at any moment."""
        for number, cut in enumerate(cuts()):
            life = Life(extension, kernel, f"cancelled{number}")
            for before in BEGINNING[: BEGINNING.index(step)]:
                await before(life)
            await cut(_awaited(step(life)))
            await life.remove()
            await life.remove_pod()
        await Life(extension, kernel, "after").run()

    async def test_it_keeps_nothing_of_what_has_gone(self, extension: BoundExtension, kernel: FakeKernel) -> None:
        """Else the daemon grows with each container that its node has ever had."""
        for number in range(_LIVES):
            await Life(extension, kernel, f"gone{number}").run()
        gc.collect()
        kept = {
            one.pod.pod_id for one in gc.get_objects() if type(one) is ContainerView and one.pod.pod_id[:4] == "gone"
        }
        assert len(kept) < _LIVES / 2, f"after {_LIVES} pods it holds on to containers of {len(kept)} of them"

    async def test_a_kernel_that_can_do_nothing(self, host: Host) -> None:
        kernel = UnwillingKernel()
        extension = await self._connect(self.make_driver(host), host, kernel)
        await Life(extension, kernel).run()
        await extension.call("close")

    async def test_two_slots_know_nothing_of_each_other(self, tmp_path: Path, extension: BoundExtension) -> None:
        host, kernel = _make_host(tmp_path, "other"), FakeKernel()
        other = await self._connect(self.make_driver(host), host, kernel)
        first, second = Life(other, kernel), Life(extension, FakeKernel())
        await asyncio.gather(first.run(), second.run())
        await other.call("close")
        await second.run()

    async def test_closing_leaves_nothing_and_is_idempotent(self, host: Host, kernel: FakeKernel) -> None:
        before = asyncio.all_tasks()
        extension = await self._connect(self.make_driver(host), host, kernel)
        life = Life(extension, kernel)
        for step in BEGINNING:
            await step(life)
        await extension.call("close")
        await extension.call("close")
        left = asyncio.all_tasks() - before
        if left:
            _done, left = await asyncio.wait(left, timeout=_SETTLE_S)
        assert not left, f"tasks that go on: {left}"

    async def test_one_that_is_unwilling(self, host: Host, kernel: FakeKernel) -> None:
        """Whatever it raises in time is what may be raised there, and ends are never in the way."""
        extension = await self._connect(self.make_unwilling_driver(host), host, kernel)
        raised = []
        for number in range(3):
            life = Life(extension, kernel, f"pod{number}")
            for step in BEGINNING:
                try:
                    await step(life)
                except CrinoidError as error:
                    raised.append(error)
            for step in ENDING:
                await step(life)
        await extension.call("close")
        assert raised, "it was willing"

    async def _connect(self, driver: object, host: Host, kernel: FakeKernel) -> BoundExtension:
        extension = BoundExtension(driver)
        await extension.call("connect", kernel=kernel)
        await self.connected(extension, host)
        return extension

    async def _some_lives(self, kernel: FakeKernel) -> list[Life]:
        """Lives of which an extension that comes now has heard nothing: a container each, in all its states."""
        nobody = BoundExtension(object())
        lives = []
        for number in range(len(BEGINNING)):
            life = Life(nobody, kernel, f"old{number}")
            for step in (*BEGINNING[: number + 1], *ENDING[: number % 2]):
                await step(life)
            lives.append(life)
        return lives

    def _go_on(self, life: Life, extension: BoundExtension, kernel: FakeKernel) -> Life:
        """Tell the rest of a life to another daemon's extension."""
        heir = Life(extension, kernel)
        heir.pod, heir.container, heir.containers = life.pod, life.container, life.containers
        return heir


async def _awaited(step: Awaitable[None]) -> None:
    await step


def _make_host(directory: Path, slot: str) -> Host:
    directories = [directory / slot / name for name in ("state", "run")]
    for path in directories:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Host(slot, directories[0], directories[1], logging.getLogger("contract"))


def _spec(name: str) -> dict[str, Any]:
    """An OCI specification with a little of everything that extensions look at."""
    return {
        "process": {"args": ["run"], "env": ["PATH=/bin", f"NAME={name}"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "annotations": {},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "ipc", "path": "/run/ipc"}],
            "resources": {"cpu": {"shares": 512}, "devices": [{"allow": False, "access": "rwm"}]},
            "devices": [],
        },
    }
