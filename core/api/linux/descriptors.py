"""Byte streams over descriptors that can be polled: pipes, terminals and sockets, read and written on the event loop.

For drivers that return sessions (:mod:`crinoid.core.api.sessions`). Each stream owns its descriptor.
"""

import asyncio
import contextlib
import errno
import fcntl
import os

PIECE_BYTES = 1 << 17
"""A read returns at most so much."""

_LARGE_PIPE_BYTES = 1 << 18
_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032


def make_pipe() -> tuple[int, int]:
    """Make a pipe for bulk data: reading and writing end, both blocking and closed on exec."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # pages are rationed: the usual size will do
        fcntl.fcntl(writer, _F_SETPIPE_SZ, _LARGE_PIPE_BYTES)
    return reader, writer


async def readable(fd: int) -> None:
    """Wait until there is something to read. Nobody else may wait for the same."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(fd)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class FdSource:
    """What can be read from a descriptor; it is made non-blocking. One reader at a time."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._left: int | None = None  # what is read at most, once nothing is waited for any more

    async def read(self) -> bytes:
        """Return the next piece; ``b""`` at the end, after ``close``, and where ``end_after`` has run out."""
        await asyncio.sleep(0)  # others get their turn, however much there is to read
        while self._fd >= 0 and self._left != 0:
            try:
                count = PIECE_BYTES if self._left is None else min(PIECE_BYTES, self._left)
                return self._taken(os.read(self._fd, count))
            except BlockingIOError:
                if self._left is not None:
                    self._left = 0
                    break
            except OSError as error:
                if error.errno in (errno.EIO, errno.ECONNRESET):  # EIO: the last user of a terminal has gone
                    break
                raise
            await self._readable()
        return b""

    def end_after(self, delay_s: float) -> None:
        """Don't wait for more from then on: what the descriptor holds by then is read, and that was all."""
        self._loop.call_later(delay_s, self._lose_patience)

    def close(self) -> None:
        """Close the descriptor; a read that waits ends. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake()

    def _taken(self, piece: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(piece)
        return piece

    async def _readable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_reader(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _lose_patience(self) -> None:
        if self._fd < 0 or self._left is not None:
            return
        try:
            self._left = fcntl.fcntl(self._fd, _F_GETPIPE_SZ)
        except OSError:  # no pipe
            self._left = PIECE_BYTES
        self._wake()


class FdSink:
    """What can be written to a descriptor; it is made non-blocking. One writer at a time.

    ``closes``: closing the descriptor is what tells the reader of the end, as with a pipe.
    """

    def __init__(self, fd: int, *, closes: bool = True) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._closes = closes
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises BrokenPipeError when nobody reads any more, and after ``release``."""
        left = memoryview(data)
        while left:
            if self._fd < 0:
                raise BrokenPipeError(errno.EPIPE, "the stream has been closed")
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise BrokenPipeError(error.errno, f"nobody reads any more: {error.strerror}") from error

    async def close(self) -> None:
        """Tell the reader of the end. Idempotent."""
        if self._closes:
            self.release()

    def release(self) -> None:
        """Close the descriptor; a write that waits fails. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake()

    async def _writable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
