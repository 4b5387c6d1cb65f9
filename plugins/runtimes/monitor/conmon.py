"""conmon, the monitor: it runs the runtime's binary, becomes its container's guardian, and reports what came of it.

What is said here is about conmon 2.1 (tried with 2.1.6): it waits for a byte on the descriptor ``_OCI_STARTPIPE``, so
that it can be put into a cgroup first; it detaches; it runs the runtime; and it writes JSON lines to ``_OCI_SYNCPIPE``.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux.cgroup_names import is_scope
from crinoid.core.api.linux.descriptors import readable
from crinoid.core.api.linux.process import Process, spawn, spawn_in_cgroup
from crinoid.core.api.values.runtime import ContainerRequest
from crinoid.plugins.runtimes.binaries.binary import Binary, environment, find_program
from crinoid.plugins.runtimes.binaries.oom import with_oom_score_adj
from crinoid.plugins.runtimes.binaries.options import MonitorOptions
from crinoid.plugins.runtimes.binaries.stdio import without_null_input, without_null_streams
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles

_SYNC_FD = 3
_START_FD = 4
_MAX_REPORT_BYTES = 1 << 20  # conmon's own reports have some 8 KiB of the runtime's words at most
_NO_SLICES = "always-malloc"  # GLib before 2.76 has an allocator of its own besides: 12 of a conmon's 350 KiB
_CONSOLE_NAME_BYTES = 32  # conmon's own name for its console socket, within the 107 bytes of a unix socket's path


@dataclass(frozen=True, slots=True)
class Report:
    """One line of the sync pipe: a process id or exit code, and the runtime's words if it failed."""

    number: int
    message: str = ""


class SyncPipe:
    """The end of the sync pipe that conmon's reports are read from."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._buffer = b""

    async def read(self) -> Report | None:
        """Wait for the next report, with no deadline; ``None``: conmon closed the pipe or wrote what is none."""
        while b"\n" not in self._buffer:
            await readable(self._reader)
            piece = os.read(self._reader, 1 << 16)
            if not piece or len(self._buffer) > _MAX_REPORT_BYTES:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            # ``data`` with --api-version, as an exec has it, else ``pid``; negative where the runtime failed.
            found = json.loads(line)
            return Report(int(found.get("data", found.get("pid", -1))), str(found.get("message", "")))
        except (ValueError, AttributeError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Started:
    """A conmon that was spawned and waits for ``release``."""

    process: Process
    sync: SyncPipe
    start: int

    def release(self) -> None:
        """Let it go on: it is in the cgroup where it belongs. The sync pipe tells if it has ended already."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.start, b"\n")


@contextlib.contextmanager
def started(command: Sequence[str], fds: Mapping[int, int], cwd: Path) -> Iterator[Started]:
    """A conmon with its two pipes; the pipes and the handle are closed at the end, conmon itself may live on.

    ``fds`` are its standard streams; a socket for a terminal is made in ``cwd``. If it was not released, the caller
    must have killed it: to conmon, the end of the start pipe means go.
    """
    with _Pipes(fds, cwd) as pipes:
        yield pipes.leave_to(spawn(command, env=pipes.env, fds=pipes.fds, cwd=cwd))


@contextlib.asynccontextmanager
async def started_in_cgroup(
    command: Sequence[str], fds: Mapping[int, int], cwd: Path, cgroup: str
) -> AsyncIterator[Started]:
    """As ``started``; it runs in this cgroup, which is made if need be, or where the daemon does if that is empty."""
    with _Pipes(fds, cwd) as pipes:
        yield pipes.leave_to(await spawn_in_cgroup(command, env=pipes.env, fds=pipes.fds, cwd=cwd, cgroup=cgroup))


