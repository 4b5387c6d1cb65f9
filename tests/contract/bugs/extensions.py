"""Extensions with a bug each, on top of one that gives each container a number of a pool."""

import asyncio
import time
from typing import Any, ClassVar

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import DriverError, Refused, ResourceExhausted
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, Kernel, PodView
from crinoid.core.api.host import Host
from crinoid.core.api.testing.extensions import Life
from crinoid.core.api.values.adjustment import OciHook
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import ExitStatus
from support.patience import patient

from . import caught_by

POOL = 12


class Good:
    """Every container gets a number of a pool as an environment variable, until it is removed."""

    api_version = API_VERSION
    Config = NoOptions

    def __init__(self, host: Host) -> None:
        self.numbers: dict[str, int] = {}
        self.kernel: Kernel | None = None
        self.following: asyncio.Task[None] | None = None

    def take(self, name: str) -> int:
        free = [number for number in range(POOL) if number not in self.numbers.values()]
        if not free:
            raise ResourceExhausted("the pool is empty")
        return self.numbers.setdefault(name, free[0])

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.following = asyncio.create_task(asyncio.sleep(1000))

    @hookimpl
    async def close(self) -> None:
        if self.following:
            self.following.cancel()

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        number = self.take(container.container_id)
        await asyncio.sleep(0)
        return ContainerAdjustment(envs=(("NUMBER", str(number)),))

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        self.numbers.pop(container.container_id, None)


@caught_by("test_its_hooks_are_as_specified", "pod_started has the name of a hook but no @hookimpl")
class MarkForgotten(Good):
    """A hook has no ``@hookimpl``: an admission policy that never runs."""

    async def pod_started(self, pod: PodView) -> None: ...


@caught_by("test_its_hooks_are_as_specified", 'pod_startng is all but "pod_starting"')
class NameMisspelt(Good):
    """A hook is misspelt, and has no mark."""

    async def pod_startng(self, pod: PodView) -> None: ...


@caught_by("test_its_hooks_are_as_specified", "has a default for pod")
class Default(Good):
    """An argument has a default, so it is never given."""

    @hookimpl
    async def pod_started(self, pod: PodView | None = None) -> None: ...


@caught_by("test_its_deadline_is_above_zero", "> 0")
class NoTime(Good):
    """Its hooks have no time."""

    deadline_s = 0


@caught_by("test_a_whole_life", "returned {'envs'")
class WrongType(Good):
    """An adjustment is a mapping."""

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> Any:
        return {"envs": ()}


@caught_by("test_a_whole_life", "oci_hooks: stage 'later'")
class MakesNoSense(Good):
    """An adjustment asks for what there is not."""

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        return ContainerAdjustment(oci_hooks=(OciHook("later", "/x"),))


@caught_by("test_a_whole_life", "adjust_container has changed what it was told")
class ChangesTheSpecification(Good):
    """It changes the specification that it is shown."""

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        container.spec["process"]["args"].append("more")
        return None


@caught_by("test_a_whole_life", "pod_started can't refuse")
class RefusesTooLate(Good):
    """It refuses a pod that is there."""

    @hookimpl
    async def pod_started(self, pod: PodView) -> None:
        raise Refused("too late")


@caught_by("test_a_whole_life", "an end can't be prevented")
class PreventsTheEnd(Good):
    """The end of a container is an error of its."""

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        raise DriverError("not yet")


@caught_by("test_a_whole_life", "container_updating has held the event loop for")
class Blocks(Good):
    """It holds up the loop for a second."""

    @hookimpl
    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources | None:
        time.sleep(patient(0.6))
        return None


@caught_by("test_a_whole_life", r"pod_updated had no answer after 0\.1 s")
class Hangs(Good):
    """It never answers."""

    deadline_s = 0.1

    @hookimpl
    async def pod_updated(self, pod: PodView) -> None:
        await asyncio.Event().wait()


@caught_by("test_lives_at_the_same_time", "another pod is under way")
class OneAtATime(Good):
    """It can't follow two pods at the same time."""

    busy = False

    @hookimpl
    async def pod_starting(self, pod: PodView) -> None:
        if self.busy:
            raise DriverError("another pod is under way")
        self.busy = True
        await asyncio.sleep(0.01)
        self.busy = False


