"""The image service over real parts: layouts as a source, the confined unpacker, overlay and native snapshots."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CorruptContent, NotFound, ResourceExhausted
from crinoid.core.api.linux.mount import mount, unmount
from crinoid.core.api.testing.fakes import FakeRuntime, fake_host
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import (
    ImagesConfig,
    RegistryDeadlines,
    RuntimeDeadlines,
    RuntimeSlotConfig,
    SlotConfig,
    SnapshotterDeadlines,
)
from crinoid.core.lifecycle.images import garbage
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.slots.binding import Slots, adopt
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Store
from crinoid.plugins.registries.layout import LayoutRegistry
from crinoid.plugins.snapshotters.erofs.driver import ErofsSnapshotter
from crinoid.plugins.snapshotters.native import NativeSnapshotter
from crinoid.plugins.snapshotters.overlay import OverlaySnapshotter
from support.images import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Entry,
    add_blob,
    build_busybox,
    build_image,
    make_layer,
    name_manifest,
    read_blob,
)
from support.layer_forms import BlobSnapshotter, BringingSnapshotter, TarSnapshotter

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")]
NAME = "docker.io/library/busybox:latest"
SNAPSHOTTERS: dict[str, Any] = {
    "overlay": OverlaySnapshotter,
    "native": NativeSnapshotter,
    "erofs": ErofsSnapshotter,
    "tar": TarSnapshotter,
    "blob": BlobSnapshotter,
}
ALL = SNAPSHOTTERS | {"bring": BringingSnapshotter}


class Node:
    """Images over each snapshotter, each used by the handler of its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layout = directory / "layouts" / "images"
        self.store = Store(directory / "state.db")
        self.content = ContentStore(directory / "content")
        self.drivers: dict[str, Any] = {}
        self.slots = self._bind()
        self.service = ImageService(self.store, self.content, self.slots, ImagesConfig())

    async def pull(self, handler: str, reference: str = NAME) -> str:
        return await self.service.pull(reference, None, {}, handler)

    @asynccontextmanager
    async def view(self, snapshotter: str, reference: str = NAME) -> AsyncIterator[Path]:
        """Mount an image as a container would see it."""
        record = self.service.find(reference)
        assert record is not None
        slot = self.slots.snapshotters[snapshotter]
        top = await self.service.ensure_unpacked(record, snapshotter)
        made = await slot.create_snapshot("container", top, readonly=False)
        places = [Path(one.target or self.directory / "root") for one in made]
        for one, place in zip(made, places, strict=True):
            await asyncio.to_thread(os.makedirs, place, exist_ok=True)
            await asyncio.to_thread(mount, one, place)
        try:
            yield places[-1]
        finally:
            for place in reversed(places):
                await asyncio.to_thread(unmount, place)
            await slot.remove_snapshot("container")

    async def assert_empty(self, *, images: bool = False) -> None:
        """Nothing is half made; without images, nothing is there at all."""
        assert self.store.ledger.entries() == []
        for slot in self.slots.snapshotters.values():
            assert await slot.list_unfinished() == ()
            assert await slot.list_snapshots() == ()
            assert images or await slot.list_layers() == ()
        assert images or self.content.list() == ()

    def _bind(self) -> Slots:
        directory = self.directory / "layouts"
        layout = self._adopt("registry", "layout", LayoutRegistry, LayoutRegistry.Config(directory=directory))
        return Slots(
            {
                name: RuntimeSlot(
                    self._adopt("runtime", name, FakeRuntime, None, RuntimeSlotConfig(driver="fake", snapshotter=name)),
                    RuntimeDeadlines(),
                )
                for name in ALL
            },
            {},
            {
                name: SnapshotterSlot(self._adopt("snapshotter", name, kind, kind.Config()), SnapshotterDeadlines())
                for name, kind in ALL.items()
            },
            {"layout": RegistrySlot(layout, RegistryDeadlines())},
        )

    def _adopt(self, role: str, name: str, kind: Any, options: Any, config: SlotConfig | None = None) -> Binding:
        host = fake_host(self.directory / role, name)
        installed = InstalledDriver(role, name, "crinoid", "1.0", f"{name}:Driver")
        driver = self.drivers[name] = kind(options, host)
        return adopt(driver, installed, config or SlotConfig(driver=name), host)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    yield node
    await node.service.close()
    node.store.close()


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
async def test_an_image_can_be_used(node: Node, snapshotter: str) -> None:
    built = build_busybox(
        node.layout, NAME, extra=[Entry(path="etc/motd", content=b"hello"), Entry(path="bin/.wh.yes")]
    )
    assert await node.pull(snapshotter) == built.config.digest
    async with node.view(snapshotter) as root:
        assert (root / "etc/motd").read_text() == "hello"
        assert (root / "etc/passwd").exists()
        assert (root / "bin/busybox").stat().st_mode & 0o111
        assert not (root / "bin/yes").is_symlink()
        (root / "written").write_text("by the container")
    await node.assert_empty(images=True)
    await node.service.remove("busybox")
    await node.assert_empty()


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
async def test_directories_without_an_entry_keep_what_the_lower_layer_gave_them(node: Node, snapshotter: str) -> None:
    base = make_layer(
        [
            Entry(path="tmp", kind="directory", mode=0o1777),
            Entry(path="home", kind="directory", mode=0o755),
            Entry(path="home/alice", kind="directory", mode=0o700, uid=1000, gid=1000),
        ]
    )
    build_image(node.layout, NAME, [base, make_layer([Entry(path="tmp/a"), Entry(path="home/alice/b/c")])])
    await node.pull(snapshotter)
    async with node.view(snapshotter) as root:
        assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
        alice = (root / "home/alice").stat()
        assert (stat.S_IMODE(alice.st_mode), alice.st_uid, alice.st_gid) == (0o700, 1000, 1000)
        assert (root / "home/alice/b").stat().st_uid == 0
    await node.assert_empty(images=True)


