"""conmon as the monitor of a slot's containers: from the port in ``monitor`` to conmon's command line and files.

``conmon`` starts it and reads its reports; ``exit_files``, ``attach_sessions`` and ``log_reopening`` use the files and
sockets that it keeps in the bundle; ``sync_execs`` and ``exec_streams`` run processes by it.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from crinoid.core.api.buffers import BufferPool
from crinoid.core.api.errors import CrinoidError, DeadlineExceeded
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux import rights
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerRequest,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
)
from crinoid.plugins.runtimes.binaries.binary import Binary, ask, find_program
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes, read_pid
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error, last_error, runtime_message
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.attach_sessions import attach
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles
from crinoid.plugins.runtimes.monitor.exec_processes import ExecSetup
from crinoid.plugins.runtimes.monitor.exec_streams import StreamedExecs
from crinoid.plugins.runtimes.monitor.exit_files import wait_for_end
from crinoid.plugins.runtimes.monitor.log_reopening import reopen_log
from crinoid.plugins.runtimes.monitor.monitor import Monitor
from crinoid.plugins.runtimes.monitor.sync_execs import exec_sync
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.drain import drained
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup

_END_S = 5.0  # it may have a flood of output to write


class ConmonMonitor(Monitor):
    """One conmon for each container."""

    name = "conmon"
    files = ConmonFiles.NAMES

    def __init__(self, options: OciOptions, binary: Binary) -> None:
        self._options = options
        self._deadlines = options.deadlines
        self._binary = binary
        self._setup = ExecSetup(options, binary)
        self._streamed = StreamedExecs(self._setup)
        self._reopening: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    @property
    def program(self) -> Path:
        """See the base."""
        return find_program(self._options.monitor.binary, "conmon")

    async def version(self) -> str:
        """See the base."""
        said = await ask(self.program, "--version", self._deadlines.probe_s)
        return said.removeprefix("conmon version ").split("\n")[0].strip()

    def preview(self, bundle: Bundle, request: ContainerRequest) -> tuple[str, ...]:
        """See the base. conmon makes the binary's command line of what it gets as options of the runtime."""
        files = ConmonFiles(bundle.directory)
        return (shlex.join(conmon.create_command(self._options.monitor, self._binary, files, request)),)

    async def create(self, bundle: Bundle, request: ContainerRequest, checkpoint: Path | None = None) -> Processes:
        """See the base.

        conmon is started in a cgroup outside of the pod's, as the pod's limit of memory is not for it. It waits to be
        released until it is there, forks, so that it outlives us, and runs the binary, which reports on the sync pipe.
        """
        files = ConmonFiles(bundle.directory)
        command = conmon.create_command(self._options.monitor, self._binary, files, request, checkpoint)
        log = rights.open_file(files.monitor_log)
        try:
            async with conmon.started_in_cgroup(command, {2: log}, files.directory, request.monitor_cgroup) as monitor:
                monitor.release()
                # Also for a caller who has gone: until the second process has noted its id, nobody could find it.
                await finish(self._detached(monitor, request))
                # The runtime's words go through a pipe of conmon's; more than it holds would stop both for ever.
                async with drained(lambda: read_pid(files.monitor_pid_file)):
                    report = await monitor.sync.read()
                if report is None or report.number <= 0:
                    raise self._failure(files, report)
        finally:
            os.close(log)
        pids = report.number, read_pid(files.monitor_pid_file)
        return Processes(pids[0], pidfds.start_time(pids[0]), pids[1], pidfds.start_time(pids[1]))

    def find(self, bundle: Bundle, is_in_container: Callable[[int], bool]) -> Processes | None:
        """See the base. By the pid files, whose ids may be others' by now."""
        files = ConmonFiles(bundle.directory)
        pid, monitor = read_pid(files.pid_file), read_pid(files.monitor_pid_file)
        if not pid and not monitor:
            return None
        started = pidfds.start_time(pid) if is_in_container(pid) else 0
        return Processes(pid, started, monitor, _start_of_creator(monitor, files))

    async def stop_creating(self, bundle: Bundle) -> None:
        """See the base. conmon may not have noted itself yet, and goes on when its daemon is killed."""

        def find_creators() -> list[tuple[int, int]]:
            """Every conmon and runtime at work on this bundle, with their start times."""
            pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
            found = [(pid, _start_of_creator(pid, bundle)) for pid in pids]
            return [(pid, started) for pid, started in found if started]

        until_s = time.monotonic() + self._deadlines.kill_s
        while creators := await asyncio.to_thread(find_creators):
            if (left_s := until_s - time.monotonic()) <= 0:
                left = ", ".join(pidfds.describe(pid) for pid, _ in creators)
                raise DeadlineExceeded(
                    f"what was creating the container has not ended {self._deadlines.kill_s:g} s after SIGKILL, "
                    f"it hangs in the kernel: {left}"
                )
            for pid, started in creators:
                await pidfds.kill_tree(pid, started, left_s)

    async def wait(self, bundle: Bundle, processes: Processes, oom_killed: Callable[[], bool]) -> ExitStatus:
        """See the base."""
        return await wait_for_end(ConmonFiles(bundle.directory), processes, oom_killed)

    async def end(self, processes: Processes) -> None:
        """See the base."""
        with pidfds.opened(processes.monitor_pid, processes.monitor_start) as monitor:
            if monitor is not None and not await pidfds.wait_for(monitor, _END_S):
                pidfds.send(monitor, signal.SIGKILL)
                await pidfds.wait_for(monitor, self._deadlines.kill_s)

    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
        """See the base."""
        return await exec_sync(self._setup, handle, request, cgroup)

    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest, cgroup: ExecCgroup) -> ExecSession:
        """See the base."""
        return await self._streamed.start(handle, request, cgroup)

    async def attach(self, bundle: Bundle, request: AttachRequest, buffers: BufferPool) -> AttachSession:
        """See the base."""
        return await attach(ConmonFiles(bundle.directory), request, self._options.attach_buffer_bytes, buffers)

    async def reopen_log(self, bundle: Bundle) -> None:
        """See the base. Two commands at once would make conmon replace its new log by a newer one."""
        lock = self._reopening.setdefault(bundle.directory, asyncio.Lock())
        async with lock:
            await reopen_log(ConmonFiles(bundle.directory), self._deadlines.reopen_log_s)

    async def _detached(self, monitor: conmon.Started, request: ContainerRequest) -> None:
        """Wait until conmon's first process has opened the log, noted the second one's id and ended."""
        timeout_s = self._deadlines.monitor_start_s
        try:
            async with asyncio.timeout(timeout_s):
                await monitor.process.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the monitor of {request.handle.container_id} has not come to run {self._binary.name} within "
                f"{timeout_s:g} s: does its log {request.log_path} hang?"
            ) from None

    def _failure(self, files: ConmonFiles, report: conmon.Report | None) -> CrinoidError:
        """Make an error of what the binary said: in its log, to conmon, or else to nobody but conmon's own log."""
        own_log = b""
        with contextlib.suppress(OSError):
            own_log = files.monitor_log.read_bytes()
        said = (
            last_error(files.runtime_log)
            or (report.message if report else "")
            or runtime_message(files.runtime_log)
            or runtime_message(files.monitor_log, own_log)
        )
        silent = "it gave neither a process nor a reason; was it killed, or is it no OCI runtime? Try its --version"
        return as_error((str(self._binary.path), "create", "--bundle", str(files.directory)), 1, said or silent)


def _start_of_creator(pid: int, bundle: Bundle) -> int:
    """The start time of a process that was given this bundle; 0 when it has gone, or its id is another's."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return 0
    return pidfds.start_time(pid) if b"--bundle\0%b\0" % os.fsencode(bundle.directory) in command else 0
