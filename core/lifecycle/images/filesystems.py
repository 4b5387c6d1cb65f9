"""What images and writable layers take on disk, for ImageFsInfo, which the kubelet asks for every ten seconds."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux.files import disk_usage
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.lifecycle.queries import FilesystemReport
from crinoid.core.lifecycle.stats.writable_layers import WritableLayers
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore

LOG = logging.getLogger(__name__)
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
            return await self._reports(self._image_report)

    async def containers(self) -> tuple[FilesystemReport, ...]:
        """Measure what containers wrote."""
        async with self._turn:
            seen: set[str] = set()
            reports = await self._reports(lambda slot: self._container_report(slot, seen))
            self._writables.keep(seen)
            return reports

    async def _reports(
        self, report: Callable[[SnapshotterSlot], Awaitable[FilesystemReport]]
    ) -> tuple[FilesystemReport, ...]:
        """Report on each snapshotter but for those, other than the default one, that fail.

        The kubelet takes the first report for the node's image file system, so that has to be the default one's.
        """
        reports = []
        for slot in self._snapshotters:
            try:
                reports.append(await report(slot))
            except CrinoidError as error:
                if slot is self._snapshotters[0]:
                    raise
                LOG.warning("a file system is missing from the report: %s", error.message)
        return tuple(reports)

    async def _image_report(self, slot: SnapshotterSlot) -> FilesystemReport:
        measured_s, report = self._measured.get(slot.name, (float("-inf"), None))
        if report is not None and time.monotonic() - measured_s < _FRESH_S:
            return report
        usage = await slot.total_usage()
        if slot is self._snapshotters[0]:
            usage = _add(usage, await asyncio.to_thread(disk_usage, self._content.root))
        report = FilesystemReport(time.time_ns(), str(slot.features().root or slot.state_dir), usage)
        self._measured[slot.name] = (time.monotonic(), report)
        return report

    async def _container_report(self, slot: SnapshotterSlot, seen: set[str]) -> FilesystemReport:
        """Add up what is known of each layer, whose keys go to ``seen``; the sum is as old as the oldest part of it."""
        keys = await slot.list_snapshots()
        seen.update(keys)
        layers = [await self._writables.measure(slot.name, key) for key in keys]
        usage = DiskUsage(0, 0)
        for layer in layers:  # one that goes meanwhile, or can't be read, counts nothing
            usage = _add(usage, layer.usage or DiskUsage(0, 0))
        oldest_ns = min((layer.timestamp_ns for layer in layers), default=time.time_ns())
        return FilesystemReport(oldest_ns, str(slot.features().root or slot.state_dir), usage)


def _add(one: DiskUsage, other: DiskUsage) -> DiskUsage:
    return DiskUsage(one.used_bytes + other.used_bytes, one.inodes + other.inodes)
