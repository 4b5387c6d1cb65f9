"""The image service over its socket: names, ids and digests, formats, sizes, removal, and what is told of an image."""

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUSYBOX, Node
from integration.pods import QUICK, Pod, refused, until
from support.archives import END, header
from support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    HOST_ARCHITECTURE,
    OCI_INDEX,
    OCI_MANIFEST,
    BuiltImage,
    Entry,
    ImageConfig,
    build_busybox,
    build_image,
    build_index,
    busybox_layer,
    make_layer,
)
from support.patience import patient
from support.processes import descendants


@pytest.fixture
def layout(node: Node) -> Iterator[Path]:
    """A layout of the test's own; every image that was pulled in the test is removed, but for busybox."""
    before = {one["id"] for one in node.call("ListImages")["images"]}
    yield node.layouts / f"images-{secrets.token_hex(3)}"
    node.remove_pods()
    for one in node.call("ListImages")["images"]:
        if one["id"] not in before:
            node.call("RemoveImage", image={"image": one["id"]})


@pytest.fixture
def name(node: Node) -> str:
    """A name that only this test uses, at a registry that is there."""
    return f"{node.registry.host}/test-{secrets.token_hex(4)}/image:1"


def build(layout: Path, name: str, content: bytes | None = None, **config: Any) -> BuiltImage:
    """Build an image that no other test has, under a name."""
    mark = secrets.token_bytes(8) if content is None else content
    return build_busybox(layout, name, ImageConfig(**config), [Entry(path="mark", content=mark)])


def status(node: Node, name: str, verbose: bool = False) -> dict[str, Any]:
    answer: dict[str, Any] = node.call("ImageStatus", image={"image": name}, verbose=verbose)
    return answer


def listed(node: Node, name: str) -> list[str]:
    return [one["id"] for one in node.call("ListImages", filter={"image": {"image": name}})["images"]]


def test_an_image_by_all_its_names(node: Node, layout: Path) -> None:
    """Tag, short form, digest, id, and beginnings of the id all mean it, in every RPC."""
    built = build(layout, "docker.io/library/mine:1")
    reference = node.registry.push(layout, "docker.io/library/mine:1", "names/mine:1")
    image_id = node.pull(reference)
    assert image_id == built.config.digest
    assert node.pull(reference) == image_id, "again, with nothing to do"
    assert node.pull("mine:1") == image_id, "from a layout, by the short form of the name"
    digest = f"{node.registry.host}/names/mine@{built.manifest.digest}"
    assert node.pull(digest) == image_id
    (told,) = [one for one in node.call("ListImages")["images"] if one["id"] == image_id]
    assert sorted(told["repo_tags"]) == sorted([reference, "docker.io/library/mine:1"])
    assert sorted(told["repo_digests"]) == sorted([digest, f"docker.io/library/mine@{built.manifest.digest}"])
    bare = image_id.removeprefix("sha256:")
    for name in (reference, "mine:1", "docker.io/library/mine:1", digest, image_id, bare, bare[:12], image_id[:20]):
        assert status(node, name)["image"] == told, name
        assert listed(node, name) == [image_id], name
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    for name in (digest, image_id, bare[:12], "mine:1"):
        container = pod.create("true", image=name)
        assert node.status(container)["image_id"] == image_id


def test_an_image_that_is_not_there(node: Node, name: str) -> None:
    for one in (name, "sha256:" + "0" * 64, "0" * 12, "127.0.0.1:1/x@sha256:" + "0" * 64):
        assert status(node, one) == {"info": {}}, one
        assert listed(node, one) == []
        node.call("RemoveImage", image={"image": one})
    with refused("NOT_FOUND", name):
        node.pull(name)
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    with refused("NOT_FOUND", "image 'none:1' of container 'c0' is not on this node: pull it"):
        pod.create("true", image="none:1")
    for rpc in ("ImageStatus", "RemoveImage", "PullImage"):
        with refused("INVALID_ARGUMENT", "image"):
            node.call(rpc, image={"image": ""})
    with refused("INVALID_ARGUMENT", "is not of the form"):
        node.pull("Not A Name")


