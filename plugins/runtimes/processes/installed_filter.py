"""The seccomp filter that a process has, as the kernel keeps it: ptrace(2), PTRACE_SECCOMP_GET_FILTER.

The process is stopped for a moment, so this is for one that waits in a runtime's own code, before the container's
program is executed: one that runs could see it, as some system calls end with EINTR then.
"""

import ctypes
import errno
import os
import signal
import time

from crinoid.core.api.linux import libc, threads
from crinoid.plugins.runtimes.processes import pidfds

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_ALL_KINDS = 0x40000000  # __WALL: of whatever thread, child or not
_INSTRUCTION_BYTES = 8  # struct sock_filter
_STOP_S = 1.0
_LOOK_S = 0.0002


async def read_filter(pid: int, started: int) -> bytes | None:
    """Return the one filter of the process with this id and start time; ``None``: it has none, or more than one.

    Raises OSError where the process is gone, or can't be traced: it is already, a security module forbids it, or this
    process has a filter itself; and ResourceExhausted where no thread can be had. The thread that traces ends at once,
    and with it the tracing, whatever went wrong.
    """
    return await threads.run_in_fresh_thread(lambda: _read(pid, started))


def _read(pid: int, started: int) -> bytes | None:
    libc.call("ptrace", _SEIZE, pid, 0, 0)
    libc.call("ptrace", _INTERRUPT, pid, 0, 0)
    until_s = time.monotonic() + _STOP_S
    while not (found := os.waitpid(pid, _ALL_KINDS | os.WNOHANG))[0]:
        if time.monotonic() > until_s:
            raise TimeoutError(f"process {pid} has not come to a stop")
        time.sleep(_LOOK_S)
    status = found[1]
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError(f"process {pid} has ended")
    number = os.WSTOPSIG(status)
    try:
        if pidfds.start_time(pid) != started:
            raise ProcessLookupError(f"process {pid} is another one by now")
        return _only_filter(pid)
    finally:
        # Stopped by the interruption, or by a signal that is to be delivered: then it is given back.
        libc.call("ptrace", _DETACH, pid, 0, 0 if number == signal.SIGTRAP else number)


def _only_filter(pid: int) -> bytes | None:
    instructions = _filter_length(pid, 0)
    if not instructions or _filter_length(pid, 1):
        return None
    program = ctypes.create_string_buffer(instructions * _INSTRUCTION_BYTES)
    libc.call("ptrace", _GET_FILTER, pid, 0, ctypes.addressof(program))
    return program.raw


def _filter_length(pid: int, place: int) -> int:
    """Return how many instructions a filter has; 0 where there is none."""
    try:
        return libc.call("ptrace", _GET_FILTER, pid, place, 0)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # no more of them; none at all
            return 0
        raise
