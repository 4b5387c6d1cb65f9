"""Gives back what no image needs: layers that nothing stands on, leaves first, and blobs that no record names.

Run after an image was removed, when what failed pulls left is kept no longer, and at start, which alone looks at all
there is. Otherwise only that is looked at which an image or a pull has let go of: one image's removal costs the same
however many there are. What a pull under way has leased stays, and what a container stands on, until the next time.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from crinoid.core.api.errors import CrinoidError, FailedPrecondition
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.lifecycle.images.catalog import Catalog
from crinoid.core.lifecycle.images.index import blobs_of
from crinoid.core.lifecycle.images.leases import Leases
from crinoid.core.lifecycle.images.leftovers import Leftover, Leftovers
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer that was let go of: ``depth`` is the number of layers below it."""

    parent: str | None
    depth: int


class GarbageCollector:
    """Removes layers and blobs; one collection at a time is the caller's affair."""

    def __init__(
        self, catalog: Catalog, content: ContentStore, leases: Leases, snapshotters: Mapping[str, SnapshotterSlot]
    ) -> None:
        self._catalog = catalog
        self._content = content
        self._leases = leases
        self._snapshotters = snapshotters
        self._layers: dict[str, dict[str, _Layer]] = {name: {} for name in snapshotters}
        self._blobs: dict[str, None] = {}
        self.leftovers = Leftovers(self._unneeded_bytes)

    def let_go(self, left: Leftover) -> None:
        """Have the next collection remove what nobody needs of this."""
        for layers in self._layers.values():
            parents = (None, *left.chain_ids)
            for depth, (parent, chain_id) in enumerate(zip(parents, left.chain_ids, strict=False)):
                layers[chain_id] = _Layer(parent, depth)
        self._blobs.update(dict.fromkeys(left.blobs))

    async def find_all(self, spared_s: float) -> None:
        """Let go of all that is there and that no image needs; blobs younger than that are an interrupted pull's."""
        if self._catalog.damaged:
            return
        for slot in self._snapshotters.values():
            try:
                self._layers[slot.name].update(_measure_depths(await slot.list_layers()))
            except CrinoidError as error:
                LOG.warning("layers that no image needs could not be listed: %s", error.message)
        spared = []
        for digest, age_s in await call_in_thread(self._list_ages):
            if not self._catalog.index.needs_blob(digest):
                if age_s < spared_s:
                    spared.append(digest)
                else:
                    self._blobs[digest] = None
        if spared:
            self.leftovers.add(Leftover(tuple(spared)))

    async def collect(self) -> None:
        """Remove what was let go of and nobody needs. What fails, or is in use, is left to the next time.

        While the record of an image can't be read, nobody knows what it needs: nothing is removed.
        """
        if damaged := self._catalog.damaged:
            LOG.warning("images %s can't be read: no layer or blob is collected", ", ".join(damaged))
            return
        for record in self._catalog.take_released():
            self.let_go(Leftover(tuple(blobs_of(record)), record.chain_ids))
        for left in self.leftovers.take_due():
            self.let_go(left)
        kept = self.leftovers.names()
        for slot in self._snapshotters.values():
            try:
                await self._collect_layers(slot, kept)
            except CrinoidError as error:
                LOG.warning("layers that no image needs could not all be removed: %s", error.message)
        await self._collect_blobs(kept)

    async def _collect_layers(self, slot: SnapshotterSlot, kept: set[str]) -> None:
        """Remove from the leaves down; a layer that a container stands on, and all below it, stay."""
        layers = self._layers[slot.name]
        held: set[str | None] = set()
        for chain_id in sorted(layers, key=lambda one: layers[one].depth, reverse=True):
            if chain_id in kept or self._catalog.index.needs_layer(chain_id):
                del layers[chain_id]  # whoever needs it lets go of it in time
            elif chain_id in held or not await self._remove_layer(slot, chain_id):
                held.add(layers[chain_id].parent)
            else:
                del layers[chain_id]

    async def _remove_layer(self, slot: SnapshotterSlot, chain_id: str) -> bool:
        with self._leases.removal(chain_id) as allowed:
            if not allowed:
                return False
            try:
                await slot.remove_layer(chain_id)
            except FailedPrecondition:
                LOG.debug("%s: layer %s is in use", slot.label, chain_id)
                return False
            except CrinoidError as error:  # no reason to leave the others
                LOG.warning("layer %s, which no image needs, can't be removed: %s", chain_id, error.message)
                return False
        return True

    async def _collect_blobs(self, kept: set[str]) -> None:
        """Remove blobs, all in one go in a thread: deleting a large file takes a while."""
        with ExitStack() as removals:
            digests = []
            for digest in tuple(self._blobs):
                if digest in kept or self._catalog.index.needs_blob(digest):
                    del self._blobs[digest]
                elif removals.enter_context(self._leases.removal(digest)):
                    digests.append(digest)
            for digest in await call_in_thread(lambda: self._remove_blobs(digests)):
                del self._blobs[digest]

    def _remove_blobs(self, digests: Sequence[str]) -> Iterable[str]:
        removed = []
        for digest in digests:
            try:
                self._content.remove(digest)
                removed.append(digest)
            except OSError as error:
                LOG.warning("blob %s that no image needs can't be removed: %s", digest, error)
        return removed

    def _list_ages(self) -> list[tuple[str, float]]:
        return [
            (digest, time.time() - self._content.touched_s(digest))
            for digest in (*self._content.list(), *self._content.list_partial())
        ]

    def _unneeded_bytes(self, digest: str) -> int:
        return 0 if self._catalog.index.needs_blob(digest) else self._content.size(digest)


def _measure_depths(layers: Sequence[tuple[str, str | None]]) -> dict[str, _Layer]:
    """Return each layer with the number of those below it."""
    parents = dict(layers)
    depths: dict[str, int] = {}
    for chain_id in parents:
        path: dict[str, None] = {}
        current: str | None = chain_id
        while current in parents and current not in depths and current not in path:
            path[current] = None
            current = parents[current]
        depth = depths.get(current, -1) if current is not None else -1
        for number, layer in enumerate(reversed(path)):
            depths[layer] = depth + 1 + number
    return {chain_id: _Layer(parent, depths[chain_id]) for chain_id, parent in parents.items()}
