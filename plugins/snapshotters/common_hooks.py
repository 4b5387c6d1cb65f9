"""The hooks that both snapshotters answer alike; ``overlay`` and ``native`` add how trees are filled and mounted."""

import errno
import functools
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from crinoid.core.api.config import AbsolutePath, DriverConfig
from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.snapshot import DiskUsage, LayerTarget, Mount, WhiteoutForm
from crinoid.plugins.snapshotters.records import Snapshot
from crinoid.plugins.snapshotters.storage import Storage

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class DirectoryConfig(DriverConfig):
    """What the options of both drivers have in common."""

    root: AbsolutePath | None = None
    """Directory of all layers and writable parts, on the file system that is to hold them; by default a directory of
    the slot's own below the daemon's state directory. No two slots may share one."""


class DirectorySnapshotter:
    """Layers and snapshots in a ``Storage``; every hook does its work in a thread.

    A subclass adds the hooks ``features`` (``root`` is ``self.storage.root``) and ``probe``, which begins to remove
    what was thrown away (``call_in_thread(self.storage.begin_cleanup)``), and the three methods below. Trees to begin
    with are ``self.storage.stack(chain_id)``, topmost first; a snapshot's own is ``fs`` in its ``snapshot_directory``.
    """

    whiteouts: WhiteoutForm
    """The form in which layers are unpacked: ``DELETE`` where each layer holds the whole tree up to it."""
    writer = ""
    """The class that keeps layers in another form than directories, as ``LayerTarget.writer`` names it."""
    content = "fs"
    """What is there of each layer that is whole."""

    def __init__(self, config: DirectoryConfig, host: Host) -> None:
        self.host = host
        root = config.root or host.state_dir / "snapshots"
        self.storage = Storage(root, host.log, host.unremoved, self.content)

    def fill_layer(self, parent: str | None, directory: Path, cancelled: threading.Event) -> None:
        """Put into the empty ``directory`` of a new layer what it begins with. Raises NotFound for a parent it needs.

        Runs in a thread. What takes long ends by an exception, any one, once ``cancelled`` is set.
        """
        raise NotImplementedError

    def fill_snapshot(self, parent: str | None, readonly: bool, directory: Path, cancelled: threading.Event) -> None:
        """Put into the empty ``directory`` of a new snapshot what it begins with; as ``fill_layer``."""
        raise NotImplementedError

    def mounts_of(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        """Return how a snapshot is mounted."""
        raise NotImplementedError

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        cancelled = threading.Event()
        fill = functools.partial(self.fill_layer, parent, cancelled=cancelled)
        key, directory = await in_thread(lambda: self.storage.prepare(parent, fill), cancelled.set)
        return LayerTarget(key, directory, self.whiteouts, self.writer)

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        await in_thread(lambda: self.storage.commit(key, chain_id, parent))

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        await in_thread(lambda: self.storage.discard(key))

    @hookimpl
    async def has_layer(self, chain_id: str) -> bool:
        return self.storage.is_whole(chain_id)

    @hookimpl
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        return tuple((layer.chain_id, layer.parent) for layer in self.storage.layers())

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        await in_thread(lambda: self.storage.remove_layer(chain_id))

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        cancelled = threading.Event()
        fill = functools.partial(self.fill_snapshot, parent, readonly, cancelled=cancelled)
        create = functools.partial(self.storage.create, key, parent, readonly, fill)
        return self.mounts_of(await in_thread(create, cancelled.set))

    @hookimpl
    async def mounts(self, key: str) -> tuple[Mount, ...]:
        return self.mounts_of(self.storage.snapshot(key))

    @hookimpl
    async def remove_snapshot(self, key: str) -> None:
        await in_thread(lambda: self.storage.remove_snapshot(key))

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        return tuple(snapshot.key for snapshot in self.storage.snapshots())

    @hookimpl
    async def list_unfinished(self) -> tuple[str, ...]:
        return await in_thread(self.storage.unfinished)

    @hookimpl
    async def usage(self, key: str) -> DiskUsage:
        return await in_thread(lambda: self.storage.snapshot_usage(key))

    @hookimpl
    async def layer_usage(self, chain_id: str) -> DiskUsage:
        return await in_thread(lambda: self.storage.layer_usage(chain_id))

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        return await in_thread(self.storage.total_usage)


async def in_thread(function: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
    """Run what blocks; most of it is short, and what is not is told by ``interrupt`` that nobody waits any more."""
    try:
        return await call_in_thread(function, interrupt)
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                f"no space for layers and snapshots: {error}; free some or remove images"
            ) from error
        raise


def copy_root_attributes(source: Path, target: Path) -> None:
    """Give a new root directory the owner, mode and attributes of the one below it: a container sees the topmost."""
    status = source.stat()
    for name in os.listxattr(source):
        if not name.startswith("trusted."):  # overlayfs's own
            os.setxattr(target, name, os.getxattr(source, name))
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
