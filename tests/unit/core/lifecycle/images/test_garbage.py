"""What failed pulls leave: kept for the next try, for a while, and never more than the disk can spare."""

import pytest

from crinoid.core.api.errors import ResourceExhausted, Unavailable
from crinoid.core.lifecycle.images import garbage
from crinoid.core.lifecycle.images.garbage import Leftover, Leftovers
from support.images import BuiltImage

from .conftest import NAME, Node, Publisher, chain, until


async def fail_to_pull(node: Node, name: str = NAME) -> None:
    """Let all come but the unpacking of the last layer."""
    node.unpacker.failures = [Unavailable("the last layer fails")]
    with pytest.raises(Unavailable):
        await node.pull(name)


async def test_the_next_try_finds_what_a_failed_one_has_brought(node: Node, image: BuiltImage) -> None:
    await fail_to_pull(node)
    await node.service.collect_garbage()
    assert set(node.content.list()) >= {layer.digest for layer in image.layers}
    node.source.calls.clear()
    await node.pull()
    assert "open_blob" not in node.source.hooks_called
    await node.service.remove(NAME)
    assert node.content.list() == ()
    assert node.snapshotter.layers == {}


async def test_what_nobody_comes_back_for_goes_in_time(
    node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "KEPT_S", 0.3)
    await fail_to_pull(node)
    assert node.content.list() != ()
    await until(lambda: node.content.list() == () and node.snapshotter.layers == {})


async def test_failing_pulls_do_not_fill_the_disk(
    node: Node, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "KEPT_BYTES", 1)
    blobs = []
    for number in range(5):
        image = publisher.build(f"one-{number}", f"two-{number}")
        publisher.publish(node.source, image, f"registry.test/other:{number}")
        await fail_to_pull(node, f"registry.test/other:{number}")
        blobs.append({layer.digest for layer in image.layers})
        await node.service.collect_garbage()
        assert {digest for older in blobs[:-1] for digest in older}.isdisjoint(node.content.list())
    assert blobs[-1] <= set(node.content.list())


async def test_a_full_disk_keeps_nothing(node: Node, image: BuiltImage) -> None:
    node.unpacker.failures = [ResourceExhausted("no space")] * 3
    with pytest.raises(ResourceExhausted):
        await node.pull()
    await until(lambda: node.content.list() == () and node.snapshotter.layers == {})


async def test_what_an_image_needs_stays_when_a_pull_of_it_fails(
    node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "KEPT_S", 0.0)
    await node.pull()
    node.add_snapshotter("other")
    await node.service.recover()
    node.unpacker.failures = [Unavailable("not now")] * 3
    with pytest.raises(Unavailable):
        await node.pull(handler="other")
    await node.service.collect_garbage()
    assert list(node.snapshotter.layers) == chain(image.diff_ids)
    assert {layer.digest for layer in image.layers} <= set(node.content.list())


def test_the_oldest_goes_first_and_the_latest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "KEPT_BYTES", 250)
    kept = Leftovers(lambda _digest: 100)
    pulls = [Leftover((f"blob-{number}",)) for number in range(4)]
    for left in pulls:
        kept.add(left)
    kept.add(pulls[0])
    assert kept.take_due() == [pulls[1], pulls[2]]
    assert kept.names() == {"blob-3", "blob-0"}
    kept.forget({"blob-0", "another"})
    assert kept.names() == {"blob-3"}
