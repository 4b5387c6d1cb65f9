"""Child processes: every program that crinoid runs is started here, by posix_spawn, and watched through a pidfd.

``run`` is for programs that answer and end (runc, CNI plugins); ``spawn`` for those that stay or need descriptors
of their own (conmon). Neither forks the daemon's address space, and nothing is left a zombie. No program inherits the
daemon's umask: posix_spawn takes the calling thread's, so the call is made by a thread that has its own.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import os
import queue
import select
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from crinoid.core.api.errors import CommandFailed, DeadlineExceeded, ResourceExhausted, Unsupported
from crinoid.core.api.linux import cgroups, libc, rights, spawning
from crinoid.core.api.linux.bulkheads import start_thread
from crinoid.core.api.linux.threads import call_in_fresh_thread, is_fresh, run_in_fresh_thread

_LOG = logging.getLogger(__name__)
_NO_FDS: Mapping[int, int] = MappingProxyType({})
_CLONE_FS = 0x200
_PIECE_BYTES = 1 << 16
_REAP_S = 5.0
_MOVE_TRIES = 50
_EXHAUSTED = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_NOT_RUNNABLE = {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP}
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_INHERITED = ("cwd", *(f"ns/{kind}" for kind in _NAMESPACES))


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended; ``exit_code`` is negative for a signal. Output beyond the limit was dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes


async def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    fds: Mapping[int, int] = _NO_FDS,
    cwd: Path | None = None,
    max_output_bytes: int = 16 << 20,
) -> Finished:
    """Run a program to its end, whatever its exit code.

    ``env`` ``None`` is the daemon's own; ``fds`` maps descriptors of the child to ours. The output of processes that
    outlive the program is not waited for. At the deadline, and when cancelled, its whole process group is killed and
    reaped. Raises DeadlineExceeded, Unsupported when there is no such program, ResourceExhausted when none can be
    started.
    """
    with contextlib.ExitStack() as stack:
        stdout = stack.enter_context(_Output(max_output_bytes))
        stderr = stack.enter_context(_Output(max_output_bytes))
        with stdout.writer() as out, stderr.writer() as err, _input(stdin) as source:
            process = spawn(command, env=env, fds={0: source, 1: out, 2: err, **fds}, cwd=cwd)
        stdout.watch()
        stderr.watch()
        exit_code = await _wait_or_kill(process, command, timeout_s)
        return Finished(exit_code, stdout.drain(), stderr.drain())


async def run_checked(
    command: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    fds: Mapping[int, int] = _NO_FDS,
    cwd: Path | None = None,
    max_output_bytes: int = 16 << 20,
) -> Finished:
    """As ``run``; raises CommandFailed with the last words of stderr for any exit code but 0."""
    finished = await run(
        command, timeout_s=timeout_s, stdin=stdin, env=env, fds=fds, cwd=cwd, max_output_bytes=max_output_bytes
    )
    if finished.exit_code != 0:
        _LOG.debug("failed with %d: %s", finished.exit_code, shlex.join(command))
        raise CommandFailed(tuple(command), finished.exit_code, finished.stderr.decode(errors="replace"))
    return finished


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    fds: Mapping[int, int] = _NO_FDS,
    cwd: Path | None = None,
    new_session: bool = True,
) -> "Process":
    """Start a program, found by PATH; standard streams that ``fds`` does not name are ``/dev/null``.

    ``fds`` stay the caller's to close. With ``new_session`` the program leads a session and a process group, and
    ``kill`` means all of the group. The program's umask is ``rights.PROGRAM_UMASK``. Raises Unsupported and
    ResourceExhausted as ``run`` does.

    A program may ask to die with the daemon (PR_SET_PDEATHSIG), but not one with ``cwd``: the thread that starts that
    ends at once.
    """

    # posix_spawn knows no chdir: a thread with a working directory of its own does it.
    if cwd is not None:
        return call_in_fresh_thread(lambda: _spawn_in(command, env, fds, cwd, new_session))
    with _child_fds(fds) as copies:
        environment = os.environ if env is None else env
        pid = _with_umask(lambda: _posix_spawn(command, environment, copies, new_session))
    return Process(pid, _open_pidfd(pid), new_session)


async def spawn_in_cgroup(
    command: Sequence[str], *, env: Mapping[str, str], fds: Mapping[int, int], cwd: Path, cgroup: str
) -> "Process":
    """As ``spawn``, without holding up the loop, and in a cgroup, which is made if need be; empty: where the daemon is.

    With version 2 of cgroups the program has begun when it is moved there. When cancelled, it is killed.
    """
    started: list[Process] = []
    born_there = cgroups.version() == 1

    def start() -> None:
        if cgroup and born_there:
            _in_cgroup(cgroup, lambda: cgroups.enter(cgroup))
        started.append(_spawn_in(command, env, fds, cwd))
        if cgroup and not born_there:
            _in_cgroup(cgroup, lambda: cgroups.join(cgroup, started[0].pid))

    try:
        await run_in_fresh_thread(start)
    except BaseException:
        for process in started:
            process.kill()
            process.close()
        raise
    return started[0]


class Process:
    """A child process. Close it when done; a child that still runs then is reaped when it ends."""

    def __init__(self, pid: int, pidfd: int, leads_group: bool) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._leads_group = leads_group
        self._exit_code: int | None = None
        self._ended: asyncio.Future[int] | None = None
        self._closed = False

    async def wait(self) -> int:
        """Wait for the end, with no deadline: the exit code, negative for a signal. Any number may wait."""
        if self._exit_code is None:
            return await asyncio.shield(self._watch())
        return self._exit_code

    def reap(self) -> int:
        """Wait for the end, blocking: for code in threads. Not together with ``wait``."""
        if self._exit_code is None:
            self._collect(os.WEXITED)
        assert self._exit_code is not None
        return self._exit_code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the process, with its group if it leads one; nothing happens once it has been reaped."""
        if self._exit_code is not None:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            if self._leads_group:
                os.killpg(self.pid, number)
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Give up the handle. Idempotent; the process runs on if it does, and leaves no zombie."""
        if self._closed:
            return
        self._closed = True
        if self._exit_code is None:
            self._collect(os.WEXITED | os.WNOHANG)
        if self._exit_code is None:
            self._watch()
        elif self._ended is None or self._ended.done():
            os.close(self.pidfd)

    def _watch(self) -> "asyncio.Future[int]":
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self.pidfd, self._on_end, loop, self._ended)
        return self._ended

    def _on_end(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[int]") -> None:
        loop.remove_reader(self.pidfd)
        if self._exit_code is None:
            self._collect(os.WEXITED | os.WNOHANG)
        if not ended.done():
            ended.set_result(255 if self._exit_code is None else self._exit_code)
        if self._closed:
            os.close(self.pidfd)

    def _collect(self, options: int) -> None:
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, options)
        except ChildProcessError:  # somebody set SIGCHLD to be ignored: the kernel keeps no status then
            self._exit_code = 255
            return
        if result is not None:
            self._exit_code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _spawn_in(
    command: Sequence[str], env: Mapping[str, str] | None, fds: Mapping[int, int], cwd: Path, new_session: bool = True
) -> Process:
    """Spawn in a directory; call it in a fresh thread."""
    libc.call("unshare", _CLONE_FS)
    os.chdir(cwd)
    return spawn(command, env=env, fds=fds, new_session=new_session)


def _in_cgroup(cgroup: str, move: Callable[[], None]) -> None:
    """Move somebody to a cgroup that is made where it is missing: others remove it whenever it is empty."""
    for _ in range(_MOVE_TRIES):
        try:
            return move()
        except OSError as error:
            # ENOSPC: somebody is making it at this moment, and has yet to give its cpuset processors.
            if error.errno not in cgroups.GONE | {errno.ENOSPC}:
                raise
            cgroups.make(cgroup)
    return move()


async def _wait_or_kill(process: Process, command: Sequence[str], timeout_s: float) -> int:
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        await _end(process)
        raise DeadlineExceeded(f"{command[0]} was killed: it had not ended after {timeout_s:g} s") from None
    except asyncio.CancelledError:
        await _end(process)
        raise
    finally:
        process.close()


async def _end(process: Process) -> None:
    """Kill and reap; a process that hangs in the kernel is reaped later, when it ends."""
    process.kill(signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _REAP_S)


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:  # too many open files: what can't be watched must not run
        os.kill(pid, signal.SIGKILL)
        threading.Thread(
            target=os.waitpid, args=(pid, 0), name="reap", daemon=True
        ).start()  # it may hang in the kernel
        raise ResourceExhausted(f"process {pid} was killed, it can't be watched: {error.strerror}") from error


def _with_umask(start: Callable[[], int]) -> int:
    """Start a program with PROGRAM_UMASK. umask(2) is of all threads that share their ``fs``, as a daemon's do: so the
    call is made by a thread that has one of its own, and stands where the calling thread does.

    A fresh thread can do it itself. For all others of the daemon one thread does, which lives as long as they: a
    program that asked to die with its parent dies with the thread that started it (PR_SET_PDEATHSIG). Whoever has
    entered a namespace or a directory meanwhile, or whose directory was renamed or removed, gets another thread, which
    begins there and lasts as long as the program.
    """
    if is_fresh():
        return _start_here(start)
    starter = _starter()
    if starter.surroundings == _surroundings():
        return starter.start(start)
    return _start_and_stay(start)


def _start_here(start: Callable[[], int]) -> int:
    libc.call("unshare", _CLONE_FS)
    own = os.umask(rights.PROGRAM_UMASK)
    try:
        return start()
    finally:
        os.umask(own)


def _start_and_stay(start: Callable[[], int]) -> int:
    """Start a program in a thread of its own, which ends after it."""
    started: Future[int] = Future()

    def work() -> None:
        watched = -1
        try:
            pid = _start_here(start)
            with contextlib.suppress(OSError):  # without one, the caller can't watch the program either, and kills it
                watched = os.pidfd_open(pid)
            started.set_result(pid)
        except BaseException as error:  # noqa: BLE001  # it is raised again where the program is wanted
            started.set_exception(error)
        if watched >= 0:
            ended = select.poll()
            ended.register(watched, select.POLLIN)
            ended.poll()
            os.close(watched)

    start_thread(work)
    return started.result()


def _surroundings() -> tuple[str, ...]:
    """What a program inherits of the calling thread, but for its ``fs``' umask; 20 µs."""
    # The directory as a link: getcwd() raises where it has been removed, and programs can be started there all the
    # same.
    return tuple(os.readlink(f"/proc/thread-self/{name}") for name in _INHERITED)  # noqa: PTH115