@caught_by("test_a_container_is_made_again", "the pod has its container")
class OneContainer(Good):
    """It thinks that a pod has one container, ever."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.made: set[str] = set()

    @hookimpl
    async def container_created(self, container: ContainerView) -> None:
        if container.pod.pod_id in self.made:
            raise DriverError("the pod has its container")
        self.made.add(container.pod.pod_id)


@caught_by("test_images", "'sha256:1'")
class ForgetsImages(Good):
    """An image that it knows nothing of is an error."""

    @hookimpl
    async def image_removed(self, image_id: str) -> None:
        raise KeyError(image_id)


@caught_by("test_ends_are_told_again", "pod-2")
class EndsOnce(Good):
    """The second time that it hears of an end is an error."""

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        del self.numbers[container.container_id]


@caught_by("test_ends_of_what_it_never_heard_of", "pod")
class WantsTheBeginning(Good):
    """The end of a pod that it has not seen begin is an error."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.pods: set[str] = set()

    @hookimpl
    async def pod_starting(self, pod: PodView) -> None:
        self.pods.add(pod.pod_id)

    @hookimpl
    async def pod_stopping(self, pod: PodView) -> None:
        if pod.pod_id not in self.pods:
            raise LookupError(pod.pod_id)


@caught_by("test_a_life_may_end_at_any_step", "not running", after=1)
class WantsTheEnd(Good):
    """It thinks that what is removed was running."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.running: set[str] = set()

    @hookimpl
    async def container_started(self, container: ContainerView) -> None:
        self.running.add(container.container_id)

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        if container.container_id not in self.running:
            raise DriverError("it was not running")
        await super().container_removed(container)


@caught_by("test_what_came_to_nothing_is_given_back", "the pool is empty")
class LosesNumbers(Good):
    """A number is given back when its container has run, and never else."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.ran: set[str] = set()

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        self.ran.add(container.container_id)

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        if container.container_id in self.ran:
            await super().container_removed(container)


@caught_by("test_a_node_that_runs_pods_already", "never heard of")
class StartsFromNothing(Good):
    """It thinks that no pod is there when it comes."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.known: set[str] = set()

    @hookimpl
    async def container_created(self, container: ContainerView) -> None:
        self.known.add(container.container_id)

    @hookimpl
    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources | None:
        if container.container_id not in self.known:
            raise DriverError(f"{container.container_id} was never heard of")
        return None


@caught_by("test_ends_before_it_is_connected", "has no attribute 'pods'")
class AsksTooEarly(Good):
    """It asks the kernel before it is connected."""

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        self.kernel.pods()  # type: ignore[union-attr]


@caught_by("test_after_a_kill_another_daemon_goes_on", "File exists")
class LocksForEver(Good):
    """Its lock file outlives a daemon that is killed."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.file = host.state_dir / "lock"

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        self.file.touch(exist_ok=False)
        await super().connect(kernel)

    @hookimpl
    async def close(self) -> None:
        await super().close()
        self.file.unlink(missing_ok=True)


@caught_by("test_a_step_that_is_cancelled_is_undone", "the pool is busy", step=Life.create)
class LosesItsLock(Good):
    """A call that is cancelled keeps its lock."""

    locked = False

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        if self.locked:
            raise DriverError("the pool is busy")
        self.locked = True
        adjustment = await super().adjust_container(container)
        self.locked = False
        return adjustment


@caught_by("test_a_kernel_that_can_do_nothing", "container .* has ended")
class TrustsTheKernel(Good):
    """What the kernel can't do is an error of its."""

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        assert self.kernel is not None
        await self.kernel.update_container(container.container_id, LinuxResources(cpu_shares=2))


@caught_by("test_two_slots_know_nothing_of_each_other", "there is one of it already")
class Global(Good):
    """What it knows is the class's: two slots share it."""

    connected: ClassVar[int] = 0

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        if Global.connected:
            raise DriverError("there is one of it already")
        Global.connected += 1
        await super().connect(kernel)

    @hookimpl
    async def close(self) -> None:
        Global.connected = 0
        await super().close()


@caught_by("test_it_keeps_nothing_of_what_has_gone", "after 20 pods it holds on to containers of 20 of them")
class KeepsContainers(Good):
    """It notes every container, and strikes none out."""

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        vars(self).setdefault("seen", []).append(container)
        return await super().adjust_container(container)


@caught_by("test_closing_leaves_nothing_and_is_idempotent", "tasks that go on")
class LeavesATask(Good):
    """A task of its goes on when it is closed."""

    @hookimpl
    async def close(self) -> None:
        """Forget the task."""


@caught_by("test_closing_leaves_nothing_and_is_idempotent", "closed already")
class ClosesOnce(Good):
    """A second ``close`` is an error."""

    closed = False

    @hookimpl
    async def close(self) -> None:
        await super().close()
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class Unwilling(Good):
    """It refuses every pod, as it may."""

    @hookimpl
    async def pod_starting(self, pod: PodView) -> None:
        raise Refused("I don't like it")


@caught_by("test_one_that_is_unwilling", "an end can't be prevented")
class RefusesTheEnd(Unwilling):
    """It refuses an end."""

    @hookimpl
    async def pod_stopping(self, pod: PodView) -> None:
        raise Refused("I need it")
