"""The ``native`` snapshotter: plain directories and copies, for hosts and file systems without overlayfs.

Each layer holds the whole tree up to it, so layers are unpacked one after the other, and a container's root is a copy
of its image's topmost layer. Where the file system shares blocks (btrfs, xfs with reflink=1), copies cost little space.
"""

import threading
from pathlib import Path

from crinoid.core.api import API_VERSION
from crinoid.core.api.errors import Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.snapshot import Mount, SnapshotterFeatures, WhiteoutForm
from crinoid.plugins.snapshotters.common_hooks import DirectoryConfig, DirectorySnapshotter
from crinoid.plugins.snapshotters.copying import Reflink, can_reflink, copy_tree
from crinoid.plugins.snapshotters.records import Snapshot


class NativeConfig(DirectoryConfig):
    """The options of a ``native`` slot."""

    reflink: Reflink = Reflink.AUTO
    """Whether copies share blocks with their source: ``auto`` where the file system can, ``always`` (else the slot does
    not start) or ``never``."""


class NativeSnapshotter(DirectorySnapshotter):
    """The driver (entry point ``native``). Usage counts shared blocks of each copy anew."""

    api_version = API_VERSION
    Config = NativeConfig
    whiteouts = WhiteoutForm.DELETE

    def __init__(self, config: NativeConfig, host: Host) -> None:
        super().__init__(config, host)
        self._reflink = config.reflink

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return SnapshotterFeatures(parallel_unpack=False, root=self.storage.root)

    @hookimpl
    async def probe(self) -> None:
        def try_reflink() -> bool:
            with self.storage.trial() as directory:
                rights.make_directory(directory)
                return can_reflink(directory)

        await call_in_thread(self.storage.begin_cleanup)
        if self._reflink is Reflink.ALWAYS and not await call_in_thread(try_reflink):
            raise Unsupported(
                f"{self.storage.root} is on a file system that can't share blocks between files; set the option "
                'reflink to "auto", or root to a directory on btrfs, or on xfs with reflink=1'
            )

    def fill_layer(self, parent: str | None, directory: Path, cancelled: threading.Event) -> None:
        if parent is not None:
            copy_tree(self.storage.stack(parent)[0], directory, self._reflink, cancelled)

    def fill_snapshot(self, parent: str | None, readonly: bool, directory: Path, cancelled: threading.Event) -> None:
        """What can't be written to needs no copy."""
        if not readonly:
            self.fill_layer(parent, directory, cancelled)

    def mounts_of(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        own = self.storage.snapshot_directory(snapshot) / "fs"
        if not snapshot.readonly:
            return (Mount("bind", str(own), ("rbind",)),)
        stack = self.storage.stack(snapshot.parent)
        return (Mount("bind", str(stack[0] if stack else own), ("rbind", "ro")),)
