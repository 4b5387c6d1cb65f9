"""A node's images over fake sources and a fake snapshotter, with real records, a real content store and real slots."""

import asyncio
import gzip
import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import zstandard

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import CorruptContent, CrinoidError
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.testing.fakes import (
    FakeExtension,
    FakeRegistry,
    FakeRuntime,
    FakeSnapshotter,
    Recorder,
    fake_host,
)
from crinoid.core.api.values.image import Descriptor, ImageReference, ResolvedImage
from crinoid.core.api.values.snapshot import SnapshotterFeatures
from crinoid.core.config.models import (
    ExtensionSlotConfig,
    ImagesConfig,
    RegistryDeadlines,
    RuntimeDeadlines,
    RuntimeSlotConfig,
    SlotConfig,
    SnapshotterDeadlines,
)
from crinoid.core.lifecycle.images import layers
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.images.unpack.launcher import Launcher
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, UnpackResult
from crinoid.core.lifecycle.strays.stand_ins import StandIns
from crinoid.core.slots.binding import Slots, adopt
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.extension import ExtensionSlot, ExtensionSlots
from crinoid.core.slots.instruments import NO_INSTRUMENTS
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.content import ContentStore
from crinoid.core.state.store import Store
from support.images import BuiltImage, Entry, ImageConfig, build_image, make_layer, read_blob

NAME = "registry.test/app:1"


class SerialSnapshotter(FakeSnapshotter):
    """Needs the parent before the child, as plain copies do."""

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return SnapshotterFeatures(parallel_unpack=False)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what fakes have come to; they tell nobody."""
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class FakeUnpacker:
    """Checks a layer's diffID as the real one does, and writes nothing; waits while ``go`` is clear.

    It waits for a blob that grows, too, for ever if that breaks off; ``gullible`` takes any as what was expected.
    """

    def __init__(self) -> None:
        self.requests: list[UnpackRequest] = []
        self.failures: list[CrinoidError] = []
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.gullible = False
        self.most_at_once = self._now = 0

    async def __call__(self, request: UnpackRequest, _launcher: Launcher) -> UnpackResult:
        self.requests.append(request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        self.begun.set()
        try:
            await self.go.wait()
            await asyncio.sleep(0)
            if self.failures:
                raise self.failures.pop(0)
            if self.gullible:
                return UnpackResult(request.expected_diff_id, 0, 0, ())
            if request.growing and not await asyncio.shield(request.growing.whole):
                await asyncio.Event().wait()
        finally:
            self._now -= 1
        found = f"sha256:{hashlib.sha256(_decompress(request)).hexdigest()}"
        if found != request.expected_diff_id:
            raise CorruptContent(f"the layer's diffID is {found}, not {request.expected_diff_id}")
        return UnpackResult(found, 0, 0, ())


def _decompress(request: UnpackRequest) -> bytes:
    content = request.blob.read_bytes()
    try:
        if request.media_type.endswith("gzip"):
            return gzip.decompress(content)
        return zstandard.decompress(content) if request.media_type.endswith("zstd") else content
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise CorruptContent(f"the layer can't be decompressed: {error}") from error


class Node:
    """The daemon's part that has to do with images; drivers outlive its restarts as their files would."""

    def __init__(self, directory: Path, unpacker: FakeUnpacker) -> None:
        self.directory = directory
        self.unpacker = unpacker
        self.source = FakeRegistry(NoOptions(), fake_host(directory, "near"))
        self.other_source = FakeRegistry(NoOptions(), fake_host(directory, "far"))
        self.snapshotters = {"default": FakeSnapshotter(NoOptions(), fake_host(directory, "default"))}
        self.extension = FakeExtension(NoOptions(), fake_host(directory, "observer"))
        self.config = ImagesConfig(platform="linux/amd64")
        self._dead: list[tuple[ImageService, Store]] = []
        self.start()

    def start(self) -> None:
        """Open everything as the daemon does at its start."""
        self.store = Store(self.directory / "state.db")
        self.content = ContentStore(self.directory / "content")
        self.service = ImageService(self.store, self.content, self._bind(), self.config)

    def die(self) -> None:
        """End without a word, as by kill -9: what is under way goes no further, and nothing is undone until the end of
        the test. The caller has made it hang."""
        self._dead.append((self.service, self.store))

    async def close(self) -> None:
        """End for good."""
        for service, store in [*self._dead, (self.service, self.store)]:
            self.unpacker.go.set()
            await service.close()
            store.close()

    async def restart(self) -> None:
        """Come back over the same directories."""
        self.start()
        await self.service.recover()

    async def restart_with_stand_ins(self) -> None:
        """As ``restart``, with records in the place of those that can't be read, as the daemon has it."""
        self.store.close()
        self.start()
        StandIns(self.store, self._bind(), self.directory).make()
        await self.service.recover()

    def add_snapshotter(self, name: str, kind: type[FakeSnapshotter] = FakeSnapshotter) -> FakeSnapshotter:
        """Configure a further snapshotter, used by a handler of the same name; a replaced one keeps nothing."""
        self.snapshotters[name] = kind(NoOptions(), fake_host(self.directory, name))
        self.reconfigure()
        return self.snapshotters[name]

    def reconfigure(self, **images: object) -> None:
        """Start anew with other settings."""
        self.config = self.config.model_copy(update=images)
        self.store.close()
        self.start()

    async def pull(self, reference: str = NAME, handler: str = "") -> str:
        return await self.service.pull(reference, None, {}, handler)

    @property
    def snapshotter(self) -> FakeSnapshotter:
        return self.snapshotters["default"]

    def assert_nothing_half_made(self) -> None:
        """The ledger is empty and no snapshotter has an unfinished layer or a snapshot."""
        assert self.store.ledger.entries() == []
        assert [driver.unfinished for driver in self.snapshotters.values()] == [set()] * len(self.snapshotters)
        assert [driver.snapshots for driver in self.snapshotters.values()] == [{}] * len(self.snapshotters)

    def _bind(self) -> Slots:
        runtimes = {"runc": RuntimeSlotConfig(driver="fake")} | {
            name: RuntimeSlotConfig(driver="fake", snapshotter=name) for name in self.snapshotters if name != "default"
        }
        runtime = FakeRuntime(NoOptions(), fake_host(self.directory, "runc"))
        observer = _bound(self.extension, "extension", ExtensionSlotConfig(driver="fake"))
        return Slots(
            {
                name: RuntimeSlot(_bound(runtime, "runtime", config), RuntimeDeadlines())
                for name, config in runtimes.items()
            },
            {},
            {
                name: SnapshotterSlot(_bound(driver, "snapshotter"), SnapshotterDeadlines(default=5))
                for name, driver in self.snapshotters.items()
            },
            {
                driver.host.slot: RegistrySlot(_bound(driver, "registry"), RegistryDeadlines(default=5, next_piece=60))
                for driver in (self.source, self.other_source)
            },
            ExtensionSlots([ExtensionSlot(observer, ExtensionSlotConfig(driver="fake"))]),
        )


