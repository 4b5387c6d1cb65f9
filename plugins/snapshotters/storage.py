"""Layers and snapshots as directories on disk, with their index in memory: what both drivers of this package stand on.

Below the root, with a number for a name::

    layers/17/fs, layer.json        committed: the tree, its chain id, parent and, once measured, size
    unfinished/18-5f3a/fs           prepared, and neither committed nor discarded yet
    snapshots/19/fs, work, snapshot.json
    scratch/PID-START-7b01          being made by that process; rubbish once the process is gone
    trash/NANOSECONDS-7b01          removed, and emptied in the background

A directory becomes valid, and stops being so, by one rename. So a kill at any moment leaves a layer whole or absent,
and no database has to agree with the disk. Everything blocks; calls may come from several threads of one process.
"""

import contextlib
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path

from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, NotFound
from crinoid.core.api.linux import libc, rights
from crinoid.core.api.linux.files import disk_usage, remove_tree, sync_directory, write_atomically
from crinoid.core.api.linux.trash import Trash
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.plugins.snapshotters.records import LAYER_FILE, NOT_MEASURED, SNAPSHOT_FILE, Layer, Snapshot, read_all

Fill = Callable[[Path], None]
"""Puts into a new directory what it begins with."""


class Storage:
    """The directories of one slot and their index, read from the disk once."""

    def __init__(
        self, root: Path, log: logging.Logger, unremoved: MutableMapping[str, str], content: str = "fs"
    ) -> None:
        """``unremoved``: see ``Host``. ``content``: what is there of each layer that is whole, below its directory."""
        self.root = root
        self._content = content
        self._log = log
        self._lock = threading.Lock()
        for name in ("layers", "unfinished", "snapshots", "scratch"):
            rights.make_directories(root / name)
            rights.correct(root / name, rights.DIRECTORY)
            rights.spread(root / name)
        self.trash = Trash(root / "trash", log, unremoved)
        self._damaged: list[Path] = []
        self._layers: dict[str, Layer] = {}
        for layer in read_all(root / "layers", Layer.read, self._damaged):
            if self._has_tree(layer.chain_id):  # a kill came between the replacing of a lost tree and its removal
                self._damaged.append(self._layer_directory(layer))
            else:
                self._layers[layer.chain_id] = layer
        found = read_all(root / "snapshots", Snapshot.read, self._damaged)
        self._snapshots = {snapshot.key: snapshot for snapshot in found}
        self._prepared: dict[str, str | None] = {}
        self._users: dict[str, dict[str, None]] = {}
        for layer in self._layers.values():
            self._begin_use(layer.parent, f"layer {layer.chain_id}")
        for snapshot in self._snapshots.values():
            self._begin_use(snapshot.parent, f"snapshot {snapshot.key}")
        kinds = ("layers", "unfinished", "snapshots")
        found_numbers = [_number(path) for kind in kinds for path in (root / kind).iterdir()]
        self._numbers = itertools.count(1 + max(found_numbers, default=0))

    # Layers

    def prepare(self, parent: str | None, fill: Fill) -> tuple[str, Path]:
        """Make an unfinished layer; return its key and the directory to unpack into."""
        key = f"{next(self._numbers)}-{secrets.token_hex(4)}"
        with self._lock:
            self._prepared[key] = parent
            self._begin_use(parent, f"prepared layer {key}")  # from here on the parent can't be removed
        directory = self.root / "unfinished" / key / "fs"
        try:
            rights.make_directory(directory.parent)
            rights.make_directory(directory, rights.SHOWN_DIRECTORY)
            fill(directory)
        except BaseException:
            self.discard(key)
            raise
        return key, directory

    def commit(self, key: str, chain_id: str, parent: str | None) -> None:
        """Sync and rename: from here on the layer is there, also after a power cut. Raises NotFound.

        A layer that is there already stays, unless its tree was lost.
        """
        directory = self._unfinished(key)
        if not self._has_tree(chain_id):
            layer = Layer(_number(directory), chain_id, parent)
            rights.write_file(directory / LAYER_FILE, layer.encode())
            # First all that is in the layer, then its new name: in the other order a power cut could leave a committed
            # layer with empty files. syncfs(2), as a layer has thousands, and outside of the lock, as it may take long.
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                libc.call("syncfs", fd, path=directory)
            finally:
                os.close(fd)
            with self._lock:
                if parent is not None and parent not in self._layers:
                    raise NotFound(f"layer {chain_id} can't be committed before its parent {parent} is")
                is_first = not self._has_tree(chain_id)
                if is_first:
                    directory.rename(self._layer_directory(layer))
                    if (lost := self._layers.get(chain_id)) is not None:
                        self._scrap(self._layer_directory(lost), f"layer-{chain_id}")
                    self._layers[chain_id] = layer
                    self._begin_use(parent, f"layer {chain_id}")
            if is_first:
                sync_directory(self.root / "layers")
        self.discard(key)

    def discard(self, key: str) -> None:
        """Drop an unfinished layer. Idempotent."""
        with contextlib.suppress(NotFound):
            self._scrap(self._unfinished(key), f"unfinished-{key}")
        with self._lock:
            self._end_use(self._prepared.pop(key, None), f"prepared layer {key}")

    def remove_layer(self, chain_id: str) -> None:
        """Remove a committed layer on which nothing stands; its files go in the background.

        Idempotent. Raises FailedPrecondition.
        """
        with self._lock:
            layer = self._layers.get(chain_id)
            if layer is None:
                return
            if users := self._users.get(chain_id):
                raise FailedPrecondition(f"layer {chain_id} is in use by {', '.join(users)}")
            self._scrap(self._layer_directory(layer), f"layer-{chain_id}", durably=True)
            del self._layers[chain_id]
            self._end_use(layer.parent, f"layer {chain_id}")

    def _begin_use(self, chain_id: str | None, user: str) -> None:
        if chain_id is not None:
            self._users.setdefault(chain_id, {})[user] = None

    def _end_use(self, chain_id: str | None, user: str) -> None:
        if chain_id is not None and (users := self._users.get(chain_id)) is not None:
            users.pop(user, None)
            if not users:
                del self._users[chain_id]

    def is_whole(self, chain_id: str) -> bool:
        """Return whether a layer is committed, and its tree and those of all layers below it are there."""
        current: str | None = chain_id
        while current is not None:
            if not self._has_tree(current):
                return False
            current = self._layers[current].parent
        return True

    def _has_tree(self, chain_id: str) -> bool:
        layer = self._layers.get(chain_id)
        return layer is not None and os.path.exists(f"{self.root}/layers/{layer.number}/{self._content}")  # noqa: PTH110  # each create

    def layer(self, chain_id: str) -> Layer:
        """Find a committed layer. Raises NotFound."""
        layer = self._layers.get(chain_id)
        if layer is None:
            raise NotFound(f"layer {chain_id} is not in {self.root}")
        return layer

    def layer_usage(self, chain_id: str) -> DiskUsage:
        """Return what a committed layer takes; it is measured when first asked for, not while a pull waits.

        Raises NotFound.
        """
        layer = self.layer(chain_id)
        if layer.usage != NOT_MEASURED:
            return layer.usage
        directory = self._layer_directory(layer)
        try:
            measured = replace(layer, usage=disk_usage(directory / "fs"))
        except FileNotFoundError as error:
            raise NotFound(f"layer {chain_id} was removed meanwhile") from error
        with contextlib.suppress(OSError):  # a full disk is when the kubelet needs the answer most
            write_atomically(directory / LAYER_FILE, measured.encode())
        with self._lock:
            if self._layers.get(chain_id) is layer:
                self._layers[chain_id] = measured
        return measured.usage

    def layer_usages(self) -> list[DiskUsage]:
        """Return what each committed layer takes; those removed meanwhile are left out."""
        usages = []
        for layer in self.layers():
            with contextlib.suppress(NotFound):
                usages.append(self.layer_usage(layer.chain_id))
        return usages

    def total_usage(self) -> DiskUsage:
        """Return what all layers take together, and what is thrown away and not removed yet."""
        usages = [*self.layer_usages(), self.trash.usage()]
        return DiskUsage(sum(one.used_bytes for one in usages), sum(one.inodes for one in usages))

    def layers(self) -> tuple[Layer, ...]:
        """Return every committed layer."""
        return tuple(self._layers.values())

    def stack(self, chain_id: str | None) -> tuple[Path, ...]:
        """Return the trees that make up a chain id, topmost first. Raises NotFound."""
        layers = f"{self.root}/layers"  # one path each is parsed, not three: an image may have hundreds of layers
        return tuple(Path(f"{layers}/{layer.number}/fs") for layer in self.layer_stack(chain_id))

    def layer_stack(self, chain_id: str | None) -> tuple[Layer, ...]:
        """Return the layers that make up a chain id, topmost first. Raises NotFound."""
        layers = []
        while chain_id is not None:
            layers.append(self.layer(chain_id))
            chain_id = layers[-1].parent
        return tuple(layers)

    def unfinished(self) -> tuple[str, ...]:
        """Return the keys of all unfinished layers."""
        return tuple(sorted(path.name for path in (self.root / "unfinished").iterdir()))

    # Snapshots

    def create(self, key: str, parent: str | None, readonly: bool, fill: Fill) -> Snapshot:
        """Make a snapshot, aside, and rename it. Raises AlreadyExists and NotFound.

        Nothing is synced: no container outlives a power cut, nor need its snapshot.
        """
        snapshot, making = Snapshot(next(self._numbers), key, parent, readonly), self.new_scratch()
        with self._lock:
            if key in self._snapshots:
                raise AlreadyExists(f"snapshot {key} is there already")
            self.stack(parent)
            self._snapshots[key] = snapshot
            self._begin_use(parent, f"snapshot {key}")  # from here on the parent can't be removed
        try:
            rights.make_directory(making)
            rights.make_directory(making / "fs", rights.SHOWN_DIRECTORY)
            rights.make_directory(making / "work")
            rights.write_file(making / SNAPSHOT_FILE, snapshot.encode())
            fill(making / "fs")
            making.rename(self.snapshot_directory(snapshot))
        except BaseException:
            try:
                self._remove_scratch(making, f"snapshot-{key}")
            finally:
                with self._lock:
                    del self._snapshots[key]
                    self._end_use(parent, f"snapshot {key}")
            raise
        return snapshot

    def snapshot(self, key: str) -> Snapshot:
        """Find a snapshot. Raises NotFound."""
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            raise NotFound(f"snapshot {key} is not in {self.root}")
        return snapshot

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return every snapshot."""
        return tuple(self._snapshots.values())

    def snapshot_directory(self, snapshot: Snapshot) -> Path:
        """Return the directory that holds the snapshot's ``fs`` and ``work``."""
        return self.root / "snapshots" / str(snapshot.number)

    def remove_snapshot(self, key: str) -> None:
        """Drop a snapshot with its writable part, whose files go in the background. Idempotent."""
        with contextlib.suppress(NotFound):
            snapshot = self.snapshot(key)
            directory, label = self.snapshot_directory(snapshot), f"snapshot-{key}"
            if not snapshot.readonly:
                self._scrap(directory, label)
            else:  # it holds nothing, and pulls make one for each layer: that is no work for another thread
                with contextlib.suppress(FileNotFoundError):
                    self._remove_scratch(directory.rename(self.new_scratch()), label)
        with self._lock:
            if (removed := self._snapshots.pop(key, None)) is not None:
                self._end_use(removed.parent, f"snapshot {key}")

    @contextlib.contextmanager
    def trial(self) -> Iterator[Path]:
        """Give a name for a directory to try something out in, which is removed with the block, or soon after it."""
        directory = self.new_scratch()
        try:
            yield directory
        finally:
            self._remove_scratch(directory, "trial")

    def _remove_scratch(self, scratch: Path, label: str) -> None:
        """Remove it here and now, and in the background where that fails."""
        try:
            remove_tree(scratch)
        except OSError as error:
            self._log.debug("%s can't be removed now: %s", scratch, error)
            self._try_to_scrap(scratch, label)

    def snapshot_usage(self, key: str) -> DiskUsage:
        """Measure a snapshot's writable part. Raises NotFound."""
        snapshot = self.snapshot(key)
        if snapshot.readonly:
            return DiskUsage(0, 0)
        try:
            return disk_usage(self.snapshot_directory(snapshot) / "fs")
        except FileNotFoundError as error:
            raise NotFound(f"snapshot {key} was removed meanwhile") from error

    # Rubbish, and what is found at start

    def begin_cleanup(self) -> None:
        """Throw away what processes that are gone were making, and directories whose record could not be read.

        Returns at once, and raises nothing: what can't be removed harms nobody (``trash``).
        """
        for directory in (self.root / "scratch").iterdir():
            pid, _, rest = directory.name.partition("-")
            if not (pid.isdecimal() and _started(int(pid)) == rest.partition("-")[0] != ""):
                self._try_to_scrap(directory, directory.name)
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace") if self._damaged else ""
        founded = all(self._is_founded(snapshot.parent) for snapshot in self._snapshots.values())
        for directory in self._damaged:
            if _is_mounted(directory, mounts) or (directory.parent.name == "layers" and not founded):
                self._log.error("%s has no readable record, and is left as a container may live on it", directory)
            else:
                self._log.warning("%s has no readable record: it is removed", directory)
                self._try_to_scrap(directory, directory.name)
        self._damaged.clear()
        self.trash.start()

    def _is_founded(self, chain_id: str | None) -> bool:
        """Return whether all layers of a stack have their records."""
        while chain_id is not None and chain_id in self._layers:
            chain_id = self._layers[chain_id].parent
        return chain_id is None

    def _try_to_scrap(self, directory: Path, label: str) -> None:
        try:
            self._scrap(directory, label)
        except OSError as error:
            self._log.warning("%s can't be removed and is left until the next start: %s", directory, error)

    def _scrap(self, directory: Path, key: str, durably: bool = False) -> None:
        """Make a directory invalid at once; it is removed in the background."""
        with contextlib.suppress(FileNotFoundError):
            self.trash.throw(directory, durably, key)

    def new_scratch(self) -> Path:
        """Return a name for a directory that is rubbish once this process is gone."""
        pid = os.getpid()
        return self.root / "scratch" / f"{pid}-{_started(pid)}-{secrets.token_hex(4)}"

    def _layer_directory(self, layer: Layer) -> Path:
        return self.root / "layers" / str(layer.number)

    def unfinished_tree(self, key: str) -> Path:
        """Return the directory that an unfinished layer was unpacked into. Raises NotFound."""
        return self._unfinished(key) / "fs"

    def _unfinished(self, key: str) -> Path:
        directory = self.root / "unfinished" / key
        if key in ("", "..") or "/" in key or not directory.is_dir():
            raise NotFound(f"prepared layer {key} is not in {self.root}")
        return directory


def _is_mounted(directory: Path, mounts: str) -> bool:
    """Return whether a layer or snapshot is in use by a mount of ``/proc/self/mountinfo``, or may be.

    An overlay names its parts by their paths as they were given. A bind mount is known by the path in its file system,
    of which only the end can be told here: the root may be a disk's own, a link, or bound from elsewhere.
    """
    end = f"/{directory.parent.name}/{directory.name}/"
    if f"/{directory.parent.parent.name}{end}" in mounts:
        return True
    return any(end in line.split(" ")[3] for line in mounts.split("\n")[:-1])


def _number(directory: Path) -> int:
    digits = directory.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks: with the pid, it names a process for good. Empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # the id may be another's now, of any name
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]
