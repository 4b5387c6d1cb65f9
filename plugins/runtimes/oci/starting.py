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


async def start_writer(fifo: Path, processes: Processes) -> bool:
    """Let a process go on that waits for a reader (runc)."""
    with pidfds.opened(processes.pid, processes.pid_start) as process, _opened(fifo, os.O_RDONLY) as fd:
        if process is None or fd is None:
            return False
        # It writes once it is scheduled, or ends, as when somebody kills it: whichever comes first.
        waits = [asyncio.ensure_future(readable(one)) for one in (fd, process)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        try:
            if not os.read(fd, 1):
                return False  # all writers have gone, and none has written
        except BlockingIOError:
            return False
        fifo.unlink(missing_ok=True)  # noqa: ASYNC240  # on a tmpfs
        return True


def start_reader(fifo: Path, processes: Processes) -> bool:
    """Let a process go on that waits for a writer (crun). A daemon that died here before may have left the fifo."""
    with pidfds.opened(processes.pid, processes.pid_start) as process, _opened(fifo, os.O_WRONLY) as fd:
        if process is None or not fifo.exists():
            return False
        if fd is not None:
            os.write(fd, b"0")
        fifo.unlink()
        return True


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
