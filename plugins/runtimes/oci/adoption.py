"""Brings processes that criu has restored into their container's cgroup.

criu (tried with 3.17) puts them into a cgroup of the name that they had when they were checkpointed, and makes it, with
all above it, where it is gone. What it made so is removed again. crun moves the first process itself, so the processes
don't always tell where they were.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.procfs import read_lines
from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory

_ROUNDS = 50  # each finds what was forked meanwhile
_CLOCK_S = 0.1


@dataclass(frozen=True, slots=True)
class Before:
    """How it was before criu began: ``gone`` is the topmost cgroup that it has to make for ``former``; empty: none."""

    time: float
    former: str
    gone: str

    @classmethod
    def look(cls, former: str) -> "Before":
        """Look for the cgroup that the processes were in, as its runtime named it; empty: nobody knows."""
        path = below_mount(former)
        former, gone = path, ""
        while path.startswith("/") and path != "/" and ".." not in path.split("/") and not cgroups.exists(path):
            gone, path = path, path.rpartition("/")[0]
        return cls(time.time(), former, gone)

    def covers(self, path: str) -> bool:
        """Return whether it is known of a cgroup that criu has made it, or that it was there."""
        return path == self.former or (bool(self.gone) and f"{path}/".startswith(f"{self.gone}/"))


def adopt(pid: int, cgroup: str, before: Before) -> None:
    """Move a process and all that came from it; remove empty cgroups that criu has made. Blocks.

    Raises CrinoidError where that does not succeed.
    """
    strays: set[str] = set()
    for _ in range(_ROUNDS):
        outside = {one: paths for one in _family(pid) if (paths := _cgroups_of(one) - {cgroup})}
        outside = {one: paths for one, paths in outside.items() if one not in cgroups.processes(cgroup)}
        if not outside:
            break
        for one, paths in outside.items():
            strays |= paths
            _join(cgroup, one)
    else:
        raise CrinoidError(f"restored processes of {pid} could not be moved to cgroup {cgroup}: they fork too fast")
    _remove_empty(before.gone)
    for path in strays:
        if not before.covers(path):
            _prune(path, before.time)


def _join(cgroup: str, pid: int) -> None:
    try:
        cgroups.join(cgroup, pid)
    except (ProcessLookupError, FileNotFoundError):
        return
    except OSError as error:
        raise CrinoidError(f"restored process {pid} can't be moved to cgroup {cgroup}: {error}") from error


def _family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _cgroups_of(pid: int) -> set[str]:
    try:
        lines = read_lines(f"/proc/{pid}/cgroup")
    except OSError:
        return set()
    return {line.split(":", 2)[2] for line in lines} - {"/"}


def _remove_empty(path: str) -> None:
    """Remove a cgroup and all below it that have no process."""
    directory = cgroup_directory("freezer", path)
    if not path or directory is None:
        return
    for below, _directories, _files in os.walk(directory, topdown=False):
        cgroups.prune(path + below.removeprefix(str(directory)))


def _prune(path: str, since: float) -> None:
    while path.count("/") >= 1 and path != "/" and _is_new(path, since):
        cgroups.prune(path)
        path = path.rpartition("/")[0] or "/"


def _is_new(path: str, since: float) -> bool:
    directory = cgroup_directory("freezer", path)
    try:
        return directory is not None and directory.stat().st_ctime >= since - _CLOCK_S
    except OSError:
        return False
