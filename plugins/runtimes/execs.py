"""A further process in a container, run to its end: conmon reaps it, its output comes straight through two pipes.

conmon is the nearest subreaper, so it gets the exit code although the runtime's binary has gone. It passes its own
streams on: nothing copies the output but the kernel, and a background process that keeps a pipe open holds up nobody.
The process runs in a cgroup of its own below the container's, so that at a timeout whatever came from it, double forks
and new sessions included, is found.
"""

import asyncio
import contextlib
import fcntl
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, DriverError
from crinoid.core.api.values.runtime import ContainerHandle, ExecOutput, ExecRequest
from crinoid.plugins.runtimes import conmon
from crinoid.plugins.runtimes.binary import Binary
from crinoid.plugins.runtimes.bundle import read_pid
from crinoid.plugins.runtimes.complaints import as_error, complaint, last_error
from crinoid.plugins.runtimes.exec_cgroups import ExecCgroup
from crinoid.plugins.runtimes.options import OciOptions
from crinoid.plugins.runtimes.undo import finish

_PIECE_BYTES = 1 << 16
_LATER_S = 5


@dataclass(frozen=True, slots=True)
class ExecSetup:
    """What all execs of a slot share."""

    options: OciOptions
    binary: Binary


async def exec_sync(setup: ExecSetup, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
    """Run the process to its end. Raises DeadlineExceeded after killing all that came from it."""
    with setup.binary.scratch.folder() as folder, cgroup, _Output(request.max_output_bytes) as output:
        (folder / "process.json").write_text(json.dumps(dict(request.process)))
        return await _run(_Exec(setup, handle, request, cgroup, folder), output)


@dataclass(frozen=True, slots=True)
class _Exec:
    setup: ExecSetup
    handle: ContainerHandle
    request: ExecRequest
    cgroup: ExecCgroup
    folder: Path

    @property
    def command(self) -> list[str]:
        options = self.cgroup.runtime_options()
        monitor, binary = self.setup.options.monitor, self.setup.binary
        command = conmon.exec_command(monitor, binary, self.handle.container_id, self.folder, options)
        # Should the daemon be killed, conmon at least ends the process itself, some time later.
        return command if self.timeout_s is None else [*command, f"--timeout={math.ceil(self.timeout_s) + _LATER_S}"]

    @property
    def timeout_s(self) -> float | None:
        return self.request.timeout_s or None


async def _run(run: _Exec, output: "_Output") -> ExecOutput:
    command = run.command
    with output.writers() as fds, conmon.started(command, fds, run.folder) as monitor:
        output.close_writers()
        output.watch()
        monitor.release()
        try:
            async with asyncio.timeout(run.timeout_s):
                code = await _exit_code(run, monitor, command)
        except BaseException as error:
            await finish(_kill(run, monitor))
            if isinstance(error, TimeoutError):
                raise _overdue(run) from None
            raise
        await output.drained(run.setup.options.deadlines.exec_drain_s)
        return ExecOutput(code, output.stdout, output.stderr)


async def _exit_code(run: _Exec, monitor: conmon.Started, command: Sequence[str]) -> int:
    """The exit code from conmon's second report; the first is the process id, or the failure to start any."""
    start_s = run.setup.options.deadlines.exec_start_s
    try:
        async with asyncio.timeout(start_s) as starting:
            first = await monitor.sync.read()
    except TimeoutError:
        if starting.expired():
            raise DeadlineExceeded(f"exec in {_name(run.handle)} had not started after {start_s:g} s") from None
        raise
    if first is None or first.number <= 0:
        raise await _failure(run, monitor, command)
    last = await monitor.sync.read()
    if last is None:
        raise DriverError(f"exec in {_name(run.handle)}: conmon was killed before the process had ended")
    return last.number & 0xFF


async def _failure(run: _Exec, monitor: conmon.Started, command: Sequence[str]) -> CrinoidError:
    code = await monitor.process.wait()
    log = run.folder / "log"
    said = last_error(log) or complaint(log)
    what = f"{run.setup.binary.path} exec"
    return as_error(
        (what, *command[1:]), code, said or f"no process was started in {_name(run.handle)}, and it gave no reason"
    )


async def _kill(run: _Exec, monitor: conmon.Started) -> None:
    """Kill the process with all that came from it, then conmon, which may still wait for the runtime's binary."""
    pid = read_pid(run.folder / "pid")
    await run.cgroup.kill(pid, run.setup.options.deadlines.kill_s)
    monitor.process.kill(signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(run.setup.options.deadlines.kill_s):
            await monitor.process.wait()
    await run.cgroup.kill(pid, run.setup.options.deadlines.kill_s)  # what the binary started meanwhile


def _overdue(run: _Exec) -> DeadlineExceeded:
    words = " ".join(map(str, run.request.process.get("args", ())))[:200]
    return DeadlineExceeded(
        f"exec of {words!r} in {_name(run.handle)} had not ended after {run.request.timeout_s:g} s; "
        "it was killed with all its children"
    )


def _name(handle: ContainerHandle) -> str:
    return f"container {handle.container_id}"


class _Output(contextlib.AbstractContextManager["_Output"]):
    """The two pipes of a process; keeps the first ``limit`` bytes of each and drains the rest."""

    def __init__(self, limit: int) -> None:
        self._pipes = (_Pipe(limit), _Pipe(limit))

    @contextlib.contextmanager
    def writers(self) -> Iterator[dict[int, int]]:
        """The child's descriptors 1 and 2."""
        try:
            yield {1: self._pipes[0].writer, 2: self._pipes[1].writer}
        finally:
            self.close_writers()

    def close_writers(self) -> None:
        """Leave the writing ends to the child alone."""
        for pipe in self._pipes:
            pipe.close_writer()

    def watch(self) -> None:
        """Read both pipes as output comes."""
        for pipe in self._pipes:
            pipe.watch()

    async def drained(self, timeout_s: float) -> None:
        """Wait for the end of both streams, or until ``timeout_s`` has passed; take what is in the pipes then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for pipe in self._pipes:
                    await pipe.ended.wait()
        for pipe in self._pipes:
            pipe.take_rest()

    @property
    def stdout(self) -> bytes:
        return self._pipes[0].content

    @property
    def stderr(self) -> bytes:
        return self._pipes[1].content

    def __exit__(self, *exc: object) -> None:
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    """One pipe, emptied by the loop."""

    def __init__(self, limit: int) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._room = limit
        self._pieces: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

    @property
    def content(self) -> bytes:
        return b"".join(self._pieces)

    def watch(self) -> None:
        self._loop.add_reader(self._reader, self._read)

    def take_rest(self) -> None:
        """Take what the pipe holds now, and no more than it can hold: others may go on writing."""
        left = fcntl.fcntl(self._reader, fcntl.F_GETPIPE_SZ)
        while not self.ended.is_set() and left > 0 and (taken := self._read()):
            left -= taken

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()

    def _read(self) -> int:
        try:
            piece = os.read(self._reader, _PIECE_BYTES)
        except BlockingIOError:
            return 0
        if not piece:
            self._loop.remove_reader(self._reader)
            self.ended.set()
        elif self._room:
            self._pieces.append(piece[: self._room])
            self._room -= len(self._pieces[-1])
        return len(piece)
