"""The contract of the snapshotter role as tests: whoever writes a snapshotter applies them to it.

Subclass the contract and say how a driver is made::

    class TestMine(SnapshotterContract):
        def make_driver(self, host: Host) -> object:
            return MySnapshotter(MyOptions(), host)

It wants pytest and pytest-asyncio. Layers are filled as the kernel's unpacking does, and snapshots are really mounted:
for that, and for whiteouts of the overlay form, it wants root, and skips where there is none. ``make_driver`` is called
again over the same host where a test restarts the daemon; nothing is closed before, as in a kill.
"""

import asyncio
import ctypes
import itertools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, NotFound, Unsupported
from crinoid.core.api.hooks.snapshotter import SnapshotterHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import mount as system_mounts
from crinoid.core.api.testing.binding import bind_hooks, cuts
from crinoid.core.api.testing.contract import Contract, files_below
from crinoid.core.api.testing.kills import kills
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.testing.written_layers import write_archive, write_by_class
from crinoid.core.api.values.snapshot import (
    DiskUsage,
    LayerForm,
    LayerStream,
    LayerTarget,
    Mount,
    SnapshotterFeatures,
    WhiteoutForm,
)

BASE = "sha256:" + "a" * 64
"""A chain id of one layer."""
TOP = "sha256:" + "b" * 64
"""A chain id of two layers, on top of ``BASE``."""
ABSENT = "sha256:" + "0" * 64
_FILE_BYTES = 100_000
_TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MTIME_NS = 1_234_567_890_000_000_000
_SETTLE_TRIES = 60
_SYNC_TRIES = 8
_SETTLE_PAUSE_S = patient(0.05)
_CACHESTAT = 451  # the system call, since Linux 6.5

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, owners and whiteouts need root")


@dataclass(frozen=True, slots=True)
class LayerContent:
    """What a layer brings: files by path, names it takes away, directories whose lower content it hides."""

    files: Mapping[str, str] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    root: tuple[int, int] | None = None
    """Mode and owner of the root, where the layer has an entry for it."""

    def unpack(self, directory: Path, whiteouts: WhiteoutForm) -> None:
        """Do as the kernel's unpacking does, with whiteouts of that form."""
        for name in self.opaque:
            (directory / name).mkdir(parents=True, exist_ok=True)
            if whiteouts is WhiteoutForm.OVERLAY:
                os.setxattr(directory / name, "trusted.overlay.opaque", b"y")
            for below in (directory / name).iterdir() if whiteouts is WhiteoutForm.DELETE else ():
                _remove(below)
        for name in self.deleted:
            if whiteouts is WhiteoutForm.DELETE:
                _remove(directory / name)
            else:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.mknod(directory / name, stat.S_IFCHR, 0)
        for name, text in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if self.root is not None:
            os.chown(directory, self.root[1], self.root[1])
            directory.chmod(self.root[0])


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


