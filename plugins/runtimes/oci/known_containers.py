"""What is known of a container without its binary: its processes, its cgroup and whether that is its own, its state.

Ends, states and signals go by process id, start time and cgroup; so a container can be stopped, watched and removed
also when the binary is gone or its state is corrupt.
"""

import json
import uuid

from crinoid.core.api.errors import DriverError, FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.values.runtime import ContainerHandle, ContainerStatus, RuntimeState
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.monitor.monitor import Monitor
from crinoid.plugins.runtimes.oci.starting import FIFO, has_begun
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.cgroup_places import is_frozen
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup


class KnownContainers:
    """The containers of one slot."""

    def __init__(self, traits: BinaryTraits, monitor: Monitor) -> None:
        self._traits = traits
        self._binary = traits.binary
        self._monitor = monitor

    def cgroup(self, handle: ContainerHandle) -> str:
        """Return the container's cgroup below the mount point."""
        return below_mount(handle.cgroup)

    def owns_cgroup(self, handle: ContainerHandle) -> bool:
        """Return whether what is in the container's cgroup may be killed, frozen and removed with it.

        A handle may come from an old record, or one that is damaged: the cgroup itself tells.
        """
        try:
            return cgroups.belongs_to(self.cgroup(handle), handle.container_id)
        except InvalidArgument:  # a name that is not of this slot's form
            return False

    def require_own_cgroup(self, handle: ContainerHandle, act: str) -> None:
        """Raise FailedPrecondition unless the cgroup is the container's own."""
        if not self.owns_cgroup(handle):
            raise FailedPrecondition(
                f"{act}: cgroup {handle.cgroup!r:.300} is not container {handle.container_id}'s own: it does not "
                "have its id for a name, and was not made for it"
            )

    def exec_cgroup(self, handle: ContainerHandle, *, joined: bool = False) -> ExecCgroup:
        """Return a new cgroup for an exec process, to be made below the container's.

        ``joined``: the process is not the binary's to start, which may want it in every hierarchy.
        """
        name = f"exec-{uuid.uuid4().hex[:16]}" if joined or self._traits.execs_in_cgroups else ""
        return ExecCgroup(self.cgroup(handle), name, everywhere=not joined and self._traits.leaves_other_cgroups)

    def processes(self, handle: ContainerHandle) -> Processes | None:
        """What was started for the container: as noted, else (the daemon was killed meanwhile) as its monitor knows."""
        bundle = Bundle(handle.bundle)
        return bundle.read_processes() or self._monitor.find(
            bundle, lambda pid: pid in cgroups.processes(self.cgroup(handle))
        )

    async def state(self, handle: ContainerHandle) -> RuntimeState:
        """Return the container's state; ``ABSENT`` when there is none."""
        processes = self.processes(handle)
        state = self._binary.state_directory(handle.container_id)
        if processes is None:
            return RuntimeState(ContainerStatus.STOPPED if state.exists() else ContainerStatus.ABSENT)
        if pidfds.start_time(processes.pid) != processes.pid_start or not processes.pid_start:
            return RuntimeState(ContainerStatus.STOPPED)
        if self._traits.keeps_fifo:
            waits = (state / FIFO).exists() and not has_begun(processes.pid, self._binary.name)
        else:
            waits = await self._is_created(handle)
        if waits:
            return RuntimeState(ContainerStatus.CREATED, processes.pid)
        frozen = is_frozen(self.cgroup(handle))
        return RuntimeState(ContainerStatus.PAUSED if frozen else ContainerStatus.RUNNING, processes.pid)

    async def require(self, handle: ContainerHandle, act: str, *wanted: ContainerStatus) -> int:
        """Return the first process's id. Raises NotFound, and FailedPrecondition for another state."""
        state = await self.state(handle)
        if state.status is ContainerStatus.ABSENT:
            raise NotFound(f"{act}: container {handle.container_id}: {self._binary.name} has nothing of it")
        if state.status not in wanted:
            raise FailedPrecondition(f"{act}: container {handle.container_id} is {state.status.value}")
        return state.pid

    async def _is_created(self, handle: ContainerHandle) -> bool:
        """Ask a binary that keeps its state in its own way (OCI runtime-spec, runtime.md, "Query State")."""
        finished = await self._binary.run(("state", handle.container_id), timeout_s=self._traits.probe_s)
        try:
            found: object = json.loads(finished.stdout)
        except ValueError as error:
            raise DriverError(f"{self._binary.name} state {handle.container_id} gave no JSON: {error}") from error
        return isinstance(found, dict) and found.get("status") == "created"
