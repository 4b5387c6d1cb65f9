"""The network role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/network`` with their types."""

from collections.abc import Mapping
from dataclasses import replace

from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.core.slots.answers import json_object, one
from crinoid.core.slots.calls import Slot


class NetworkSlot(Slot):
    """One network. Every method is the hook of its name: see :class:`NetworkHooks` for what it means."""

    def features(self) -> NetworkFeatures:
        """Tell what kind of network this is."""
        return self._ask_now("features", one(NetworkFeatures))

    async def status(self) -> NetworkStatus:
        """Return whether a pod could be attached now."""
        return await self._ask("status", one(NetworkStatus))

    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        """Return all that ``attach`` and ``detach`` need to know: a JSON object, checked to be one."""
        return await self._ask("plan", json_object, request=request)

    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        """Attach the pod; the attachment's data is checked to be a JSON object."""
        return await self._ask("attach", _attachment, request=request, plan=plan)

    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Undo an attachment."""
        await self._tell("detach", request=request, data=data)

    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Raise DriverError when the attachment is not as it was made."""
        await self._tell("check", request=request, data=data)

    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        """Take the node's address ranges."""
        await self._tell("set_pod_cidrs", cidrs=cidrs)

    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        """Undo every attachment but these."""
        await self._tell("collect_garbage", valid=valid)

    async def close(self) -> None:
        """Finish what is being undone in the background."""
        await self._tell("close")


def _attachment(answer: object) -> Attachment:
    attachment = one(Attachment)(answer)
    return replace(attachment, data=json_object(attachment.data))
