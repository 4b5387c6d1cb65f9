"""Blobs on their way in: so that a large layer is unpacked while it is fetched.

``blobs`` tells how much of each is stored, ``layers`` asks for one to unpack behind the writer. None of what is read so
is verified: only when an in-flight blob has become whole may the layer that was made of it be committed.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crinoid.core.api.values.image import Descriptor
from crinoid.core.lifecycle.images.unpack.layer import Growing
from crinoid.core.state.content import ContentStore

LEAST_BYTES = 4 << 20
"""Smaller blobs are there before an unpacker has begun."""


class InflightBlobs:
    """What is coming into the content store. Belongs to the event loop's thread.

    At most ``max_followers`` are followed at a time; none of 0.
    """

    def __init__(self, content: ContentStore, max_followers: int) -> None:
        self._content = content
        self._places = max_followers
        self._is_off = not max_followers
        self._expected: Counter[str] = Counter()
        self._inflight: dict[str, _InflightBlob] = {}
        self._change = asyncio.Event()

    def follows(self, blob: Descriptor) -> bool:
        """Return whether a blob is worth being followed."""
        return blob.size >= LEAST_BYTES and not self._is_off

    @contextmanager
    def expect(self, blob: Descriptor) -> Iterator[None]:
        """Let others wait for the blob while the block, which brings it, runs."""
        self._expected[blob.digest] += 1
        try:
            yield
        finally:
            self._expected[blob.digest] -= 1
            self._expected = +self._expected
            self._tell()

    @contextmanager
    def announce(self, blob: Descriptor) -> Iterator[Callable[[int], None]]:
        """Give a block that brings a blob into the store a function that it tells the bytes stored so far.

        Less than before means that it begins anew. The blob is whole when the block ends well.
        """
        try:
            yield lambda stored: self._advance(blob, stored)
            self._end(blob, is_whole=True)
        finally:
            self._end(blob, is_whole=False)

    async def follow(self, blob: Descriptor) -> "Follower | None":
        """Wait until the blob may be followed; the caller closes the follower.

        ``None``: nobody brings it any more, which should mean that it is in the store.
        """
        while self._expected[blob.digest] and not self._content.has(blob):
            inflight_blob = self._inflight.get(blob.digest)
            if inflight_blob is not None and self._places and (descriptors := _open_both(inflight_blob.fd)) is not None:
                self._places -= 1
                return Follower(inflight_blob, descriptors, self._give_back)
            await self._change.wait()
        return None

    def _advance(self, blob: Descriptor, stored: int) -> None:
        inflight_blob = self._inflight.get(blob.digest)
        if inflight_blob is not None and stored < inflight_blob.stored:
            self._end(blob, is_whole=False)
            inflight_blob = None
        if inflight_blob is not None:
            inflight_blob.advance(stored)
        elif self.follows(blob) and stored < blob.size:
            with contextlib.suppress(OSError):  # it is unpacked when it is whole, then
                self._inflight[blob.digest] = _InflightBlob(blob, self._content.open_partial(blob.digest), stored)
                self._tell()

    def _end(self, blob: Descriptor, is_whole: bool) -> None:
        inflight_blob = self._inflight.pop(blob.digest, None)
        if inflight_blob is not None:
            inflight_blob.end(is_whole)
        self._tell()

    def _give_back(self) -> None:
        self._places += 1
        self._tell()

    def _tell(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


class _InflightBlob:
    """One try to bring one blob in."""

    def __init__(self, blob: Descriptor, fd: int, stored: int) -> None:
        self.size = blob.size
        self.fd = fd
        self.stored = stored
        self.whole: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.counters: set[int] = set()

    def advance(self, stored: int) -> None:
        for counter in self.counters if stored > self.stored else ():
            os.eventfd_write(counter, stored - self.stored)
        self.stored = stored

    def end(self, is_whole: bool) -> None:
        os.close(self.fd)
        self.whole.set_result(is_whole)


class Follower:
    """One reader behind the writer of a blob. Close it at the end."""

    def __init__(
        self, inflight_blob: _InflightBlob, descriptors: tuple[int, int], give_back: Callable[[], None]
    ) -> None:
        self._inflight_blob = inflight_blob
        self._fd, self._counter = descriptors
        self._give_back = give_back
        os.eventfd_write(self._counter, inflight_blob.stored)
        inflight_blob.counters.add(self._counter)
        self._is_open = True

    @property
    def growing(self) -> Growing:
        """The blob, for the unpacker; good until ``close``."""
        return Growing(self._fd, self._inflight_blob.size, self._counter, self._inflight_blob.whole)

    async def wait(self) -> bool:
        """Wait until nothing more comes; tell whether the blob is whole and verified."""
        return await asyncio.shield(self._inflight_blob.whole)

    def close(self) -> None:
        """Give the place to another. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._inflight_blob.counters.discard(self._counter)
            os.close(self._counter)
            os.close(self._fd)
            self._give_back()


def _open_both(fd: int) -> tuple[int, int] | None:
    """Return a descriptor of the file for a reader, and a counter; None where there are too many already."""
    try:
        ours = os.dup(fd)
    except OSError:
        return None
    try:
        return ours, os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        os.close(ours)
        return None