class _Starter:
    """The thread that starts programs for the threads that it shares namespaces and directory with."""

    def __init__(self) -> None:
        self.surroundings = _surroundings()
        self._wanted: queue.SimpleQueue[tuple[Callable[[], int], Future[int]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="starter", daemon=True).start()

    def start(self, function: Callable[[], int]) -> int:
        """Call the function there; raise what it raises. The wait is that for the program's exec."""
        started: Future[int] = Future()
        self._wanted.put((function, started))
        return started.result()

    def _serve(self) -> None:
        is_apart = False
        while True:
            function, started = self._wanted.get()
            try:
                if not is_apart:  # where the kernel has no memory for that now, the next start asks again
                    libc.call("unshare", _CLONE_FS)
                    os.umask(rights.PROGRAM_UMASK)
                    is_apart = True
                started.set_result(function())
            except BaseException as error:  # noqa: BLE001  # it is raised again where the program is wanted
                started.set_exception(error)
            del function, started


@functools.cache
def _starter() -> _Starter:
    return _Starter()


def _posix_spawn(
    command: Sequence[str], env: Mapping[str, str], copies: list[tuple[int, int]], new_session: bool
) -> int:
    _LOG.debug("run: %s", shlex.join(command))
    try:
        return spawning.posix_spawnp(command[0], command, env, copies, new_session)
    except OSError as error:
        if error.errno in _NOT_RUNNABLE:
            raise Unsupported(f"program {command[0]} can't be run: {error.strerror}; is it installed?") from error
        if error.errno in _EXHAUSTED:
            raise ResourceExhausted(f"program {command[0]} can't be started: {error.strerror}") from error
        raise


@contextlib.contextmanager
def _child_fds(fds: Mapping[int, int]) -> Iterator[list[tuple[int, int]]]:
    """Duplicate our descriptors above all of the child's, so that no dup2 overwrites one that is still to be copied."""
    with contextlib.ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        wanted = {0: null, 1: null, 2: null, **fds}
        copies = []
        for child, ours in wanted.items():
            high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1)
            stack.callback(os.close, high)
            copies.append((high, child))
        yield copies


