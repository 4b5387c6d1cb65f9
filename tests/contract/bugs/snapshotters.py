"""Snapshotters with a bug each, on top of the built-in one of directories and copies."""

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from crinoid.core.api.errors import AlreadyExists, CorruptContent, DriverError, FailedPrecondition, NotFound
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc
from crinoid.core.api.values.snapshot import DiskUsage, LayerTarget, Mount, SnapshotterFeatures
from crinoid.plugins.snapshotters.native import NativeConfig, NativeSnapshotter
from support.patience import patient

from . import caught_by


class Good(NativeSnapshotter):
    """The snapshotter ``native``."""

    def __init__(self, host: Host) -> None:
        super().__init__(NativeConfig(), host)
        self.probed = False

    @hookimpl
    async def probe(self) -> None:
        await super().probe()
        self.probed = True


def doubled(usage: DiskUsage) -> DiskUsage:
    return DiskUsage(2 * usage.used_bytes, usage.inodes)


@caught_by("test_its_hooks_are_as_specified", "usage has the name of a hook but no @hookimpl")
class MarkForgotten(Good):
    """``usage`` has no ``@hookimpl``."""

    async def usage(self, key: str) -> DiskUsage:
        return await super().usage(key)


@caught_by("test_its_hooks_are_as_specified", "'total_usage'")
class HookMissing(Good):
    """It does not tell what all layers take."""

    total_usage = None  # type: ignore[assignment]


@caught_by("test_features_are_constant", "==")
class FickleFeatures(Good):
    """Its features change."""

    numbers = itertools.count()

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return replace(super().features(), parallel_unpack=bool(next(self.numbers) % 2))


@caught_by("test_a_new_store_is_empty", "list_layers returned .* is due")
class ListOfLayers(Good):
    """``list_layers`` returns a list of lists."""

    @hookimpl
    async def list_layers(self) -> Any:
        return [list(one) for one in await super().list_layers()]


@caught_by("test_a_new_store_is_empty", r"list_snapshots returned \[\] where tuple\[str, \.\.\.\] is due")
class ListOfKeys(Good):
    """``list_snapshots`` returns a list."""

    @hookimpl
    async def list_snapshots(self) -> Any:
        return list(await super().list_snapshots())


@caught_by("test_a_new_store_is_empty", "list_layers has held the event loop for")
class Blocks(Good):
    """``list_layers`` holds up the loop for a second."""

    @hookimpl
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        time.sleep(patient(0.6))
        return await super().list_layers()


@caught_by("test_a_new_store_is_empty", "total_usage has had no answer for 0.3 s", hook_s=0.3)
class Hangs(Good):
    """``total_usage`` never answers."""

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        await asyncio.Event().wait()
        raise AssertionError


@caught_by("test_a_new_store_is_empty", "DiskUsage")
class CountsItself(Good):
    """An empty store takes space."""

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        usage = await super().total_usage()
        return DiskUsage(usage.used_bytes + 4096, usage.inodes + 1)


@caught_by("test_a_first_layer_begins_empty", "lost")
class BeginsFull(Good):
    """The directory of a first layer has something in it."""

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        target = await super().prepare_layer(chain_id, parent)
        (target.directory / "lost+found").mkdir()
        return target


@caught_by("test_a_further_layer_begins_as_its_form_wants", "==")
class BeginsEmpty(Good):
    """A further layer has nothing of those below it."""

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        return await super().prepare_layer(chain_id, None)


@caught_by("test_a_layer_is_there_once_it_is_committed", "== {'1-")
class ForgetsTheUnfinished(Good):
    """Prepared layers are not listed."""

    @hookimpl
    async def list_unfinished(self) -> tuple[str, ...]:
        return ()


@caught_by("test_a_layer_is_there_once_it_is_committed", "assert not True")
class HasEverything(Good):
    """It has every layer that one asks for."""

    @hookimpl
    async def has_layer(self, chain_id: str) -> bool:
        return True


@caught_by("test_a_discarded_layer_is_gone", "exists")
class KeepsTheDiscarded(Good):
    """A discarded layer stays."""

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        """Keep it."""


@caught_by("test_a_discarded_layer_is_gone", "is gone already")
class DiscardsOnce(Good):
    """A second ``discard_layer`` is an error."""

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        if key not in await super().list_unfinished():
            raise NotFound(f"{key} is gone already")
        await super().discard_layer(key)


