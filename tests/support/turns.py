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


class Turns:
    """The turns of one worker's tests. One that is alone keeps its turn for the next of its kind: each of them would
    wait else for whatever test the other workers have begun meanwhile."""

    def __init__(self) -> None:
        self._turn = contextlib.ExitStack()
        self._is_kept = False

    @contextlib.contextmanager
    def one(self, *, alone: bool, goes_on: bool) -> Iterator[None]:
        """A test's turn; ``goes_on``: the next one is alone, too."""
        if not self._is_kept:
            self._turn.enter_context(taken(alone=alone))
        self._is_kept = goes_on
        try:
            yield
        finally:
            if not goes_on:
                self._turn.close()


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
