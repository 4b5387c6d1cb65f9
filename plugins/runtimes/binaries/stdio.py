"""Standard streams that a container's user can deal with, and that the host can spare.

A program that opens ``/dev/stdout`` opens the pipe behind it anew, so the pipe's mode must let it; in a user namespace
no runtime can give the pipe to that user. And crun before 1.24 gives the streams to the user whatever they are, the
host's ``/dev/null`` too: so it never gets that.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

PIPE_MODE = 0o666
_SHELL = "/bin/sh"
_WITHOUT_INPUT = 'exec "$0" "$@" <<END\nEND\n'
"""The shell makes a pipe that is at its end, and becomes the runtime's binary."""
_WITHOUT_STREAMS = 'exec "$0" "$@" <<END >&0\nEND\n'
"""The output is that pipe's reading end, too: what is written there fails, as nothing is to be."""


def open_streams(pid: int) -> None:
    """Let any user open the pipes that are a process's standard streams. It has not begun, so they are what it got."""
    for number in range(3):
        path = f"/proc/{pid}/fd/{number}"
        with contextlib.suppress(OSError):  # it has been killed
            if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  # a link that leads nowhere by its name
                os.chmod(path, PIPE_MODE)  # noqa: PTH101


def without_null_input(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs the given one with an input that is at its end and is no device of the host's."""
    return (_SHELL, "-c", _WITHOUT_INPUT, *command)


def without_null_streams(command: Sequence[str]) -> tuple[str, ...]:
    """The same for input and output: those of a container's terminal are elsewhere, and conmon has none for these."""
    return (_SHELL, "-c", _WITHOUT_STREAMS, *command)


@contextlib.contextmanager
def ended_input() -> Iterator[int]:
    """A descriptor to read nothing from: a pipe whose other end is closed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    os.fchmod(reader, PIPE_MODE)
    try:
        yield reader
    finally:
        os.close(reader)
