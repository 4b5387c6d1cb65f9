"""Blobs and layers that are damaged on disk: a pull fetches them again, and whoever needs them is told what to do."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CorruptContent, FailedPrecondition
from crinoid.core.lifecycle.images.images import VERIFY
from crinoid.core.state.records import ImageRecord
from support.images import Blob, BuiltImage

from .conftest import NAME, Node, Publisher, chain


def truncate(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:-1])


def scramble(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)


def all_of(image: BuiltImage) -> dict[str, Blob]:
    return {"config": image.config, "manifest": image.manifest, "layer": image.layers[1]}


def found(node: Node) -> ImageRecord:
    record = node.service.find(NAME)
    assert record is not None
    return record


def assert_whole(node: Node, image: BuiltImage) -> None:
    for blob in (image.config, image.manifest, *image.layers):
        assert node.content.has(blob.digest)
        assert node.content.examine(blob.digest) == ""


@pytest.mark.parametrize("damage", [truncate, scramble])
@pytest.mark.parametrize("which", ["config", "manifest", "layer"])
async def test_a_pull_fetches_again_what_is_damaged(
    node: Node, image: BuiltImage, which: str, damage: Callable[[Path], None]
) -> None:
    await node.pull()
    damage(node.content.path(all_of(image)[which].digest))
    node.snapshotter.layers.clear()
    assert await node.pull() == image.config.digest
    assert_whole(node, image)
    assert list(node.snapshotter.layers) == chain(image.diff_ids)
    node.assert_nothing_half_made()


@pytest.mark.parametrize("which", ["config", "manifest", "layer"])
async def test_a_pull_that_verifies_reads_what_is_unpacked_too(node: Node, image: BuiltImage, which: str) -> None:
    await node.pull()
    scramble(node.content.path(all_of(image)[which].digest))
    await node.service.pull(NAME, None, {VERIFY: "true"}, "")
    assert_whole(node, image)


async def test_a_pull_sees_the_size_of_what_is_unpacked(node: Node, image: BuiltImage) -> None:
    await node.pull()
    truncate(node.content.path(image.layers[0].digest))
    node.content.path(image.layers[1].digest).unlink()
    await node.pull()
    assert_whole(node, image)


async def test_a_blob_that_the_source_has_damaged_is_asked_for_once_more_and_told(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    node.source.blobs[image.layers[1].digest] = b"x" * image.layers[1].size
    with pytest.raises(CorruptContent):
        await node.pull()
    requests: list[Any] = [call.arguments["request"] for call in node.source.calls if call.hook == "open_blob"]
    doubts = [request.doubted for request in requests if request.blob.digest == image.layers[1].digest]
    assert doubts == [False, True]


@pytest.mark.parametrize("damage", [truncate, scramble, Path.unlink])
async def test_a_container_of_a_damaged_image_is_told_and_the_next_pull_heals(
    node: Node, image: BuiltImage, damage: Callable[[Path], None]
) -> None:
    await node.pull()
    damage(node.content.path(image.layers[1].digest))
    node.snapshotter.layers.clear()
    with pytest.raises(FailedPrecondition) as raised:
        await node.service.ensure_unpacked(found(node), "default")
    for words in (NAME, image.layers[1].digest, "pull the image again"):
        assert words in raised.value.message
    assert node.service.find_usable(NAME) is None, "a kubelet pulls what is absent"
    assert [record.id for record in node.service.list()] == [image.config.digest]
    await node.pull()
    assert node.service.find_usable(NAME) == found(node)
    assert await node.service.ensure_unpacked(found(node), "default") == chain(image.diff_ids)[-1]
    assert_whole(node, image)


async def test_lost_layers_are_unpacked_again_of_what_is_stored(node: Node, image: BuiltImage) -> None:
    await node.pull()
    del node.snapshotter.layers[chain(image.diff_ids)[-1]]
    node.source.calls.clear()
    assert await node.service.ensure_unpacked(found(node), "default") == chain(image.diff_ids)[-1]
    assert node.source.calls == []


async def test_verify_names_what_is_damaged(node: Node, image: BuiltImage) -> None:
    await node.pull()
    assert await node.service.verify(found(node)) == []
    scramble(node.content.path(image.manifest.digest))
    truncate(node.content.path(image.layers[2].digest))
    node.content.path(image.layers[0].digest).unlink()
    told = await node.service.verify(found(node))
    assert [words.split()[1] for words in told] == [image.manifest.digest, image.layers[2].digest]
    assert all("is damaged" in words for words in told)
    node.snapshotter.layers.clear()
    told = await node.service.verify(found(node))
    assert f"blob {image.layers[0].digest} is not stored" in told


async def test_a_damaged_manifest_takes_no_other_image_out_of_the_index(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    await node.pull()
    scramble(node.content.path(image.manifest.digest))
    node.die()
    await node.restart()
    publisher.publish(node.source, publisher.build("other"), "registry.test/other:1")
    await node.pull("registry.test/other:1")
    names = [
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in json.loads((node.content.root / "index.json").read_text())["manifests"]
    ]
    assert "registry.test/other:1" in names


BODIES: dict[str, Callable[[str], str]] = {
    "nonsense": lambda _body: "nonsense",
    "no layers": lambda body: json.dumps({**json.loads(body), "layers": 7}),
    "no configuration": lambda body: json.dumps({**json.loads(body), "config": 7}),
    "no size": lambda body: json.dumps({**json.loads(body), "manifests": ["x"], "size_bytes": "x"}),
}


@pytest.mark.parametrize("damage", BODIES)
async def test_a_pull_replaces_a_record_that_can_not_be_read(node: Node, image: BuiltImage, damage: str) -> None:
    await node.pull()
    whole = found(node)
    node.store.close()
    with sqlite3.connect(node.directory / "state.db") as connection:
        (body,) = connection.execute("SELECT body FROM images").fetchone()
        connection.execute("UPDATE images SET body = ?", (BODIES[damage](body),))
    connection.close()
    await node.restart_with_stand_ins()
    assert list(node.store.images.damaged) == [whole.id]
    usable = node.service.find_usable(whole.id)
    assert (usable is not None) == (damage == "no size"), "a kubelet pulls what is absent"
    await node.pull()
    await node.restart_with_stand_ins()
    assert not node.store.images.damaged
    assert node.service.find_usable(NAME) is not None
    assert (found(node).layers, found(node).config) == (whole.layers, whole.config)
    assert node.service.config_of(found(node)).rootfs.diff_ids == tuple(image.diff_ids)
    assert [(table, key) for table, key, _ in node.store.quarantined()] == [("images", whole.id)]
