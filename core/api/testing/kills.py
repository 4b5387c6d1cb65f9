"""Kills a driver in the middle of a hook, before each change that it makes to what is on disk.

A child process makes the driver anew and calls the hook; it is killed before its first call that changes something,
then before the second, and so on until the hook comes to its end. What is counted are the calls of Python code
(``CHANGES``) in all of the child's threads; what a program or a C library changes by itself is not seen.
"""

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from crinoid.core.api.testing.patience import patient

T = TypeVar("T")

CHANGES = frozenset(
    {"rename", "replace", "mkdir", "rmdir", "unlink", "remove", "link", "symlink", "mknod", "mkfifo"}
    | {"chmod", "chown", "lchown", "fchmod", "fchown", "setxattr", "removexattr", "utime"}
    | {
        "truncate",
        "ftruncate",
        "write",
        "writelines",
        "pwrite",
        "fsync",
        "fdatasync",
        "sync",
        "sendfile",
        "copy_file_range",
    }
    | {"execute", "executemany", "executescript", "commit", "posix_spawn", "fork_exec"}
)
"""Names of functions in C that change files, or make others do so."""
MOST_KILLS = 200
_CHILD_S = patient(60.0)


class Kill:
    """One kill, before the ``number``-th change."""

    def __init__(self, number: int) -> None:
        self.struck = False
        self._number = number

    def __str__(self) -> str:
        """How a failure names it."""
        return f"killed before change {self._number}" if self.struck else "not killed"

    async def __call__(self, make: Callable[[], Awaitable[T]], act: Callable[[T], Awaitable[object]]) -> None:
        """In a child, make something, and kill the child while it acts on that."""
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(self._run(make, act))
                os._exit(0)
            except BaseException:  # noqa: BLE001  # the child must end here, whatever it is
                traceback.print_exc()
                os._exit(1)
        timer = threading.Timer(_CHILD_S, os.kill, (pid, signal.SIGALRM))
        timer.start()
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        timer.cancel()
        self.struck = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert self.struck or status == 0, f"the hook failed in the child, status {status}: see standard error"

    async def _run(self, make: Callable[[], Awaitable[T]], act: Callable[[T], Awaitable[object]]) -> None:
        seen, counts, lock = 0, False, threading.Lock()

        def note(_frame: types.FrameType, event: str, function: Any) -> None:
            nonlocal seen
            if counts and event == "c_call" and getattr(function, "__name__", "") in CHANGES:
                with lock:
                    seen += 1
                    if seen == self._number:
                        os.kill(os.getpid(), signal.SIGKILL)
                        time.sleep(_CHILD_S)  # no thread changes anything more

        threading.setprofile(note)  # threads that are begun from here on
        made = await make()
        counts = True
        sys.setprofile(note)
        await act(made)
        counts = False
        sys.setprofile(None)


def kills() -> Iterator[Kill]:
    """Yield kills, before the first change, the second, and so on until one has not come to pass.

    Do all over in each round, as with ``binding.cuts``; the driver that was made before the kill is of no use after it.
    """
    for number in range(1, MOST_KILLS + 1):
        kill = Kill(number)
        yield kill
        if not kill.struck:
            break
