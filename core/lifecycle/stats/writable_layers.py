"""What containers' writable layers take on disk: measured when somebody asks, and for some seconds not again.

The stats of containers, ImageFsInfo and the metrics ask here; nothing runs in the background. To measure is to walk all
files of a layer, which in large ones takes seconds: so a figure serves for ten seconds, as with peers, and for longer
where it took long to get. Each is told with the time it is of (api.proto, FilesystemUsage).
"""

import logging
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.slots.snapshotter import SnapshotterSlot

LOG = logging.getLogger(__name__)
FRESH_S = 10.0
_MAX_SHARE = 0.05
"""Of all time, the part that measuring one layer may take."""


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """A measurement: ``usage`` is ``None`` where there was none; ``mountpoint`` is a directory of its file system."""

    timestamp_ns: int
    mountpoint: str
    usage: DiskUsage | None


class WritableLayers:
    """Measures the writable layers of snapshots, by their keys, which are containers' ids."""

    def __init__(self, snapshotters: Mapping[str, SnapshotterSlot]) -> None:
        self._snapshotters = snapshotters
        self._mountpoints: dict[str, str] = {}
        self._known: dict[tuple[str, str], tuple[float, LayerUsage]] = {}

    async def measure(self, snapshotter: str, key: str, anew: bool = False) -> LayerUsage:
        """Return what a snapshot's writable layer takes; ``anew``: now, whatever is known."""
        slot = self._snapshotters.get(snapshotter)
        if slot is None:
            return LayerUsage(time.time_ns(), "", None)
        known = None if anew else self.known(snapshotter, key)
        return known or await self._measure(slot, key)

    def known(self, snapshotter: str, key: str) -> LayerUsage | None:
        """Return what is known of a snapshot's writable layer and serves still."""
        until_s, known = self._known.get((snapshotter, key), (0.0, None))
        return known if known is not None and time.monotonic() < until_s else None

    def keep(self, keys: Container[str]) -> None:
        """Forget all snapshots but these."""
        self._known = {key: known for key, known in self._known.items() if key[1] in keys}

    async def _measure(self, slot: SnapshotterSlot, key: str) -> LayerUsage:
        started = time.monotonic()
        at_ns = time.time_ns()
        try:
            with on_behalf_of(f"writable layer {key}"):  # a walk of millions of files is to hold up no other
                usage = await slot.usage(key)
        except CrinoidError as error:
            LOG.debug("%s", error.message)
            return LayerUsage(at_ns, self._mountpoint(slot), None)
        ended = time.monotonic()
        found = LayerUsage(at_ns, self._mountpoint(slot), usage)
        self._known[slot.name, key] = (ended + max(FRESH_S, (ended - started) / _MAX_SHARE), found)
        return found

    def _mountpoint(self, slot: SnapshotterSlot) -> str:
        if slot.name not in self._mountpoints:
            self._mountpoints[slot.name] = str(slot.features().root or slot.state_dir)
        return self._mountpoints[slot.name]
