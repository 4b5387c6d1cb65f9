"""An exec process in a container whose streams are ours: pipes, or a terminal that the runtime sends us.

As with ``sync_execs``, only the kernel is between the process and us. When a session is closed, its process loses its
streams, and that is all; conmon stays with it to its end.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping

from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.descriptors import FdSink, FdSource, make_pipe
from crinoid.core.api.sessions import ExecSession
from crinoid.core.api.values.runtime import ContainerHandle, ExecStreamRequest, TerminalSize
from crinoid.plugins.runtimes.binaries.stdio import PIPE_MODE
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.consoles import ConsoleSocket, set_size
from crinoid.plugins.runtimes.monitor.exec_processes import STARTING_S, ExecProcess, ExecSetup
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup


class StreamedExecs:
    """Starts processes, and waits for the end of each whether or not anybody else does."""

    def __init__(self, setup: ExecSetup) -> None:
        self._setup = setup
        self._ends: set[asyncio.Task[int]] = set()

    async def start(self, handle: ContainerHandle, request: ExecStreamRequest, cgroup: ExecCgroup) -> ExecSession:
        """Start a process and return its streams. On an error, and when cancelled, nothing of it is left."""
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(self._setup.binary.scratch.temporary_directory())
            await stack.enter_async_context(cgroup)
            self._setup.warmup.linger(STARTING_S)
            process = ExecProcess(self._setup, handle, request.process, cgroup, directory)
            process.describe()
            begin = _begin_on_terminal if request.process.get("terminal") else _begin_on_pipes
            session, monitor = await begin(process, request, stack)
            session.ended = asyncio.create_task(self._wait(process, session, monitor, stack.pop_all()))
            self._ends.add(session.ended)
            session.ended.add_done_callback(self._forget)
            return session

    async def _wait(
        self, process: ExecProcess, session: "StreamedExec", monitor: conmon.Started, stack: contextlib.AsyncExitStack
    ) -> int:
        async with stack:
            code = await process.exit_code(monitor)
            session.end_outputs(self._setup.options.deadlines.exec_drain_s)
            return code

    def _forget(self, end: asyncio.Task[int]) -> None:
        self._ends.discard(end)
        if not end.cancelled():
            end.exception()  # read, so that asyncio does not call it lost


class StreamedExec(ExecSession):
    """The streams of one process; ``terminal`` is the master's descriptor, -1 for none."""

    ended: asyncio.Task[int]

    def __init__(
        self,
        stdin: FdSink | None,
        stdout: FdSource | None,
        stderr: FdSource | None,
        terminal: int = -1,
        unwanted: tuple[FdSource, ...] = (),
    ) -> None:
        super().__init__(stdin, stdout, stderr)
        self._sink = stdin
        self._sources = (*(source for source in (stdout, stderr) if source is not None), *unwanted)
        self._drains = [asyncio.create_task(_drain(source)) for source in unwanted]
        self._terminal = terminal

    async def wait(self) -> int:
        """See the base."""
        return await asyncio.shield(self.ended)

    async def resize(self, size: TerminalSize) -> None:
        """See the base."""
        if self._terminal >= 0:
            with contextlib.suppress(OSError):
                set_size(self._terminal, size)

    async def close(self) -> None:
        """See the base."""
        self.release()

    def release(self) -> None:
        """Close all descriptors; input comes last, as its end may make the process write."""
        for source in self._sources:
            source.close()
        if self._sink is not None:
            self._sink.release()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def end_outputs(self, drain_s: float) -> None:
        """The process has ended: what it left in the background is not waited for."""
        for source in self._sources:
            source.end_after(drain_s)


async def _begin_on_pipes(
    process: ExecProcess, request: ExecStreamRequest, stack: contextlib.AsyncExitStack
) -> tuple[StreamedExec, conmon.Started]:
    """Pipes for all three, also for those that nobody wants: crun would give the host's ``/dev/null`` away."""
    ours, theirs = _make_pipes([0, 1, 2])
    sink = FdSink(ours[0])
    outputs = {number: FdSource(ours[number]) for number in (1, 2)}
    wanted = {1: request.stdout, 2: request.stderr}
    session = StreamedExec(
        sink if request.stdin else None,
        outputs[1] if request.stdout else None,
        outputs[2] if request.stderr else None,
        unwanted=tuple(outputs[number] for number in wanted if not wanted[number]),
    )
    if not request.stdin:
        sink.release()
    try:
        return session, await _begin(process, process.command(), theirs, stack)
    except BaseException:
        session.release()
        raise


async def _begin_on_terminal(
    process: ExecProcess, request: ExecStreamRequest, stack: contextlib.AsyncExitStack
) -> tuple[StreamedExec, conmon.Started]:
    with ConsoleSocket(process.directory) as console:
        monitor = await _begin(process, process.command(f"--console-socket={console.path}"), {}, stack)
        try:
            terminal = console.receive()
        except BaseException:
            await finish(process.kill(monitor))
            raise
    sink = FdSink(os.dup(terminal), closes=False) if request.stdin else None
    return StreamedExec(sink, FdSource(os.dup(terminal)), None, terminal), monitor


async def _begin(
    process: ExecProcess, command: list[str], theirs: Mapping[int, int], stack: contextlib.AsyncExitStack
) -> conmon.Started:
    """Start the process; its ends of the pipes are closed here in any case, or they would never come to an end."""
    try:
        monitor = stack.enter_context(conmon.started(command, theirs, process.directory))
    finally:
        for fd in theirs.values():
            os.close(fd)
    monitor.release()
    try:
        with process.setup.warmup.lasting():
            await process.started(monitor, command)
    except BaseException:
        await finish(process.kill(monitor))
        raise
    return monitor


async def _drain(source: FdSource) -> None:
    while await source.read():
        pass


def _make_pipes(numbers: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Make pipes for standard streams; return our ends and the process's. All of them, or none on an error."""
    ours: dict[int, int] = {}
    theirs: dict[int, int] = {}
    try:
        for number in numbers:
            reader, writer = make_pipe()
            os.fchmod(reader, PIPE_MODE)
            theirs[number], ours[number] = (reader, writer) if number == 0 else (writer, reader)
    except OSError:
        for fd in (*ours.values(), *theirs.values()):
            os.close(fd)
        raise
    return ours, theirs