class BoundSnapshotter:
    """A driver behind the hooks, called as the kernel calls it: by keyword."""

    def __init__(self, driver: object) -> None:
        self._hook = bind_hooks(driver, SnapshotterHooks)

    def features(self) -> SnapshotterFeatures:
        """Ask for the features, and check their type."""
        features = self._hook.features()
        assert isinstance(features, SnapshotterFeatures), f"features returned {features!r}"
        return features

    async def probe(self) -> None:
        """Try whether the host can do it."""
        assert await self._hook.probe() is None

    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        """Prepare a layer, and check that there is a directory."""
        target = await self._hook.prepare_layer(chain_id=chain_id, parent=parent)
        assert isinstance(target, LayerTarget), f"prepare_layer returned {target!r}"
        assert target.directory.is_dir()
        return target

    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        """Commit a layer."""
        assert await self._hook.commit_layer(key=key, chain_id=chain_id, parent=parent) is None

    def has(self, hook: str) -> bool:
        """Return whether the driver has a hook."""
        return bool(self._hook.has(hook))

    async def verify_layer(self, chain_id: str) -> None:
        """Have a layer read."""
        assert await self._hook.verify_layer(chain_id=chain_id) is None

    async def discard_layer(self, key: str) -> None:
        """Discard a layer."""
        assert await self._hook.discard_layer(key=key) is None

    async def has_layer(self, chain_id: str) -> bool:
        """Ask for a layer, and check the answer's type."""
        answer = await self._hook.has_layer(chain_id=chain_id)
        assert isinstance(answer, bool), f"has_layer returned {answer!r}"
        return answer

    async def list_layers(self) -> dict[str, str | None]:
        """Return every chain id with its parent; each comes once."""
        layers = await self._hook.list_layers()
        assert isinstance(layers, tuple), f"list_layers returned {layers!r}"
        assert len(dict(layers)) == len(layers)
        return dict(layers)

    async def remove_layer(self, chain_id: str) -> None:
        """Remove a layer."""
        assert await self._hook.remove_layer(chain_id=chain_id) is None

    async def create_snapshot(self, key: str, parent: str | None, readonly: bool = False) -> tuple[Mount, ...]:
        """Create a snapshot, and check that its mounts are the same when asked for again."""
        mounts = await self._hook.create_snapshot(key=key, parent=parent, readonly=readonly)
        assert await self.mounts(key) == mounts
        return await self.mounts(key)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return a snapshot's mounts, and check their type."""
        mounts = await self._hook.mounts(key=key)
        assert isinstance(mounts, tuple) and mounts, f"mounts returned {mounts!r}"
        assert all(isinstance(mount, Mount) for mount in mounts)
        return mounts

    async def remove_snapshot(self, key: str) -> None:
        """Remove a snapshot."""
        assert await self._hook.remove_snapshot(key=key) is None

    async def list_snapshots(self) -> set[str]:
        """Return the keys of all snapshots; each comes once."""
        keys = await self._hook.list_snapshots()
        assert len(set(keys)) == len(keys)
        return set(keys)

    async def list_unfinished(self) -> set[str]:
        """Return the keys of all unfinished layers."""
        return set(await self._hook.list_unfinished())

    async def usage(self, key: str) -> DiskUsage:
        """Measure a snapshot, and check the answer."""
        return _measured(await self._hook.usage(key=key))

    async def layer_usage(self, chain_id: str) -> DiskUsage:
        """Measure a layer, and check the answer."""
        return _measured(await self._hook.layer_usage(chain_id=chain_id))

    async def total_usage(self) -> DiskUsage:
        """Measure all layers, and check the answer."""
        return _measured(await self._hook.total_usage())

    @asynccontextmanager
    async def filling(self, target: LayerTarget, root_entry: bool = True) -> AsyncIterator[tuple[Path, WhiteoutForm]]:
        """Give a layer in the form that the target wants: what a block puts into a directory, with such whiteouts.

        ``root_entry``: the layer has an entry for its root.
        """
        if target.form is LayerForm.DIRECTORY and not target.writer:
            yield target.directory, target.whiteouts
            return
        with tempfile.TemporaryDirectory(prefix="crinoid-layer-") as name, tempfile.TemporaryFile() as file:
            directory = Path(name)
            await asyncio.to_thread(directory.chmod, 0o755)
            yield directory, WhiteoutForm.OVERLAY
            if target.form is LayerForm.DIRECTORY:
                await asyncio.to_thread(write_by_class, directory, target, root_entry)
            else:
                is_plain = target.form is LayerForm.TAR
                await asyncio.to_thread(write_archive, directory, file, "" if is_plain else "gz", root_entry)
                size, media_type = os.fstat(file.fileno()).st_size, _TAR_LAYER if is_plain else f"{_TAR_LAYER}+gzip"
                await self._hook.write_layer(key=target.key, stream=LayerStream(file.fileno(), size, media_type))

    async def fill(self, target: LayerTarget, content: LayerContent) -> None:
        """Give a layer of that content."""
        async with self.filling(target, content.root is not None) as (directory, whiteouts):
            await asyncio.to_thread(content.unpack, directory, whiteouts)

    async def add_layer(self, chain_id: str, parent: str | None, content: LayerContent) -> None:
        """Prepare, fill and commit a layer."""
        target = await self.prepare_layer(chain_id, parent)
        await self.fill(target, content)
        await self.settle_and_commit(target, chain_id, parent, content)

    async def settle_and_commit(
        self, target: LayerTarget, chain_id: str, parent: str | None, content: LayerContent
    ) -> None:
        """Do as the kernel does once the parent is committed: a layer without a root of its own shows the parent's.

        One in another form is the driver's to settle.
        """
        is_overlay = target.whiteouts is WhiteoutForm.OVERLAY
        is_overlay = is_overlay and target.form is LayerForm.DIRECTORY and not target.writer
        if parent is not None and content.root is None and is_overlay:
            _copy_looks(await self.create_snapshot("view", parent, readonly=True), target.directory)
            await self.remove_snapshot("view")
        await self.commit_layer(target.key, chain_id, parent)


BASE_CONTENT = LayerContent(
    files={"etc/kept": "base", "etc/changed": "base", "gone/file": "base", "hidden/old": "base"}
)
TOP_CONTENT = LayerContent(
    files={"etc/changed": "top", "hidden/new": "top", "big": "x" * _FILE_BYTES}, deleted=("gone",), opaque=("hidden",)
)
MERGED = {"etc/kept": "base", "etc/changed": "top", "hidden/new": "top", "big": "x" * _FILE_BYTES}
"""What a root of ``TOP`` holds."""


