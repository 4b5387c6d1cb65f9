"""The end of a cgroup that crinoid answers for, whoever has made it: the kernel's directory, or a slice of systemd's.

With the systemd cgroup driver a pod that comes without a cgroup parent has a slice of its own. systemd starts it with
the first scope in it, which the runtime asks for, and keeps it until it is told to stop it, empty or not: a directory
that is removed behind its back leaves a unit that is active for ever. Source: systemd.slice(5).
"""

import os
import select
from pathlib import PurePosixPath

from crinoid.core.api.errors import CommandFailed, DeadlineExceeded
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.process import spawn

_STOP_S = 30.0
_MOST_WORDS = 1 << 12


def remove(path: str) -> None:
    """Remove a cgroup in which nothing runs any more, with those below it. Idempotent. Blocks.

    Raises OSError while it is in use, CommandFailed and DeadlineExceeded where systemd does not stop a slice.
    """
    if path.endswith(".slice") and cgroups.exists(path):  # else it was never started, or the host has booted since
        _stop(PurePosixPath(path).name)
    cgroups.remove(path)  # of a slice what runc makes with cgroup v1 in hierarchies that systemd has nothing to do with


def _stop(unit: str) -> None:
    command = ("systemctl", "stop", "--", unit)
    words = os.memfd_create("stderr")
    try:
        process = spawn(command, fds={2: words})
        try:
            ended = select.poll()
            ended.register(process.pidfd, select.POLLIN)
            if not ended.poll(_STOP_S * 1000):
                process.kill()
                raise DeadlineExceeded(f"systemd has not stopped {unit} after {_STOP_S:g} s")
            if (exit_code := process.reap()) != 0:
                said = os.pread(words, _MOST_WORDS, 0).decode(errors="replace")
                raise CommandFailed(command, exit_code, said)
        finally:
            process.kill()
            process.reap()
            process.close()
    finally:
        os.close(words)
