"""Pulls that can't succeed: each says what was wrong, with which source and layer, and leaves nothing half made."""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotServed,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.testing.fakes import Call, FakeSnapshotter
from crinoid.core.api.values.image import Credentials, Descriptor, ResolvedImage
from crinoid.core.api.values.snapshot import LayerTarget
from crinoid.core.lifecycle.images import layers
from crinoid.core.lifecycle.images.unpack.launcher import Launcher
from crinoid.core.lifecycle.images.unpack.layer import UnpackRequest, UnpackResult
from support.images import OCI_CONFIG, BuiltImage, ImageConfig, add_json, build_index, read_blob

from .conftest import NAME, Node, Publisher, SerialSnapshotter, until

Change = Callable[[dict[str, Any]], None]


def republish(node: Node, publisher: Publisher, image: BuiltImage, change: Change) -> None:
    """Let the source have the image with another manifest."""
    document = json.loads(read_blob(publisher.layout, image.manifest.digest))
    change(document)
    manifest = add_json(publisher.layout, document.get("mediaType", image.manifest.media_type), document)
    descriptor = Descriptor(image.manifest.media_type, manifest.digest, manifest.size)
    content = read_blob(publisher.layout, manifest.digest)
    node.source.images[NAME] = ResolvedImage(descriptor, content, descriptor, content)
    for path in (publisher.layout / "blobs/sha256").iterdir():
        node.source.blobs[f"sha256:{path.name}"] = path.read_bytes()


async def refuse(node: Node, kind: type[CrinoidError], *words: str) -> str:
    """Pull, and expect an error of a kind that says all these words; nothing is left."""
    with pytest.raises(kind) as caught:
        await node.pull()
    assert type(caught.value) is kind
    message = caught.value.message
    assert message.endswith(f" (image {NAME})")
    assert message.count(NAME) == 1, "the reference once"
    for word in words:
        assert word in message
    assert node.service.find(NAME) is None
    assert node.service.progress() == ()
    node.assert_nothing_half_made()
    return message


async def test_a_malformed_reference(node: Node) -> None:
    with pytest.raises(InvalidArgument, match="Upper"):
        await node.pull("Upper Case")