@pytest.mark.parametrize("by", ["tag", "digest", "id", "short id"])
def test_removal(node: Node, layout: Path, name: str, by: str) -> None:
    """By whatever name, all of the image goes, and its blobs and layers with it; again is no error."""
    built = build(layout, name)
    image_id = node.pull(name)
    names = {
        "tag": name,
        "digest": f"{name.removesuffix(':1')}@{built.manifest.digest}",
        "id": image_id,
        "short id": image_id[7:19],
    }
    layer = built.layers[-1].digest.removeprefix("sha256:")
    assert list(node.daemon.root.rglob(f"*{layer}*"))
    node.call("RemoveImage", image={"image": names[by]})
    for one in names.values():
        assert status(node, one) == {"info": {}}
        node.call("RemoveImage", image={"image": one})
    assert list(node.daemon.root.rglob(f"*{layer}*")) == []
    assert BUSYBOX in [tag for one in node.call("ListImages")["images"] for tag in one["repo_tags"]]


def test_a_container_outlives_its_image(node: Node, layout: Path, name: str) -> None:
    """Its layers stay as long as it is there; it can still be started and looked at."""
    build(layout, name, b"still here")
    image_id = node.pull(name)
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    container = pod.create("cat", "/mark", image=name)
    node.call("RemoveImage", image={"image": image_id})
    assert status(node, image_id) == {"info": {}}
    node.call("StartContainer", container_id=container)
    assert node.wait_exit(container)["exit_code"] == 0
    assert node.log(container) == "still here"
    assert (node.status(container)["image_id"], node.status(container)["image"]["image"]) == (
        image_id,
        name,
    )


def test_a_tag_moves(node: Node, layout: Path) -> None:
    """After a pull a tag means the new image; the old one keeps its digest, and is listed without a tag."""
    first = build(layout, "docker.io/test/moving:1", b"one")
    reference = node.registry.push(layout, "docker.io/test/moving:1", "moving/tag:1")
    old = node.pull(reference)
    build(layout, "docker.io/test/moving:1", b"two")
    node.registry.push(layout, "docker.io/test/moving:1", "moving/tag:1")
    assert status(node, reference)["image"]["id"] == old, "nothing changes by itself"
    new = node.pull(reference)
    assert new != old
    assert status(node, reference)["image"]["id"] == new
    left = status(node, old)["image"]
    assert left["repo_tags"] == []
    assert left["repo_digests"] == [f"{reference.removesuffix(':1')}@{first.manifest.digest}"]


FORMATS = [
    (source, media, compression)
    for source in ("layout", "registry")
    for media in ("oci", "docker")
    for compression in ("gzip", "zstd", "none")
    if (source, media, compression) != ("registry", "docker", "zstd")  # skopeo can't push that
]


@pytest.mark.parametrize(("source", "media", "compression"), FORMATS)
def test_formats(node: Node, layout: Path, name: str, source: str, media: Any, compression: Any) -> None:
    """OCI and Docker media types, each compression, from both sources: a container of each runs."""
    mark = f"{media} {compression}"
    layers = [busybox_layer(), make_layer([Entry(path="mark", content=mark.encode())])]
    built = build_image(layout, name, layers, compression=compression, media=media)
    assert built.manifest.media_type == (OCI_MANIFEST if media == "oci" else DOCKER_MANIFEST)
    reference = name if source == "layout" else node.registry.push(layout, name, f"formats/{media}:{compression}")
    assert node.pull(reference) == built.config.digest
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    assert pod.sh("cat /mark", image=reference) == mark
    node.call("RemoveImage", image={"image": reference})


@pytest.mark.parametrize("source", ["layout", "registry"])
@pytest.mark.parametrize("media", ["oci", "docker"])
def test_an_index_of_several_platforms(node: Node, layout: Path, name: str, source: str, media: Any) -> None:
    """The host's own is chosen; the image's digest is the index's, and both digests name it."""
    layers = {
        name: [busybox_layer(), make_layer([Entry(path="mark", content=name.encode())])] for name in ("own", "other")
    }
    other = "arm64" if HOST_ARCHITECTURE != "arm64" else "amd64"
    images = [
        build_image(layout, "", layers["other"], ImageConfig(architecture=other), media=media),
        build_image(layout, "", layers["other"], ImageConfig(os="windows"), media=media),
        build_image(layout, "", layers["own"], media=media),
    ]
    index = build_index(layout, name, images, media)
    assert index.media_type == (OCI_INDEX if media == "oci" else DOCKER_LIST)
    reference = name if source == "layout" else node.registry.push(layout, name, f"index/{media}:1")
    assert node.pull(reference) == images[2].config.digest
    told = status(node, reference)["image"]
    repository = reference.removesuffix(":1")
    assert told["repo_digests"] == [f"{repository}@{index.digest}"]
    assert status(node, f"{repository}@{images[2].manifest.digest}")["image"] == told
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    assert pod.sh("cat /mark", image=f"{repository}@{index.digest}") == "own"
    node.call("RemoveImage", image={"image": reference})