@pytest.mark.asyncio
class SnapshotterContract(Contract):
    """What every snapshotter does; ``make_driver`` is the author's."""

    specification = SnapshotterHooks
    has_own_link_counts: ClassVar[bool] = True
    """Whether a file of a root has as many names as its image gives it; it has more where layers are hard-linked."""

    def make_driver(self, host: Host) -> object:
        """Return a driver over the host's directories, which may hold what an earlier one left."""
        raise NotImplementedError

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """The driver's place on the node."""
        for name in ("state", "run"):
            (tmp_path / name).mkdir()
        return Host("contract", tmp_path / "state", tmp_path / "run", logging.getLogger("contract"), "0")

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Path]:
        """A directory to mount on; what is mounted below is undone after the test."""
        target = tmp_path / "root"
        target.mkdir()
        yield target
        for point in system_mounts.mountpoints(tmp_path):
            system_mounts.unmount(point)

    @pytest.fixture
    def driver(self, host: Host) -> object:
        """The driver alone."""
        return self.make_driver(host)

    @pytest_asyncio.fixture
    async def snapshotter(self, host: Host) -> BoundSnapshotter:
        """The driver, bound and probed."""
        return await self.restart(host)

    @pytest_asyncio.fixture
    async def image(self, snapshotter: BoundSnapshotter) -> BoundSnapshotter:
        """The driver, with an image of two layers: ``BASE`` and ``TOP``."""
        if os.geteuid() != 0:
            pytest.skip("whiteouts need root")
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.add_layer(TOP, BASE, TOP_CONTENT)
        return snapshotter

    async def restart(self, host: Host) -> BoundSnapshotter:
        """Make the driver anew, as after a kill of the daemon, which asks for what is unfinished before it probes."""
        bound = BoundSnapshotter(self.make_driver(host))
        try:
            await bound.list_unfinished()
            await bound.probe()
        except Unsupported as error:
            if os.geteuid() != 0:
                pytest.skip(f"without root: {error}")
            raise
        return bound

    # Layers

    async def test_features_are_constant(self, snapshotter: BoundSnapshotter) -> None:
        assert snapshotter.features() == snapshotter.features()

    async def test_a_new_store_is_empty(self, snapshotter: BoundSnapshotter) -> None:
        assert await snapshotter.list_layers() == {}
        assert await snapshotter.list_snapshots() == set()
        assert await snapshotter.list_unfinished() == set()
        assert await snapshotter.total_usage() == DiskUsage(0, 0)

    async def test_a_first_layer_begins_empty(self, snapshotter: BoundSnapshotter) -> None:
        target = await snapshotter.prepare_layer(BASE, None)
        assert list(target.directory.iterdir()) == []

    async def test_a_further_layer_begins_as_its_form_wants(self, snapshotter: BoundSnapshotter) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        target = await snapshotter.prepare_layer(TOP, BASE)
        held = BASE_CONTENT.files if target.whiteouts is WhiteoutForm.DELETE else {}
        assert _files(target.directory) == held

    @needs_root
    @pytest.mark.parametrize("roots", [((0o751, 1234), None, None), (None, (0o700, 7), None), (None, None, (0o711, 7))])
    async def test_the_last_layer_that_says_so_decides_how_the_root_looks(
        self, snapshotter: BoundSnapshotter, target: Path, roots: tuple[tuple[int, int] | None, ...]
    ) -> None:
        """In whichever order layers are prepared, unpacked and committed, a parent before what stands on it."""
        expected = next(root for root in roots if root is not None)
        for number, order in enumerate(_orders(len(roots), snapshotter.features().parallel_unpack)):
            chain_ids = [f"sha256:{number:032x}{layer:032x}" for layer in range(len(roots))]
            prepared: dict[int, LayerTarget] = {}
            for layer in order:
                parent = chain_ids[layer - 1] if layer else None
                content = LayerContent(files={f"file-{layer}": "here"}, root=roots[layer])
                if layer in prepared:
                    await snapshotter.settle_and_commit(prepared[layer], chain_ids[layer], parent, content)
                else:
                    prepared[layer] = await snapshotter.prepare_layer(chain_ids[layer], parent)
                    await snapshotter.fill(prepared[layer], content)
            for readonly in (False, True):
                async with _mounted(await snapshotter.create_snapshot("root", chain_ids[-1], readonly), target):
                    assert _looks(target) == expected, f"in the order {order}"
                    assert _names(target) == [f"file-{layer}" for layer in range(len(roots))]
                await snapshotter.remove_snapshot("root")

    @needs_root
    async def test_a_layer_begins_alike_whether_its_parent_is_there(self, snapshotter: BoundSnapshotter) -> None:
        """What is unpacked without the layers below must not be of another kind when they happen to be there."""
        if not snapshotter.features().parallel_unpack:
            return
        early = await snapshotter.prepare_layer(TOP, BASE)
        await snapshotter.add_layer(BASE, None, LayerContent(root=(0o751, 1234)))
        late = await snapshotter.prepare_layer(TOP, BASE)
        assert [_looks(one.directory) for one in (early, late)] == [(0o755, 0)] * 2

    async def test_a_layer_is_there_once_it_is_committed(self, snapshotter: BoundSnapshotter) -> None:
        target = await snapshotter.prepare_layer(BASE, None)
        assert await snapshotter.list_unfinished() == {target.key}
        assert not await snapshotter.has_layer(BASE)
        await snapshotter.fill(target, BASE_CONTENT)
        await snapshotter.commit_layer(target.key, BASE, None)
        assert await snapshotter.has_layer(BASE)
        assert await snapshotter.list_layers() == {BASE: None}
        assert await snapshotter.list_unfinished() == set()

    async def test_a_whole_layer_is_verified(self, snapshotter: BoundSnapshotter) -> None:
        """And stays; of one that is not there nobody says that it is whole."""
        if not snapshotter.has("verify_layer"):
            pytest.skip("the driver does not verify layers")
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.add_layer(TOP, BASE, LayerContent())
        for chain_id in (BASE, TOP):
            await snapshotter.verify_layer(chain_id)
            assert await snapshotter.has_layer(chain_id)
        with pytest.raises(NotFound):
            await snapshotter.verify_layer("sha256:" + "0" * 64)

    async def test_a_discarded_layer_is_gone(self, snapshotter: BoundSnapshotter) -> None:
        target = await snapshotter.prepare_layer(BASE, None)
        await snapshotter.fill(target, BASE_CONTENT)
        for _ in range(2):
            await snapshotter.discard_layer(target.key)
        assert not target.directory.exists()
        assert await snapshotter.list_unfinished() == set()
        with pytest.raises(NotFound):
            await snapshotter.commit_layer(target.key, BASE, None)

    @pytest.mark.parametrize("key", ["unknown", "", "..", "../../etc", "a/b"])
    async def test_a_foreign_key_does_no_harm(self, snapshotter: BoundSnapshotter, host: Host, key: str) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        with pytest.raises(NotFound):
            await snapshotter.commit_layer(key, TOP, BASE)
        await snapshotter.discard_layer(key)
        await snapshotter.remove_snapshot(key)
        assert (await self.restart(host)).features() == snapshotter.features()
        assert await snapshotter.has_layer(BASE)

    async def test_the_first_commit_of_a_chain_id_stays(self, snapshotter: BoundSnapshotter) -> None:
        one, two = [await snapshotter.prepare_layer(BASE, None) for _ in range(2)]
        assert one.key != two.key and one.directory != two.directory
        for target in (one, two):
            await snapshotter.fill(target, BASE_CONTENT)
            await snapshotter.commit_layer(target.key, BASE, None)
        assert await snapshotter.list_layers() == {BASE: None}
        assert await snapshotter.list_unfinished() == set()
        assert not two.directory.exists()

    async def test_commits_at_the_same_time_make_one_layer(self, snapshotter: BoundSnapshotter) -> None:
        targets = await asyncio.gather(*(snapshotter.prepare_layer(BASE, None) for _ in range(5)))
        assert len({target.key for target in targets}) == 5
        for target in targets:
            await snapshotter.fill(target, LayerContent())
        await asyncio.gather(*(snapshotter.commit_layer(target.key, BASE, None) for target in targets))
        assert await snapshotter.list_layers() == {BASE: None}
        assert await snapshotter.list_unfinished() == set()

    async def test_a_parent_that_is_not_committed(self, snapshotter: BoundSnapshotter) -> None:
        if snapshotter.features().parallel_unpack:
            top = await snapshotter.prepare_layer(TOP, BASE)
            await snapshotter.fill(top, LayerContent())
            await snapshotter.add_layer(BASE, None, BASE_CONTENT)
            await snapshotter.commit_layer(top.key, TOP, BASE)
            assert await snapshotter.list_layers() == {BASE: None, TOP: BASE}
        else:
            with pytest.raises(NotFound):
                await snapshotter.prepare_layer(TOP, BASE)
            assert await snapshotter.list_unfinished() == set()

    async def test_a_layer_in_use_is_not_removed(self, snapshotter: BoundSnapshotter) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.add_layer(TOP, BASE, LayerContent())
        await snapshotter.create_snapshot("container", TOP)
        for chain_id in (BASE, TOP):
            with pytest.raises(FailedPrecondition):
                await snapshotter.remove_layer(chain_id)
            assert await snapshotter.has_layer(chain_id)

    async def test_a_layer_is_removed_when_nothing_stands_on_it(
        self, snapshotter: BoundSnapshotter, host: Host
    ) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.add_layer(TOP, BASE, LayerContent())
        await snapshotter.create_snapshot("container", TOP)
        await snapshotter.remove_snapshot("container")
        for chain_id in (TOP, TOP, BASE, BASE, ABSENT):
            await snapshotter.remove_layer(chain_id)
        assert await snapshotter.list_layers() == {}
        assert await (await self.restart(host)).list_layers() == {}
        await _until_usage(snapshotter, 0)

    # Restarts

    async def test_all_survives_a_restart(self, snapshotter: BoundSnapshotter, host: Host) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.add_layer(TOP, BASE, LayerContent())
        mounts = await snapshotter.create_snapshot("container", TOP)
        usage = await snapshotter.total_usage()
        after = await self.restart(host)
        assert await after.list_layers() == {BASE: None, TOP: BASE}
        assert await after.list_snapshots() == {"container"}
        assert await after.mounts("container") == mounts
        assert await after.total_usage() == usage
        with pytest.raises(FailedPrecondition):
            await after.remove_layer(TOP)
        with pytest.raises(AlreadyExists):
            await after.create_snapshot("container", TOP)

    async def test_what_was_prepared_before_a_restart_is_listed(
        self, snapshotter: BoundSnapshotter, host: Host
    ) -> None:
        kept, dropped = [await snapshotter.prepare_layer(BASE, None) for _ in range(2)]
        await snapshotter.fill(kept, BASE_CONTENT)
        after = await self.restart(host)
        assert await after.list_unfinished() == {kept.key, dropped.key}
        await after.discard_layer(dropped.key)
        assert not dropped.directory.exists()
        new = await after.prepare_layer(TOP, None)
        assert new.key not in {kept.key, dropped.key}, "a key is never given twice"
        await after.commit_layer(kept.key, BASE, None)
        assert await after.has_layer(BASE)

    async def test_it_is_asked_before_it_is_probed(self, snapshotter: BoundSnapshotter, host: Host) -> None:
        """The daemon drops what is unfinished, and undoes what nobody owns, as it starts; ``probe`` comes later."""
        target = await snapshotter.prepare_layer(BASE, None)
        await snapshotter.create_snapshot("container", None)
        after = BoundSnapshotter(self.make_driver(host))
        assert await after.list_unfinished() == {target.key}
        await after.discard_layer(target.key)
        assert await after.list_snapshots() == {"container"}
        await after.remove_snapshot("container")
        await after.probe()
        await after.add_layer(BASE, None, BASE_CONTENT)

    # Cancelled and killed

    @pytest.mark.parametrize("act", ["prepare", "commit", "discard", "remove", "create", "drop"])
    async def test_a_cancellation_at_any_await_leaves_only_what_is_listed(
        self, snapshotter: BoundSnapshotter, host: Host, act: str
    ) -> None:
        await self._lay_and_clear(snapshotter, act, _at_once)
        before = files_below(host.state_dir)
        for cut in cuts():
            await self._lay_and_clear(snapshotter, act, cut)
            await _until_files(host, before, f"{act} was {cut}")
        after = await self.restart(host)
        assert (await after.list_layers(), await after.list_snapshots()) == ({}, set())

    @pytest.mark.parametrize("act", ["prepare", "commit", "discard", "remove", "create", "drop"])
    async def test_a_kill_at_any_change_leaves_only_what_is_listed(
        self, snapshotter: BoundSnapshotter, host: Host, act: str
    ) -> None:
        """A layer is whole or absent, and what was begun is named by ``list_unfinished``, or removed at the start."""
        await self._lay_and_clear(snapshotter, act, _at_once)
        before = files_below(host.state_dir)
        for kill in kills():
            first = await self.restart(host)
            key = await _lay(first, act)

            async def step(child: BoundSnapshotter, key: str = key) -> None:
                await _step(child, act, key)

            await kill(lambda: self.restart(host), step)
            await self._clear(await self.restart(host))
            await _until_files(host, before, f"{act} was {kill}")

    async def _lay_and_clear(
        self, snapshotter: BoundSnapshotter, act: str, do: Callable[..., Awaitable[object]]
    ) -> None:
        key = await _lay(snapshotter, act)
        await do(_step(snapshotter, act, key))
        await self._clear(snapshotter)

    async def _clear(self, snapshotter: BoundSnapshotter) -> None:
        """Look at all that is listed, and remove it."""
        layers = await snapshotter.list_layers()
        assert await snapshotter.has_layer(BASE) == (BASE in layers)
        for snapshot in await snapshotter.list_snapshots():
            await snapshotter.mounts(snapshot)
            await snapshotter.remove_snapshot(snapshot)
        for one in await snapshotter.list_unfinished():
            await snapshotter.discard_layer(one)
        for chain_id in layers:
            await snapshotter.layer_usage(chain_id)
            await snapshotter.create_snapshot("look", chain_id)
            await snapshotter.remove_snapshot("look")
            await snapshotter.remove_layer(chain_id)
        assert await snapshotter.list_unfinished() == set()
        await _until_usage(snapshotter, 0)

    async def test_a_committed_layer_is_on_the_disk(self, snapshotter: BoundSnapshotter) -> None:
        """The power may fail at any moment after ``commit_layer``: no page of a file waits to be written then.

        Several times: the kernel, or anybody's sync(2), may have written it by chance.
        """
        for number in range(_SYNC_TRIES):
            chain_id = f"sha256:{number:064x}"
            target = await snapshotter.prepare_layer(chain_id, None)
            async with snapshotter.filling(target) as (directory, _):
                (directory / "file").write_bytes(os.urandom(_FILE_BYTES))
            kept = next(path for path in sorted(target.directory.rglob("*")) if path.is_file())
            with kept.open("rb") as file:
                could_be_seen = _unwritten_pages(file.fileno())
                await snapshotter.commit_layer(target.key, chain_id, None)
                if os.fstat(file.fileno()).st_nlink == 0:
                    pytest.skip("this driver keeps other files than those that were unpacked")
                assert _unwritten_pages(file.fileno()) == 0
        if not could_be_seen:
            pytest.skip("the kernel (before 6.5) or file system does not tell what waits to be written")

    # Snapshots

    async def test_snapshots_are_listed_and_removed(self, snapshotter: BoundSnapshotter) -> None:
        await snapshotter.create_snapshot("one", None)
        await snapshotter.create_snapshot("two", None, readonly=True)
        assert await snapshotter.list_snapshots() == {"one", "two"}
        for _ in range(2):
            await snapshotter.remove_snapshot("one")
        assert await snapshotter.list_snapshots() == {"two"}
        with pytest.raises(NotFound):
            await snapshotter.mounts("one")
        await snapshotter.create_snapshot("one", None)

    async def test_a_key_in_use_and_a_missing_parent_are_refused(self, snapshotter: BoundSnapshotter) -> None:
        await snapshotter.create_snapshot("container", None)
        with pytest.raises(AlreadyExists):
            await snapshotter.create_snapshot("container", None)
        with pytest.raises(NotFound):
            await snapshotter.create_snapshot("other", ABSENT)
        assert await snapshotter.list_snapshots() == {"container"}

    async def test_one_of_many_gets_a_key(self, snapshotter: BoundSnapshotter) -> None:
        tries = (snapshotter.create_snapshot("container", None) for _ in range(5))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AlreadyExists"] * 4 + ["tuple"]

    async def test_the_driver_mounts_nothing_itself(self, snapshotter: BoundSnapshotter, tmp_path: Path) -> None:
        await snapshotter.add_layer(BASE, None, BASE_CONTENT)
        await snapshotter.create_snapshot("container", BASE)
        assert system_mounts.mountpoints(tmp_path) == ()

    @needs_root
    async def test_a_root_shows_all_layers_as_one(self, image: BoundSnapshotter, target: Path) -> None:
        for key, readonly in (("writable", False), ("readonly", True)):
            async with _mounted(await image.create_snapshot(key, TOP, readonly), target):
                assert _files(target) == MERGED
                assert _names(target) == ["big", "etc", "hidden"]

    @needs_root
    async def test_a_layer_whose_root_is_opaque_hides_all_below(self, image: BoundSnapshotter, target: Path) -> None:
        """overlayfs heeds the mark only below the root: the driver has to leave out the layers that it hides."""
        await image.add_layer(ABSENT, TOP, LayerContent(files={"only": "this"}, opaque=(".",)))
        for key, readonly in (("writable", False), ("readonly", True)):
            async with _mounted(await image.create_snapshot(key, ABSENT, readonly), target):
                assert _files(target) == {"only": "this"}

    @needs_root
    async def test_a_root_of_one_layer(self, image: BoundSnapshotter, target: Path) -> None:
        for key, readonly in (("writable", False), ("readonly", True)):
            async with _mounted(await image.create_snapshot(key, BASE, readonly), target):
                assert _files(target) == dict(BASE_CONTENT.files)

    @needs_root
    async def test_a_root_without_an_image(self, snapshotter: BoundSnapshotter, target: Path) -> None:
        async with _mounted(await snapshotter.create_snapshot("writable", None), target):
            assert _names(target) == []
            (target / "file").write_text("mine")
        async with _mounted(await snapshotter.create_snapshot("readonly", None, True), target):
            assert _names(target) == []
            with pytest.raises(OSError):
                (target / "file").touch()

    @needs_root
    async def test_what_one_root_writes_no_other_sees(self, image: BoundSnapshotter, target: Path) -> None:
        async with _mounted(await image.create_snapshot("one", TOP), target):
            (target / "etc/kept").write_text("mine")
            (target / "etc/changed").unlink()
            shutil.rmtree(target / "hidden")
        async with _mounted(await image.create_snapshot("two", TOP), target):
            assert _files(target) == MERGED

    @needs_root
    async def test_what_was_written_is_there_after_a_restart(
        self, image: BoundSnapshotter, host: Host, target: Path
    ) -> None:
        async with _mounted(await image.create_snapshot("container", TOP), target):
            (target / "etc/kept").write_text("mine")
            (target / "etc/changed").unlink()
        after = await self.restart(host)
        async with _mounted(await after.mounts("container"), target):
            assert (target / "etc/kept").read_text() == "mine"
            assert not (target / "etc/changed").exists()

    @needs_root
    async def test_a_readonly_root_can_not_be_written(self, image: BoundSnapshotter, target: Path) -> None:
        async with _mounted(await image.create_snapshot("view", TOP, readonly=True), target):
            for act in ((target / "new").touch, (target / "etc/kept").unlink):
                with pytest.raises(OSError):
                    act()

    @needs_root
    async def test_a_removed_snapshots_writes_are_gone(self, image: BoundSnapshotter, target: Path) -> None:
        async with _mounted(await image.create_snapshot("container", TOP), target):
            (target / "mine").touch()
        await image.remove_snapshot("container")
        async with _mounted(await image.create_snapshot("container", TOP), target):
            assert not (target / "mine").exists()

    @needs_root
    async def test_attributes_of_a_layer_show_in_the_root(self, snapshotter: BoundSnapshotter, target: Path) -> None:
        layer = await snapshotter.prepare_layer(BASE, None)
        async with snapshotter.filling(layer) as (directory, _):
            _make_odd_files(directory)
        await snapshotter.commit_layer(layer.key, BASE, None)
        await snapshotter.add_layer(TOP, BASE, LayerContent(files={"other": "top"}))
        async with _mounted(await snapshotter.create_snapshot("container", TOP), target):
            _assert_odd_files(target, self.has_own_link_counts)
        assert (await snapshotter.layer_usage(BASE)).used_bytes < 1 << 26, "holes take no space"

    # Usage

    @needs_root
    async def test_usage_follows_what_is_written(self, image: BoundSnapshotter, target: Path) -> None:
        mounts = await image.create_snapshot("container", TOP)
        before = await image.usage("container")
        async with _mounted(mounts, target):
            (target / "new").write_bytes(os.urandom(_FILE_BYTES))
            _sync(target / "new")  # a file system may allocate blocks only when it must
            during = await image.usage("container")
            with (target / "sparse").open("wb") as file:
                file.truncate(1 << 30)
            after = await image.usage("container")
        assert _FILE_BYTES <= during.used_bytes - before.used_bytes < 2 * _FILE_BYTES
        assert during.inodes == before.inodes + 1
        assert after.used_bytes - during.used_bytes < 1 << 20, "holes take no space"

    @needs_root
    async def test_usage_of_layers(self, image: BoundSnapshotter) -> None:
        base, top = await image.layer_usage(BASE), await image.layer_usage(TOP)
        target = await image.prepare_layer(ABSENT, None)
        is_directory = target.form is LayerForm.DIRECTORY and not target.writer
        assert base.inodes >= (len(BASE_CONTENT.files) if is_directory else 1)
        assert top.used_bytes >= _FILE_BYTES
        total = await image.total_usage()
        assert max(base.used_bytes, top.used_bytes) <= total.used_bytes <= base.used_bytes + top.used_bytes
        await image.remove_layer(TOP)
        await _until_usage(image, total.used_bytes - _FILE_BYTES)

    async def test_usage_is_what_files_take_on_disk(self, snapshotter: BoundSnapshotter, host: Host) -> None:
        """Each once, also by two names, and the same after a restart."""
        target = await snapshotter.prepare_layer(BASE, None)
        async with snapshotter.filling(target) as (directory, _):
            (directory / "file").write_bytes(os.urandom(10 * _FILE_BYTES))
            os.link(directory / "file", directory / "linked")
        await snapshotter.commit_layer(target.key, BASE, None)
        for one in (snapshotter, await self.restart(host)):
            for usage in (await one.layer_usage(BASE), await one.total_usage()):
                assert 10 * _FILE_BYTES <= usage.used_bytes < 15 * _FILE_BYTES

    async def test_usage_of_what_is_not_there(self, snapshotter: BoundSnapshotter) -> None:
        with pytest.raises(NotFound):
            await snapshotter.usage("nothing")
        with pytest.raises(NotFound):
            await snapshotter.layer_usage(ABSENT)


