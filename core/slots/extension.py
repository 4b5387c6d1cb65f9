"""The extensions as ``lifecycle`` calls them: every one is told, in the configuration's order, each by its own rules.

A hook is called once for each extension, so that a failure has a name, a deadline and a policy:
``on_failure = "ignore"`` logs it, ``"fail"`` raises it. A refusal is no failure and is always raised.
"""

import logging
from collections.abc import Sequence

from crinoid.core.api.adjustments import check_adjustment, check_resources
from crinoid.core.api.errors import BadAdjustment, CrinoidError, InvalidArgument, Refused
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, ExtensionHooks, PullView
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.config.models import Deadlines, ExtensionSlotConfig
from crinoid.core.slots.answers import Check, T, nothing, one_or_none
from crinoid.core.slots.calls import Binding, Slot
from crinoid.core.slots.facades import calls_hooks

_log = logging.getLogger("crinoid.slots.extension")


class ExtensionSlot(Slot):
    """One extension."""

    def __init__(self, binding: Binding, config: ExtensionSlotConfig) -> None:
        is_configured = "deadline_s" in config.model_fields_set or binding.own_deadline_s is None
        super().__init__(binding, Deadlines(default=config.deadline_s if is_configured else binding.own_deadline_s))
        is_configured = "on_failure" in config.model_fields_set
        self._fails = (config.on_failure if is_configured else binding.own_on_failure) == "fail"

    @property
    def binding(self) -> Binding:
        """The driver as it is bound to this slot."""
        return self._binding

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
        answers = super()._start(
            hook, arguments
        )  # pluggy returns a list, as hooks of this role are not ``firstresult``
        return answers[0] if answers else None


def _adjustment(answer: object) -> ContainerAdjustment | None:
    """An invalid one is the extension's failure, not the request's."""
    adjustment = one_or_none(ContainerAdjustment)(answer)
    if adjustment is not None:
        try:
            check_adjustment(adjustment)
        except InvalidArgument as error:
            raise BadAdjustment(f"asks for an invalid adjustment: {error}") from error
    return adjustment


def _limits(answer: object) -> LinuxResources | None:
    """As ``_adjustment``, of a container whose limits are being changed."""
    limits = one_or_none(LinuxResources)(answer)
    if limits is not None:
        try:
            check_resources(limits)
        except InvalidArgument as error:
            raise BadAdjustment(f"asks for invalid limits: {error}") from error
    return limits


_OF_ENDS = frozenset({"close", "pod_stopping", "pod_stopped", "pod_removed", "container_exited", "container_removed"})
"""Hooks that tell of an end, which nothing may hold up."""


@calls_hooks(ExtensionHooks)
class ExtensionSlots(ExtensionHooks):
    """All extensions. Every method is the hook of its name.

    Raises the error of the first extension that refuses, or that fails and whose ``on_failure`` is ``fail``; later ones
    aren't notified. The hooks that tell of an end raise nothing: all are notified, and what they raise is logged.
    """

    def __init__(self, slots: Sequence[ExtensionSlot] = ()) -> None:
        self.slots = tuple(slots)

    def __bool__(self) -> bool:
        """Return whether there is any extension."""
        return bool(self.slots)

    async def adjust_container(  # type: ignore[override]  # many answer, each by its name
        self, container: ContainerView
    ) -> tuple[tuple[str, ContainerAdjustment], ...]:
        """Ask each extension what to change in a container; return what they gave, with the names of their slots."""
        found = []
        for slot in self.slots:
            adjustment = await slot.call("adjust_container", _adjustment, container=container)
            if adjustment is not None:
                found.append((slot.name, adjustment))
        return tuple(found)

    async def image_pulling(  # type: ignore[override]  # many answer, each by its name
        self, image: PullView
    ) -> tuple[tuple[str, str], ...]:
        """Ask each extension about an image; return what they said, with the names of their slots."""
        found = []
        for slot in self.slots:
            words = await slot.call("image_pulling", one_or_none(str), image=image)
            if words:
                found.append((slot.name, words))
        return tuple(found)

    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources:
        """Ask each extension what to change; return the last word."""
        for slot in self.slots:
            changed = await slot.call("container_updating", _limits, container=container, resources=resources)
            resources = resources if changed is None else changed
        return resources

    async def _notify(self, hook: str, **arguments: object) -> None:
        """Call a hook of all. One that tells of an end goes on where the caller is cancelled: it is not told again."""
        if hook in _OF_ENDS:
            await finish(self._notify_of_end(hook, arguments))
        else:
            for slot in self.slots:
                await slot.call(hook, nothing, **arguments)

    async def _notify_of_end(self, hook: str, arguments: dict[str, object]) -> None:
        for slot in self.slots:
            try:
                await slot.call(hook, nothing, **arguments)
            except CrinoidError as error:
                _log.error("%s; nothing is held up by it, as something ends", error.message)
