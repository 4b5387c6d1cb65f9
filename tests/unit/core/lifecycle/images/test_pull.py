"""Pulls that succeed, alone and together."""

import asyncio
import json
from typing import Any

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.testing.fakes import FakeSnapshotter
from crinoid.core.api.values.image import Credentials
from crinoid.core.lifecycle.images.plans import plan_layers
from crinoid.core.lifecycle.images.progress import LayerState
from support.images import OCI_INDEX, OCI_MANIFEST, BuiltImage, ImageConfig, add_json, build_index, read_blob

from .conftest import NAME, Node, Publisher, SerialSnapshotter, chain, until


class CountingSnapshotter(FakeSnapshotter):
    """Notes what it answers to the question for a layer."""

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.answers: list[bool] = []

    @hookimpl
    async def has_layer(self, chain_id: str) -> bool:
        self.answers.append(await super().has_layer(chain_id))
        return self.answers[-1]


async def test_a_pull_leaves_a_whole_image(node: Node, image: BuiltImage) -> None:
    assert await node.pull() == image.config.digest
    record = node.service.find(NAME)
    assert record is not None
    assert record.tags == (NAME,)
    assert record.digests == (f"registry.test/app@{image.manifest.digest}",)
    assert record.manifests == (image.manifest.digest,)
    assert [layer.digest for layer in record.layers] == [layer.digest for layer in image.layers]
    assert list(record.chain_ids) == chain(image.diff_ids)
    assert record.size_bytes == image.manifest.size + image.config.size + sum(layer.size for layer in image.layers)
    assert list(node.snapshotter.layers) == chain(image.diff_ids)
    assert set(node.content.list()) == {
        image.manifest.digest,
        image.config.digest,
        *(layer.digest for layer in image.layers),
    }
    node.assert_nothing_half_made()


async def test_layers_stand_on_each_other(node: Node, image: BuiltImage) -> None:
    await node.pull()
    ids = chain(image.diff_ids)
    assert node.snapshotter.layers == {ids[0]: None, ids[1]: ids[0], ids[2]: ids[1]}


async def test_the_content_store_is_a_layout_that_others_read(node: Node, image: BuiltImage) -> None:
    await node.pull()
    index = json.loads((node.content.root / "index.json").read_text())
    names = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in index["manifests"]}
    assert names == {NAME: image.manifest.digest, f"registry.test/app@{image.manifest.digest}": image.manifest.digest}


@pytest.mark.parametrize("kind", [{"compression": "zstd"}, {"compression": "none"}, {"media": "docker"}])
async def test_other_forms(node: Node, publisher: Publisher, kind: dict[str, Any]) -> None:
    image = publisher.build("one", "two", **kind)
    publisher.publish(node.source, image)
    assert await node.pull() == image.config.digest


async def test_an_image_without_layers(node: Node, publisher: Publisher) -> None:
    publisher.publish(node.source, publisher.build())
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    assert await node.service.ensure_unpacked(record, "default") is None


async def test_an_index_names_the_image(node: Node, publisher: Publisher) -> None:
    image = publisher.build("one")
    other = publisher.build("one", config=ImageConfig(architecture="s390x"))
    index = build_index(publisher.layout, "", [other, image])
    publisher.publish_manifest(node.source, index.digest, image.manifest.digest, NAME)
    await node.pull()
    record = node.service.find(f"registry.test/app@{index.digest}")
    assert record is not None
    assert record.digests == (f"registry.test/app@{index.digest}",)
    assert record.manifests == (index.digest, image.manifest.digest)
    assert node.service.find(f"registry.test/app@{image.manifest.digest}") == record