@pytest.mark.parametrize("host", ["registry.test:99999", "registry.test:65536", "registry.test:0", "[::1]:70000"])
async def test_a_port_that_is_none(node: Node, host: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a registry host"):
        await node.pull(f"{host}/app:1")


async def test_no_source_has_it(node: Node) -> None:
    await refuse(node, NotFound, 'registry "near"', 'registry "far"', "it is not here [registry")


async def test_the_most_telling_error_is_raised(node: Node) -> None:
    node.source.fail("resolve", Unavailable("connection refused"))
    await refuse(node, Unavailable, "connection refused", 'registry "far"')
    node.source.fail("resolve", Unavailable("connection refused"))
    node.other_source.fail("resolve", Unauthenticated("who are you"))
    await refuse(node, Unauthenticated, "connection refused", "who are you")


async def test_a_source_that_has_no_such_images_is_not_spoken_of(node: Node) -> None:
    node.source.fail("resolve", NotServed("there is no directory"))
    node.other_source.fail("resolve", NotFound("manifest unknown"))
    message = await refuse(node, NotFound, "manifest unknown")
    assert "no directory" not in message
    assert message.startswith("manifest unknown")


async def test_a_source_that_raises_rubbish_is_named(node: Node) -> None:
    node.source.fail("resolve", KeyError("oops"))
    await refuse(node, DriverError, 'registry "near" (fake) resolve', "KeyError")


async def test_a_lie_about_a_manifest(node: Node, image: BuiltImage) -> None:
    true = node.source.images[NAME]
    false = true.manifest_content.replace(b"schemaVersion", b"schemaversion")
    node.source.images[NAME] = ResolvedImage(true.target, false, true.manifest, false)
    await refuse(node, CorruptContent, 'registry "near"', image.manifest.digest, hashlib.sha256(false).hexdigest())
    node.source.images[NAME] = ResolvedImage(true.target, b"", true.manifest, b"")
    await refuse(node, CorruptContent, "0 bytes")


async def test_another_digest_than_was_asked_for(node: Node, image: BuiltImage) -> None:
    wanted = f"registry.test/app@sha256:{'a' * 64}"
    node.source.images[wanted] = node.source.images[NAME]
    with pytest.raises(CorruptContent, match=rf"answered with {image.manifest.digest} where sha256:a+ was asked for"):
        await node.pull(wanted)


async def test_a_manifest_that_its_index_does_not_list(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    index = build_index(publisher.layout, "", [publisher.build("other")])
    publisher.publish_manifest(node.source, index.digest, image.manifest.digest, NAME)
    await refuse(node, CorruptContent, index.digest, f"does not list manifest {image.manifest.digest}")


def list_manifests(document: dict[str, Any]) -> None:
    document["manifests"] = []


def become_schema_1(document: dict[str, Any]) -> None:
    document["schemaVersion"] = 1


def become_nameless_artifact(document: dict[str, Any]) -> None:
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    document["layers"][1]["annotations"] = {"org.opencontainers.image.title": "../up"}


def encrypt(document: dict[str, Any]) -> None:
    document["layers"][1]["mediaType"] += "+encrypted"


def use_squashfs(document: dict[str, Any]) -> None:
    document["layers"][1]["mediaType"] = "application/vnd.sylabs.sif.layer.v1.sif"


def shorten_digest(document: dict[str, Any]) -> None:
    document["layers"][1]["digest"] = "sha256:abc"


def negate_size(document: dict[str, Any]) -> None:
    document["layers"][1]["size"] = -1


def drop_layer(document: dict[str, Any]) -> None:
    del document["layers"][1]


def add_layer(document: dict[str, Any]) -> None:
    document["layers"].append(document["layers"][0])


def enlarge_config(document: dict[str, Any]) -> None:
    document["config"]["size"] = 1 << 40


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (list_manifests, CorruptContent, "does not have the fields of its type"),
        (become_schema_1, Unsupported, "schema 1"),
        (become_nameless_artifact, CorruptContent, "title '../up'"),
        (encrypt, Unsupported, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
        (use_squashfs, Unsupported, "application/vnd.sylabs.sif.layer.v1.sif"),
        (shorten_digest, CorruptContent, "layers.1.digest"),
        (negate_size, CorruptContent, "layers.1.size"),
        (drop_layer, CorruptContent, "the manifest has 2 layers, but the configuration 3 diffIDs"),
        (add_layer, CorruptContent, "the manifest has 4 layers, but the configuration 3 diffIDs"),
        (enlarge_config, CorruptContent, "image configuration is 1099511627776 bytes long"),
    ],
)
async def test_bad_manifests(
    node: Node, publisher: Publisher, image: BuiltImage, change: Change, kind: type[CrinoidError], words: str
) -> None:
    republish(node, publisher, image, change)
    await refuse(node, kind, words)
    assert "prepare_layer" not in node.snapshotter.hooks_called


async def test_a_configuration_that_is_none(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    config = add_json(publisher.layout, OCI_CONFIG, {"rootfs": {"diff_ids": ["sha256:x"]}})
    republish(node, publisher, image, lambda document: document.update(config=config.document()))
    await refuse(node, CorruptContent, f"image configuration {config.digest}", "rootfs.diff_ids.0")


async def test_an_image_for_another_machine(node: Node, publisher: Publisher) -> None:
    publisher.publish(node.source, publisher.build("one", config=ImageConfig(architecture="s390x")))
    await refuse(node, Unsupported, "linux/s390x", "linux/amd64")


async def test_a_layer_that_the_source_lacks(node: Node, image: BuiltImage) -> None:
    del node.source.blobs[image.layers[1].digest]
    await refuse(node, NotFound, image.layers[1].digest, 'registry "near" (fake) open_blob')


async def test_a_lie_about_a_layer(node: Node, image: BuiltImage) -> None:
    layer = image.layers[1]
    node.source.blobs[layer.digest] = bytes(layer.size)
    await refuse(node, CorruptContent, f'blob {layer.digest} fetch from "near"')


async def test_a_layer_longer_than_promised(node: Node, image: BuiltImage) -> None:
    node.source.blobs[image.layers[1].digest] += b"more"
    await refuse(node, CorruptContent, image.layers[1].digest, "sends more than")


async def test_a_stream_that_ends_early_is_resumed_by_the_next_pull(node: Node, publisher: Publisher) -> None:
    image = publisher.build("x")
    publisher.publish(node.source, image)
    layer = image.layers[0]
    whole = node.source.blobs[layer.digest]
    node.source.blobs[layer.digest] = whole[:50]
    await refuse(node, Unavailable, layer.digest, f"ended after 50 of {layer.size} bytes")
    node.source.blobs[layer.digest] = whole
    await node.pull()
    requests = [call.arguments["request"] for call in node.source.calls if call.hook == "open_blob"]
    assert [request.offset for request in requests if request.blob.digest == layer.digest] == [0, 50]  # type: ignore[attr-defined]  # Call holds objects


async def test_a_stream_that_breaks(node: Node, image: BuiltImage) -> None:
    node.source.fail("piece", Unavailable("connection reset"))
    await refuse(node, Unavailable, "image configuration", 'registry "near"', "connection reset")


async def test_another_diff_id(node: Node, publisher: Publisher) -> None:
    one, two = publisher.build("one", "two"), publisher.build("one", "three")
    publisher.publish(node.source, one)
    republish(node, publisher, one, lambda document: document.update(config=two.config.document()))
    await refuse(node, CorruptContent, f"layer {one.layers[1].digest} unpack", "diffID", two.diff_ids[1])
    assert one.diff_ids[0] not in node.snapshotter.unfinished


@pytest.mark.parametrize("kind", [SerialSnapshotter, None])
async def test_a_full_disk_while_unpacking(node: Node, image: BuiltImage, kind: type[SerialSnapshotter] | None) -> None:
    if kind:
        node.add_snapshotter("default", kind)
    node.unpacker.failures.append(ResourceExhausted("no space left on device"))
    await refuse(node, ResourceExhausted, "unpack", "no space left")
    await node.pull()


async def test_a_full_disk_while_storing(node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ResourceExhausted("no space to store a blob")

    monkeypatch.setattr(node.content, "ingest", fail)
    await refuse(node, ResourceExhausted, "image configuration", "no space to store")


@pytest.mark.parametrize("hook", ["has_layer", "prepare_layer", "commit_layer"])
async def test_a_snapshotter_that_fails(node: Node, image: BuiltImage, hook: str) -> None:
    node.snapshotter.fail(hook, DriverError("broken"))
    await refuse(node, DriverError, f'snapshotter "default" (fake) {hook}: broken')
    await node.pull()


async def test_a_layer_that_can_not_be_discarded_stays_in_the_ledger(node: Node, image: BuiltImage) -> None:
    node.unpacker.failures.append(CorruptContent("rubbish"))
    node.snapshotter.fail("discard_layer", DriverError("broken"))
    with pytest.raises(CorruptContent):
        await node.pull()
    assert len(node.store.ledger.entries()) == 1
    node.die()
    await node.restart()
    node.assert_nothing_half_made()


async def test_what_can_not_be_discarded_is_tried_again_by_the_next_collection(node: Node, image: BuiltImage) -> None:
    node.unpacker.failures.append(CorruptContent("rubbish"))
    node.snapshotter.fail("discard_layer", DriverError("broken"))
    with pytest.raises(CorruptContent):
        await node.pull()
    assert len(node.store.ledger.entries()) == 1
    await node.service.collect_garbage()
    node.assert_nothing_half_made()


async def test_a_view_that_can_not_be_removed_is_tried_again_by_the_next_collection(
    node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unpack(request: UnpackRequest, launcher: Launcher) -> UnpackResult:
        return dataclasses.replace(await node.unpacker(request, launcher), implied=("a",))

    monkeypatch.setattr(layers, "unpack_layer", unpack)
    node.snapshotter.fail("remove_snapshot", DriverError("broken"))
    await node.pull()
    assert [entry.kind for entry in node.store.ledger.entries()] == ["view"]
    await node.service.collect_garbage()
    assert node.snapshotter.snapshots == {}
    node.assert_nothing_half_made()


async def test_a_pull_without_progress_is_given_up(node: Node, image: BuiltImage) -> None:
    node.reconfigure(pull_idle_timeout_s=0.2)
    node.source.hang("piece")
    await refuse(node, DeadlineExceeded, "nothing has arrived for 0.2 s")


async def test_unpacking_is_no_idleness(node: Node, image: BuiltImage) -> None:
    node.reconfigure(pull_idle_timeout_s=1.0)
    node.unpacker.go.clear()
    pulling = asyncio.create_task(node.pull())
    await node.unpacker.begun.wait()
    await asyncio.sleep(1.5)
    node.unpacker.go.set()
    await pulling


async def test_a_cancelled_request_leaves_the_pull_to_others(node: Node, image: BuiltImage) -> None:
    node.unpacker.go.clear()
    first, second = asyncio.create_task(node.pull()), asyncio.create_task(node.pull())
    await node.unpacker.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    node.unpacker.go.set()
    assert await second == image.config.digest


async def test_a_pull_ends_without_its_caller(node: Node, image: BuiltImage) -> None:
    node.unpacker.go.clear()
    caller = asyncio.create_task(node.pull())
    await node.unpacker.begun.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    node.unpacker.go.set()
    assert await node.pull() == image.config.digest
    assert node.source.hooks_called.count("resolve") == 1


async def hanging(node: Node, image: BuiltImage, hook: str) -> None:
    """Wait until a pull has come to where it hangs, with all of its layers."""

    def is_there() -> bool:
        if hook == "piece":  # of the configuration, which comes first
            return bool(node.content.list_partial())
        prepared = [entry for entry in node.store.ledger.entries() if "key" in entry.data]
        unpacked = node.unpacker.begun.is_set() if hook == "unpack" else hook in node.snapshotter.hooks_called
        return unpacked and len(prepared) == len(image.layers)

    await until(is_there)


@pytest.mark.parametrize("hook", ["piece", "commit_layer", "unpack"])
async def test_close_in_the_middle_leaves_nothing(node: Node, image: BuiltImage, hook: str) -> None:
    if hook == "unpack":
        node.unpacker.go.clear()
    else:
        (node.source if hook == "piece" else node.snapshotter).hang(hook)
    pulling = asyncio.create_task(node.pull())
    await hanging(node, image, hook)
    await node.service.close()
    with pytest.raises(Unavailable, match="daemon stops"):
        await pulling
    node.assert_nothing_half_made()
    assert node.service.find(NAME) is None
    with pytest.raises(Unavailable):
        await node.pull()


class SlowSnapshotter(FakeSnapshotter):
    """Has made a layer before it tells so."""

    tell: asyncio.Event

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        target = await super().prepare_layer(chain_id, parent)
        await asyncio.shield(asyncio.create_task(self.tell.wait()))
        return target


async def test_close_waits_to_know_what_was_prepared(node: Node, image: BuiltImage) -> None:
    SlowSnapshotter.tell = asyncio.Event()
    slow = node.add_snapshotter("default", SlowSnapshotter)
    pulling = asyncio.create_task(node.pull())
    await until(lambda: slow.unfinished)
    asyncio.get_running_loop().call_later(0.05, SlowSnapshotter.tell.set)
    await node.service.close()
    node.assert_nothing_half_made()
    await asyncio.wait({pulling})


class SlowlyDiscardingSnapshotter(FakeSnapshotter):
    """Discards layers when the test says so, one after the other, and none for a caller that is cancelled before."""

    go: asyncio.Event

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        self.calls.append(Call("discard_layer", {"key": key}))
        number = self.hooks_called.count("discard_layer")
        await self.go.wait()
        await asyncio.sleep(0.1 * (number - 1))
        await super().discard_layer(key)


async def test_discarding_ends_though_another_layer_fails_meanwhile(node: Node, publisher: Publisher) -> None:
    bad = publisher.build("first", "second")
    publisher.publish(node.source, bad, NAME)
    SlowlyDiscardingSnapshotter.go = asyncio.Event()
    slow = node.add_snapshotter("default", SlowlyDiscardingSnapshotter)
    node.unpacker.failures += [CorruptContent("rubbish"), CorruptContent("rubbish, too")]
    pulling = asyncio.create_task(node.pull())
    await until(lambda: slow.hooks_called.count("discard_layer") == 2)
    SlowlyDiscardingSnapshotter.go.set()  # the one that ends first cancels the other
    with pytest.raises(CorruptContent, match="rubbish"):
        await pulling
    node.assert_nothing_half_made()


async def test_close_does_not_wait_for_ever(node: Node, image: BuiltImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PATIENCE_S", 0.05)
    SlowSnapshotter.tell = asyncio.Event()
    slow = node.add_snapshotter("default", SlowSnapshotter)
    pulling = asyncio.create_task(node.pull())
    await until(lambda: slow.unfinished)
    await node.service.close()
    assert slow.unfinished
    assert node.store.ledger.entries() != []
    SlowSnapshotter.tell.set()
    node.die()
    await node.restart()
    node.assert_nothing_half_made()
    await asyncio.wait({pulling})


async def test_one_pull_fails_and_the_one_that_shared_its_layers_does_not(node: Node, publisher: Publisher) -> None:
    good, bad = publisher.build("base", "good"), publisher.build("base", "bad")
    publisher.publish(node.source, good, "registry.test/good:1")
    publisher.publish(node.source, bad, "registry.test/bad:1")
    node.source.blobs[bad.layers[1].digest] = bytes(bad.layers[1].size)
    node.unpacker.go.clear()
    pulls = [asyncio.create_task(node.pull(f"registry.test/{name}:1")) for name in ("bad", "good")]
    await asyncio.wait({pulls[0]})
    node.unpacker.go.set()
    with pytest.raises(CorruptContent):
        await pulls[0]
    assert await pulls[1] == good.config.digest
    node.assert_nothing_half_made()


async def test_the_credentials_of_one_pull_do_not_fail_another(node: Node, image: BuiltImage) -> None:
    node.source.fail("open_blob", Unauthenticated("not you"))
    wrong, right = await asyncio.gather(
        node.service.pull(NAME, Credentials("eve"), {}, ""), node.pull(), return_exceptions=True
    )
    assert isinstance(wrong, Unauthenticated)
    assert right == image.config.digest


@pytest.mark.parametrize("hook", ["piece", "unpack", "commit_layer"])
@pytest.mark.parametrize("refusals", [0, 1])
async def test_a_killed_daemon_leaves_nothing(node: Node, image: BuiltImage, hook: str, refusals: int) -> None:
    if hook == "unpack":
        node.unpacker.go.clear()
    else:
        (node.source if hook == "piece" else node.snapshotter).hang(hook)
    pulling = asyncio.create_task(node.pull())
    await hanging(node, image, hook)
    if hook != "piece":
        assert node.snapshotter.unfinished
    node.die()
    node.snapshotter.fail("discard_layer", *[DriverError("busy")] * refusals)
    await node.restart()
    node.assert_nothing_half_made()
    assert node.service.list() == []
    assert node.snapshotter.layers == {}
    node.unpacker.go.set()
    for driver in (node.source, node.snapshotter):
        driver.hang(hook, False)
    node.source.calls.clear()
    assert await node.pull() == image.config.digest
    pulling.cancel()


async def test_a_layer_in_use_by_nobody_known_can_be_pulled_again(node: Node, image: BuiltImage) -> None:
    """A tag whose image lost its layers in the snapshotter, as after a switch to another one, is unpacked again."""
    await node.pull()
    node.snapshotter.layers.clear()
    await node.pull()
    assert len(node.snapshotter.layers) == 3
    record = node.service.find(NAME)
    assert record is not None
    node.snapshotter.fail("has_layer", FailedPrecondition("not now"))
    with pytest.raises(FailedPrecondition):
        await node.service.ensure_unpacked(record, "default")
