"""The snapshotter role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/snapshotter`` with their types."""

from crinoid.core.api.values.snapshot import DiskUsage, LayerTarget, Mount, SnapshotterFeatures
from crinoid.core.slots.answers import layers, one, tuple_of
from crinoid.core.slots.calls import Slot


class SnapshotterSlot(Slot):
    """One snapshotter. Every method is the hook of its name: see :class:`SnapshotterHooks` for what it means."""

    def features(self) -> SnapshotterFeatures:
        """Return how this snapshotter can be used."""
        return self._ask_now("features", one(SnapshotterFeatures))

    async def probe(self) -> None:
        """Raise Unsupported when this host can't do it."""
        await self._tell("probe")

    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        """Make a directory to unpack a layer into."""
        return await self._ask("prepare_layer", one(LayerTarget), chain_id=chain_id, parent=parent)

    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        """Make a prepared layer permanent."""
        await self._tell("commit_layer", key=key, chain_id=chain_id, parent=parent)

    async def discard_layer(self, key: str) -> None:
        """Drop a prepared layer."""
        await self._tell("discard_layer", key=key)

    async def has_layer(self, chain_id: str) -> bool:
        """Return whether the chain id is committed and whole."""
        return await self._ask("has_layer", one(bool), chain_id=chain_id)

    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        """Return every committed chain id with its parent."""
        return await self._ask("list_layers", layers)

    async def remove_layer(self, chain_id: str) -> None:
        """Remove a committed layer."""
        await self._tell("remove_layer", chain_id=chain_id)

    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        """Stack a writable part on a chain id; return the mounts of its root."""
        return await self._ask("create_snapshot", tuple_of(Mount), key=key, parent=parent, readonly=readonly)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of a snapshot again."""
        return await self._ask("mounts", tuple_of(Mount), key=key)

    async def remove_snapshot(self, key: str) -> None:
        """Drop a snapshot's writable part."""
        await self._tell("remove_snapshot", key=key)

    async def list_snapshots(self) -> tuple[str, ...]:
        """Return the keys of all snapshots."""
        return await self._ask("list_snapshots", tuple_of(str))

    async def list_unfinished(self) -> tuple[str, ...]:
        """Return the keys of prepared layers that are neither committed nor discarded."""
        return await self._ask("list_unfinished", tuple_of(str))

    async def usage(self, key: str) -> DiskUsage:
        """Measure a snapshot's writable part."""
        return await self._ask("usage", one(DiskUsage), key=key)

    async def layer_usage(self, chain_id: str) -> DiskUsage:
        """Measure one committed layer."""
        return await self._ask("layer_usage", one(DiskUsage), chain_id=chain_id)

    async def total_usage(self) -> DiskUsage:
        """Measure all committed layers together."""
        return await self._ask("total_usage", one(DiskUsage))
