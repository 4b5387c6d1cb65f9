import dataclasses
from pathlib import Path

import pytest

from crinoid.core.api.errors import CorruptContent, NotFound
from crinoid.core.api.testing.fakes import fake_host
from crinoid.plugins.snapshotters.erofs import settling
from crinoid.plugins.snapshotters.erofs.driver import ErofsConfig, ErofsSnapshotter
from crinoid.plugins.snapshotters.erofs.image import Image
from crinoid.plugins.snapshotters.erofs.writer import IMAGE_FILE
from support.archives import ArchiveBuilder
from support.erofs import read_tree, write_image

BASE, TOP = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def snapshotter(tmp_path: Path) -> ErofsSnapshotter:
    return ErofsSnapshotter(ErofsConfig(), fake_host(tmp_path, "erofs"))


async def add(snapshotter: ErofsSnapshotter, chain_id: str, parent: str | None, archive: bytes) -> None:
    target = await snapshotter.prepare_layer(chain_id, parent)
    write_image(archive, target.directory)
    await snapshotter.commit_layer(target.key, chain_id, parent)


def image_of(snapshotter: ErofsSnapshotter, chain_id: str) -> Path:
    return snapshotter.storage.root / "layers" / str(snapshotter.storage.layer(chain_id).number) / "fs" / IMAGE_FILE


async def test_a_directory_without_an_entry_looks_as_below(snapshotter: ErofsSnapshotter) -> None:
    base = ArchiveBuilder(uid=7, gid=8).directory("./", mode=0o711).directory("d", mode=0o1777, mtime=5)
    await add(snapshotter, BASE, None, base.build())
    await add(snapshotter, TOP, BASE, ArchiveBuilder().file("d/f").build())
    tree = read_tree(image_of(snapshotter, TOP))
    assert {name: (one.mode & 0o7777, one.uid, one.gid) for name, one in tree.items() if name != b"d/f"} == {
        b"": (0o711, 7, 8),
        b"d": (0o1777, 7, 8),
    }
    assert tree[b"d"].mtime_ns == 5_000_000_000


@pytest.mark.parametrize("layers", [2, 20])
async def test_layers_that_nobody_looks_into_are_not_read(
    snapshotter: ErofsSnapshotter, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of n layers is settled, above all below it: to look into all of them would be quadratic."""
    read = []

    class CountedImage(Image):
        def __init__(self, path: Path, writable: bool = False) -> None:
            read.append(path)
            super().__init__(path, writable)

    monkeypatch.setattr(settling, "Image", CountedImage)
    parent = None
    for number in range(layers):
        chain_id = f"sha256:{number:064}"
        await add(snapshotter, chain_id, parent, ArchiveBuilder().file(f"d/{number}").build())
        parent = chain_id
    assert len(read) <= 2 * layers  # itself and the topmost below it


async def test_whiteouts_that_hide_nothing_go(snapshotter: ErofsSnapshotter) -> None:
    await add(snapshotter, BASE, None, ArchiveBuilder().file("d/there").symlink("by", "d").build())
    top = ArchiveBuilder().file("d/.wh.there").file("d/.wh.never").file("none/.wh.never").file("by/.wh.there")
    await add(snapshotter, TOP, BASE, top.build())
    assert set(read_tree(image_of(snapshotter, TOP))) == {b"", b"d", b"d/there", b"none", b"by"}


async def test_the_same_layer_is_the_same_image(tmp_path: Path) -> None:
    images = []
    for name in ("one", "other"):
        snapshotter = ErofsSnapshotter(ErofsConfig(), fake_host(tmp_path / name, "erofs"))
        await add(snapshotter, BASE, None, ArchiveBuilder().file("d/f", b"x" * 5000).build())
        await add(snapshotter, TOP, BASE, ArchiveBuilder().file("d/g").build())
        images.append([image_of(snapshotter, one).read_bytes() for one in (BASE, TOP)])
    assert images[0] == images[1]
    assert images[0][0] != images[0][1]


async def test_a_damaged_layer_is_told_and_made_again(snapshotter: ErofsSnapshotter) -> None:
    archive = ArchiveBuilder().file("f", b"content" * 2000).build()
    await add(snapshotter, BASE, None, archive)
    await add(snapshotter, TOP, BASE, ArchiveBuilder().file("g").build())
    await snapshotter.verify_layer(BASE)
    whole = image_of(snapshotter, BASE).read_bytes()
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    image_of(snapshotter, BASE).write_bytes(damaged)
    with pytest.raises(CorruptContent, match=BASE):
        await snapshotter.verify_layer(BASE)
    assert not await snapshotter.has_layer(BASE)
    assert not await snapshotter.has_layer(TOP)
    await add(snapshotter, BASE, None, archive)
    await snapshotter.verify_layer(BASE)
    assert await snapshotter.has_layer(TOP)
    assert image_of(snapshotter, BASE).read_bytes() == whole


async def test_a_layer_that_was_not_written_is_not_committed(snapshotter: ErofsSnapshotter) -> None:
    target = await snapshotter.prepare_layer(BASE, None)
    with pytest.raises(NotFound, match="not whole"):
        await snapshotter.commit_layer(target.key, BASE, None)


async def test_lower_layers_are_mounted_first_and_each_by_its_name(snapshotter: ErofsSnapshotter) -> None:
    await add(snapshotter, BASE, None, ArchiveBuilder().file("f").build())
    await add(snapshotter, TOP, BASE, ArchiveBuilder().file("g").build())
    *layers, root = await snapshotter.create_snapshot("container", TOP, readonly=False)
    assert [Path(one.source) for one in layers] == [image_of(snapshotter, one) for one in (BASE, TOP)]
    assert [one.removeprefix("lowerdir+=") for one in root.options[:2]] == [one.target for one in reversed(layers)]
    assert all(Path(one.target).is_relative_to(snapshotter.host.run_dir) for one in layers)
    assert (await snapshotter.mounts("container"))[0] == dataclasses.replace(layers[0])
