"""The contract of the snapshotter role, applied to this driver, and what is its own."""

import os
from pathlib import Path

import pytest
from crinoid_snapshotter_farm import FarmOptions, FarmSnapshotter

from crinoid.core.api.host import Host
from crinoid.core.api.testing.snapshotters import BASE, TOP, BoundSnapshotter, SnapshotterContract
from crinoid.core.api.values.snapshot import WhiteoutForm


class TestFarm(SnapshotterContract):
    has_own_link_counts = False

    def make_driver(self, host: Host) -> object:
        return FarmSnapshotter(FarmOptions(), host)

    @pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts need root")
    async def test_a_file_that_a_layer_leaves_as_it_was_is_one_file(self, snapshotter: BoundSnapshotter) -> None:
        base = await snapshotter.prepare_layer(BASE, None)
        assert base.whiteouts is WhiteoutForm.OVERLAY
        for name in ("kept", "gone", "changed"):
            (base.directory / name).write_text(f"{name}\n")
        await snapshotter.commit_layer(base.key, BASE, None)
        top = await snapshotter.prepare_layer(TOP, BASE)
        os.mknod(top.directory / "gone", 0o020000, 0)
        (top.directory / "changed").write_text("otherwise\n")
        await snapshotter.commit_layer(top.key, TOP, BASE)
        one, other = [
            Path((await snapshotter.create_snapshot(f"s{id_[-1]}", id_, True))[0].source) for id_ in (BASE, TOP)
        ]
        assert (one / "kept").stat().st_ino == (other / "kept").stat().st_ino
        assert sorted(path.name for path in other.iterdir()) == ["changed", "kept"]
        assert ((one / "changed").read_text(), (other / "changed").read_text()) == ("changed\n", "otherwise\n")

    async def test_a_root_is_an_overlay_of_two_directories(self, snapshotter: BoundSnapshotter) -> None:
        parent = None
        for number in range(5):
            chain_id = f"sha256:{number:064x}"
            target = await snapshotter.prepare_layer(chain_id, parent)
            (target.directory / str(number)).touch()
            await snapshotter.commit_layer(target.key, chain_id, parent)
            parent = chain_id
        (mount,) = await snapshotter.create_snapshot("root", parent, False)
        assert len([option for option in mount.options if option.startswith("lowerdir")]) == 1
