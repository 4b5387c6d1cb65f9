"""What images and writable layers take on disk, for ImageFsInfo, which the kubelet asks for every ten seconds."""

import asyncio
import time
from collections.abc import Iterable

from crinoid.core.api.linux.files import disk_usage
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.lifecycle.queries import FilesystemReport
from crinoid.core.lifecycle.writables import WritableLayers
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore

_FRESH_S = 10.0
"""How long a measurement of images serves: walking the blobs costs more than the answer is worth."""


class Filesystems:
    """Measures, and remembers what it measured for a few seconds. Each snapshotter is reported by its own root."""

    def __init__(
        self, content: ContentStore, snapshotters: Iterable[SnapshotterSlot], writables: WritableLayers
    ) -> None:
        self._content = content
        self._snapshotters = tuple(snapshotters)
        self._writables = writables
        self._measured: dict[str, tuple[float, FilesystemReport]] = {}
        self._turn = asyncio.Lock()

    async def images(self) -> tuple[FilesystemReport, ...]:
        """Measure committed layers; the first report, which is all the kubelet looks at, counts the blobs too."""
        async with self._turn:
            return tuple([await self._image_report(number, slot) for number, slot in enumerate(self._snapshotters)])

    async def containers(self) -> tuple[FilesystemReport, ...]:
        """Measure what containers wrote."""
        async with self._turn:
            keys = {slot: await slot.list_snapshots() for slot in self._snapshotters}
            self._writables.keep({key for several in keys.values() for key in several})
            return tuple([await self._container_report(slot, keys[slot]) for slot in self._snapshotters])

    async def _image_report(self, number: int, slot: SnapshotterSlot) -> FilesystemReport:
        key = f"images {slot.name}"
        if (fresh := self._fresh(key)) is not None:
            return fresh
        usage = await slot.total_usage()
        if number == 0:
            usage = _add(usage, await asyncio.to_thread(disk_usage, self._content.root))
        return self._remember(key, slot, usage)

    async def _container_report(self, slot: SnapshotterSlot, keys: Iterable[str]) -> FilesystemReport:
        """Add up what is known of each layer; the sum is as old as the oldest part of it."""
        layers = [await self._writables.measure(slot.name, key) for key in keys]
        usage = DiskUsage(0, 0)
        for layer in layers:  # one that goes meanwhile, or can't be read, counts nothing
            usage = _add(usage, layer.usage or DiskUsage(0, 0))
        oldest_ns = min((layer.timestamp_ns for layer in layers), default=time.time_ns())
        return FilesystemReport(oldest_ns, str(slot.features().root or slot.state_dir), usage)

    def _fresh(self, key: str) -> FilesystemReport | None:
        measured_s, report = self._measured.get(key, (float("-inf"), None))
        return report if time.monotonic() - measured_s < _FRESH_S else None

    def _remember(self, key: str, slot: SnapshotterSlot, usage: DiskUsage) -> FilesystemReport:
        report = FilesystemReport(time.time_ns(), str(slot.features().root or slot.state_dir), usage)
        self._measured[key] = (time.monotonic(), report)
        return report


def _add(one: DiskUsage, other: DiskUsage) -> DiskUsage:
    return DiskUsage(one.used_bytes + other.used_bytes, one.inodes + other.inodes)
