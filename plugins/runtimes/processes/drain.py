"""What a runtime's binary says while it makes a container, and nobody reads.

conmon (2.1) reads its child's standard error only once the child has ended. A binary that has more to say than a pipe
holds, such as an error that quotes a long argument, would wait for conmon, and conmon for it. Here the pipes are
watched from outside: a full one gets more room, and one that is full again is read away. The binary's log has the
words, too.
"""

import asyncio
import contextlib
import fcntl
import os
import stat
import struct
import termios
from collections.abc import AsyncIterator, Callable

from crinoid.plugins.runtimes.processes import pidfds

MAX_SAID_BYTES = 1 << 20
"""How much of what a binary says is kept for conmon; the rest is lost."""
_PAUSE_S = 0.25  # a create that goes well has ended by then
_PIECE_BYTES = 1 << 16
_PIPE_BUF = 4096  # a pipe with less room than this takes no small write


@contextlib.asynccontextmanager
async def drained(monitor_pid: Callable[[], int]) -> AsyncIterator[None]:
    """See to it meanwhile that children of conmon, whose id may not be known yet, can write on."""
    watching = asyncio.create_task(_watch(monitor_pid), name="what a runtime says")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _watch(monitor_pid: Callable[[], int]) -> None:
    while True:
        await asyncio.sleep(_PAUSE_S)
        with contextlib.suppress(OSError):  # such as no free descriptor: there may be one at the next look
            pid = monitor_pid()
            for child in pidfds.children(pid) if pid > 0 else ():
                for number in (1, 2):
                    with contextlib.suppress(OSError):  # it has ended
                        make_room(f"/proc/{child}/fd/{number}")


def make_room(path: str) -> None:
    """Enlarge a pipe that is full, or empty it if it is as large as it may be; nothing happens to what is no pipe."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  # a link that leads nowhere by its name
        return
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        (held,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
        if held <= size - _PIPE_BUF:
            return
        if size < MAX_SAID_BYTES:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MAX_SAID_BYTES)
            return
        while held > 0:
            held -= len(os.read(fd, _PIECE_BYTES)) or held
    finally:
        os.close(fd)
