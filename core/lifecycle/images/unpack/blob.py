"""The bytes of a blob's file, as a child reads them: all there, or behind the daemon that is still writing them."""

import os


class Blob:
    """Reads ``fd`` from its start, by positions of its own: other unpackers may share the descriptor.

    ``size``: the blob grows until it has so many bytes, and ``inflight``, an eventfd, is added the bytes that came.
    """

    __slots__ = ("_fd", "_inflight", "_size", "_there", "position")

    def __init__(self, fd: int, size: int | None = None, inflight: int = -1) -> None:
        self._fd = fd
        self._size = size
        self._inflight = inflight
        self._there = 0
        self.position = 0

    def first_bytes(self, count: int) -> bytes:
        """Return the first bytes, fewer of a shorter blob; ``read`` gives them again."""
        if self._size is not None:
            self._wait_for(min(count, self._size))
        return os.pread(self._fd, count, 0)

    def read(self, count: int) -> bytes:
        """Return the next bytes, at most ``count``, none at the end; waits until there is one."""
        if self._size is not None:
            self._wait_for(min(self.position + 1, self._size))
            count = min(count, self._there - self.position)
        data = os.pread(self._fd, count, self.position)
        self.position += len(data)
        return data

    def _wait_for(self, end: int) -> None:
        while self._there < end:
            self._there += os.eventfd_read(self._inflight)
