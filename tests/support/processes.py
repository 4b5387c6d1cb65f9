"""Processes below another: each thread has children of its own, and one thread of a daemon starts all its programs."""

import contextlib
import os
from pathlib import Path


def children(pid: int | None = None) -> set[int]:
    """Return the children of all threads of a process, of our own by default; none where it is gone."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid() if pid is None else pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found |= {int(one) for one in (task / "children").read_text().split()}
    return found


def descendants(pid: int) -> set[int]:
    """Return all processes below one."""
    found = children(pid)
    return found.union(*map(descendants, found))
