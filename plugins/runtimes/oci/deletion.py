"""The end of a container: what runs is killed, the binary removes its state, and what is left goes by hand."""

import asyncio
import logging
import signal

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.binaries.options import Deadlines
from crinoid.plugins.runtimes.monitor.monitor import Monitor
from crinoid.plugins.runtimes.oci.known_containers import KnownContainers
from crinoid.plugins.runtimes.processes import pidfds


class Deletion:
    """Removes containers of one slot."""

    def __init__(
        self, binary: Binary, known: KnownContainers, monitor: Monitor, deadlines: Deadlines, log: logging.Logger
    ) -> None:
        self._binary = binary
        self._known = known
        self._monitor = monitor
        self._deadlines = deadlines
        self._log = log

    async def remove(self, handle: ContainerHandle) -> None:
        """Leave nothing of a container but its log. Idempotent."""
        bundle = Bundle(handle.bundle)
        noted = bundle.read_processes()
        if noted is not None and noted.plain and _has_ended(noted):
            await asyncio.to_thread(self._remove_ended, bundle, handle)
            return
        await self._end_all(bundle, handle, noted)
        if noted is None or not noted.plain:
            await self._delete_state(handle)
        if noted is not None:
            await self._monitor.end(noted)
        await asyncio.to_thread(self._remove_traces, bundle, handle)

    def _remove_ended(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """Remove a plain container that has ended with its monitor: only what it left running is to be killed."""
        cgroup = self._known.cgroup(handle)
        if self._known.owns_cgroup(handle) and not cgroups.remove_unused(cgroup):
            cgroups.kill(cgroup, self._deadlines.kill_s)
            cgroups.remove(cgroup)
        self._remove_notes(bundle, handle)

    def _remove_traces(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """What ``delete`` of the binary does besides killing, where that was left out or failed; then all notes."""
        if self._known.owns_cgroup(handle):
            cgroups.remove(self._known.cgroup(handle))
        self._remove_notes(bundle, handle)

    def _remove_notes(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """The binary's and our own; ours last, as they say what there is to remove."""
        remove_tree(self._binary.state_directory(handle.container_id))
        bundle.remove_files(self._monitor.files)

    async def _end_all(self, bundle: Bundle, handle: ContainerHandle, noted: Processes | None) -> None:
        processes = noted or self._known.processes(handle)
        if noted is None and bundle.config.exists():  # create did not come to its end
            await self._monitor.stop_creating(bundle)
        with pidfds.opened(*((processes.pid, processes.pid_start) if processes else (0, 0))) as first:
            if self._known.owns_cgroup(handle):
                await asyncio.to_thread(cgroups.kill, self._known.cgroup(handle), self._deadlines.kill_s)
            elif processes is not None:  # what came from its first process is all that is known to be its own
                await pidfds.kill_tree(processes.pid, processes.pid_start, self._deadlines.kill_s)
            if first is not None and pidfds.send(first, signal.SIGKILL):
                await pidfds.wait_for(first, self._deadlines.kill_s)

    async def _delete_state(self, handle: ContainerHandle) -> None:
        """Let the binary delete its state; a plain container can do without, and any other where this fails.

        It kills all that is in the cgroup, whoever has put it there: so it is not asked where that may be another's.
        """
        if not (self._binary.state_directory(handle.container_id).exists() and self._known.owns_cgroup(handle)):
            return
        command = ("delete", "--force", handle.container_id)
        try:
            await self._binary.run(command, timeout_s=self._deadlines.delete_s)
        except (CrinoidError, OSError) as error:
            self._log.warning(
                "container %s: %s could not delete it, removing its state by hand: %s",
                handle.container_id,
                self._binary.name,
                error,
            )


def _has_ended(noted: Processes) -> bool:
    """Return whether neither the container's first process nor its monitor lives."""
    processes = ((noted.pid, noted.pid_start), (noted.monitor_pid, noted.monitor_start))
    return not any(started and pidfds.start_time(pid) == started for pid, started in processes)
