"""Whose turn it is, when pytest-xdist runs tests in several processes: one marked ``alone`` has the machine to itself.

A read-write lock over the processes, by ``flock`` on two files of this directory, so that nothing has to be made,
agreed on or removed. Whoever wants to be alone holds the turnstile while it waits, or others would go on for ever.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

TURNSTILE, MACHINE = Path(__file__), Path(__file__).with_name("__init__.py")


@contextlib.contextmanager
def taken(*, alone: bool, turnstile: Path = TURNSTILE, machine: Path = MACHINE) -> Iterator[None]:
    """Wait for a turn, and end it with the block."""
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with contextlib.ExitStack() as turn:
        with _locked(turnstile, kind):
            turn.enter_context(_locked(machine, kind))
        yield


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, kind)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a process that a test forked may hold it
    finally:
        os.close(fd)