async def _lay(snapshotter: BoundSnapshotter, act: str) -> str:
    """Do what comes before an act, and return the key of the layer that it is about, if it has one."""
    if act == "prepare":
        return ""
    target = await snapshotter.prepare_layer(BASE, None)
    await snapshotter.fill(target, BASE_CONTENT)
    if act in ("remove", "create", "drop"):
        await snapshotter.commit_layer(target.key, BASE, None)
    if act == "drop":
        await snapshotter.create_snapshot("container", BASE)
    return target.key


async def _step(snapshotter: BoundSnapshotter, act: str, key: str) -> None:
    match act:
        case "prepare":
            await snapshotter.prepare_layer(BASE, None)
        case "commit":
            await snapshotter.commit_layer(key, BASE, None)
        case "discard":
            await snapshotter.discard_layer(key)
        case "remove":
            await snapshotter.remove_layer(BASE)
        case "create":
            await snapshotter.create_snapshot("container", BASE)
        case "drop":
            await snapshotter.remove_snapshot("container")


async def _at_once(step: Awaitable[None]) -> None:
    await step


async def _until_files(host: Host, files: set[str], when: str) -> None:
    """Wait until nothing is on disk but these files: what is removed may go in the background."""
    for _ in range(_SETTLE_TRIES):
        if not (left := files_below(host.state_dir) - files):
            return
        await asyncio.sleep(_SETTLE_PAUSE_S)
    raise AssertionError(f"left on disk, and not listed, after {when}: {sorted(left)}")


