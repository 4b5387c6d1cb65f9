"""A snapshotter whose layers are whole trees: what a layer does not change is hard-linked from the one below it.

So a container's root is an overlay of two directories, however many layers its image has: no limit of the kernel's is
met, and no look-up goes through a hundred directories. Each layer is unpacked by itself, in the overlay form; at its
commit what the parent shows is linked into it. ``DirectorySnapshotter`` keeps names and records, and survives crashes.
"""

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import rights
from crinoid.core.api.values.snapshot import DiskUsage, Mount, SnapshotterFeatures, WhiteoutForm
from crinoid.plugins.snapshotters.common_hooks import (
    DirectoryConfig,
    DirectorySnapshotter,
    copy_root_attributes,
    in_thread,
)
from crinoid.plugins.snapshotters.copying import Interrupted
from crinoid.plugins.snapshotters.records import Snapshot

_OPAQUE = "trusted.overlay.opaque"
_LINKED = "linked"
"""Beside an unfinished layer's tree: all of the parent is in it, and what is left to do is to remove whiteouts."""


class FarmOptions(DirectoryConfig):
    """Options of the driver: those of all snapshotters of directories."""


class FarmSnapshotter(DirectorySnapshotter):
    """The driver."""

    api_version = "1.0"
    Config = FarmOptions
    whiteouts = WhiteoutForm.OVERLAY

    def __init__(self, config: FarmOptions, host: Host) -> None:
        super().__init__(config, host)
        self._usages: dict[str, DiskUsage] = {}

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return SnapshotterFeatures(parallel_unpack=True, root=self.storage.root)

    @hookimpl
    async def probe(self) -> None:
        await in_thread(self.storage.begin_cleanup)
        await in_thread(self._try_links)

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        """Link what the parent shows into the layer; cancelled or killed in between, all of it can be done again."""
        unfinished, cancelled = self.storage.root / "unfinished" / key, threading.Event()
        if key in self.storage.unfinished() and not self.storage.is_whole(chain_id):
            below = None if parent is None else self.storage.stack(parent)[0]  # raises NotFound
            await in_thread(lambda: _complete(unfinished, below, cancelled), cancelled.set)
        await super().commit_layer(key, chain_id, parent)

    @hookimpl
    async def layer_usage(self, chain_id: str) -> DiskUsage:
        """Measure what is the layer's own: a file that the parent has, too, is the parent's. It is measured once."""
        if chain_id not in self._usages:
            own, *below = self.storage.stack(chain_id)
            self._usages[chain_id] = await in_thread(lambda: _own_usage(own, below[0] if below else None))
        return self._usages[chain_id]

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        usages = [await self.layer_usage(layer.chain_id) for layer in self.storage.layers()]
        usages.append(await in_thread(self.storage.trash.usage))
        return DiskUsage(sum(one.used_bytes for one in usages), sum(one.inodes for one in usages))

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        await super().remove_layer(chain_id)
        self._usages.pop(chain_id, None)

    def fill_layer(self, parent: str | None, directory: Path, cancelled: threading.Event) -> None:
        """Nothing: the parent may still be unpacked."""

    def fill_snapshot(self, parent: str | None, readonly: bool, directory: Path, cancelled: threading.Event) -> None:
        if parent is not None:
            copy_root_attributes(self.storage.stack(parent)[0], directory)

    def mounts_of(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        directory = self.storage.snapshot_directory(snapshot)
        own, stack = directory / "fs", self.storage.stack(snapshot.parent)
        if snapshot.readonly:
            return (Mount("bind", str(stack[0] if stack else own), ("rbind", "ro")),)
        if not stack:
            return (Mount("bind", str(own), ("rbind",)),)
        parts = (f"lowerdir+={stack[0]}", f"upperdir={own}", f"workdir={directory / 'work'}", "index=off")
        return (Mount("overlay", "overlay", parts),)

    def _try_links(self) -> None:
        with self.storage.trial() as directory:
            rights.make_directory(directory)
            (directory / "one").touch()
            try:
                os.link(directory / "one", directory / "other")
            except OSError as error:
                raise Unsupported(f"{self.storage.root} is on a file system without hard links: {error}") from error


def _complete(unfinished: Path, below: Path | None, cancelled: threading.Event) -> None:
    """Make an unpacked layer a whole tree. Whiteouts go last: until then they tell what is not to be linked."""
    tree = unfinished / "fs"
    if below is not None and not (unfinished / _LINKED).exists() and not _is_opaque(tree):
        _link_missing(below, tree, cancelled)
    (unfinished / _LINKED).touch()
    for path in list(_walk(tree)):
        status = path.lstat()
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            path.unlink()
        elif stat.S_ISDIR(status.st_mode) and _is_opaque(path):
            os.removexattr(path, _OPAQUE)
    if _is_opaque(tree):
        os.removexattr(tree, _OPAQUE)


def _link_missing(below: Path, tree: Path, cancelled: threading.Event) -> None:
    """Link from one directory into another what that lacks; times of directories are those that were unpacked."""
    if cancelled.is_set():
        raise Interrupted
    times = tree.stat()
    for entry in list(os.scandir(below)):
        target = tree / entry.name
        there = target.lstat() if target.is_symlink() or target.exists() else None
        if not entry.is_dir(follow_symlinks=False):
            if there is None:
                _link(Path(entry.path), target)
        elif there is None:
            target.mkdir()
            _copy_attributes(Path(entry.path), target)
            _link_missing(Path(entry.path), target, cancelled)
        elif stat.S_ISDIR(there.st_mode) and not _is_opaque(target):
            _link_missing(Path(entry.path), target, cancelled)
    os.utime(tree, ns=(times.st_atime_ns, times.st_mtime_ns))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EMLINK or not source.is_file():
            raise
        shutil.copyfile(source, target)  # the file has as many names as the file system takes: begin another one
        _copy_attributes(source, target)


def _copy_attributes(source: Path, target: Path) -> None:
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(source, target)  # mode, times, extended attributes


def _own_usage(tree: Path, below: Path | None) -> DiskUsage:
    """Count each inode once, and none that the tree below has under the same name."""
    seen: set[int] = set()
    used = 0
    for path in (tree, *_walk(tree)):
        status = path.lstat()
        if status.st_ino in seen:
            continue
        if below is not None and not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            try:
                if (below / path.relative_to(tree)).lstat().st_ino == status.st_ino:
                    continue
            except (FileNotFoundError, NotADirectoryError):
                pass
        seen.add(status.st_ino)
        used += status.st_blocks * 512
    return DiskUsage(used, len(seen))


def _walk(directory: Path) -> Iterator[Path]:
    """Yield all below a directory; links are not followed."""
    for entry in os.scandir(directory):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _is_opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:  # no such attribute, as a rule
        return False
