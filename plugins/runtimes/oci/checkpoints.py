"""The hooks of checkpoints for any OCI runtime whose binary runs criu: freeze, write down, restore."""

import asyncio

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
from crinoid.core.api.values.runtime import ContainerHandle, ContainerProcess, ContainerStatus
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.oci import adoption
from crinoid.plugins.runtimes.oci.creation import Creation
from crinoid.plugins.runtimes.oci.criu import Criu, explain
from crinoid.plugins.runtimes.oci.deletion import Deletion
from crinoid.plugins.runtimes.oci.known_containers import KnownContainers
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes.freezing import freeze, thaw


class CheckpointHooks:
    """The part of an OCI runtime's driver that a binary without criu does without."""

    _config: OciOptions
    _traits: BinaryTraits
    _known: KnownContainers
    _creation: Creation
    _deletion: Deletion
    _criu: Criu

    @hookimpl
    async def check_checkpoint(self) -> None:
        """See the hook."""
        await self._traits.check_checkpoints()
        await self._criu.check()

    @hookimpl
    async def pause(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._known.require(handle, "pause", ContainerStatus.RUNNING, ContainerStatus.PAUSED)
        self._known.require_own_cgroup(handle, "pause")
        await freeze(self._known.cgroup(handle), self._config.deadlines.pause_s)

    @hookimpl
    async def resume(self, handle: ContainerHandle) -> None:
        """See the hook."""
        if self._known.owns_cgroup(handle):
            thaw(self._known.cgroup(handle))

    @hookimpl
    async def checkpoint(self, request: CheckpointRequest) -> None:
        """See the hook. criu leaves a cgroup that is frozen as it is."""
        await self.check_checkpoint()
        await self._known.require(request.handle, "checkpoint", ContainerStatus.PAUSED)
        paths = ("--image-path", str(request.images), "--work-path", str(request.work))
        command = ("checkpoint", *paths, "--leave-running", "--file-locks", request.handle.container_id)
        try:
            await self._traits.binary.run(command, timeout_s=request.timeout_s)
        except CrinoidError as error:
            raise explain(error, request.work / "dump.log") from error

    @hookimpl
    async def restore(self, request: RestoreRequest) -> ContainerProcess:
        """See the hook."""
        container = request.container
        self._known.require_own_cgroup(container.handle, "restore")
        await self.check_checkpoint()
        before = await asyncio.to_thread(adoption.Before.look, request.former_cgroup)
        process = await self._creation.make(container, request.timeout_s, request.images)
        try:
            await asyncio.to_thread(adoption.adopt, process.pid, self._known.cgroup(container.handle), before)
        except BaseException:
            await finish(self._deletion.remove(container.handle))
            raise
        return process
