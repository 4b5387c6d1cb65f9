"""The bytes of a layer: read, decompressed and hashed in a thread of its own, handed to the extraction in order.

Decompression and SHA-256 run without the interpreter's lock, so with two processors this goes on beside the making of
files. Memory is bounded: a few chunks wait between the threads, whatever the blob expands to.
"""

import hashlib
import os
import threading
from _queue import SimpleQueue
from collections.abc import Iterator

from crinoid.core.api.archives import ArchiveFault, ByteSource, Corrupt, TooLarge
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.decompression import decompress

_CHUNKS_WAITING = 16


class LayerStream:
    """The uncompressed layer as a stream of chunks, and its digest once all of it went by.

    ``max_bytes`` bounds the uncompressed size. A damaged blob raises Corrupt from ``chunks``.
    """

    def __init__(self, blob: Blob, max_bytes: int | None) -> None:
        self._blob = blob
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._filled: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()  # queue.Queue bounds itself, in Python and ten times as slow
        for _ in range(_CHUNKS_WAITING):
            self._room.put(None)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._produce, name="decompress", daemon=True).start()

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks, none empty."""
        while chunk := self._filled.get():
            if isinstance(chunk, BaseException):
                raise chunk
            self._room.put(None)
            yield chunk

    def diff_id(self) -> str:
        """Return the digest of the uncompressed stream; to be called after ``chunks`` has ended."""
        return f"sha256:{self._hash.hexdigest()}"

    def _produce(self) -> None:
        try:
            total = 0
            for chunk in decompress(self._blob):
                total += len(chunk)
                if self._max_bytes is not None and total > self._max_bytes:
                    raise TooLarge(f"the archive has more than {self._max_bytes} bytes uncompressed, the limit")
                self._room.get()
                self._filled.put(chunk)
                self._hash.update(chunk)
            self._filled.put(b"")
        except (ArchiveFault, OSError, MemoryError) as error:
            self._filled.put(error)


class ByteReader(ByteSource):
    """Takes exact numbers of bytes from chunks, copying no more than it must. ``offset`` counts what was taken."""

    __slots__ = ("_base", "_chunk", "_chunks", "_end", "_position", "_view")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._view = memoryview(b"")
        self._position = 0
        self._end = 0
        self._base = 0

    @property
    def offset(self) -> int:
        """Bytes taken since the start of the stream."""
        return self._base + self._position

    def take(self, count: int) -> bytes:
        """Return ``count`` bytes. Raises Corrupt if the stream ends before."""
        start = self._position
        end = start + count
        if end <= self._end:
            self._position = end
            return self._chunk[start:end]
        return b"".join(self._pieces(count))

    def take_header(self) -> bytes | None:
        """Return 512 bytes, or None where the stream ends on the boundary."""
        if self._position == self._end and not self._refill():
            return None
        return self.take(512)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        end = self._position + count
        if end <= self._end:
            self._position = end
        else:
            for _ in self._pieces(count):
                pass

    def write_to(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to ``fd`` at its position."""
        end = self._position + count
        if end <= self._end:  # the common case: one small file, one write
            view = self._view[self._position : end]
            self._position = end
            written = os.write(fd, view)
            if written != count:
                _write_all(fd, view[written:])
            return
        for piece in self._pieces(count):
            _write_all(fd, piece)

    def write_rest(self, fd: int) -> None:
        """Write all that is left to ``fd``."""
        while self._position < self._end or self._refill():
            self.write_to(fd, self._end - self._position)

    def drain(self) -> None:
        """Take all that is left: the padding after an archive counts for its digest."""
        while self._refill():
            pass

    def drain_zeros(self) -> None:
        """Take all that is left. Raises Corrupt for anything but zeros, with which archives are filled up."""
        while True:
            if self._chunk.count(0, self._position) != self._end - self._position:
                raise Corrupt(f"something follows the end of the archive, from byte {self.offset} on")
            if not self._refill():
                return

    def _pieces(self, count: int) -> Iterator[memoryview]:
        while count > 0:
            if self._position == self._end and not self._refill():
                raise Corrupt(f"the archive ends early: {count} bytes are missing at offset {self.offset}")
            size = min(count, self._end - self._position)
            view = self._view[self._position : self._position + size]
            self._position += size
            count -= size
            yield view

    def _refill(self) -> bool:
        self._base += self._end
        self._chunk = next(self._chunks, b"")
        self._view = memoryview(self._chunk)
        self._position, self._end = 0, len(self._chunk)
        return self._end > 0


def _write_all(fd: int, view: memoryview) -> None:
    while view:  # a short write is the kernel's way to say that the next one will name the fault
        view = view[os.write(fd, view) :]