class _Pipes(contextlib.AbstractContextManager["_Pipes"]):
    """The two pipes of a conmon that is about to start; ``env`` and ``fds`` are what it is started with."""

    def __init__(self, fds: Mapping[int, int], cwd: Path) -> None:
        self._ours, self._theirs = contextlib.ExitStack(), contextlib.ExitStack()
        self._sync, sync_writer = _pipe(self._ours, self._theirs)
        start_reader, self._start = _pipe(self._theirs, self._ours)
        self.fds = {**fds, _SYNC_FD: sync_writer, _START_FD: start_reader}
        numbers = {"_OCI_SYNCPIPE": str(_SYNC_FD), "_OCI_STARTPIPE": str(_START_FD)}
        # conmon makes its console socket in TMPDIR: a directory of ours, where the path fits into a socket's address.
        is_short = len(os.fsencode(cwd)) + _CONSOLE_NAME_BYTES < 108
        console_directory = str(cwd) if is_short else "/tmp"  # noqa: S108  # conmon's own default
        self.env = {**numbers, "TMPDIR": console_directory, "G_SLICE": _NO_SLICES, **environment()}

    def leave_to(self, process: Process) -> Started:
        """Close what is the process's now, and take the process on."""
        self._ours.callback(process.close)
        self._theirs.close()
        return Started(process, SyncPipe(self._sync), self._start)

    def __exit__(self, *exc: object) -> None:
        self._theirs.close()
        self._ours.close()


def create_command(
    monitor: MonitorOptions,
    binary: Binary,
    bundle: ConmonFiles,
    request: ContainerRequest,
    checkpoint: Path | None = None,
) -> list[str]:
    """Return the command line that creates a container. conmon forks once more, so that nobody has to reap it.

    ``checkpoint``: criu's images to restore it from; conmon has the binary write criu's log into the bundle.
    """
    container_id, log = request.handle.container_id, request.log_path
    if ":" in str(log or ""):  # it parts driver and path
        raise InvalidArgument(f"log path {log} has a colon, which conmon can't take")
    command = [str(find_program(monitor.binary, "conmon")), "--cid", container_id, "--cuuid", container_id]
    command += ["--bundle", str(bundle.directory)]
    command += ["--persist-dir", str(bundle.directory), "--full-attach", "--log-level", monitor.log_level]
    command += ["--container-pidfile", str(bundle.pid_file), "--conmon-pidfile", str(bundle.monitor_pid_file)]
    command += ["--log-path", "none" if log is None else f"k8s-file:{log}"]
    command += [] if monitor.sync_log else ["--no-sync-log"]
    command += ["--terminal"] if request.terminal else []
    command += ["--stdin"] if request.stdin else []
    command += ["--leave-stdin-open"] if request.stdin and not request.stdin_once else []
    runtime: tuple[str, ...] = (str(binary.program), *binary.global_options(bundle.runtime_log))
    if is_scope(request.handle.cgroup):  # conmon's own option of this name would put it before a shell's script below
        runtime = (*runtime, "--systemd-cgroup")
    if binary.gives_streams_away:  # what conmon has no pipe for is the host's /dev/null
        if request.terminal:
            runtime = without_null_streams(runtime)
        elif not request.stdin:
            runtime = without_null_input(runtime)
    restore = () if checkpoint is None else ("--restore", str(checkpoint), "--runtime-opt=--file-locks")
    return [*command, *_runtime(runtime), *restore]


def exec_command(
    monitor: MonitorOptions,
    binary: Binary,
    container_id: str,
    directory: Path,
    options: Sequence[str],
    oom_score_adj: int | None,
) -> list[str]:
    """Return the command line that runs the process described in ``directory``, its streams being conmon's own.

    conmon is only there to reap the process: it stays our child (``--sync``) and touches no output (``passthrough``).
    ``oom_score_adj`` is for a binary that does not heed the description's; ``None`` for others.
    """
    command = [str(find_program(monitor.binary, "conmon")), "--api-version", "--sync", "--exec"]
    command += ["--cid", container_id, "--cuuid", container_id, "--log-path", "passthrough"]
    command += ["--exec-process-spec", str(directory / "process.json")]
    command += ["--container-pidfile", str(directory / "pid"), "--log-level", monitor.log_level]
    command += [f"--runtime-opt={option}" for option in options]
    runtime: tuple[str, ...] = (str(binary.program), *binary.global_options(directory / "log"))
    return command + _runtime(runtime if oom_score_adj is None else with_oom_score_adj(runtime, oom_score_adj))


def _runtime(command: Sequence[str]) -> list[str]:
    """Say to conmon what to run."""
    return ["--runtime", command[0], *(f"--runtime-arg={argument}" for argument in command[1:])]


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed with these stacks."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    reading.callback(os.close, reader)
    writing.callback(os.close, writer)
    return reader, writer
