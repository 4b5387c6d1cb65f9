"""The runtime role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/runtime``."""

import asyncio
import functools
import math
import socket
from collections.abc import Sequence

from crinoid.core.api.errors import NotFound, NotImplementedHere
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerProcess,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
    PodSandbox,
    RuntimeTraits,
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.core.slots.answers import nothing, one, usage, usages
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.facades import calls_hooks
from crinoid.core.slots.sessions import NamedAttachSession, NamedExecSession

_EXEC_SESSION = one(ExecSession)  # type: ignore[type-abstract]  # it is only asked whether it is one
_ATTACH_SESSION = one(AttachSession)  # type: ignore[type-abstract]


@calls_hooks(RuntimeHooks, {"stats": usage, "pod_stats": usage})
class RuntimeSlot(Slot, RuntimeHooks):
    """One runtime handler. Every method is the hook of its name.

    Raises what the hook raises, with the slot's name before it; DriverError for what no hook may raise or return,
    DeadlineExceeded when the driver takes too long. What a driver may leave out and a request asks for is
    NotImplementedHere.
    """

    _traits: RuntimeTraits | None = None

    def traits(self) -> RuntimeTraits:
        """Return in what the driver differs from one that runs the node's own programs; it is asked once."""
        if self._traits is None:
            is_told = self.implements("traits")
            self._traits = self._ask_now("traits", one(RuntimeTraits)) if is_told else RuntimeTraits()
        return self._traits

    async def wait_pod(self, pod: PodSandbox) -> str:
        """Wait for the end of what ``start_pod`` has made, however long that takes."""
        return await self._ask("wait_pod", one(str), math.inf, pod=pod)

    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        """Connect to a port inside of a pod."""
        made = await self._ask("forward_port", one(socket.socket), pod=pod, port=port)
        made.setblocking(False)  # the event loop would stand still
        return made

    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """Wait for the container's end, however long that takes."""
        return await self._ask("wait", one(ExitStatus), math.inf, handle=handle)

    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        """Run an exec process to its end, which the driver bounds by the request's own timeout."""
        self._require("exec_sync", "can't execute commands in containers")
        limit = math.inf if request.timeout_s is None else request.timeout_s + self._deadlines.of("exec_sync")
        return await self._ask("exec_sync", one(ExecOutput), limit, handle=handle, request=request)

    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        """Start an exec process and return its streams. Raises NotImplementedHere where the driver can't."""
        self._require("exec_stream")
        session = await self._ask("exec_stream", _EXEC_SESSION, handle=handle, request=request)
        return NamedExecSession(session, functools.partial(self._contained, "exec_stream"))

    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        """Join the container's streams. Raises NotImplementedHere where the driver can't."""
        self._require("attach")
        session = await self._ask("attach", _ATTACH_SESSION, handle=handle, request=request)
        return NamedAttachSession(session, functools.partial(self._contained, "attach"))

    async def stats_many(self, handles: Sequence[ContainerHandle]) -> tuple[CgroupUsage | None, ...]:
        """Read what many containers use, one by one where the driver can't at one look; ``None``: it has ended."""
        if not self.implements("stats_many"):
            return tuple(await asyncio.gather(*map(self._stats_or_none, handles)))
        check = usages(len(handles))
        return await self._ask("stats_many", check, self._deadlines.of("stats"), handles=tuple(handles))

    async def _stats_or_none(self, handle: ContainerHandle) -> CgroupUsage | None:
        try:
            return await self.stats(handle)
        except NotFound:
            return None

    async def check_checkpoint(self) -> None:
        """Raise Unsupported, or NotImplementedHere, where containers can't be checkpointed and restored."""
        self._require("checkpoint", "can't checkpoint")
        self._require("restore", "can't restore")
        await self._notify("check_checkpoint")

    async def pause(self, handle: ContainerHandle) -> None:
        """Freeze the container. Raises NotImplementedHere where the driver can't."""
        self._require("pause", "can't pause")
        await self._notify("pause", handle=handle)

    async def checkpoint(self, request: CheckpointRequest) -> None:
        """Write down what the processes of a paused container do, which the driver bounds by the request's timeout."""
        self._require("checkpoint", "can't checkpoint")
        limit = request.timeout_s + self._deadlines.of("checkpoint")
        await self._ask("checkpoint", nothing, limit, request=request)

    async def restore(self, request: RestoreRequest) -> ContainerProcess:
        """Make a container whose processes go on, which the driver bounds by the request's timeout."""
        self._require("restore", "can't restore")
        limit = request.timeout_s + self._deadlines.of("create")
        return await self._ask("restore", one(ContainerProcess), limit, request=request)

    def _require(self, hook: str, lack: str = "does not stream") -> None:
        if not self.implements(hook):
            raise NotImplementedHere(f"{self.label} has no {hook}: its driver {lack}")
