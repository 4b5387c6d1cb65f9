"""The output of an exec process that is run to its end: it comes straight through two pipes.

Nothing copies it but the kernel. A background process that keeps a pipe open is read for a while, and holds up nobody
for longer than the request's own timeout.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator

from crinoid.core.api.errors import DeadlineExceeded
from crinoid.core.api.values.runtime import ExecRequest
from crinoid.plugins.runtimes.binaries.stdio import PIPE_MODE

_PIECE_BYTES = 1 << 16


def overdue(name: str, request: ExecRequest) -> DeadlineExceeded:
    """Return the error for a process in the container ``name`` that had not ended in time."""
    words = " ".join(map(str, request.process.get("args", ())))[:200]
    return DeadlineExceeded(
        f"exec of {words!r} in {name} had not ended after {request.timeout_s:g} s; it was killed with all its children"
    )


class Output(contextlib.AbstractContextManager["Output"]):
    """The two pipes of a process; keeps the first ``limit`` bytes of each and drains the rest."""

    def __init__(self, limit: int) -> None:
        self._pipes = (_Pipe(limit), _Pipe(limit))

    @contextlib.contextmanager
    def writers(self) -> Iterator[dict[int, int]]:
        """The child's descriptors 1 and 2."""
        try:
            yield {1: self._pipes[0].writer, 2: self._pipes[1].writer}
        finally:
            self.close_writers()

    def close_writers(self) -> None:
        """Leave the writing ends to the child alone."""
        for pipe in self._pipes:
            pipe.close_writer()

    def watch(self) -> None:
        """Read both pipes as output comes."""
        for pipe in self._pipes:
            pipe.watch()

    async def drained(self, timeout_s: float) -> None:
        """Wait for the end of both streams, or until ``timeout_s`` has passed; take what is in the pipes then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for pipe in self._pipes:
                    await pipe.ended.wait()
        for pipe in self._pipes:
            pipe.take_rest()

    @property
    def stdout(self) -> bytes:
        return self._pipes[0].content

    @property
    def stderr(self) -> bytes:
        return self._pipes[1].content

    def __exit__(self, *exc: object) -> None:
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    """One pipe, emptied by the loop."""

    def __init__(self, limit: int) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        os.fchmod(self._reader, PIPE_MODE)
        self._room = limit
        self._pieces: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

    @property
    def content(self) -> bytes:
        return b"".join(self._pieces)

    def watch(self) -> None:
        self._loop.add_reader(self._reader, self._read)

    def take_rest(self) -> None:
        """Take what the pipe holds now, and no more than it can hold: others may go on writing."""
        left = fcntl.fcntl(self._reader, fcntl.F_GETPIPE_SZ)
        while not self.ended.is_set() and left > 0 and (taken := self._read()):
            left -= taken

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self.close_writer()

    def _read(self) -> int:
        try:
            piece = os.read(self._reader, _PIECE_BYTES)
        except BlockingIOError:
            return 0
        if not piece:
            self._loop.remove_reader(self._reader)
            self.ended.set()
        elif self._room:
            self._pieces.append(piece[: self._room])
            self._room -= len(self._pieces[-1])
        return len(piece)
