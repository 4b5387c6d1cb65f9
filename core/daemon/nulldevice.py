"""Whose the host's null device is: told at the start, and by ``crinoid check``.

crun before 1.24 gave it to the user of a container with a terminal. Crinoid lets none do so any more, but what an
earlier one has done stays: that user can close the device to every program of the host.
"""

import os
import stat
from pathlib import Path

PATH = Path(os.devnull)
MODE = 0o666


def find_problem(path: Path = PATH) -> str:
    """Say what is wrong with the null device, and what to do; nothing where it is root's and open to all."""
    try:
        found = path.stat()
    except OSError as error:
        return f"{path} can't be had: {error.strerror}"
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        return f"{path} is not the null device: rm {path} && mknod -m 666 {path} c 1 3"
    mode = stat.S_IMODE(found.st_mode)
    if (found.st_uid, found.st_gid, mode) == (0, 0, MODE):
        return ""
    return f"{path} is {found.st_uid}:{found.st_gid}'s, mode {mode:o}: chown 0:0 {path} && chmod {MODE:o} {path}"
