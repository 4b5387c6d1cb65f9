"""The modes of what crinoid makes on the host: the one place that states them, for the kernel and for plugins.

A directory is 0700 and a file 0600, whatever the umask is, unless one of the reasons below holds. What matters most is
on the way: a container's root file system is mounted with set-user-ID programs in force, and so is what its snapshot is
kept in. A local user who can walk there becomes root by a program that root of a container has made
(CVE-2021-41103, CVE-2024-25621). So each such directory lies behind one that keeps strangers out.

=========  ============  =======================================================================================
mode       constant      what for
=========  ============  =======================================================================================
0700       DIRECTORY     everything, unless below
0600       FILE          everything, unless below
0711       PASSAGE       a way to something that another than root must reach: the group of the CRI socket, the mapped
                         root of a pod. Nobody can list it, and all that it holds is closed by itself.
0710       GATE          the directory of one pod or container with a user namespace: ``let_in`` admits the group of
                         its mapped root, which opens its root file system by path and has no power over files of ours
0640       LOG_FILE      a container's log that was opened anew; the first one is the monitor's (conmon) to make
0755       SHOWN_...     what processes of containers see as theirs (a root, a volume, /etc/hosts), behind a private
0644       SHOWN_...     directory; cgroups; and directories of the site's that crinoid makes when they are absent (log
                         directories, host paths of volumes, the directory of the CRI socket)
=========  ============  =======================================================================================

Programs that crinoid runs (runtimes, monitors, CNI and NRI plugins) do not inherit the daemon's umask: ``process``
gives them PROGRAM_UMASK, so that a container's log stays readable for the node's log agent.
"""

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path

UMASK = 0o077
"""The daemon's, from its start."""
PROGRAM_UMASK = 0o022
"""Of every program that crinoid runs: what init and systemd give to services."""

DIRECTORY, FILE = 0o700, 0o600
PASSAGE = 0o711
GATE = 0o710
LOG_FILE = 0o640
SHOWN_DIRECTORY, SHOWN_FILE = 0o755, 0o644
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_TOPDIR_FL = 0x00020000


def make_directory(path: Path | str, mode: int = DIRECTORY) -> None:
    """Make one directory with exactly this mode. Raises FileExistsError, and what else mkdir(2) does."""
    os.mkdir(path, mode)  # noqa: PTH102  # cgroups pass strings, many for each pod
    if mode & ~DIRECTORY:  # the umask took these bits away
        os.chmod(path, mode)  # noqa: PTH101


def make_directories(path: Path, mode: int = DIRECTORY) -> None:
    """Make a directory and those above it that are missing, all with this mode; what is there stays as it is."""
    try:
        _make_or_find(path, mode)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_directories(path.parent, mode)
        _make_or_find(path, mode)


def spread(path: Path) -> None:
    """Have ext4 put each directory that is made in this one where there is room (FS_TOPDIR_FL, ``chattr +T``).

    For directories whose children are large trees that have nothing to do with each other, as layers are. Without it
    a new tree comes into the block groups of the last one, where ext4 passes over every inode that was freed within
    the last five minutes: a pull after a removal took three times as long. Other file systems have no such flag, and
    nothing is changed there. Idempotent.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("i", 0)))
            if not flags & _FS_TOPDIR_FL:
                fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", flags | _FS_TOPDIR_FL))
        finally:
            os.close(fd)


def _make_or_find(path: Path, mode: int) -> None:
    try:
        make_directory(path, mode)
    except FileNotFoundError:
        raise
    except OSError:  # it is there, or on a file system that can't be written to
        if not path.is_dir():
            raise


def let_in(path: Path, gid: int) -> None:
    """Let a group through a private directory of ours, to names that it knows: that of a pod's mapped root.

    The owner stays root: who is let in can neither list nor change it. Idempotent.
    """
    os.chown(path, -1, gid)
    path.chmod(GATE)


def write_file(path: Path, content: str | bytes, mode: int = FILE) -> None:
    """Write a file of ours with exactly this mode, new or not. For what needs no sync, and no reader meanwhile."""
    fd = open_file(path, mode)
    with open(fd, "wb") as file:
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def open_file(path: Path, mode: int = FILE) -> int:
    """Open a file of ours for writing, new or emptied, with exactly this mode; the caller closes the descriptor."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode & FILE)
    try:
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def correct(path: Path, mode: int) -> None:
    """Give something of ours its mode, where it has another."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
