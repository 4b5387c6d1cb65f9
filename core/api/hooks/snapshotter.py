"""The snapshotter role: keeps unpacked layers, and makes root file systems of them (``crinoid.snapshotters``).

The story of an image: for each layer from the bottom, ``prepare_layer`` gives a directory, the kernel unpacks into it,
``commit_layer`` names the result by its chain id. A chain id (OCI image-spec, config.md, "ChainID") names a layer
together with all those below it. Of a container: ``create_snapshot`` stacks a writable part on a chain id and returns
mounts; the kernel makes and undoes the mounts; ``remove_snapshot`` drops the writable part.

That is all for a driver that keeps layers as directories. Others say so layer by layer, as ``LayerTarget`` tells: the
unpacker may keep a layer by a class of the driver's (``writer``), or hand on its verified bytes (``form``,
``write_layer``); or the driver brings the layer by itself (``bring_layer``). What is no directory is mounted by the
kernel for the roots that need it (``Mount.target``).

For a pod with a user namespace the kernel maps the owners of files in these mounts: of a bind mount as a whole, of an
overlay's lower layers, whose new upper directory it gives to the pod's root. Layers keep the image's owners on disk,
and ``SnapshotterFeatures.root`` must be on a file system with id-mapped mounts, or the handler has no user namespaces.

Everything survives a restart, and a kill at any moment leaves only what ``list_unfinished`` names.
"""

from crinoid.core.api.hooks import hookspec
from crinoid.core.api.values.snapshot import (
    DiskUsage,
    LayerDescriptor,
    LayerStream,
    LayerTarget,
    Mount,
    SnapshotterFeatures,
)


class SnapshotterHooks:
    """What a snapshotter driver implements."""

    @hookspec
    def features(self) -> SnapshotterFeatures:  # type: ignore[empty-body]  # a specification
        """Return how this snapshotter can be used; no coroutine. Constant for the slot's life."""

    @hookspec
    async def probe(self) -> None:
        """Raise Unsupported when this host or file system can't do it, saying what is missing. Called at start."""

    @hookspec
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:  # type: ignore[empty-body]
        """Make a directory to unpack the layer ``chain_id`` into, on top of the committed chain id ``parent``.

        Several preparations of one chain id may be under way. With ``parallel_unpack`` the parent need not be committed
        yet. The layer's blob may still be coming from a registry: it may take its time until the layer is committed, or
        discarded because of what came. Raises NotFound for a parent that is needed and not there.

        For ``WhiteoutForm.OVERLAY`` the directory is empty, root's and of mode 0755, whether the parent is there or
        not: the kernel gives it what the parent shows before it commits, unless the layer has an entry for its root.
        """

    @hookspec
    async def write_layer(self, key: str, stream: LayerStream) -> None:
        """Optional. Keep the layer that was prepared as ``key``, whose target asked for its bytes (``LayerForm``): they
        are whole and as the image says. It is committed next, once its parent is, or discarded. Only a driver whose
        targets ask for bytes needs it."""

    @hookspec
    async def bring_layer(self, layer: LayerDescriptor) -> bool:  # type: ignore[empty-body]
        """Optional. Bring a layer without the kernel, if the driver can: by its own protocol, or later, when files are
        read. Asked at a pull for each layer that is missing, from the bottom, before its blob is fetched, until the
        answer is no. After a yes the layer is committed, and its blob is never fetched."""

    @hookspec
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        """Make a prepared layer permanent under its chain id, synced to disk. If the chain id is there already, the
        prepared directory is dropped and the old one stays, unless its files were lost. Raises NotFound for an unknown
        key."""

    @hookspec
    async def discard_layer(self, key: str) -> None:
        """Drop a prepared layer. Idempotent."""

    @hookspec
    async def has_layer(self, chain_id: str) -> bool:  # type: ignore[empty-body]
        """Return whether the chain id is committed, and all that it stands on is still there: of what was lost the
        kernel prepares and commits a layer again."""

    @hookspec
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:  # type: ignore[empty-body]
        """Return every committed chain id with its parent."""

    @hookspec
    async def remove_layer(self, chain_id: str) -> None:
        """Remove a committed layer. Idempotent. Raises FailedPrecondition while a layer or snapshot stands on it.

        RemoveImage waits for this: what takes long, such as a layer's many files, goes in the background, also after a
        restart."""

    @hookspec
    async def verify_layer(self, chain_id: str) -> None:
        """Optional. Read a committed layer, without those below it, and raise CorruptContent where it is not as it was
        committed: from then on ``has_layer`` says no, so that the next pull makes it again. Raises NotFound."""

    @hookspec
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:  # type: ignore[empty-body]
        """Stack a writable part (or, if ``readonly``, none) named ``key`` on a chain id; return the mounts that make
        its root, after those with a target of their own that it stands on (``Mount.target``). ``parent`` ``None``: an
        empty root. Raises AlreadyExists for a key in use, NotFound for the parent."""

    @hookspec
    async def mounts(self, key: str) -> tuple[Mount, ...]:  # type: ignore[empty-body]
        """Return the mounts of a snapshot again. Raises NotFound."""

    @hookspec
    async def remove_snapshot(self, key: str) -> None:
        """Drop a snapshot's writable part; its mounts are undone already. Idempotent."""

    @hookspec
    async def list_snapshots(self) -> tuple[str, ...]:  # type: ignore[empty-body]
        """Return the keys of all snapshots."""

    @hookspec
    async def list_unfinished(self) -> tuple[str, ...]:  # type: ignore[empty-body]
        """Return the keys of prepared layers that were neither committed nor discarded."""

    @hookspec
    async def usage(self, key: str) -> DiskUsage:  # type: ignore[empty-body]
        """Measure the writable part of a snapshot. Raises NotFound."""

    @hookspec
    async def layer_usage(self, chain_id: str) -> DiskUsage:  # type: ignore[empty-body]
        """Measure one committed layer, without those below it. Raises NotFound."""

    @hookspec
    async def total_usage(self) -> DiskUsage:  # type: ignore[empty-body]
        """Measure all committed layers together, and what is removed and still takes space; cheap enough to be asked
        every ten seconds."""
