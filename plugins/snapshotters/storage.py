"""Layers and snapshots as folders on disk, with their index in memory: what both drivers of this package stand on.

Below the root, with a number for a name::

    layers/17/fs, layer.json        committed: the tree, its chain id, parent and, once measured, size
    unfinished/18-5f3a/fs           prepared, and neither committed nor discarded yet
    snapshots/19/fs, work, snapshot.json
    scratch/PID-START-7b01          being made or removed by that process; rubbish once the process is gone

A folder becomes valid, and stops being so, by one rename. So a kill at any moment leaves a layer whole or absent, and
no database has to agree with the disk. Everything blocks; calls may come from several threads of one process.
"""

import contextlib
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, NotFound
from crinoid.core.api.linux import libc, rights
from crinoid.core.api.linux.files import disk_usage, remove_tree, sync_folder, write_atomically
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.plugins.snapshotters.records import LAYER_FILE, NOT_MEASURED, SNAPSHOT_FILE, Layer, Snapshot, read_all

Fill = Callable[[Path], None]
"""Puts into a new folder what it begins with."""


class Storage:
    """The folders of one slot and their index, read from the disk once."""

    def __init__(self, root: Path, log: logging.Logger) -> None:
        self.root = root
        self._log = log
        self._lock = threading.Lock()
        for name in ("layers", "unfinished", "snapshots", "scratch"):
            rights.make_directories(root / name)
            rights.correct(root / name, rights.DIRECTORY)
        self._damaged: list[Path] = []
        self._layers = {layer.chain_id: layer for layer in read_all(root / "layers", Layer.read, self._damaged)}
        self._forget_unfounded_layers()
        found = read_all(root / "snapshots", Snapshot.read, self._damaged)
        self._snapshots = {snapshot.key: snapshot for snapshot in found}
        self._prepared: dict[str, str | None] = {}
        self._numbers = itertools.count(1 + self._last_number())

    # Layers

    def prepare(self, parent: str | None, fill: Fill) -> tuple[str, Path]:
        """Make an unfinished layer; return its key and the folder to unpack into."""
        key = f"{next(self._numbers)}-{secrets.token_hex(4)}"
        with self._lock:
            self._prepared[key] = parent  # from here on the parent can't be removed
        folder = self.root / "unfinished" / key / "fs"
        try:
            rights.make_directory(folder.parent)
            rights.make_directory(folder, rights.SHOWN_DIRECTORY)
            fill(folder)
        except BaseException:
            self.discard(key)
            raise
        return key, folder

    def commit(self, key: str, chain_id: str, parent: str | None) -> None:
        """Sync and rename: from here on the layer is there, also after a power cut. Raises NotFound."""
        folder = self._unfinished(key)
        if chain_id not in self._layers:
            layer = Layer(_number(folder), chain_id, parent)
            rights.write_file(folder / LAYER_FILE, layer.encode())
            _sync_file_system(folder)
            self._commit_at_once(folder, layer)
        self.discard(key)

    def _commit_at_once(self, folder: Path, layer: Layer) -> None:
        with self._lock:
            if layer.parent is not None and layer.parent not in self._layers:
                raise NotFound(f"layer {layer.chain_id} can't be committed before its parent {layer.parent} is")
            if layer.chain_id in self._layers:
                return
            folder.rename(self._layer_folder(layer))
            self._layers[layer.chain_id] = layer
        sync_folder(self.root / "layers")

    def discard(self, key: str) -> None:
        """Drop an unfinished layer. Idempotent."""
        with contextlib.suppress(NotFound):
            self._scrap(self._unfinished(key))
        with self._lock:
            self._prepared.pop(key, None)

    def remove_layer(self, chain_id: str) -> None:
        """Remove a committed layer on which nothing stands. Idempotent. Raises FailedPrecondition."""
        with self._lock:
            layer = self._layers.get(chain_id)
            if layer is None:
                return
            if users := self._standing_on(chain_id):
                raise FailedPrecondition(f"layer {chain_id} is in use by {', '.join(users)}")
            rubbish = self._move_to_scratch(self._layer_folder(layer))
            del self._layers[chain_id]
        sync_folder(self.root / "layers")
        remove_tree(rubbish)

    def _standing_on(self, chain_id: str) -> list[str]:
        layers = [f"layer {layer.chain_id}" for layer in self._layers.values() if layer.parent == chain_id]
        snapshots = [f"snapshot {one.key}" for one in self._snapshots.values() if one.parent == chain_id]
        return layers + snapshots + [f"prepared layer {key}" for key, p in self._prepared.items() if p == chain_id]

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
        folder = self._layer_folder(layer)
        try:
            measured = replace(layer, usage=disk_usage(folder / "fs"))
        except FileNotFoundError as error:
            raise NotFound(f"layer {chain_id} was removed meanwhile") from error
        with contextlib.suppress(OSError):  # a full disk is when the kubelet needs the answer most
            write_atomically(folder / LAYER_FILE, measured.encode())
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

    def layers(self) -> tuple[Layer, ...]:
        """Return every committed layer."""
        return tuple(self._layers.values())

    def stack(self, chain_id: str | None) -> tuple[Path, ...]:
        """Return the trees that make up a chain id, topmost first. Raises NotFound."""
        trees = []
        while chain_id is not None:
            layer = self.layer(chain_id)
            trees.append(self._layer_folder(layer) / "fs")
            chain_id = layer.parent
        return tuple(trees)

    def unfinished(self) -> tuple[str, ...]:
        """Return the keys of all unfinished layers."""
        return tuple(sorted(path.name for path in (self.root / "unfinished").iterdir()))

    # Snapshots

    def create(self, key: str, parent: str | None, readonly: bool, fill: Fill) -> Snapshot:
        """Make a snapshot. Raises AlreadyExists and NotFound."""
        snapshot = Snapshot(next(self._numbers), key, parent, readonly)
        with self._lock:
            if key in self._snapshots:
                raise AlreadyExists(f"snapshot {key} is there already")
            self.stack(parent)
            self._snapshots[key] = snapshot  # from here on the parent can't be removed
        try:
            self._make_folder(snapshot, fill)
        except BaseException:
            with self._lock:
                del self._snapshots[key]
            raise
        return snapshot

    def _make_folder(self, snapshot: Snapshot, fill: Fill) -> None:
        """Make it aside and rename. Nothing is synced: no container outlives a power cut, nor need its snapshot."""
        making = self.new_scratch()
        try:
            rights.make_directory(making)
            rights.make_directory(making / "fs", rights.SHOWN_DIRECTORY)
            rights.make_directory(making / "work")
            rights.write_file(making / SNAPSHOT_FILE, snapshot.encode())
            fill(making / "fs")
            making.rename(self.snapshot_folder(snapshot))
        except BaseException:
            remove_tree(making)
            raise

    def snapshot(self, key: str) -> Snapshot:
        """Find a snapshot. Raises NotFound."""
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            raise NotFound(f"snapshot {key} is not in {self.root}")
        return snapshot

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Return every snapshot."""
        return tuple(self._snapshots.values())

    def snapshot_folder(self, snapshot: Snapshot) -> Path:
        """Return the folder that holds the snapshot's ``fs`` and ``work``."""
        return self.root / "snapshots" / str(snapshot.number)

    def remove_snapshot(self, key: str) -> None:
        """Drop a snapshot with its writable part. Idempotent."""
        with contextlib.suppress(NotFound):
            self._scrap(self.snapshot_folder(self.snapshot(key)))
        with self._lock:
            self._snapshots.pop(key, None)

    def snapshot_usage(self, key: str) -> DiskUsage:
        """Measure a snapshot's writable part. Raises NotFound."""
        snapshot = self.snapshot(key)
        if snapshot.readonly:
            return DiskUsage(0, 0)
        try:
            return disk_usage(self.snapshot_folder(snapshot) / "fs")
        except FileNotFoundError as error:
            raise NotFound(f"snapshot {key} was removed meanwhile") from error

    # Rubbish, and what is found at start

    def clear_scratch(self) -> None:
        """Remove what processes that are gone were making or removing, and folders whose record could not be read."""
        for folder in (self.root / "scratch").iterdir():
            if not _is_owner_alive(folder.name):
                remove_tree(folder)
        for folder in self._damaged:
            self._log.warning("%s has no readable record, or its parent layer is gone: it is removed", folder)
            self._scrap(folder)
        self._damaged.clear()

    def _scrap(self, folder: Path) -> None:
        """Make a folder invalid at once, then remove it."""
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self._move_to_scratch(folder))

    def _move_to_scratch(self, folder: Path) -> Path:
        return folder.rename(self.new_scratch())

    def new_scratch(self) -> Path:
        """Return a name for a folder that is rubbish once this process is gone."""
        pid = os.getpid()
        return self.root / "scratch" / f"{pid}-{_started(pid)}-{secrets.token_hex(4)}"

    def _layer_folder(self, layer: Layer) -> Path:
        return self.root / "layers" / str(layer.number)

    def _unfinished(self, key: str) -> Path:
        folder = self.root / "unfinished" / key
        if key in ("", "..") or "/" in key or not folder.is_dir():
            raise NotFound(f"prepared layer {key} is not in {self.root}")
        return folder

    def _forget_unfounded_layers(self) -> None:
        """A layer whose parent is gone, or damaged, can't be mounted: it is no layer any more."""
        while unfounded := [one for one in self._layers.values() if one.parent and one.parent not in self._layers]:
            for layer in unfounded:
                self._damaged.append(self._layer_folder(layer))
                del self._layers[layer.chain_id]

    def _last_number(self) -> int:
        kinds = ("layers", "unfinished", "snapshots")
        return max((_number(path) for kind in kinds for path in (self.root / kind).iterdir()), default=0)


def _number(folder: Path) -> int:
    digits = folder.name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _sync_file_system(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.call("syncfs", fd, path=folder)
    finally:
        os.close(fd)


def _is_owner_alive(scratch_name: str) -> bool:
    pid, _, rest = scratch_name.partition("-")
    return pid.isdecimal() and _started(int(pid)) == rest.partition("-")[0] != ""


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks: with the pid, it names a process for good. Empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # the id may be another's now, of any name
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]