async def test_many_layers_in_parallel_and_for_another_snapshotter_later(node: Node) -> None:
    layers = [make_layer([Entry(path=f"dir/{number}", content=b"%d" % number)]) for number in range(12)]
    build_image(node.layout, NAME, layers, compression="zstd")
    await node.pull("overlay")
    for snapshotter in SNAPSHOTTERS:
        async with node.view(snapshotter) as root:
            assert sorted(int(path.name) for path in (root / "dir").iterdir()) == list(range(12))
    await node.assert_empty(images=True)
    images, containers = await node.service.filesystems()
    assert images[0].usage.used_bytes > 0
    assert all(Path(report.mountpoint, "layers").is_dir() for report in images)
    assert {report.usage.used_bytes for report in containers} == {0}


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
async def test_a_layer_with_another_diff_id_leaves_nothing(
    node: Node, snapshotter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "KEPT_S", 0.0)  # as after that time
    layers = [make_layer([Entry(path="one")]), make_layer([Entry(path="two")])]
    built = build_image(node.layout, NAME, layers)
    config = read_blob(node.layout, built.config.digest)
    other = add_blob(node.layout, OCI_CONFIG, config.replace(built.diff_ids[1].encode(), b"sha256:" + b"0" * 64))
    manifest = read_blob(node.layout, built.manifest.digest)
    changed = manifest.replace(built.config.digest.encode(), other.digest.encode())
    name_manifest(node.layout, NAME, add_blob(node.layout, OCI_MANIFEST, changed))
    with pytest.raises(CorruptContent, match=f"layer {built.layers[1].digest} unpack: .*diffID"):
        await node.pull(snapshotter)
    await node.assert_empty(images=True)
    await node.service.collect_garbage()
    await node.assert_empty()


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
async def test_a_cancelled_pull_leaves_nothing(node: Node, snapshotter: str) -> None:
    build_image(node.layout, NAME, [make_layer([Entry(path=f"f{n}", content=os.urandom(4 << 20))]) for n in range(4)])
    for delay_s in (0.01, 0.05, 0.1, 0.2):
        service = ImageService(node.store, node.content, node.slots, ImagesConfig())
        pulling = asyncio.create_task(service.pull(NAME, None, {}, snapshotter))
        await asyncio.sleep(delay_s)
        await service.close()
        await asyncio.wait({pulling})
        await node.assert_empty(images=True)
    assert await node.pull(snapshotter)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB where the snapshotters keep their layers."""
    directory = tmp_path / "snapshotter"
    directory.mkdir()
    mount(Mount("tmpfs", "tmpfs", ("size=2m",)), directory)
    yield directory
    unmount(directory)


@pytest.mark.parametrize("snapshotter", ("overlay", "native", "erofs"))
async def test_a_full_disk(small_disk: Path, tmp_path: Path, snapshotter: str) -> None:
    node = Node(tmp_path)
    layers = [make_layer([Entry(path="small")]), make_layer([Entry(path="large", content=os.urandom(4 << 20))])]
    built = build_image(node.layout, NAME, layers)
    first = rf"{built.layers[0].digest} unpack: .*space"  # where the second is unpacked meanwhile and was the quicker
    second = rf"{built.layers[1].digest} unpack: .*large.*space"
    with pytest.raises(ResourceExhausted, match=rf"^layer ({first}|{second})"):
        await node.pull(snapshotter)
    await node.assert_empty(images=True)
    await node.service.collect_garbage()
    await node.assert_empty()
    node.store.close()


async def test_a_layer_that_the_driver_brings_is_not_fetched(node: Node) -> None:
    built = build_image(node.layout, NAME, [make_layer([Entry(path=name)]) for name in ("one", "two", "three")])
    driver = node.drivers["bring"]
    driver.own = {built.layers[0].digest: "mine", built.layers[2].digest: "late"}
    for _ in range(2):
        await node.pull("bring")
        assert [node.content.has(layer.digest) for layer in built.layers] == [False, True, True]
        async with node.view("bring") as root:
            assert sorted(path.name for path in root.iterdir()) == ["mine", "three", "two"]
    assert [(layer.blob.digest, layer.diff_id) for layer in driver.asked] == [
        (layer.digest, diff_id) for layer, diff_id in zip(built.layers[:2], built.diff_ids, strict=False)
    ]
    assert [layer.parent for layer in driver.asked] == [None, driver.asked[0].chain_id]
    await node.assert_empty(images=True)
    await node.service.remove(NAME)
    await node.assert_empty()


async def test_an_unknown_image_names_the_source(node: Node) -> None:
    with pytest.raises(NotFound, match=r"^there is no directory .*layouts .*\(image docker.io/library/nope:latest\)"):
        await node.pull("overlay", "nope")
