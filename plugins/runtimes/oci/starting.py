"""Letting a created container run without its runtime's binary, by the fifo at which its first process waits.

runc's first process writes a byte to ``exec.fifo`` and so waits for a reader, crun's reads one and waits for a writer;
``start`` of the binary does no more than what is here, and takes a process of its own for it. Each function tells
whether it did: if not, the binary may know better, or say what is wrong.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux.descriptors import readable
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.processes import pidfds

FIFO = "exec.fifo"
_LOOK_S = 0.2


def has_begun(pid: int, binary: str) -> bool:
    """Return whether a container's first process runs the container's program by now, and no longer the OCI runtime.

    The fifo does not tell: who let the process go on may have died before it removed it. Until execve(2) the process is
    the runtime's binary (its path), or a copy of that in a memfd, which no file of an image can be.
    """
    try:
        program = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False
    return not program.startswith("/memfd:") and Path(program).name != Path(binary).name


async def start_writer(fifo: Path, processes: Processes, binary: str) -> bool:
    """Let a process go on that waits for a reader (runc). A daemon that died here before may have left the fifo."""
    with pidfds.opened(processes.pid, processes.pid_start) as process, _opened(fifo, os.O_RDONLY) as fd:
        if process is None or fd is None:
            return False
        # It writes once it is scheduled, or ends, as when somebody kills it: whichever comes first.
        waits = [asyncio.ensure_future(readable(one)) for one in (fd, process)]
        try:
            done: set[asyncio.Future[None]] = set()
            while not done and not has_begun(processes.pid, binary):
                done, _ = await asyncio.wait(waits, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        try:
            has_written = bool(os.read(fd, 1))  # nothing: all writers have gone, and none has written
        except BlockingIOError:
            has_written = False
        if not has_written and not has_begun(processes.pid, binary):
            return False
        _remove(fifo)
        return True


def start_reader(fifo: Path, processes: Processes) -> bool:
    """Let a process go on that waits for a writer (crun). A daemon that died here before may have left the fifo."""
    with pidfds.opened(processes.pid, processes.pid_start) as process, _opened(fifo, os.O_WRONLY) as fd:
        if process is None or not fifo.exists():
            return False
        if fd is not None:
            os.write(fd, b"0")
        _remove(fifo)
        return True


def _remove(fifo: Path) -> None:
    """Remove it; one that stays is no reason to end a container that runs, and goes with the binary's state."""
    with contextlib.suppress(OSError):
        fifo.unlink()


@contextlib.contextmanager
def _opened(fifo: Path, mode: int) -> Iterator[int | None]:
    """The fifo; ``None`` where there is none, or nobody who reads what is to be written."""
    try:
        fd = os.open(fifo, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO):
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
