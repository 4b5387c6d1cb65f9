"""Finding images, and what is told of them."""

import json

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.lifecycle.images.catalog import Catalog
from crinoid.core.state.records import ImageRecord
from support.images import BuiltImage, ImageConfig

from .conftest import NAME, Node, Publisher, chain


@pytest.mark.parametrize(
    "reference",
    [
        "busybox",
        "busybox:latest",
        "library/busybox",
        "docker.io/library/busybox:latest",
        "index.docker.io/library/busybox",
    ],
)
async def test_short_names(node: Node, publisher: Publisher, reference: str) -> None:
    image = publisher.build("one")
    publisher.publish(node.source, image, "busybox")
    await node.pull("busybox")
    found = node.service.find(reference)
    assert found is not None and found.id == image.config.digest


async def test_ids_and_their_beginnings(node: Node, image: BuiltImage) -> None:
    await node.pull()
    hexadecimal = image.config.digest.removeprefix("sha256:")
    for reference in (image.config.digest, hexadecimal, hexadecimal[:12], hexadecimal[:4], f"sha256:{hexadecimal[:8]}"):
        found = node.service.find(reference)
        assert found is not None and found.id == image.config.digest
    for reference in (hexadecimal[:3], "sha256:", "", "Not A Name", "registry.test/app:2", "registry.test/app"):
        assert node.service.find(reference) is None


def test_a_beginning_of_two_ids_is_none(node: Node) -> None:
    for last in "01":
        node.store.images.put(ImageRecord(id="sha256:" + "a" * 63 + last))
    assert node.service.find("a" * 63) is None
    found = node.service.find("a" * 63 + "1")
    assert found is not None and found.id.endswith("a1")


async def test_a_name_wins_over_an_id_that_reads_the_same(node: Node, publisher: Publisher, image: BuiltImage) -> None:
    await node.pull()
    name = image.config.digest.removeprefix("sha256:")[:12]
    other = publisher.build("other")
    publisher.publish(node.source, other, name)
    await node.pull(name)
    found = node.service.find(name)
    assert found is not None and found.id == other.config.digest


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (None, "")),
        ("0", (0, "")),
        ("1002", (1002, "")),
        ("1003:80", (1003, "")),
        ("www-data", (None, "www-data")),
        ("www-data:100", (None, "www-data")),
    ],
)
async def test_the_user_of_an_image(
    node: Node, publisher: Publisher, user: str, expected: tuple[int | None, str]
) -> None:
    publisher.publish(node.source, publisher.build("one", config=ImageConfig(architecture="amd64", user=user)))
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    assert node.service.user_of(record) == expected


async def test_verbose_information(node: Node, image: BuiltImage) -> None:
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    info = json.loads(node.service.info(record)["info"])
    assert info["chainID"] == chain(image.diff_ids)[-1]
    assert info["imageSpec"]["rootfs"]["diff_ids"] == list(image.diff_ids)


async def test_the_configuration_is_parsed(node: Node, publisher: Publisher) -> None:
    config = ImageConfig(architecture="amd64", entrypoint=("/bin/app",), cmd=("-v",), volumes=("/data",))
    publisher.publish(node.source, publisher.build("one", config=config))
    await node.pull()
    record = node.service.find(NAME)
    assert record is not None
    parsed = node.service.config_of(record)
    assert (parsed.config.entrypoint, parsed.config.cmd) == (("/bin/app",), ("-v",))
    assert list(parsed.config.volumes) == ["/data"]
    assert node.service.config_of(record) is parsed


async def test_file_systems(node: Node, image: BuiltImage) -> None:
    other = node.add_snapshotter("vm")
    await node.pull()
    node.snapshotter.snapshots |= {"one": None, "two": None}
    images, containers = await node.service.filesystems()
    assert [report.mountpoint for report in images] == [
        str(driver.host.state_dir) for driver in (node.snapshotter, other)
    ]
    assert images[0].usage.used_bytes > 3 * 4096 + sum(layer.size for layer in image.layers)
    assert images[1].usage.used_bytes == 0
    assert [report.usage.inodes for report in containers] == [2, 0]


@pytest.mark.parametrize("hook", ["total_usage", "list_snapshots"])
async def test_a_file_system_that_cannot_be_measured(node: Node, image: BuiltImage, hook: str) -> None:
    """The kubelet takes the first report for the image file system: that is the default one, or there is none."""
    other = node.add_snapshotter("vm")
    await node.pull()
    other.fail(hook, DriverError("no answer today"))
    images, containers = await node.service.filesystems()
    first = str(node.snapshotter.host.state_dir)
    assert [one.mountpoint for one in (images if hook == "total_usage" else containers)] == [first]
    node.snapshotter.fail("list_snapshots", DriverError("no answer today"))
    with pytest.raises(DriverError, match="no answer today"):
        await node.service.filesystems()


async def test_a_container_that_goes_meanwhile_counts_nothing(node: Node) -> None:
    node.snapshotter.snapshots["one"] = None
    node.snapshotter.fail("usage", DriverError("gone"))
    _, containers = await node.service.filesystems()
    assert containers[0].usage.inodes == 0


def test_a_tag_has_an_image_for_each_platform(node: Node) -> None:
    """It leaves the image of its own platform alone; an artifact has none, and takes it from all."""
    catalog, tag = Catalog(node.store, ()), "docker.io/library/app:1"

    def add(digit: str, **facts: str) -> str:
        return catalog.add(ImageRecord(id=f"sha256:{digit * 64}", tags=(tag,), **facts)).id  # type: ignore[arg-type]

    def found(platform: str | None) -> str | None:
        record = catalog.find("app:1", platform)
        return None if record is None else record.id

    first, module = add("1"), add("2", platform="wasi/wasm")
    assert (found(""), found("wasi/wasm"), found(None), found("other")) == (first, module, first, None)
    catalog.tidy()
    second = add("3")
    assert (found(""), found("wasi/wasm")) == (second, module)
    record = node.store.images.get(first)
    assert record is not None and record.tags == ()
    artifact = add("4", artifact="text/plain")
    assert {found(platform) for platform in ("", "wasi/wasm", None)} == {artifact}
