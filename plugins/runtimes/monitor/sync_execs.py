"""An exec process in a container, run to its end: its output comes straight through two pipes.

conmon passes its own streams on: nothing copies the output but the kernel. A background process that keeps a pipe open
is read for a while, and holds up nobody for longer than the request's own timeout.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator, Sequence

from crinoid.core.api.errors import DeadlineExceeded
from crinoid.core.api.finishing import finish
from crinoid.core.api.values.runtime import ContainerHandle, ExecOutput, ExecRequest
from crinoid.plugins.runtimes.binaries.stdio import PIPE_MODE, ended_input
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.exec_processes import STARTING_S, ExecProcess, ExecSetup
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup

_PIECE_BYTES = 1 << 16
_LATER_S = 5
_MOST_S = (1 << 31) - 1  # conmon reads a C int, and refuses more


async def exec_sync(setup: ExecSetup, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
    """Run the process to its end. Raises DeadlineExceeded after killing all that came from it."""
    with setup.binary.scratch.temporary_directory() as directory, _Output(request.max_output_bytes) as output:
        async with cgroup:
            setup.warmup.linger(STARTING_S)
            process = ExecProcess(setup, handle, request.process, cgroup, directory)
            process.describe()
            return await _run(process, request, output)


async def _run(process: ExecProcess, request: ExecRequest, output: "_Output") -> ExecOutput:
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
            raise _overdue(process, request) from None
        raise


def _overdue(process: ExecProcess, request: ExecRequest) -> DeadlineExceeded:
    words = " ".join(map(str, request.process.get("args", ())))[:200]
    return DeadlineExceeded(
        f"exec of {words!r} in {process.name} had not ended after {request.timeout_s:g} s; "
        "it was killed with all its children"
    )


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
        os.fchmod(self._reader, PIPE_MODE)
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
