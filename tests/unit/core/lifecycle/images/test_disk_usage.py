"""What images take on disk, and at what cost it is found out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.lifecycle.images.disk_usage import NodeDisk, NodeUse

from .conftest import Node, Publisher


async def measure(node: Node, directory: Path) -> NodeUse:
    return await NodeDisk(directory, node.store, node.content, node.service._slots, node.service).measure()


async def test_a_layer_that_images_share_is_nobodys_own(node: Node, publisher: Publisher, tmp_path: Path) -> None:
    for name, own in (("one:1", "mine"), ("other:1", "yours")):
        publisher.publish(node.source, publisher.build("shared", own), f"registry.test/{name}")
        await node.pull(f"registry.test/{name}")
    found = await measure(node, tmp_path)
    assert sorted(layer.images for layer in found.layers) == [1, 1, 2]
    shared = next(layer for layer in found.layers if layer.images == 2)
    assert {use.shared_bytes for use in found.images} == {shared.unpacked_bytes + shared.blob_bytes}


class CountedIds(tuple[str, ...]):
    """Chain ids that count how often somebody goes through them."""

    loops = 0

    def __iter__(self) -> Iterator[str]:
        CountedIds.loops += 1
        return super().__iter__()

    def __contains__(self, one: object) -> bool:
        CountedIds.loops += 1
        return super().__contains__(one)


async def test_an_image_is_not_looked_through_for_each_layer(
    node: Node, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = 8
    for number in range(images):
        name = f"registry.test/app{number}:1"
        publisher.publish(node.source, publisher.build("shared", *(f"{number} {n}" for n in range(4))), name)
        await node.pull(name)
    for record in node.service.list():
        object.__setattr__(record, "chain_ids", CountedIds(record.chain_ids))
    CountedIds.loops = 0
    assert len((await measure(node, tmp_path)).layers) == 1 + 4 * images
    assert images <= CountedIds.loops <= 4 * images