@contextlib.contextmanager
def _input(content: bytes) -> Iterator[int]:
    """A descriptor to read the content from: memory, so nobody has to feed a pipe."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC) if content else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if content:
            os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class _Output(contextlib.AbstractContextManager["_Output"]):
    """A pipe whose read end is emptied by the loop; keeps the first ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pieces: list[bytes] = []
        self._room = limit

    @contextlib.contextmanager
    def writer(self) -> Iterator[int]:
        """The child's end, ours only until the child is there."""
        try:
            yield self._writer
        finally:
            self._close_writer()

    def watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    def drain(self) -> bytes:
        """Take what is in the pipe and return all; no more than it can hold, as others may go on writing."""
        left = fcntl.fcntl(self._reader, fcntl.F_GETPIPE_SZ)
        while left > 0 and (count := self._read()):
            left -= count
        return b"".join(self._pieces)

    def __exit__(self, *exc: object) -> None:
        self._unwatch()
        os.close(self._reader)
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def _read(self) -> int:
        """Take one piece and return its length; 0 when there is none now, or none will come."""
        try:
            piece = os.read(self._reader, _PIECE_BYTES)
        except BlockingIOError:
            return 0
        if not piece:
            self._unwatch()
        elif self._room:
            self._pieces.append(piece[: self._room])
            self._room -= len(self._pieces[-1])
        return len(piece)

    def _unwatch(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._reader)
            self._loop = None
