"""Gives back what no image needs: layers that nothing stands on, leaves first, and blobs that no record names.

Run after an image was removed, and at start. What a pull under way has claimed stays.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Sequence

from crinoid.core.api.errors import CrinoidError, FailedPrecondition
from crinoid.core.lifecycle.images.claims import Claims
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Table

LOG = logging.getLogger(__name__)


class GarbageCollector:
    """Removes layers and blobs; one collection at a time is the caller's affair."""

    def __init__(self, images: Table[ImageRecord], content: ContentStore, claims: Claims) -> None:
        self._images = images
        self._content = content
        self._claims = claims

    async def collect(self, snapshotters: Iterable[SnapshotterSlot], spared_s: float = 0.0) -> None:
        """Remove all that is not needed, but blobs younger than ``spared_s``. What fails is left to the next time.

        While the record of an image can't be read, nobody knows what it needs: nothing is removed.
        """
        if self._images.damaged:
            LOG.warning("images %s can't be read: no layer or blob is collected", ", ".join(self._images.damaged))
            return
        for slot in snapshotters:
            try:
                await self._collect_layers(slot)
            except CrinoidError as error:
                LOG.warning("layers that no image needs could not all be removed: %s", error.message)
        await self._collect_blobs(spared_s)

    async def _collect_layers(self, slot: SnapshotterSlot) -> None:
        """Remove from the leaves down; a layer that a container stands on, and all below it, stay."""
        for chain_id in order_leaf_first(await slot.list_layers()):
            with self._claims.removal(chain_id) as allowed:
                if allowed and chain_id not in needed_layers(self._images):
                    await _remove_unless_used(slot, chain_id)

    async def _collect_blobs(self, spared_s: float) -> None:
        """Remove blobs one by one, each in a thread: deleting a large file takes a while."""
        for digest in self._content.list():
            with self._claims.removal(digest) as allowed:
                if allowed and digest not in needed_blobs(self._images) and self._age_s(digest) >= spared_s:
                    await asyncio.to_thread(self._content.remove, digest)

    def _age_s(self, digest: str) -> float:
        try:
            return time.time() - self._content.path(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0


async def _remove_unless_used(slot: SnapshotterSlot, chain_id: str) -> None:
    try:
        await slot.remove_layer(chain_id)
    except FailedPrecondition:
        LOG.debug("%s: layer %s is in use", slot.label, chain_id)


def order_leaf_first(layers: Sequence[tuple[str, str | None]]) -> list[str]:
    """Order layers so that each comes before the one it stands on."""
    parents = dict(layers)
    ordered: dict[str, None] = {}
    for chain_id in parents:
        path: list[str] = []
        current: str | None = chain_id
        while current in parents and current not in ordered and current not in path:
            path.append(current)
            current = parents[current]
        for layer in reversed(path):  # from the bottom up
            ordered[layer] = None
    return list(reversed(ordered))


def needed_layers(images: Iterable[ImageRecord]) -> Collection[str]:
    """Return the chain ids that images consist of."""
    return {chain_id for record in images for chain_id in record.chain_ids}


def needed_blobs(images: Iterable[ImageRecord]) -> Collection[str]:
    """Return the digests of everything that images consist of: configuration, manifests, indexes and layers."""
    return {
        digest
        for record in images
        for digest in (record.id, *record.manifests, *(layer.digest for layer in record.layers))
    }
