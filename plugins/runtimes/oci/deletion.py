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
        bundle, kill_s = Bundle(handle.bundle), self._deadlines.kill_s
        noted = bundle.read_processes()
        is_own, is_plain = self._known.owns_cgroup(handle), noted is not None and noted.plain
        if noted is not None and is_plain and _has_ended(noted):
            # The usual case: nothing is to be waited for, and the binary is not needed.
            await asyncio.to_thread(self._remove_traces, bundle, handle, has_ended=True)
            return

        # 1. Whatever runs. The pidfd is opened first: an id may be another's by the time that all others are dead.
        processes = noted or self._known.processes(handle)
        if noted is None and bundle.config.exists():  # create did not come to its end
            await self._monitor.stop_creating(bundle)
        with pidfds.opened(*((processes.pid, processes.pid_start) if processes else (0, 0))) as first:
            if is_own:
                await asyncio.to_thread(cgroups.kill, self._known.cgroup(handle), kill_s)
            elif processes is not None:  # what came from its first process is all that is known to be its own
                await pidfds.kill_tree(processes.pid, processes.pid_start, kill_s)
            if first is not None and pidfds.send(first, signal.SIGKILL):
                await pidfds.wait_for(first, kill_s)

        # 2. The binary's state, by the binary. A plain container can do without, and any other where this fails. It
        # kills all that is in the cgroup, whoever has put it there: so it is not asked where that may be another's.
        state = self._binary.state_directory(handle.container_id)
        if not is_plain and state.exists() and is_own:
            command = ("delete", "--force", handle.container_id)
            try:
                await self._binary.run(command, timeout_s=self._deadlines.delete_s)
            except (CrinoidError, OSError) as error:
                what = f"container {handle.container_id}: {self._binary.name} could not delete it"
                self._log.warning("%s, removing its state by hand: %s", what, error)

        # 3. The monitor, which ends by itself after its container, and then what the binary has left.
        if noted is not None:
            await self._monitor.end(noted)
        await asyncio.to_thread(self._remove_traces, bundle, handle, has_ended=False)

    def _remove_traces(self, bundle: Bundle, handle: ContainerHandle, *, has_ended: bool) -> None:
        """What ``delete`` of the binary does besides killing, where that was left out or failed; then all notes: our
        own last, as they say what there is to remove."""
        if self._known.owns_cgroup(handle):
            cgroup = self._known.cgroup(handle)
            # A container that has ended by itself may have left processes in its cgroup; mostly there are none.
            is_gone = has_ended and cgroups.remove_unused(cgroup)
            if has_ended and not is_gone:
                cgroups.kill(cgroup, self._deadlines.kill_s)
            if not is_gone:
                cgroups.remove(cgroup)
        remove_tree(self._binary.state_directory(handle.container_id))
        bundle.remove_files(self._monitor.files)


def _has_ended(noted: Processes) -> bool:
    """Return whether neither the container's first process nor its monitor lives."""
    processes = ((noted.pid, noted.pid_start), (noted.monitor_pid, noted.monitor_start))
    return not any(started and pidfds.start_time(pid) == started for pid, started in processes)