@pytest.mark.parametrize(
    ("system", "architecture"),
    [("linux", "arm64"), ("windows", "amd64"), ("", ""), ("Linux", "X86_64"), ("", "s390x")],
)
async def test_what_an_index_says_of_a_platform_counts(
    node: Node, publisher: Publisher, system: str, architecture: str
) -> None:
    image = publisher.build("one", config=ImageConfig(os=system, architecture=architecture))
    entry = image.manifest.document() | {"platform": {"os": "linux", "architecture": "amd64"}}
    index = add_json(publisher.layout, OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    publisher.publish_manifest(node.source, index.digest, image.manifest.digest, NAME)
    await node.pull()
    assert node.service.find(NAME) is not None


@pytest.mark.parametrize(
    ("system", "architecture"),
    [("linux", "x86_64"), ("Linux", "AMD64"), ("linux", "x86-64"), ("linux", "386"), ("linux", ""), ("", "amd64")],
)
async def test_a_lone_manifest_names_its_platform_in_many_ways(
    node: Node, publisher: Publisher, system: str, architecture: str
) -> None:
    publisher.publish(node.source, publisher.build("one", config=ImageConfig(os=system, architecture=architecture)))
    await node.pull()
    assert node.service.find(NAME) is not None


async def test_an_image_whose_configuration_has_a_vague_type(node: Node, publisher: Publisher) -> None:
    image = publisher.build("one")
    document = json.loads(read_blob(publisher.layout, image.manifest.digest))
    document["config"]["mediaType"] = "application/octet-stream"
    changed = add_json(publisher.layout, OCI_MANIFEST, document)
    publisher.publish_manifest(node.source, changed.digest, changed.digest, NAME)
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    assert (record.artifact, record.id) == ("", image.config.digest)


async def test_a_reference_with_tag_and_digest_gives_no_tag(node: Node, publisher: Publisher) -> None:
    image = publisher.build("one")
    name = f"{NAME}@{image.manifest.digest}"
    publisher.publish(node.source, image, name)
    await node.pull(name)
    record = node.service.find(name)
    assert record is not None
    assert (record.tags, record.digests) == ((), (f"registry.test/app@{image.manifest.digest}",))


async def test_what_is_there_is_not_fetched_again(node: Node, image: BuiltImage) -> None:
    await node.pull()
    node.source.calls.clear()
    await node.pull()
    assert set(node.source.hooks_called) == {"resolve"}
    assert len(node.unpacker.requests) == 3


async def test_committed_layers_are_skipped_even_without_their_blobs(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    await node.pull()
    for layer in image.layers:
        node.content.remove(layer.digest)
    publisher.publish(node.source, publisher.build("one", "two", "three", "four"), "registry.test/app:2")
    await node.pull("registry.test/app:2")
    assert len(node.unpacker.requests) == 4
    assert not node.content.has(image.layers[0].digest)


async def test_the_same_image_in_another_compression_keeps_the_blobs_that_are_there(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    await node.pull()
    other = publisher.build("one", "two", "three", compression="zstd")
    publisher.publish(node.source, other, "registry.test/app:zstd")
    assert await node.pull("registry.test/app:zstd") == image.config.digest
    record = node.service.find(NAME)
    assert record is not None
    assert [layer.digest for layer in record.layers] == [layer.digest for layer in image.layers]
    assert set(record.tags) == {NAME, "registry.test/app:zstd"}


async def test_a_moved_tag_leaves_the_old_image_its_digest(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    old_id = await node.pull()
    new = publisher.build("new")
    publisher.publish(node.source, new)
    assert await node.pull() == new.config.digest
    found, old = node.service.find(NAME), node.service.find(old_id)
    assert found is not None and found.id == new.config.digest
    assert old is not None
    assert (old.tags, old.digests) == ((), (f"registry.test/app@{image.manifest.digest}",))


async def test_requests_for_the_same_share_one_pull(node: Node, image: BuiltImage) -> None:
    assert await asyncio.gather(*(node.pull() for _ in range(5))) == [image.config.digest] * 5
    assert node.source.hooks_called.count("resolve") == 1
    assert node.extension.hooks_called == ("image_pulling", "image_pulled")


async def test_other_credentials_are_asked_for_themselves(node: Node, image: BuiltImage) -> None:
    secret = Credentials("user", "password")
    await asyncio.gather(node.pull(), node.service.pull(NAME, secret, {}, ""))
    assert node.source.hooks_called.count("resolve") == 2
    assert node.source.hooks_called.count("open_blob") == 4
    assert len(node.unpacker.requests) == 3


@pytest.mark.parametrize("kind", [SerialSnapshotter, None])
async def test_pulls_that_share_layers_fetch_and_unpack_them_once(
    node: Node, publisher: Publisher, kind: type[SerialSnapshotter] | None
) -> None:
    if kind:
        node.add_snapshotter("default", kind)
    names = [f"registry.test/app:{number}" for number in range(4)]
    for name in names:
        publisher.publish(node.source, publisher.build("base", "common", f"own of {name}"), name)
    await asyncio.gather(*(node.pull(name) for name in names))
    assert len(node.unpacker.requests) == 2 + len(names)
    assert node.source.hooks_called.count("open_blob") == 2 + 2 * len(names)
    node.assert_nothing_half_made()


async def test_a_serial_snapshotter_gets_its_layers_in_order(node: Node, image: BuiltImage) -> None:
    serial = node.add_snapshotter("default", SerialSnapshotter)
    await node.pull()
    steps = [call for call in serial.calls if call.hook in ("prepare_layer", "commit_layer")]
    ids = chain(image.diff_ids)
    assert [(call.hook, call.arguments["chain_id"]) for call in steps] == [
        (hook, chain_id) for chain_id in ids for hook in ("prepare_layer", "commit_layer")
    ]


async def test_a_parallel_snapshotter_gets_commits_in_order(node: Node, image: BuiltImage) -> None:
    node.unpacker.go.clear()
    pulling = asyncio.create_task(node.pull())
    await until(lambda: node.snapshotter.hooks_called.count("prepare_layer") == 3)
    node.unpacker.go.set()
    await pulling
    commits = [call.arguments["chain_id"] for call in node.snapshotter.calls if call.hook == "commit_layer"]
    assert commits == chain(image.diff_ids)
    assert node.unpacker.most_at_once == 2


async def test_fetches_at_once_are_bounded(node: Node, publisher: Publisher) -> None:
    node.reconfigure(max_parallel_layers=2)
    image = publisher.build(*"abcdef")
    publisher.publish(node.source, image)
    node.content.put(read_blob(publisher.layout, image.config.digest))
    node.source.hang("piece")
    pulling = asyncio.create_task(node.pull())
    await until(lambda: node.source.hooks_called.count("open_blob") == 2)
    await asyncio.sleep(0.1)
    assert node.source.hooks_called.count("open_blob") == 2
    pulling.cancel()


async def test_the_handler_chooses_the_snapshotter(node: Node, image: BuiltImage) -> None:
    other = node.add_snapshotter("vm")
    await node.pull(handler="vm")
    assert len(other.layers) == 3
    assert node.snapshotter.layers == {}
    with pytest.raises(InvalidArgument, match=r'"nope".*known: runc, vm'):
        await node.pull(handler="nope")


async def test_another_snapshotter_unpacks_what_is_stored(node: Node, image: BuiltImage) -> None:
    other = node.add_snapshotter("vm")
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    node.source.calls.clear()
    assert await node.service.ensure_unpacked(record, "vm") == record.chain_ids[-1]
    assert list(other.layers) == list(record.chain_ids)
    assert node.source.calls == []
    node.assert_nothing_half_made()


async def test_without_blobs_another_snapshotter_asks_for_a_pull(node: Node, image: BuiltImage) -> None:
    other = node.add_snapshotter("vm")
    await node.pull()
    node.content.remove(image.layers[1].digest)
    record = node.service.find(NAME)
    assert record is not None
    assert await node.service.ensure_unpacked(record, "default") == record.chain_ids[-1]
    with pytest.raises(FailedPrecondition, match=rf"{NAME}.*vm.*{image.layers[1].digest}.*pull the image again"):
        await node.service.ensure_unpacked(record, "vm")
    await node.pull()  # with two snapshotters it brings the blob, too
    await node.service.ensure_unpacked(record, "vm")
    assert len(other.layers) == 3


def unpacking(node: Node) -> bool:
    """Return whether all layers have come to be unpacked."""
    return {layer.state for pull in node.service.progress() for layer in pull.layers} == {LayerState.UNPACKING}


async def test_progress_is_told_layer_by_layer(node: Node, image: BuiltImage) -> None:
    assert node.service.progress() == ()
    node.unpacker.go.clear()
    pulling = asyncio.create_task(node.pull())
    await until(lambda: unpacking(node))
    (progress,) = node.service.progress()
    assert progress.reference == NAME
    assert [(layer.digest, layer.total_bytes, layer.fetched_bytes) for layer in progress.layers] == [
        (layer.digest, layer.size, layer.size) for layer in image.layers
    ]
    assert {layer.state for layer in progress.layers} == {LayerState.UNPACKING}
    node.unpacker.go.set()
    await pulling
    assert node.service.progress() == ()


async def test_a_later_source_is_asked_when_the_first_has_nothing(node: Node, publisher: Publisher) -> None:
    image = publisher.build("one")
    publisher.publish(node.other_source, image)
    assert await node.pull() == image.config.digest
    assert "resolve" in node.source.hooks_called


async def test_a_later_source_is_asked_when_the_first_is_down_or_lies(node: Node, publisher: Publisher) -> None:
    image = publisher.build("one")
    publisher.publish(node.other_source, image)
    lie = publisher.publish(node.source, publisher.build("two"))
    node.source.images[NAME] = type(lie)(lie.target, lie.target_content + b" ", lie.manifest, lie.manifest_content)
    assert await node.pull() == image.config.digest


async def test_pinned_images(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    node.reconfigure(pinned=("registry.test/app:1", "docker.io/library/pause*", "other"))
    pause, other = publisher.build("pause"), publisher.build("other")
    publisher.publish(node.source, pause, "pause:3.10")
    publisher.publish(node.source, other, "registry.test/other:1")
    for name in (NAME, "pause:3.10", "registry.test/other:1"):
        await node.pull(name)
    pinned = {record.id for record in node.service.list() if record.pinned}
    assert pinned == {image.config.digest, pause.config.digest}
    node.reconfigure(pinned=())
    await node.service.recover()
    assert not any(record.pinned for record in node.service.list())


async def test_a_layer_that_was_just_installed_is_not_asked_for_again(node: Node, image: BuiltImage) -> None:
    """Whether it is there depends on all below it, so asking about the parent of each would be quadratic."""
    snapshotter = node.add_snapshotter("default", CountingSnapshotter)
    assert isinstance(snapshotter, CountingSnapshotter)
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    plans = plan_layers(record.layers, image.diff_ids)
    snapshotter.layers.clear()
    snapshotter.answers.clear()
    layers, slot = node.service._layers, node.service._slots.snapshotters["default"]
    with layers.remembering_commits(slot, plans):
        for plan in plans:
            await layers.install(slot, plan)
    assert list(snapshotter.layers) == list(record.chain_ids)
    assert snapshotter.answers == [False] * len(plans)
