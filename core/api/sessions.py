"""Streams and sessions: the live things that a runtime's ``exec_stream`` and ``attach`` return to the kernel.

Unlike the values that cross other hooks they have a life: the kernel reads, writes, waits, and closes each session that
it was given. Everything is called on the event loop; nothing may block. :mod:`crinoid.core.api.linux.descriptors` has
ready-made streams for descriptors.
"""

import abc
from typing import Protocol

from crinoid.core.api.values.runtime import TerminalSize


class ByteSource(Protocol):
    """Bytes to be read by one reader."""

    async def read(self) -> bytes:
        """Return the next piece, of at most some 100 KiB, as soon as there is one; ``b""`` at the end, and after it.

        Reads no further ahead than a bounded buffer. Raises CrinoidError when what comes next was lost.
        """
        ...


class ByteSink(Protocol):
    """Bytes to be written by one writer."""

    async def write(self, data: bytes) -> None:
        """Take a piece; return when there is room for more. Raises BrokenPipeError when nobody reads any more."""
        ...

    async def close(self) -> None:
        """Tell the reader that this was all, where that can be told (a terminal can't). Idempotent."""
        ...


class Session(abc.ABC):
    """The standard streams of a process; a stream that was not asked for, or can't be had, is ``None``.

    With a terminal all output is in ``stdout``, which is there in any case. All outputs that are there are to be read,
    at the same time.
    """

    def __init__(self, stdin: ByteSink | None, stdout: ByteSource | None, stderr: ByteSource | None) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    @abc.abstractmethod
    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its size; without a terminal, or after the end, nothing happens."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the streams; reads that wait end. Idempotent. The process itself lives on."""


class ExecSession(Session):
    """An exec process in a container.

    ``close`` is to the process as if its terminal, or whoever reads and writes, had gone: end of file on standard
    input, a broken pipe on output, a hang-up signal by a terminal. It is not killed.
    """

    @abc.abstractmethod
    async def wait(self) -> int:
        """Wait for the process's end, with no deadline: its exit code, 0 to 255, 128 + signal for a signal.

        Output may still be there to be read: it ends soon after the process, also if a process in the background keeps
        it open. Raises DriverError when the end can't be known.
        """


class AttachSession(Session):
    """Streams of a container's first process, from now on. Any number of sessions may be open at once.

    A session that is not read in time is ended rather than to hold up the container or another session: its reads
    raise ResourceExhausted. Where the container has ``stdin_once``, the end of the first session that has ``stdin``
    closes the container's standard input for good; without it, nothing does.
    """

    @abc.abstractmethod
    async def wait(self) -> None:
        """Wait until the container has ended, and with it all output, or the session was closed."""
