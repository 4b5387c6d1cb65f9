"""Gives back what no image needs: layers that nothing stands on, leaves first, and blobs that no record names.

Run after an image was removed, when what failed pulls left is kept no longer, and at start, which alone looks at all
there is. Otherwise only that is looked at which an image or a pull has let go of: one image's removal costs the same
however many there are. What a pull under way has leased stays, and what a container stands on, until the next time.

What failed pulls have brought is kept for a while, so that the next try goes on from there. That is bounded in time and
in space: a node whose pulls fail over and over does not fill its disk with it.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from crinoid.core.api.errors import CrinoidError, FailedPrecondition
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.lifecycle.images.catalog import Catalog, blobs_of
from crinoid.core.lifecycle.images.leases import Leases
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore

LOG = logging.getLogger(__name__)
KEPT_S = 3600.0
"""The kubelet tries again within five minutes, as long as the pod is there."""
KEPT_BYTES = 1 << 30
"""Blobs of failed pulls beyond that go, the oldest pull's first; those of the latest stay, however large they are."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What one pull left: digests of blobs, whole or not, and committed layers from the bottom up."""

    blobs: tuple[str, ...]
    chain_ids: tuple[str, ...] = ()


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
        self._failed = False
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
        content = self._content
        digests = await call_in_thread(lambda: (*content.list(), *content.list_partial()))
        for digest, since_s in await call_in_thread(lambda: [(one, content.touched_s(one)) for one in digests]):
            if not self._catalog.index.needs_blob(digest):
                if time.time() - since_s < spared_s:
                    spared.append(digest)
                else:
                    self._blobs[digest] = None
        if spared:
            self.leftovers.add(Leftover(tuple(spared)))

    async def collect(self) -> bool:
        """Remove what was let go of and nobody needs; tell whether no removal has failed.

        What fails is left to the next time, and so is what is in use: who ends the use has it collected. While the
        record of an image can't be read, nobody knows what it needs: nothing is removed.
        """
        if damaged := self._catalog.damaged:
            LOG.warning("images %s can't be read: no layer or blob is collected", ", ".join(damaged))
            return True
        self._failed = False
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
                self._failed = True
        await self._collect_blobs(kept)
        return not self._failed

    async def _collect_layers(self, slot: SnapshotterSlot, kept: set[str]) -> None:
        """Remove from the leaves down; a layer that a container stands on, and all below it, stay."""
        layers = self._layers[slot.name]
        held: set[str | None] = set()
        for chain_id in sorted(layers, key=lambda one: layers[one].depth, reverse=True):
            if chain_id in kept or self._catalog.index.needs_layer(chain_id):
                del layers[chain_id]  # whoever needs it lets go of it in time
                continue
            is_removed = False
            # While the block runs, a pull that wants the layer waits, and then finds that it is not there. Asking the
            # leases first and removing later would pull it away from under a pull that came in between.
            with self._leases.removal(chain_id) as allowed:
                if allowed and chain_id not in held:
                    try:
                        await slot.remove_layer(chain_id)
                        is_removed = True
                    except FailedPrecondition:  # the snapshotter knows what containers stand on
                        LOG.debug("%s: layer %s is in use", slot.label, chain_id)
                    except CrinoidError as error:  # no reason to leave the others
                        LOG.warning("layer %s, which no image needs, can't be removed: %s", chain_id, error.message)
                        self._failed = True
            if is_removed:
                del layers[chain_id]
            else:
                held.add(layers[chain_id].parent)

    async def _collect_blobs(self, kept: set[str]) -> None:
        """Remove blobs, all in one go in a thread: deleting a large file takes a while."""

        def remove(digests: Sequence[str]) -> Sequence[str]:
            removed = []
            for digest in digests:
                try:
                    self._content.remove(digest)
                    removed.append(digest)
                except OSError as error:
                    LOG.warning("blob %s that no image needs can't be removed: %s", digest, error)
                    self._failed = True
            return removed

        with ExitStack() as removals:  # of all of them until the thread is done, see _collect_layers
            digests = []
            for digest in tuple(self._blobs):
                if digest in kept or self._catalog.index.needs_blob(digest):
                    del self._blobs[digest]
                elif removals.enter_context(self._leases.removal(digest)):
                    digests.append(digest)
            for digest in await call_in_thread(lambda: remove(digests)):
                del self._blobs[digest]

    def _unneeded_bytes(self, digest: str) -> int:
        return 0 if self._catalog.index.needs_blob(digest) else self._content.size(digest)


class Leftovers:
    """The leftovers of failed pulls, the oldest first. ``size`` measures a blob, whole or not; 0 where it is needed."""

    def __init__(self, size: Callable[[str], int]) -> None:
        self._size = size
        self._kept: dict[Leftover, float] = {}

    def add(self, left: Leftover) -> None:
        """Keep what a pull left; the same again begins anew."""
        self._kept.pop(left, None)
        self._kept[left] = time.monotonic()

    def forget(self, blobs: Collection[str]) -> None:
        """Keep nothing of a pull that went well in the end: an image has it now."""
        self._kept = {left: since for left, since in self._kept.items() if not set(left.blobs).issubset(blobs)}

    def names(self) -> set[str]:
        """Return the blobs and layers that are kept."""
        return {name for left in self._kept for name in (*left.blobs, *left.chain_ids)}

    def next_s(self) -> float | None:
        """Tell in how many seconds the next one is due; ``None``: nothing is kept."""
        return max(0.0, min(self._kept.values()) + KEPT_S - time.monotonic()) if self._kept else None

    def take_due(self) -> Sequence[Leftover]:
        """Return what is kept no more, since it is old or there is too much of it."""
        due: list[Leftover] = []
        for left, since in tuple(self._kept.items()):
            if time.monotonic() - since >= KEPT_S:
                due.append(left)
                del self._kept[left]
        sizes: Mapping[Leftover, int] = {left: sum(map(self._size, left.blobs)) for left in self._kept}
        total = sum(sizes.values())
        for left in tuple(self._kept)[:-1]:
            if total <= KEPT_BYTES:
                break
            total -= sizes[left]
            due.append(left)
            del self._kept[left]
        return due


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