def test_no_platform_fits(node: Node, layout: Path, name: str) -> None:
    image = build_image(layout, "", [busybox_layer()], ImageConfig(architecture="s390x"))
    build_index(layout, name, [image])
    with refused("FAILED_PRECONDITION", "has no manifest for the platform"):
        node.pull(name)
    assert status(node, name) == {"info": {}}


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [("", None, ""), ("0", "0", ""), ("1000:50", "1000", ""), ("alice", None, "alice"), ("alice:staff", None, "alice")],
)
def test_the_user_of_an_image(node: Node, layout: Path, name: str, user: str, uid: str | None, username: str) -> None:
    """What the kubelet checks runAsNonRoot by."""
    build(layout, name, user=user)
    node.pull(name)
    told = status(node, name)["image"]
    assert (told.get("uid", {}).get("value") if told.get("uid") else None, told["username"]) == (uid, username)


def test_verbose_status(node: Node, layout: Path, name: str) -> None:
    """With the image's configuration, as clients of containerd look for it."""
    build(layout, name, labels={"maker": "me"}, env=("A=b",))
    node.pull(name)
    assert status(node, name)["info"] == {}
    info = json.loads(status(node, name, verbose=True)["info"]["info"])
    assert info["imageSpec"]["config"]["Labels"] == {"maker": "me"}
    assert info["imageSpec"]["config"]["Env"] == ["A=b"]
    assert info["chainID"].startswith("sha256:")


def test_sizes(node: Node, layout: Path, name: str) -> None:
    """An image's size is what was fetched; reports of the file systems count what is pulled and what is written."""
    large = 40_000_000
    layers = [busybox_layer(), make_layer([Entry(path="large", content=os.urandom(large))])]
    built = build_image(layout, name, layers, compression="none")
    node.pull(name)
    size = int(status(node, name)["image"]["size"])
    assert size == sum(layer.size for layer in built.layers) + built.config.size + built.manifest.size
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    pod.sh(f"head -c {large} /dev/zero > /written")

    def used(which: str) -> int:
        return max(int(one["used_bytes"]["value"]) for one in node.call("ImageFsInfo")[which])

    until(lambda: used("image_filesystems") > large, timeout_s=20)  # an earlier answer is given for some seconds
    until(lambda: used("container_filesystems") > large, timeout_s=20)
    answer = node.call("ImageFsInfo")
    for one in (*answer["image_filesystems"], *answer["container_filesystems"]):
        assert Path(one["fs_id"]["mountpoint"]).is_dir()
        assert int(one["timestamp"]) > 1_600_000_000_000_000_000
    assert int(answer["image_filesystems"][0]["inodes_used"]["value"]) > 10


def test_a_layout_that_appears_is_found_without_a_restart(node: Node, layout: Path, name: str) -> None:
    with refused("NOT_FOUND", name):
        node.pull(name)
    built = build(layout, name)
    assert node.pull(name) == built.config.digest


def test_a_daemon_killed_while_it_unpacks(node: Node, layout: Path, name: str) -> None:
    """Its unpackers end with it, and what they had made is gone at the next start; the next pull finds all in order."""
    long = header(b"f", size=b"0") * 200_000  # the same file again and again takes seconds
    build_image(layout, name, [busybox_layer(), long + END])
    unfinished = "plugins/snapshotter/*/snapshots/unfinished/*"
    assert node.daemon.process is not None
    daemon = node.daemon.process.pid
    with ThreadPoolExecutor() as pool:
        pulling = pool.submit(node.pull, name)
        until(lambda: list(node.daemon.root.glob(f"{unfinished}/fs/f")))
        below = descendants(daemon)
        node.daemon.kill()
        assert pulling.exception(patient(60)) is not None
    assert len(below) >= 2, "the process that forks unpackers, and one of them"
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    node.daemon.start()
    assert list(node.daemon.root.glob(unfinished)) == []
    assert listed(node, name) == []
    other = build(layout, f"{name}-other")
    assert node.pull(f"{name}-other") == other.config.digest
