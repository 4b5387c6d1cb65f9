"""A rotated log opened anew: conmon is told by its control fifo, and watched until it has done it.

conmon makes ``<log>.tmp``, moves it to the log's path whatever is there, and ends if it can't: a container without
monitor. So all that could go wrong is tried before it is told. The log's directory is the pod's, and its file system
may hang: so whatever goes there does so in a thread, with a deadline.
"""

import asyncio
import contextlib
import errno
import os
import stat
from pathlib import Path

from crinoid.core.api.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.threads import call_within
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles

_REOPEN = b"2 0 0\n"
_LONGEST_PAUSE_S = 0.02


async def reopen_log(bundle: ConmonFiles, timeout_s: float) -> None:
    """Have the log opened anew where it was moved away; nothing happens for a container that has ended or has no log.

    One at a time for each container. Raises FailedPrecondition when another file took the log's place or no conmon
    listens, DeadlineExceeded when conmon does not do it in time.
    """
    processes = await asyncio.to_thread(bundle.read_processes)
    if processes is None or not processes.log_path:
        return
    log, monitor = Path(processes.log_path), processes.monitor_pid
    if await call_within(timeout_s, f"log {log}", lambda: _begin(bundle, monitor, log)):
        await _opened_anew(bundle, log, timeout_s)


def _begin(bundle: ConmonFiles, monitor: int, log: Path) -> bool:
    """Have conmon begin where there is anything to do; tell whether there is."""
    touching(log)
    if bundle.read_exit() is not None or _is_written(monitor, log):
        return False
    _prepare(log)
    return _send_reopen(bundle, log)


def _is_written(monitor: int, log: Path) -> bool:
    """Return whether conmon writes to what is at the path; raises FailedPrecondition when that is another file."""
    try:
        there = log.lstat()
    except FileNotFoundError:
        return False
    for fd in _open_files(monitor):
        with contextlib.suppress(OSError):
            if os.path.samestat(fd.stat(), there):
                return True
    raise FailedPrecondition(f"log {log} can't be opened anew: another file is there, and would be lost; move it away")


def _open_files(pid: int) -> tuple[Path, ...]:
    try:
        return tuple(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return ()


def _prepare(log: Path) -> None:
    """Make the file that conmon is going to make: where this fails, conmon would end.

    conmon follows a link there and waits at a FIFO, and so would we. A file that is there is of an earlier attempt.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(f"{log}.tmp", flags, rights.LOG_FILE)
    except FileNotFoundError as error:
        raise FailedPrecondition(f"log {log} can't be opened anew: its directory is gone") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise FailedPrecondition(f"log {log} can't be opened anew: {log}.tmp is no regular file") from error
        raise ResourceExhausted(f"log {log} can't be opened anew: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FailedPrecondition(f"log {log} can't be opened anew: {log}.tmp is no regular file")
        os.fchmod(fd, rights.LOG_FILE)  # whatever the daemon's umask is
    finally:
        os.close(fd)


def _send_reopen(bundle: ConmonFiles, log: Path) -> bool:
    """Write the command; tell whether there is anyone to do it, and the container has not ended."""
    try:
        control = os.open(bundle.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO: nobody reads
        Path(f"{log}.tmp").unlink(missing_ok=True)
        if bundle.read_exit() is not None:
            return False
        raise FailedPrecondition(f"log {log} can't be opened anew: its monitor, conmon, is gone") from error
    try:
        os.write(control, _REOPEN)
    except BlockingIOError as error:
        raise DeadlineExceeded(f"log {log} can't be opened anew: conmon does not read its commands") from error
    finally:
        os.close(control)
    return True


async def _opened_anew(bundle: ConmonFiles, log: Path, timeout_s: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    pause_s = 0.001
    while not await call_within(timeout_s, f"log {log}", lambda: _is_settled(bundle, log)):
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"conmon had not opened log {log} anew after {timeout_s:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_settled(bundle: ConmonFiles, log: Path) -> bool:
    touching(log)
    return log.exists() or bundle.read_exit() is not None
