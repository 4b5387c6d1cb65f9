"""An exec process in a container, run to its end by conmon, which passes its own streams on to it."""

import asyncio
import math
import time
from collections.abc import Sequence

from crinoid.core.api.finishing import finish
from crinoid.core.api.values.runtime import ContainerHandle, ExecOutput, ExecRequest
from crinoid.plugins.runtimes.binaries.stdio import ended_input
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.exec_processes import STARTING_S, ExecProcess, ExecSetup
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup
from crinoid.plugins.runtimes.processes.exec_output import Output, overdue

_LATER_S = 5
_MOST_S = (1 << 31) - 1  # conmon reads a C int, and refuses more


async def exec_sync(setup: ExecSetup, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
    """Run the process to its end. Raises DeadlineExceeded after killing all that came from it."""
    with setup.binary.scratch.temporary_directory() as directory, Output(request.max_output_bytes) as output:
        async with cgroup:
            setup.warmup.linger(STARTING_S)
            process = ExecProcess(setup, handle, request.process, cgroup, directory)
            process.describe()
            return await _run(process, request, output)


async def _run(process: ExecProcess, request: ExecRequest, output: Output) -> ExecOutput:
    command, timeout_s = process.command(), request.timeout_s or None
    if timeout_s is not None:  # should the daemon be killed, conmon at least ends the process itself, some time later
        command.append(f"--timeout={min(math.ceil(timeout_s) + _LATER_S, _MOST_S)}")
    with ended_input() as nothing, output.writers() as fds:
        starting = conmon.started_in_cgroup(command, {0: nothing, **fds}, process.directory, "")
        async with starting as monitor:
            output.close_writers()
            output.watch()
            monitor.release()
            begun_s = time.monotonic()
            code = await _outcome(process, monitor, command, request)
            left_s = math.inf if timeout_s is None else begun_s + timeout_s - time.monotonic()
            await output.drained(max(0, min(process.setup.options.deadlines.exec_drain_s, left_s)))
            return ExecOutput(code, output.stdout, output.stderr)


async def _outcome(process: ExecProcess, monitor: conmon.Started, command: Sequence[str], request: ExecRequest) -> int:
    """Wait for the end; kill what is left of it when that takes too long or is given up."""
    try:
        async with asyncio.timeout(request.timeout_s or None):
            with process.setup.warmup.lasting():
                await process.started(monitor, command)
            return await process.exit_code(monitor)
    except BaseException as error:
        await finish(process.kill(monitor))
        if isinstance(error, TimeoutError):
            raise overdue(process.name, request) from None
        raise
