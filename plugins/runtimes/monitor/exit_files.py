"""How a container's end becomes known: conmon writes the exit code down and ends; if it is killed, the kernel is asked.

Nothing runs in the background: whoever waits holds a pidfd of conmon and one of the container's first process. So a
new daemon over the same directories waits as well as the one that made the container.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from crinoid.core.api.values.runtime import ExitStatus
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles
from crinoid.plugins.runtimes.processes import pidfds

UNKNOWN_CODE = 255
_MONITOR_GRACE_S = 10.0  # for conmon to write down the end; it may be draining a flood of output

OomKills = Callable[[], bool]
"""Tells whether the kernel has killed in the container's cgroup for want of memory."""


def known_end(bundle: ConmonFiles, oom_killed: OomKills) -> ExitStatus | None:
    """Return the end that is on record; ``None`` when there is none (yet)."""
    unseen = bundle.read_unseen_exit()
    if unseen is not None:
        return unseen
    found = bundle.read_exit()
    if found is None:
        return None
    code, finished_at_ns = found
    # A container that outlived the kill of one of its processes, and ended well, was not ended by it.
    return ExitStatus(code, finished_at_ns, oom_killed=code != 0 and (bundle.oom_file.exists() or oom_killed()))


async def wait_for_end(bundle: ConmonFiles, processes: Processes, oom_killed: OomKills) -> ExitStatus:
    """Wait, with no deadline, for the container's end and return it; any number may wait."""
    with (
        pidfds.opened(processes.monitor_pid, processes.monitor_start) as monitor,
        pidfds.opened(processes.pid, processes.pid_start) as container,
    ):
        status = known_end(bundle, oom_killed)
        if status is not None:
            return status
        if monitor is not None:
            # conmon writes the exit file and ends, a moment after the container. Where the container ends and conmon
            # does not, as when somebody has stopped it, it will not say a word.
            waits = [asyncio.ensure_future(pidfds.wait(one)) for one in (monitor, container) if one is not None]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(waits[:1], timeout=_MONITOR_GRACE_S)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
            status = known_end(bundle, oom_killed)
            if status is not None:
                return status
        if container is not None:
            await pidfds.wait(container)
        # It had lost its monitor: its end is as the kernel tells it, else unknown.
        code = None if container is None else pidfds.exit_code(container, processes.pid)
        noted = known_end(bundle, oom_killed)  # by conmon after all, or by another who waits
        if noted is not None:
            return noted
        killed = code != 0 and (bundle.oom_file.exists() or oom_killed())  # on a tmpfs
        known, code = code is not None, UNKNOWN_CODE if code is None else code
        status = ExitStatus(code, time.time_ns(), oom_killed=killed, known=known)
        with contextlib.suppress(OSError):  # a full disk must not hide the end
            bundle.write_unseen_exit(status)
        return status