@caught_by("test_a_foreign_key_does_no_harm", "DID NOT RAISE", key="unknown")
class CommitsAnything(Good):
    """A key that it does not know is committed."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        with contextlib.suppress(NotFound):
            await super().commit_layer(key, chain_id, parent)


@caught_by("test_a_foreign_key_does_no_harm", "assert False|No such file", key="../layers")
class FollowsDots(Good):
    """A key with dots in it leads out of its directory."""

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        if key in await super().list_unfinished():
            await super().discard_layer(key)
        else:
            await asyncio.to_thread(shutil.rmtree, self.storage.root / "unfinished" / key, ignore_errors=True)


@caught_by("test_the_first_commit_of_a_chain_id_stays", "is there already")
class CommitsOnce(Good):
    """A second commit of a chain id is an error."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        if await super().has_layer(chain_id):
            raise AlreadyExists(f"{chain_id} is there already")
        await super().commit_layer(key, chain_id, parent)


@caught_by("test_the_first_commit_of_a_chain_id_stays", "!=")
class OneForAll(Good):
    """Two preparations of a layer get one directory."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.targets: dict[str, LayerTarget] = {}

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        if chain_id not in self.targets:
            self.targets[chain_id] = await super().prepare_layer(chain_id, parent)
        return self.targets[chain_id]


@caught_by("test_commits_at_the_same_time_make_one_layer", "somebody commits")
class CommitsOneAtATime(Good):
    """Commits at the same time fail."""

    busy = False

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        if self.busy:
            raise DriverError("somebody commits")
        self.busy = True
        await super().commit_layer(key, chain_id, parent)
        self.busy = False


@caught_by("test_a_layer_in_use_is_not_removed", "DID NOT RAISE")
class SaysNotThatItIsUsed(Good):
    """The removal of a layer in use seems to succeed."""

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        with contextlib.suppress(FailedPrecondition):
            await super().remove_layer(chain_id)


@caught_by("test_a_layer_is_removed_when_nothing_stands_on_it", "is not here")
class RemovesOnce(Good):
    """A second ``remove_layer`` is an error."""

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        if not await super().has_layer(chain_id):
            raise NotFound(f"{chain_id} is not here")
        await super().remove_layer(chain_id)


@caught_by("test_all_survives_a_restart", "== {'container'}")
class Remembers(Good):
    """Snapshots are listed from memory."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.keys: list[str] = []

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        self.keys.append(key)
        return await super().create_snapshot(key, parent, readonly)

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        return tuple(self.keys)


@caught_by("test_it_is_asked_before_it_is_probed", "not probed")
class WantsAProbe(Good):
    """Nothing works before ``probe``."""

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        if not self.probed:
            raise DriverError("it is not probed")
        return await super().list_snapshots()


@caught_by("test_a_cancellation_at_any_await_leaves_only_what_is_listed", "left on disk.*early", act="prepare")
class LeavesADirectoryWhenCancelled(Good):
    """A thread makes a directory, and whoever waits for it removes it, unless he is gone."""

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        early = self.storage.root / f"early-{time.monotonic_ns()}"
        await asyncio.to_thread(early.mkdir)
        await asyncio.to_thread(early.rmdir)
        return await super().prepare_layer(chain_id, parent)


@caught_by("test_a_cancellation_at_any_await_leaves_only_what_is_listed", "left on disk.*staged", act="commit")
class LosesALayerWhenCancelled(Good):
    """A layer is moved aside before it is committed, and is in no list then."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        place, aside = self.storage.root / "unfinished" / key, self.storage.root / f"staged-{key}"
        if place.exists():
            place.rename(aside)
            await asyncio.sleep(0)
            aside.rename(place)
        await super().commit_layer(key, chain_id, parent)


@caught_by("test_a_kill_at_any_change_leaves_only_what_is_listed", "left on disk.*commit was killed", act="commit")
class RenamesBeforeTheRecord(Good):
    """A layer gets its name on disk before anything is written down of it: a kill in between loses it."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        def move() -> None:
            place, final = self.storage.root / "unfinished" / key, self.storage.root / f"final-{key}"
            if place.exists():
                place.rename(final)
                (self.storage.root / "record").write_text(key)
                final.rename(place)
                (self.storage.root / "record").unlink()

        await asyncio.to_thread(move)
        await super().commit_layer(key, chain_id, parent)


