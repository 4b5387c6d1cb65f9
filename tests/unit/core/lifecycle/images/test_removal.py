"""Removing images, collecting garbage, and what a start finds."""

import asyncio
import errno
import json
import os
import time
from dataclasses import replace

import pytest

from crinoid.core.api import backoff
from crinoid.core.api.errors import DriverError, StateNotUsable
from crinoid.core.state import latewrites
from crinoid.core.state.store import LedgerEntry
from support.images import BuiltImage

from .conftest import NAME, Node, Publisher, chain, until


async def test_a_removed_image_leaves_nothing(node: Node, image: BuiltImage) -> None:
    await node.pull()
    await node.service.remove(NAME)
    assert node.service.find(NAME) is None
    assert node.service.list() == []
    assert node.snapshotter.layers == {}
    assert node.content.list() == ()
    assert '"manifests": []' in (node.content.root / "index.json").read_text()
    assert node.extension.hooks_called == ("image_pulling", "image_pulled", "image_removed")


async def test_removal_is_idempotent(node: Node, image: BuiltImage) -> None:
    await node.pull()
    await node.service.remove(image.config.digest)
    await node.service.remove(image.config.digest)
    await node.service.remove("never.seen/it:1")
    await node.service.remove("No Reference")


async def test_one_name_removes_all_of_them(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    publisher.publish(node.source, image, "registry.test/other:2")
    await node.pull()
    await node.pull("registry.test/other:2")
    await node.service.remove(NAME)
    assert node.service.list() == []


async def test_what_images_share_stays_with_the_last_of_them(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    other = publisher.build("one", "other")
    publisher.publish(node.source, other, "registry.test/other:1")
    await node.pull()
    await node.pull("registry.test/other:1")
    await node.service.remove(NAME)
    assert sorted(node.snapshotter.layers) == sorted(chain(other.diff_ids))
    assert set(node.content.list()) == {
        other.manifest.digest,
        other.config.digest,
        *(layer.digest for layer in other.layers),
    }


async def test_a_container_keeps_the_layers_it_stands_on(node: Node, image: BuiltImage) -> None:
    await node.pull()
    ids = chain(image.diff_ids)
    node.snapshotter.snapshots["container"] = ids[1]
    await node.service.remove(NAME)
    assert list(node.snapshotter.layers) == ids[:2]
    assert node.content.list() == ()
    del node.snapshotter.snapshots["container"]
    await node.service.collect_garbage()
    assert node.snapshotter.layers == {}


async def test_a_failing_snapshotter_does_not_stop_removal(node: Node, image: BuiltImage) -> None:
    await node.pull()
    node.snapshotter.fail("remove_layer", DriverError("broken"))
    await node.service.remove(NAME)
    assert node.service.list() == []
    assert node.content.list() == ()
    await node.service.collect_garbage()
    assert node.snapshotter.layers == {}


async def test_a_pull_under_way_keeps_what_it_needs(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    other = publisher.build("one", "other")
    publisher.publish(node.source, other, "registry.test/other:1")
    await node.pull()
    node.unpacker.begun.clear()
    node.unpacker.go.clear()
    pulling = asyncio.create_task(node.pull("registry.test/other:1"))
    await node.unpacker.begun.wait()
    await node.service.remove(NAME)
    assert list(node.snapshotter.layers) == [image.diff_ids[0]]
    assert other.layers[1].digest in node.content.list()
    assert image.layers[2].digest not in node.content.list()
    node.unpacker.go.set()
    assert await pulling == other.config.digest
    assert list(node.snapshotter.layers) == chain(other.diff_ids)


async def test_a_removal_survives_its_caller(node: Node, image: BuiltImage) -> None:
    await node.pull()
    removal = asyncio.create_task(node.service.remove(NAME))
    await asyncio.sleep(0)
    removal.cancel()
    await asyncio.wait({removal})
    await node.service.collect_garbage()
    assert node.snapshotter.layers == {}


async def test_collections_at_the_same_time_are_few(node: Node, image: BuiltImage) -> None:
    await node.pull()
    top = chain(image.diff_ids)[-1]
    node.snapshotter.snapshots["container"] = top
    await node.service.remove(NAME)
    node.snapshotter.calls.clear()
    await asyncio.gather(*(node.service.collect_garbage() for _ in range(10)))
    assert node.snapshotter.hooks_called.count("remove_layer") == 1


async def test_garbage_made_during_a_collection_is_collected_by_the_next(
    node: Node, publisher: Publisher, image: BuiltImage
) -> None:
    publisher.publish(node.source, publisher.build("other"), "registry.test/other:1")
    await node.pull()
    await node.pull("registry.test/other:1")
    node.snapshotter.calls.clear()
    first = asyncio.create_task(node.service.remove("registry.test/other:1"))
    await until(lambda: "remove_layer" in node.snapshotter.hooks_called)
    await node.service.remove(NAME)
    assert node.snapshotter.layers == {}
    await first


@pytest.mark.parametrize("others", [0, 40])
async def test_a_removal_costs_the_same_however_many_images_there_are(
    node: Node, publisher: Publisher, image: BuiltImage, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(others):
        name = f"registry.test/other:{number}"
        publisher.publish(node.source, publisher.build("shared", str(number)), name)
        await node.pull(name)
    await node.pull()
    node.snapshotter.calls.clear()
    reads: list[str] = []
    for method in ("read", "list", "list_partial"):
        monkeypatch.setattr(node.content, method, lambda *_, name=method: reads.append(name))
    await node.service.remove(NAME)
    assert node.snapshotter.hooks_called == ("remove_layer",) * len(image.diff_ids)
    assert reads == []
    assert len(node.service.list()) == others
    assert len(json.loads((node.content.root / "index.json").read_text())["manifests"]) == 2 * others


async def test_a_start_keeps_images_and_drops_the_rest(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    await node.pull()
    node.snapshotter.layers["sha256:" + "0" * 64] = None
    young = node.content.put(b"of a pull that was interrupted").digest
    old = node.content.put(b"of one long ago").digest
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(node.content.path(old), (long_ago, long_ago))
    node.die()
    await node.restart()
    record = node.service.find(NAME)
    assert record is not None and record.id == image.config.digest
    assert list(node.snapshotter.layers) == chain(image.diff_ids)
    assert young in node.content.list()
    assert old not in node.content.list()


async def test_a_start_forgets_an_image_that_has_lost_everything(node: Node, image: BuiltImage) -> None:
    await node.pull()
    node.snapshotter.layers.clear()
    node.content.remove(image.layers[0].digest)
    node.die()
    await node.restart()
    assert node.service.find(NAME) is None
    assert await node.pull() == image.config.digest


async def test_a_start_keeps_an_image_that_can_be_unpacked_again(node: Node, image: BuiltImage) -> None:
    await node.pull()
    node.snapshotter.layers.clear()
    node.die()
    await node.restart()
    record = node.service.find(NAME)
    assert record is not None
    assert await node.service.ensure_unpacked(record, "default") == record.chain_ids[-1]


async def test_a_start_drops_what_an_ingest_left_a_day_ago(node: Node, image: BuiltImage) -> None:
    for number, age_s in enumerate((60, 2 * 24 * 3600)):
        partial = node.content.root / "ingest" / f"sha256:{str(number) * 64}"
        partial.write_bytes(b"begun")
        os.utime(partial, (time.time() - age_s,) * 2)
    await node.restart()
    assert node.content.list_partial() == ("sha256:" + "0" * 64,)


async def test_a_view_of_a_killed_daemon_is_removed(node: Node, image: BuiltImage) -> None:
    await node.pull()
    node.store.ledger.record("images", "view", "view-1", {"snapshotter": "default"})
    node.snapshotter.snapshots["view-1"] = chain(image.diff_ids)[0]
    node.die()
    await node.restart()
    node.assert_nothing_half_made()


async def test_a_snapshotter_that_is_configured_no_more_keeps_its_entries(node: Node) -> None:
    entry = node.store.ledger.record("images", "layer", "sha256:abc", {"snapshotter": "gone"})
    await node.restart()
    assert [found.id for found in node.store.ledger.entries()] == [entry.id]


async def test_a_tag_of_two_records_is_the_later_ones(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    """A daemon killed between writing the new record and taking the tag from the old one."""
    await node.pull()
    new = publisher.build("new")
    publisher.publish(node.source, new)
    await node.pull()
    old = node.service.find(image.config.digest)
    assert old is not None
    node.store.images.put(replace(old, tags=(NAME,)))
    found = node.service.find(NAME)
    assert found is not None and found.id == new.config.digest
    await node.restart()
    assert [record.tags for record in node.service.list()] == [(NAME,), ()]


async def test_a_start_after_a_kill_in_a_removal_collects_what_is_left(node: Node, image: BuiltImage) -> None:
    young = node.content.put(b"of a pull that was interrupted").digest
    await node.pull()
    node.store.images.drop(image.config.digest)
    node.die()
    await node.restart()
    assert node.content.list() == (young,)
    assert node.snapshotter.layers == {}


@pytest.mark.parametrize("fails", ["layer", "blob"])
async def test_what_could_not_be_removed_is_tried_again_without_another_removal(
    fails: str, node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    await node.pull()
    left = [OSError(errno.EIO, "once")]
    if fails == "layer":
        node.snapshotter.fail("remove_layer", DriverError("broken"))
    else:
        remove = node.content.remove

        def fail_first(digest: str) -> None:
            if left:
                raise left.pop()
            remove(digest)

        monkeypatch.setattr(node.content, "remove", fail_first)
    await node.service.remove(NAME)
    assert node.snapshotter.layers or node.content.list()
    await until(lambda: node.content.list() == () and node.snapshotter.layers == {})


async def test_a_row_of_the_ledger_that_can_not_be_deleted_fails_no_pull(
    node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is committed by then; the row goes as soon as it can be written."""
    monkeypatch.setattr(latewrites, "FIRST_S", 0.05)
    delete, left = node.store.ledger.delete, [StateNotUsable("disk I/O error")]

    def fail_once(*entries: LedgerEntry) -> None:
        if left:
            raise left.pop()
        delete(*entries)

    monkeypatch.setattr(node.store.ledger, "delete", fail_once)
    await node.pull()
    assert left == []
    await until(lambda: node.store.ledger.entries() == [])
