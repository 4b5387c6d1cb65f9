"""An exec process in a container as conmon starts and reaps it; ``sync_execs`` and ``exec_streams`` have its streams.

conmon is the nearest subreaper, so it gets the exit code although the runtime's binary has gone. The process runs in a
cgroup of its own below the container's, so that whatever came from it, double forks and new sessions included, is found
when it is to be killed.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CommandFailed, CrinoidError, DeadlineExceeded, DriverError, ResourceExhausted
from crinoid.core.api.linux import cgroups, rights
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import read_pid
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error, last_error, runtime_message
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup

_STARTING_THREADS = 12
"""What runc has at most in the container's cgroup until the process is there: threads of Go's."""
STARTING_S = 0.05
"""Within what the runtime's binary mostly moves a process into its cgroup."""


@dataclass(frozen=True, slots=True)
class ExecSetup:
    """What all execs of a slot share."""

    options: OciOptions
    binary: Binary
    warmup: CgroupWarmup = field(default_factory=CgroupWarmup)


@dataclass(frozen=True, slots=True)
class ExecProcess:
    """One process, to be started from its description (an OCI ``process``) in a cgroup of its own.

    ``directory`` is for its files, ``describe`` writes the first of them.
    """

    setup: ExecSetup
    handle: ContainerHandle
    description: Mapping[str, Any]
    cgroup: ExecCgroup
    directory: Path

    @property
    def name(self) -> str:
        """How errors name where it runs."""
        return f"container {self.handle.container_id}"

    def describe(self) -> None:
        """Write the description down for the runtime."""
        rights.write_file(self.directory / "process.json", json.dumps(dict(self.description)))

    def command(self, *options: str) -> list[str]:
        """Return conmon's command line, with further options of the binary's ``exec``."""
        monitor, binary = self.setup.options.monitor, self.setup.binary
        wanted = (*self.cgroup.runtime_options(), *options)
        oom_score_adj = self.description.get("oomScoreAdj") if binary.execs_inherit_oom_score else None
        return conmon.exec_command(monitor, binary, self.handle.container_id, self.directory, wanted, oom_score_adj)

    async def started(self, monitor: conmon.Started, command: Sequence[str]) -> None:
        """Wait until the process runs. Raises DeadlineExceeded, and CommandFailed or InvalidArgument if it can't."""
        start_s = self.setup.options.deadlines.exec_start_s
        try:
            async with asyncio.timeout(start_s) as starting:
                report = await monitor.sync.read()
        except TimeoutError:
            if starting.expired():
                raise DeadlineExceeded(f"exec in {self.name} had not started after {start_s:g} s") from None
            raise
        if report is None or report.number <= 0:
            raise await self._failure(monitor, command)

    async def exit_code(self, monitor: conmon.Started) -> int:
        """Wait for the process's end, once it has started."""
        report = await monitor.sync.read()
        if report is None:
            raise DriverError(f"exec in {self.name}: conmon was killed before the process had ended")
        return report.number & 0xFF

    async def kill(self, monitor: conmon.Started) -> None:
        """Kill the process with all that came from it, then conmon, which may still wait for the runtime's binary."""
        pid, patience_s = read_pid(self.directory / "pid"), self.setup.options.deadlines.kill_s
        await self.cgroup.kill(pid, patience_s)
        monitor.process.kill(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await monitor.process.wait()
        await self.cgroup.kill(pid, patience_s)  # what the binary started meanwhile

    async def _failure(self, monitor: conmon.Started, command: Sequence[str]) -> CrinoidError:
        code = -1  # conmon has said that it failed, and ends
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(monitor.process.wait(), self.setup.options.deadlines.kill_s)
        log = self.directory / "log"
        said = last_error(log) or runtime_message(log)
        what = (f"{self.setup.binary.path} exec", *command[1:])
        error = as_error(what, code, said or f"no process was started in {self.name}, and it gave no reason")
        place = self.handle.cgroup if self.handle.cgroup.startswith("/") else ""
        if isinstance(error, CommandFailed) and (full := cgroups.full_of_processes(place, _STARTING_THREADS)):
            raise ResourceExhausted(f"{full}, too few to execute anything beside them: {error.message}") from error
        return error
