"""The second step of a pull: brings blobs from an image source into the content store, each one once.

Pulls that need the same blob at the same time share its transfer.
"""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.values.image import BlobRequest, Credentials, Descriptor, ImageReference
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.images.faults import while_doing
from crinoid.core.lifecycle.images.inflight_blobs import InflightBlobs
from crinoid.core.lifecycle.images.progress import LayerTracker, Transfer
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.state.content import ContentStore


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where the blobs of one pull come from."""

    slot: RegistrySlot
    reference: ImageReference
    credentials: Credentials | None

    async def open(self, blob: Descriptor, offset: int) -> AsyncIterator[bytes]:
        """Open a blob's stream from a byte on."""
        return await self.slot.open_blob(BlobRequest(self.reference, blob, self.credentials, offset))


class Blobs:
    """Fetches blobs that are not in the content store."""

    def __init__(self, content: ContentStore, inflight: InflightBlobs) -> None:
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
        mine = False

        def start() -> Awaitable[None]:
            nonlocal mine
            mine = True
            return self._ingest(blob, source, self._transfers.setdefault(blob.digest, tracker.transfer))

        try:
            await self._shared.join(blob.digest, start)
        except CrinoidError:
            if mine:
                raise
            await self._shared.join(blob.digest, start)  # another pull's source or credentials failed, not ours

    async def close(self) -> None:
        """Give up what is under way."""
        await self._shared.close()

    async def _ingest(self, blob: Descriptor, source: BlobSource, transfer: Transfer) -> None:
        try:
            with (
                while_doing(f'blob {blob.digest} fetch from "{source.slot.name}"'),
                self._inflight.announce(blob) as tell,
            ):

                def advance(stored: int) -> None:
                    transfer.advance(stored)
                    tell(stored)

                await self._content.ingest(blob, lambda offset: source.open(blob, offset), advance)
        finally:
            self._transfers.pop(blob.digest, None)
