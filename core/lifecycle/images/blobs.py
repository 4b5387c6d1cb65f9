"""The second step of a pull: brings blobs from an image source into the content store, each one once.

Pulls that need the same blob at the same time share its transfer. While a large one comes in, its layer is unpacked
behind the writer: ``Blobs`` tells ``InflightBlobs`` how much of each is stored, and ``layers`` follows one. None of
what is read so is verified: only when an in-flight blob has become whole may the layer made of it be committed.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from crinoid.core.api.errors import CorruptContent, CrinoidError
from crinoid.core.api.values.image import BlobRequest, Credentials, Descriptor, ImageReference
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.images.faults import while_doing
from crinoid.core.lifecycle.images.progress import LayerTracker, Transfer
from crinoid.core.lifecycle.images.targets import ImageSource
from crinoid.core.lifecycle.images.unpack.layer import Growing
from crinoid.core.state.content import ContentStore

LEAST_BYTES = 4 << 20
"""Smaller blobs are there before an unpacker has begun."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where the blobs of one pull come from."""

    slot: ImageSource
    reference: ImageReference
    credentials: Credentials | None

    async def open(self, blob: Descriptor, doubted: bool, offset: int) -> AsyncIterator[bytes]:
        """Open a blob's stream from a byte on; ``doubted``: what it gave before was wrong."""
        return await self.slot.open_blob(BlobRequest(self.reference, blob, self.credentials, offset, doubted))


class Blobs:
    """Fetches blobs that are not in the content store."""

    def __init__(self, content: ContentStore, inflight: "InflightBlobs") -> None:
        self._content = content
        self._inflight = inflight
        self._shared = SharedTasks("transfer of blob", orphans="cancel")
        self._transfers: dict[str, Transfer] = {}

    async def fetch(self, blob: Descriptor, source: BlobSource, tracker: LayerTracker) -> None:
        """Return when the blob is in the store, verified and synced.

        Raises what the source and the store raise: CorruptContent for other bytes than the digest says, Unavailable for
        a stream that broke for good, ResourceExhausted for a full disk. What arrived is kept for the next try.
        """
        if self._content.has(blob):
            return
        tracker.transfer = self._transfers.setdefault(blob.digest, tracker.transfer)
        is_mine = False

        async def ingest() -> None:
            nonlocal is_mine
            is_mine = True
            transfer = self._transfers.setdefault(blob.digest, tracker.transfer)
            try:
                with (
                    while_doing(f'blob {blob.digest} fetch from "{source.slot.name}"'),
                    self._inflight.announce(blob) as tell,
                ):

                    def advance(stored: int) -> None:
                        transfer.advance(stored)
                        tell(stored)

                    await self._ingest(blob, source, advance)
            finally:
                self._transfers.pop(blob.digest, None)

        try:
            await self._shared.join(blob.digest, ingest)
        except CrinoidError:
            if is_mine:
                raise
            # The transfer was another pull's, and so were its source and credentials: ours may do better.
            await self._shared.join(blob.digest, ingest)

    async def _ingest(self, blob: Descriptor, source: BlobSource, advance: Callable[[int], None]) -> None:
        """Store a blob. Where all of it came and it is another, as of a stale mirror, the source is asked once more."""
        has_come_whole = False

        def watch(stored: int) -> None:
            nonlocal has_come_whole
            has_come_whole = stored == blob.size
            advance(stored)

        try:
            await self._content.ingest(blob, partial(source.open, blob, False), watch)
        except CorruptContent as first:
            if not has_come_whole:
                raise
            try:
                await self._content.ingest(blob, partial(source.open, blob, True), advance)
            except CrinoidError as second:
                if not isinstance(second, CorruptContent):
                    first.add_note(second.message)
                raise first from second

    async def close(self) -> None:
        """Give up what is under way."""
        await self._shared.close()


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
            self._notify()

    @contextmanager
    def announce(self, blob: Descriptor) -> Iterator[Callable[[int], None]]:
        """Give a block that brings a blob into the store a function that it tells the bytes stored so far.

        Less than before means that it begins anew. The blob is whole when the block ends well.
        """

        def advance(stored: int) -> None:
            inflight_blob = self._inflight.get(blob.digest)
            if inflight_blob is not None and stored < inflight_blob.stored:
                self._end(blob, is_whole=False)  # what was read of it may have been torn: followers begin anew, too
                inflight_blob = None
            if inflight_blob is not None:
                inflight_blob.advance(stored)
            elif self.follows(blob) and stored < blob.size:
                with contextlib.suppress(OSError):  # it is unpacked when it is whole, then
                    self._inflight[blob.digest] = _InflightBlob(blob, self._content.open_partial(blob.digest), stored)
                    self._notify()

        try:
            yield advance
            self._end(blob, is_whole=True)
        finally:
            self._end(blob, is_whole=False)  # of one that is whole nothing is left to end

    async def follow(self, blob: Descriptor) -> "Follower | None":
        """Wait until the blob may be followed; the caller closes the follower.

        ``None``: nobody brings it any more, which should mean that it is in the store.
        """
        while self._expected[blob.digest] and not self._content.has(blob):
            inflight_blob = self._inflight.get(blob.digest)
            if inflight_blob is not None and self._places:
                # A duplicate stays open when the ingest renames or drops the file, and the reader uses pread(2), since
                # the position is shared. The eventfd adds up the bytes that came, and has the reader sleep till then.
                with contextlib.suppress(OSError), contextlib.ExitStack() as opened:  # too many open files: wait
                    fd = os.dup(inflight_blob.fd)
                    opened.callback(os.close, fd)
                    counter = os.eventfd(0, os.EFD_CLOEXEC)
                    opened.pop_all()
                    self._places -= 1
                    return Follower(inflight_blob, (fd, counter), self._give_back)
            await self._change.wait()
        return None

    def _end(self, blob: Descriptor, is_whole: bool) -> None:
        inflight_blob = self._inflight.pop(blob.digest, None)
        if inflight_blob is not None:
            inflight_blob.end(is_whole)
        self._notify()

    def _give_back(self) -> None:
        self._places += 1
        self._notify()

    def _notify(self) -> None:
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
