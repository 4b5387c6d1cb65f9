"""A mount namespace without cgroup v2 beside v1, for crun, which refuses hybrid hosts; the host stays as it is.

``prefix()`` goes before a command that is to run so, and is empty on a host that is not hybrid::

    subprocess.run([*prefix(), sys.executable, "-m", "crinoid", "serve"])

Each use of it makes a namespace of its own. ``held()`` makes one that several commands share, such as a daemon that is
killed and started again over the same mounts. As a module it runs one command:
``python -m tests.support.cgroup_namespace COMMAND…``.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

UNIFIED = Path("/sys/fs/cgroup/unified")
_ONLY_V2 = """
mount --make-rprivate /sys/fs/cgroup && umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
exec "$@"
"""
# crun makes plain directories where v2 is missing; on the tmpfs they end with the namespace, not on the host's.
_HIDE = f'mount --make-rprivate /sys/fs/cgroup && umount {UNIFIED} && mount -t tmpfs tmpfs {UNIFIED} && exec "$@"'


def is_hybrid() -> bool:
    """Return whether this process sees cgroup v2 beside v1."""
    return (UNIFIED / "cgroup.procs").exists()


def prefix() -> tuple[str, ...]:
    """Return what goes before a command; the command gets a mount namespace of its own."""
    if not is_hybrid():
        return ()
    return ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _HIDE, "sh")


def v2_prefix() -> tuple[str, ...]:
    """Return what goes before a command that is to see cgroup v2 alone.

    On a host with v1 its hierarchy has no controllers, so nothing can be limited there; processes can be grouped,
    frozen and killed.
    """
    return ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _ONLY_V2, "sh")


@contextlib.contextmanager
def held() -> Iterator[tuple[str, ...]]:
    """A namespace that lasts as long as the context; yields what goes before each command that is to run in it."""
    if not is_hybrid():
        yield ()
        return
    holder = subprocess.Popen([*prefix(), "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "the namespace was not made"
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={Path.cwd()}")
    finally:
        holder.kill()
        holder.communicate()


if __name__ == "__main__":
    command = [*prefix(), *sys.argv[1:]]
    os.execvp(command[0], command)
