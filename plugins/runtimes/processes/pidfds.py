"""Processes that are not our children: found again by id and start time, waited for and signalled by pidfd."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.linux.descriptors import readable

_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO for the first version of struct pidfd_info, 64 bytes
_INFO_EXIT = 1 << 3
_STAT_BYTES = 4096  # some 50 numbers of at most 20 digits, and a name
_INFO = struct.Struct("<QQ12I")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when there is none or it is a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else 0


@contextlib.contextmanager
def opened(pid: int, started: int) -> Iterator[int | None]:
    """A pidfd of the process with this id and start time; ``None`` when it has ended."""
    fd = open_pidfd(pid, started)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def open_pidfd(pid: int, started: int) -> int | None:
    """Open a process; ``None`` when it has ended, or the id is another's by now."""
    if pid <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return None
    fields = _stat(pid)  # read after opening: if it fits, the descriptor is of the right process
    if fields and int(fields[19]) == started:
        return fd
    os.close(fd)
    return None


async def wait(fd: int) -> None:
    """Wait until the process has ended."""
    await readable(fd)


async def wait_for(fd: int, timeout_s: float) -> bool:
    """Wait for the end of a process; tell whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await wait(fd)
            return True
    return False


def send(fd: int, number: int) -> bool:
    """Send a signal; tell whether there was still a process to get it."""
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    return True


def exit_code(fd: int, pid: int) -> int | None:
    """Return the exit code (128 + signal) of a process that has ended and is not our child; ``None``: can't be known.

    /proc tells it as long as the process is a zombie, a pidfd after it has been reaped (Linux 6.15 and later).
    """
    fields = _stat(pid)
    if fields and fields[0] == "Z" and len(fields) > 49:
        return _decoded(int(fields[49]))
    status = _reaped_status(fd)
    return None if status is None else _decoded(status)


def children(pid: int) -> tuple[int, ...]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return tuple(found)


def descendants(pid: int) -> set[int]:
    """Return the children of a process, theirs, and so on."""
    found: set[int] = set()
    left = [pid]
    while left:
        new = set(children(left.pop())) - found
        found |= new
        left += new
    return found


async def kill_tree(pid: int, started: int, timeout_s: float) -> None:
    """Kill a process with its descendants, and wait until they have ended, for at most ``timeout_s`` in all."""
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(opened(pid, started))
        below = [(one, start_time(one)) for one in descendants(pid)] if root is not None else []
        processes = [root, *(stack.enter_context(opened(*one)) for one in below)]
        for fd in processes:
            if fd is not None:
                send(fd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for fd in processes:
                    if fd is not None:
                        await wait(fd)


def describe(pid: int) -> str:
    """Name a process and where in the kernel it hangs, for messages: ``123 (runc, in fuse_get_attr)``."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()  # the process may call itself anything
        place = Path(f"/proc/{pid}/wchan").read_text().strip("0\n")
    except OSError:
        return str(pid)
    return f"{pid} ({name}, in {place})" if place else f"{pid} ({name})"


def session(pid: int) -> int:
    """Return the session id of a process; 0 when there is none."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on: the name before them may hold anything."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        text = os.read(fd, _STAT_BYTES)
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)
    return text.decode(errors="replace").rpartition(")")[2].split()


def _reaped_status(fd: int) -> int | None:
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _INFO_EXIT, *([0] * 13))
    try:
        fcntl.ioctl(fd, _GET_INFO, buffer)
    except OSError:  # an older kernel, or nothing was kept
        return None
    mask, *_, status = _INFO.unpack(buffer)
    return status if mask & _INFO_EXIT else None


def _decoded(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