def _bound(driver: Recorder, role: str, config: SlotConfig | None = None) -> Binding:
    installed = InstalledDriver(role, "fake", "fake-dist", "1.0", "fake:Driver")
    return adopt(driver, installed, config or SlotConfig(driver="fake"), driver.host, NO_INSTRUMENTS)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    unpacker = FakeUnpacker()
    monkeypatch.setattr(layers, "unpack_layer", unpacker)
    node = Node(tmp_path, unpacker)
    yield node
    await node.close()


class Publisher:
    """Builds images and puts them into sources."""

    def __init__(self, directory: Path) -> None:
        self.layout = directory / "layout"

    def build(self, *contents: str, config: ImageConfig | None = None, **kind: str) -> BuiltImage:
        """Build an image of one layer for each text, without a name."""
        config = config or ImageConfig(architecture="amd64")
        made = [small_layer(content) for content in contents]
        return build_image(self.layout, "", made, config, **kind)  # type: ignore[arg-type]  # compression, media

    def publish(self, source: FakeRegistry, image: BuiltImage, *names: str) -> ResolvedImage:
        """Let a source have an image under names."""
        return self.publish_manifest(source, image.manifest.digest, image.manifest.digest, *(names or (NAME,)))

    def publish_manifest(self, source: FakeRegistry, target: str, manifest: str, *names: str) -> ResolvedImage:
        """Let a source answer with a target and a manifest that are blobs of the layout."""
        resolved = ResolvedImage(
            self.describe(target),
            read_blob(self.layout, target),
            self.describe(manifest),
            read_blob(self.layout, manifest),
        )
        for name in names:
            source.images[str(ImageReference.parse(name))] = resolved
        for path in (self.layout / "blobs/sha256").iterdir():
            source.blobs[f"sha256:{path.name}"] = path.read_bytes()
        return resolved

    def describe(self, digest: str) -> Descriptor:
        content = read_blob(self.layout, digest)
        return Descriptor(json.loads(content)["mediaType"], digest, len(content))


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


@pytest.fixture
def image(node: Node, publisher: Publisher) -> BuiltImage:
    """An image of three layers that the first source has as NAME."""
    image = publisher.build("one", "two", "three")
    publisher.publish(node.source, image)
    return image


def small_layer(content: str) -> bytes:
    return make_layer([Entry(path=f"file-{content[:20]}", content=content.encode())])


def chain(diff_ids: Sequence[str]) -> list[str]:
    """Chain ids, computed as config.md says it."""
    found = [diff_ids[0]]
    for diff_id in diff_ids[1:]:
        found.append("sha256:" + hashlib.sha256(f"{found[-1]} {diff_id}".encode()).hexdigest())
    return found
