"""Layers that are unpacked while their blobs are fetched: only what was verified is ever committed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import (
    CorruptContent,
    DeadlineExceeded,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.testing.fakes import FakeRegistry, fake_host
from crinoid.core.api.values.image import Credentials
from crinoid.core.lifecycle.images import blobs
from crinoid.core.lifecycle.images.progress import LayerState
from support.images import BuiltImage

from .conftest import NAME, Node, Publisher, SerialSnapshotter, chain, until


class GatedRegistry(FakeRegistry):
    """Sends the last byte of a layer when the test says so, or breaks there; ``held`` are those that wait."""

    def __init__(self, node: Node) -> None:
        super().__init__(NoOptions(), fake_host(node.directory, "near"))
        self.gate = asyncio.Event()
        self.layers: set[bytes] = set()
        self.held = 0
        self.failures: list[Exception] = []

    async def _stream(self, content: bytes) -> AsyncIterator[bytes]:
        if content not in self.layers:
            yield content
            return
        yield content[:-1]
        self.held += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        yield content[-1:]


@pytest.fixture
def source(node: Node, monkeypatch: pytest.MonkeyPatch) -> GatedRegistry:
    monkeypatch.setattr(blobs, "LEAST_BYTES", 1)
    node.source = source = GatedRegistry(node)
    node.reconfigure()
    return source


@pytest.fixture
def image(source: GatedRegistry, node: Node, publisher: Publisher) -> BuiltImage:
    """An image of three layers, each of which is held before its last byte."""
    return publish(source, publisher, publisher.build("one", "two", "three"))


def publish(source: GatedRegistry, publisher: Publisher, image: BuiltImage, name: str = NAME) -> BuiltImage:
    publisher.publish(source, image, name)
    source.layers |= {source.blobs[layer.digest] for layer in image.layers}
    return image


def spoil(source: GatedRegistry, image: BuiltImage) -> str:
    """Let the last byte of the topmost layer be another; return its digest."""
    layer = image.layers[-1]
    content = source.blobs[layer.digest]
    source.blobs[layer.digest] = content[:-1] + bytes([content[-1] ^ 1])
    source.layers.add(source.blobs[layer.digest])
    return layer.digest


async def test_layers_are_unpacked_before_they_are_whole(node: Node, source: GatedRegistry, image: BuiltImage) -> None:
    pulling = asyncio.create_task(node.pull())
    await until(lambda: len(node.unpacker.requests) == 3 and source.held == 3)
    assert not any(node.content.has(layer.digest) for layer in image.layers)
    assert "commit_layer" not in node.snapshotter.hooks_called
    source.gate.set()
    assert await pulling == image.config.digest
    assert len(node.unpacker.requests) == 3
    assert list(node.snapshotter.layers) == chain(image.diff_ids)
    node.assert_nothing_half_made()


async def test_a_serial_snapshotter_follows_one_after_the_other(
    node: Node, source: GatedRegistry, image: BuiltImage
) -> None:
    serial = node.add_snapshotter("default", SerialSnapshotter)
    pulling = asyncio.create_task(node.pull())
    await until(lambda: len(node.unpacker.requests) == 1 and source.held == 3)
    assert serial.hooks_called.count("prepare_layer") == 1
    source.gate.set()
    await pulling
    assert list(serial.layers) == chain(image.diff_ids)


async def test_progress_tells_bytes_first_and_unpacking_then(
    node: Node, source: GatedRegistry, image: BuiltImage
) -> None:
    def states() -> set[LayerState]:
        return {layer.state for pull in node.service.progress() for layer in pull.layers}

    node.unpacker.go.clear()
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and len(node.unpacker.requests) == 3)
    assert states() == {LayerState.FETCHING}
    source.gate.set()
    await until(lambda: states() == {LayerState.UNPACKING})
    (progress,) = node.service.progress()
    assert all(layer.fetched_bytes == layer.total_bytes for layer in progress.layers)
    node.unpacker.go.set()
    await pulling


@pytest.mark.parametrize("gullible", [False, True])
async def test_a_lie_is_not_committed_whatever_the_unpacker_made_of_it(
    node: Node, source: GatedRegistry, image: BuiltImage, gullible: bool
) -> None:
    """The diffID may well be right: of two compressed forms, say."""
    digest = spoil(source, image)
    node.unpacker.gullible = gullible
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and len(node.unpacker.requests) == 3)
    source.gate.set()
    with pytest.raises(CorruptContent, match=f'blob {digest} fetch from "near".*what the source sent has digest'):
        await pulling
    assert chain(image.diff_ids)[-1] not in node.snapshotter.layers
    node.assert_nothing_half_made()


async def test_of_a_lie_the_unpackers_error_is_not_told(
    node: Node, source: GatedRegistry, publisher: Publisher
) -> None:
    digest = spoil(source, publish(source, publisher, publisher.build("one")))
    node.unpacker.failures.append(Unsupported("a strange entry"))
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 1 and not node.unpacker.failures)
    source.gate.set()
    with pytest.raises(CorruptContent, match=f"{digest}.*what the source sent has digest"):
        await pulling
    node.assert_nothing_half_made()


async def test_of_what_is_true_the_unpackers_error_is_told(
    node: Node, source: GatedRegistry, image: BuiltImage
) -> None:
    node.unpacker.failures.append(ResourceExhausted("no space left on device"))
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and not node.unpacker.failures)
    assert not pulling.done()
    source.gate.set()
    with pytest.raises(ResourceExhausted, match="unpack: no space left"):
        await pulling
    node.assert_nothing_half_made()
    assert await node.pull() == image.config.digest


async def test_a_download_that_breaks_leaves_nothing_and_the_next_pull_resumes(
    node: Node, source: GatedRegistry, image: BuiltImage
) -> None:
    source.failures.append(Unavailable("connection reset"))
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and len(node.unpacker.requests) == 3)
    source.gate.set()
    with pytest.raises(Unavailable, match="connection reset"):
        await pulling
    node.assert_nothing_half_made()
    source.calls.clear()
    assert await node.pull() == image.config.digest
    assert any(call.arguments["request"].offset for call in source.calls if call.hook == "open_blob")  # type: ignore[attr-defined]  # Call holds objects


async def test_what_a_crash_tore_is_followed_anew(node: Node, source: GatedRegistry, publisher: Publisher) -> None:
    image = publish(source, publisher, publisher.build("one"))
    (node.content.root / "ingest" / image.layers[0].digest).write_bytes(bytes(image.layers[0].size - 1))
    node.unpacker.gullible = True
    source.gate.set()
    assert await node.pull() == image.config.digest
    assert node.snapshotter.hooks_called.count("commit_layer") == 1
    assert node.snapshotter.hooks_called.count("prepare_layer") == len(node.unpacker.requests)
    node.assert_nothing_half_made()


@pytest.mark.parametrize("end", ["close", "kill"])
async def test_an_end_in_the_middle_leaves_nothing(
    node: Node, source: GatedRegistry, image: BuiltImage, end: str
) -> None:
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and len(node.unpacker.requests) == 3)
    if end == "close":
        await node.service.close()
        with pytest.raises(Unavailable, match="daemon stops"):
            await pulling
    else:
        assert node.snapshotter.unfinished
        node.die()
        source.gate = asyncio.Event()  # the dead one waits at its own for ever
        await node.restart()
    node.assert_nothing_half_made()
    assert node.snapshotter.layers == {}
    if end == "kill":
        source.gate.set()
        assert await node.pull() == image.config.digest
        pulling.cancel()


async def test_a_pull_that_joined_goes_on_when_the_first_is_refused(
    node: Node, source: GatedRegistry, publisher: Publisher
) -> None:
    image = publish(source, publisher, publisher.build("one"))
    first = asyncio.create_task(node.service.pull(NAME, Credentials("eve"), {}, ""))
    await until(lambda: source.held == 1)
    second = asyncio.create_task(node.pull())
    await until(lambda: len(node.service.progress()) == 2 and all(pull.layers for pull in node.service.progress()))
    source.failures.append(Unauthenticated("the token ended"))
    source.gate.set()
    with pytest.raises(Unauthenticated):
        await first
    assert await second == image.config.digest
    assert node.snapshotter.hooks_called.count("commit_layer") == 1
    node.assert_nothing_half_made()


async def test_a_layer_for_two_snapshotters_is_fetched_once(
    node: Node, source: GatedRegistry, publisher: Publisher
) -> None:
    other = node.add_snapshotter("vm")
    image = publish(source, publisher, publisher.build("one"))
    pulls = [asyncio.create_task(node.pull()), asyncio.create_task(node.pull(handler="vm"))]
    await until(lambda: source.held == 1 and len(node.unpacker.requests) == 2)
    source.gate.set()
    assert await asyncio.gather(*pulls) == [image.config.digest] * 2
    assert list(node.snapshotter.layers) == list(other.layers) == chain(image.diff_ids)
    assert source.held == 1


@pytest.mark.parametrize("limit", [0, 1])
async def test_early_unpacks_are_bounded(node: Node, source: GatedRegistry, image: BuiltImage, limit: int) -> None:
    node.reconfigure(max_early_unpacks=limit)
    pulling = asyncio.create_task(node.pull())
    await until(lambda: source.held == 3 and len(node.unpacker.requests) == limit)
    await asyncio.sleep(0.05)
    assert len(node.unpacker.requests) == limit
    source.gate.set()
    assert await pulling == image.config.digest
    assert len(node.unpacker.requests) == 3


async def test_a_download_that_stalls_is_given_up(node: Node, source: GatedRegistry, image: BuiltImage) -> None:
    node.reconfigure(pull_idle_timeout_s=0.2)
    with pytest.raises(DeadlineExceeded, match="nothing has arrived"):
        await node.pull()
    node.assert_nothing_half_made()
