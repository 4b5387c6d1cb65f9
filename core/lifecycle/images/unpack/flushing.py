"""Has what was unpacked so far written to disk while the rest is unpacked, so that the commit waits for little.

The disk is idle, otherwise, as long as the processors are busy, and the other way round. A flush that fails fails the
layer: the kernel tells an error of writing back only once, and the commit's own sync would not hear of it.
"""

import threading
from _queue import SimpleQueue
from collections.abc import Iterator

from crinoid.core.lifecycle.images.unpack import kernel

_STEP_BYTES = 16 << 20


class Flusher:
    """Flushes the file system of ``fd`` each time that 16 MiB have gone by; never waits but in ``finish``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._flush, name="flush", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass chunks on, and count."""
        left = _STEP_BYTES
        for chunk in chunks:
            yield chunk
            left -= len(chunk)
            if left <= 0 and self._wanted.empty():
                self._wanted.put(True)
                left = _STEP_BYTES

    def finish(self) -> None:
        """Wait for a flush that is under way. Raises OSError where one failed."""
        self._wanted.put(False)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        try:
            while self._wanted.get():
                kernel.sync_file_system(self._fd)
        except OSError as error:
            self._error = error