class _PageCounts(ctypes.Structure):
    """``struct cachestat``, in pages."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def _unwritten_pages(fd: int) -> int:
    """Return how many of a file's pages are not on the disk yet; 0 where the kernel does not tell."""
    counts, everything = _PageCounts(), (ctypes.c_uint64 * 2)(0, 0)
    ctypes.CDLL(None).syscall(_CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(counts), 0)
    return int(counts.dirty + counts.writeback)


async def _until_usage(snapshotter: BoundSnapshotter, most_bytes: int) -> None:
    """Wait until all layers take no more: what is removed in the background counts until it is gone."""
    async with asyncio.timeout(patient(30)):
        while (await snapshotter.total_usage()).used_bytes > most_bytes:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


def _orders(layers: int, parallel: bool) -> Iterator[tuple[int, ...]]:
    """Every order of two steps a layer, to prepare and to commit it; a parent's commit comes first."""
    if not parallel:
        yield tuple(layer for layer in range(layers) for _ in range(2))
        return
    for order in sorted(set(itertools.permutations([*range(layers)] * 2))):
        commits = [layer for place, layer in enumerate(order) if layer in order[:place]]
        if commits == sorted(commits):
            yield order


def _copy_looks(mounts: tuple[Mount, ...], directory: Path) -> None:
    """Find the topmost lower directory of a view as the kernel does, without mounting it."""
    assert len(mounts) == 1
    named = [option.removeprefix("lowerdir+=") for option in mounts[0].options if option.startswith("lowerdir+=")]
    status = Path([*named, mounts[0].source][0]).stat()
    os.chown(directory, status.st_uid, status.st_gid)
    directory.chmod(stat.S_IMODE(status.st_mode))


