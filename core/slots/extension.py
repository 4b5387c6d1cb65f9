"""The extensions as ``lifecycle`` calls them: every one is told, in the configuration's order, each by its own rules.

A hook is called once for each extension, so that a failure has a name, a deadline and a policy:
``on_failure = "ignore"`` logs it, ``"fail"`` raises it. A refusal is no failure and is always raised.
"""

import logging
from collections.abc import Sequence

from crinoid.core.api.adjustments import check_adjustment, check_resources
from crinoid.core.api.errors import BadAdjustment, CrinoidError, InvalidArgument, Refused
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, Kernel, PodView
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import ExitStatus
from crinoid.core.config.models import Deadlines, ExtensionSlotConfig
from crinoid.core.slots.answers import Check, T, nothing, one_or_none
from crinoid.core.slots.calls import Binding, Slot

_log = logging.getLogger("crinoid.slots.extension")


class ExtensionSlot(Slot):
    """One extension."""

    def __init__(self, binding: Binding, config: ExtensionSlotConfig) -> None:
        is_configured = "deadline_s" in config.model_fields_set or binding.own_deadline_s is None
        super().__init__(binding, Deadlines(default=config.deadline_s if is_configured else binding.own_deadline_s))
        self._fails = config.on_failure == "fail"

    async def call(self, hook: str, check: Check[T], /, **arguments: object) -> T | None:
        """Call a hook that the extension may have; ``None`` without it, and for a failure that is to be ignored."""
        if not self.implements(hook):
            return None
        try:
            return await self._ask(hook, check, **arguments)
        except CrinoidError as error:
            if self._fails or isinstance(error, Refused):
                raise
            _log.warning("%s; ignored, as on_failure says", error.message)
            return None

    def _start(self, hook: str, arguments: dict[str, object]) -> object:
        answers = super()._start(hook, arguments)
        return answers[0] if answers else None


def _adjustment(answer: object) -> ContainerAdjustment | None:
    """One that makes no sense is the extension's failure, not the request's."""
    adjustment = one_or_none(ContainerAdjustment)(answer)
    if adjustment is not None:
        try:
            check_adjustment(adjustment)
        except InvalidArgument as error:
            raise BadAdjustment(f"wants what makes no sense: {error}") from error
    return adjustment


def _limits(answer: object) -> LinuxResources | None:
    """As ``_adjustment``, of a container whose limits are being changed."""
    limits = one_or_none(LinuxResources)(answer)
    if limits is not None:
        try:
            check_resources(limits)
        except InvalidArgument as error:
            raise BadAdjustment(f"wants limits that make no sense: {error}") from error
    return limits


class ExtensionSlots:
    """All extensions. Every method is the hook of its name: see :class:`ExtensionHooks` for what it means.

    Raises the error of the first extension that refuses, or that fails and whose ``on_failure`` is ``fail``; later ones
    aren't told. What tells of an end (``pod_stopping``, ``…_stopped``, ``…_exited``, ``…_removed``, ``close``) raises
    nothing: all are told, and what they raise is logged.
    """

    def __init__(self, slots: Sequence[ExtensionSlot] = ()) -> None:
        self.slots = tuple(slots)

    def __bool__(self) -> bool:
        """Return whether there is any extension."""
        return bool(self.slots)

    async def connect(self, kernel: Kernel) -> None:
        """Tell that the node is about to serve, and hand over what an extension may ask."""
        await self._tell_all("connect", kernel=kernel)

    async def close(self) -> None:
        """Tell that the daemon stops."""
        await self._tell_end("close")

    async def pod_starting(self, pod: PodView) -> None:
        """Tell that a pod sandbox is made."""
        await self._tell_all("pod_starting", pod=pod)

    async def pod_started(self, pod: PodView) -> None:
        """Tell that a pod sandbox is ready."""
        await self._tell_all("pod_started", pod=pod)

    async def pod_updating(
        self, pod: PodView, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        """Tell that a pod's limits are about to change."""
        await self._tell_all("pod_updating", pod=pod, resources=resources, overhead=overhead)

    async def pod_updated(self, pod: PodView) -> None:
        """Tell that a pod's limits were changed."""
        await self._tell_all("pod_updated", pod=pod)

    async def pod_stopping(self, pod: PodView) -> None:
        """Tell that a pod sandbox is about to lose its network."""
        await self._tell_end("pod_stopping", pod=pod)

    async def pod_stopped(self, pod: PodView) -> None:
        """Tell that a pod sandbox was stopped."""
        await self._tell_end("pod_stopped", pod=pod)

    async def pod_removed(self, pod: PodView) -> None:
        """Tell that a pod sandbox was removed."""
        await self._tell_end("pod_removed", pod=pod)

    async def adjust_container(self, container: ContainerView) -> tuple[tuple[str, ContainerAdjustment], ...]:
        """Ask each extension what to change in a container; return what they gave, with the names of their slots."""
        found = []
        for slot in self.slots:
            adjustment = await slot.call("adjust_container", _adjustment, container=container)
            if adjustment is not None:
                found.append((slot.name, adjustment))
        return tuple(found)

    async def container_created(self, container: ContainerView) -> None:
        """Tell that a container was created."""
        await self._tell_all("container_created", container=container)

    async def container_starting(self, container: ContainerView) -> None:
        """Tell that a container is about to run."""
        await self._tell_all("container_starting", container=container)

    async def container_started(self, container: ContainerView) -> None:
        """Tell that a container runs."""
        await self._tell_all("container_started", container=container)

    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources:
        """Ask each extension what to change; return the last word."""
        for slot in self.slots:
            changed = await slot.call("container_updating", _limits, container=container, resources=resources)
            resources = resources if changed is None else changed
        return resources

    async def container_updated(self, container: ContainerView) -> None:
        """Tell that a container's limits were changed."""
        await self._tell_all("container_updated", container=container)

    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        """Tell that a container ended."""
        await self._tell_end("container_exited", container=container, status=status)

    async def container_removed(self, container: ContainerView) -> None:
        """Tell that a container was removed."""
        await self._tell_end("container_removed", container=container)

    async def image_pulled(self, reference: str, image_id: str) -> None:
        """Tell that a pull completed."""
        await self._tell_all("image_pulled", reference=reference, image_id=image_id)

    async def image_removed(self, image_id: str) -> None:
        """Tell that an image was removed."""
        await self._tell_all("image_removed", image_id=image_id)

    async def _tell_all(self, hook: str, **arguments: object) -> None:
        for slot in self.slots:
            await slot.call(hook, nothing, **arguments)

    async def _tell_end(self, hook: str, **arguments: object) -> None:
        """Tell all, also where the caller is cancelled meanwhile: what has ended is not told again."""
        await finish(self._tell_each(hook, arguments))

    async def _tell_each(self, hook: str, arguments: dict[str, object]) -> None:
        for slot in self.slots:
            try:
                await slot.call(hook, nothing, **arguments)
            except CrinoidError as error:
                _log.error("%s; nothing is held up by it, as something ends", error.message)