@caught_by("test_a_committed_layer_is_on_the_disk", "== 0")
class NotSynced(Good):
    """A committed layer is not synced."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        def call(name: str, *arguments: Any, **named: Any) -> Any:
            return None if name == "syncfs" else real(name, *arguments, **named)

        real = libc.call
        with mock.patch.object(libc, "call", call):
            await super().commit_layer(key, chain_id, parent)


@caught_by("test_snapshots_are_listed_and_removed", "DID NOT RAISE")
class MountsOfTheGone(Good):
    """A snapshot that was removed still has mounts."""

    @hookimpl
    async def mounts(self, key: str) -> tuple[Mount, ...]:
        try:
            return await super().mounts(key)
        except NotFound:
            return (Mount("bind", "/nowhere", ("rbind",)),)


@caught_by("test_a_key_in_use_and_a_missing_parent_are_refused", "DID NOT RAISE")
class SharesKeys(Good):
    """A key in use is given once more."""

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        with contextlib.suppress(AlreadyExists):
            await super().create_snapshot(key, parent, readonly)
        return await super().mounts(key)


@caught_by("test_a_key_in_use_and_a_missing_parent_are_refused", "DID NOT RAISE")
class AnyParent(Good):
    """A parent that is not there is an empty one."""

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        there = parent is None or await super().has_layer(parent)
        return await super().create_snapshot(key, parent if there else None, readonly)


@caught_by("test_what_one_root_writes_no_other_sees", "mine")
class SharesTheLayer(Good):
    """A container writes into its image's layer."""

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        await super().create_snapshot(key, parent, readonly)
        return await self.mounts(key)

    @hookimpl
    async def mounts(self, key: str) -> tuple[Mount, ...]:
        snapshot = self.storage.snapshot(key)
        return (Mount("bind", str(self.storage.stack(snapshot.parent)[0]), ("rbind",)),)


@caught_by("test_a_readonly_root_can_not_be_written", "DID NOT RAISE")
class WritesToTheReadonly(Good):
    """A read-only root can be written to."""

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        return await super().create_snapshot(key, parent, False)


@caught_by("test_attributes_of_a_layer_show_in_the_root", "No data available|getxattr")
class LosesAttributes(Good):
    """Extended attributes are lost."""

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        for path in Path(self.storage.root, "unfinished", key, "fs").glob("setuid"):
            os.removexattr(path, "user.note")
        await super().commit_layer(key, chain_id, parent)


@caught_by("test_usage_is_what_files_take_on_disk", "used_bytes")
class LayersDoubled(Good):
    """What a layer takes is counted twice."""

    @hookimpl
    async def layer_usage(self, chain_id: str) -> DiskUsage:
        return doubled(await super().layer_usage(chain_id))


@caught_by("test_usage_is_what_files_take_on_disk", "used_bytes")
class TotalDoubled(Good):
    """What all layers take is counted twice."""

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        return doubled(await super().total_usage())


@caught_by("test_usage_follows_what_is_written", "used_bytes")
class SnapshotsDoubled(Good):
    """What a container has written is counted twice."""

    @hookimpl
    async def usage(self, key: str) -> DiskUsage:
        return doubled(await super().usage(key))


@caught_by("test_usage_of_what_is_not_there", "DID NOT RAISE")
class UsageOfNothing(Good):
    """A snapshot that is not there takes nothing."""

    @hookimpl
    async def usage(self, key: str) -> DiskUsage:
        try:
            return await super().usage(key)
        except NotFound:
            return DiskUsage(0, 0)


@caught_by("test_a_whole_layer_is_verified", "DID NOT RAISE")
class AllIsWhole(Good):
    """A layer that is not there is whole."""

    @hookimpl
    async def verify_layer(self, chain_id: str) -> None:
        """Find nothing wrong."""


@caught_by("test_a_whole_layer_is_verified", "is damaged")
class NothingIsWhole(Good):
    """Every layer counts as damaged."""

    @hookimpl
    async def verify_layer(self, chain_id: str) -> None:
        raise CorruptContent(f"layer {chain_id} is damaged")