def _looks(directory: Path) -> tuple[int, int]:
    """Mode and owner."""
    status = directory.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid


def _measured(usage: object) -> DiskUsage:
    assert isinstance(usage, DiskUsage), f"{usage!r} is no DiskUsage"
    assert usage.used_bytes >= 0 and usage.inodes >= 0
    return usage


def _files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@asynccontextmanager
async def _mounted(mounts: tuple[Mount, ...], target: Path) -> AsyncIterator[None]:
    """Mount a snapshot, its layers first, as the kernel does for one that is alone."""
    try:
        for mount in mounts:
            if mount.target:
                await asyncio.to_thread(os.makedirs, mount.target, exist_ok=True)
            await asyncio.to_thread(system_mounts.mount, mount, Path(mount.target or target))
        yield
    finally:
        for place in (target, *(Path(mount.target) for mount in mounts if mount.target)):
            await asyncio.to_thread(system_mounts.unmount, place)


def _make_odd_files(directory: Path) -> None:
    """Files with everything that a careless copy loses."""
    directory.chmod(0o751)
    (directory / "setuid").write_text("program")
    os.chown(directory / "setuid", 1000, 1001)
    (directory / "setuid").chmod(0o4755)
    os.setxattr(directory / "setuid", "user.note", b"kept")
    os.link(directory / "setuid", directory / "linked")
    (directory / "symlink").symlink_to("/nowhere")
    os.mkfifo(directory / "fifo", 0o640)
    with (directory / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        os.pwrite(file.fileno(), b"data", 1 << 20)
    (directory / "dated").mkdir()
    (directory / "dated" / "file").touch()
    os.utime(directory / "dated", ns=(_MTIME_NS, _MTIME_NS))


def _assert_odd_files(directory: Path, has_own_link_counts: bool) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o751
    setuid = (directory / "setuid").stat()
    assert (stat.S_IMODE(setuid.st_mode), setuid.st_uid, setuid.st_gid) == (0o4755, 1000, 1001)
    assert os.getxattr(directory / "setuid", "user.note") == b"kept"
    assert (directory / "linked").stat().st_ino == setuid.st_ino
    assert setuid.st_nlink == 2 if has_own_link_counts else setuid.st_nlink >= 2
    assert (directory / "symlink").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((directory / "fifo").stat().st_mode)
    sparse = (directory / "sparse").stat()
    assert sparse.st_size == 1 << 30
    with (directory / "sparse").open("rb") as file:
        assert os.pread(file.fileno(), 5, 1 << 20) == b"data\0"
    assert (directory / "dated").stat().st_mtime_ns == _MTIME_NS
