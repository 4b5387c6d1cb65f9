"""Images: pull, look, list, remove; the many names of one image."""

import contextlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from conformance.node import OLD, UNKNOWN, Node, Pod, case, differs
from support.cri import Json

NO_FILTER = "containerd leaves the filter of ListImages out of account"
SAME = ("same:1", "same:2", "same:3")


def _status(node: Node, reference: str) -> Json | None:
    image: Json | None = node.call("ImageStatus", image={"image": reference}).get("image")
    return image


def _remove(node: Node, reference: str) -> None:
    node.call("RemoveImage", image={"image": reference})


@pytest.fixture
def same(node: Node) -> Iterator[str]:
    """The id of an image that was pulled under three names."""
    ids = {node.pull(name) for name in SAME}
    (one,) = ids
    yield one
    with contextlib.suppress(grpc.RpcError):
        _remove(node, one)


def test_pull_returns_the_id(node: Node) -> None:
    image = node.pull()
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", image)
    assert node.pull() == image


def test_status_tells_of_the_image(node: Node) -> None:
    image = node.pull("layers:1")
    status = _status(node, node.image("layers:1"))
    assert status is not None
    assert status["id"] == image
    assert node.image("layers:1") in status["repo_tags"]
    (digest,) = (one for one in status["repo_digests"] if one.startswith(node.image("layers@")))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest.rpartition("@")[2])
    assert int(status["size"]) > 100_000


@differs(containerd=OLD)
def test_status_has_a_spec(node: Node) -> None:
    node.pull()
    status = _status(node, node.image())
    assert status is not None
    assert status["spec"]["image"]


@pytest.mark.parametrize("form", ["tag", "id", "short id", "bare id", "digest"])
def test_an_image_is_found_by(node: Node, same: str, form: str) -> None:
    status = _status(node, node.image("same:1"))
    assert status is not None
    forms = {
        "tag": node.image("same:2"),
        "id": same,
        "short id": same.removeprefix("sha256:")[:12],
        "bare id": same.removeprefix("sha256:"),
        "digest": next(one for one in status["repo_digests"] if "/same@" in one),
    }
    found = _status(node, forms[form])
    assert found is not None
    assert found["id"] == same


def test_one_image_has_all_its_names(node: Node, same: str) -> None:
    listed = [one for one in node.call("ListImages")["images"] if one["id"] == same]
    assert len(listed) == 1
    assert {node.image(name) for name in SAME} <= set(listed[0]["repo_tags"])


@differs(containerd=NO_FILTER)
@pytest.mark.parametrize("form", ["tag", "id"])
def test_the_list_is_filtered(node: Node, same: str, form: str) -> None:
    wanted = same if form == "id" else node.image("same:3")
    listed = node.call("ListImages", filter={"image": {"image": wanted}})["images"]
    assert [one["id"] for one in listed] == [same]


@pytest.mark.parametrize("reference", ["none.example/such:1", "sha256:" + "0" * 64, "0" * 12])
def test_an_unknown_image_is_no_error(node: Node, reference: str) -> None:
    assert _status(node, reference) is None
    for _ in range(2):
        _remove(node, reference)


@differs(containerd=NO_FILTER)
def test_the_list_is_empty_for_an_unknown_image(node: Node) -> None:
    assert node.call("ListImages", filter={"image": {"image": "none.example/such:1"}})["images"] == []


@pytest.mark.parametrize("form", ["id", "tag"])
def test_removal_takes_all_names(node: Node, same: str, form: str) -> None:
    """The API: the kubelet removes images by id; all references go."""
    _remove(node, same if form == "id" else node.image("same:1"))
    assert [_status(node, node.image(name)) for name in SAME] == [None, None, None]
    assert _status(node, same) is None


@pytest.mark.parametrize(
    ("name", "uid", "username"),
    [("user-name:1", None, "alice"), ("user-id:1", "1000", ""), ("user-pair:1", "1000", ""), ("busybox:1", None, "")],
)
def test_the_images_user_is_told(node: Node, name: str, uid: str | None, username: str) -> None:
    node.pull(name)
    status = _status(node, node.image(name))
    assert status is not None
    assert (status.get("uid") or {}).get("value") == uid
    assert status["username"] == username


def test_verbose_status_has_the_image_configuration(node: Node) -> None:
    node.pull("entry:1")
    answer = node.call("ImageStatus", image={"image": node.image("entry:1")}, verbose=True)
    assert json.loads(answer["info"]["info"])["imageSpec"]["config"]["Entrypoint"] == ["/bin/echo", "entry"]
    assert node.call("ImageStatus", image={"image": node.image("entry:1")})["info"] == {}


def test_pull_by_digest(node: Node) -> None:
    image = node.pull("layers:1")
    status = _status(node, image)
    assert status is not None
    digest = next(one for one in status["repo_digests"] if "/layers@" in one)
    _remove(node, image)
    assert node.call("PullImage", image={"image": digest})["image_ref"] == image
    found = _status(node, digest)
    assert found is not None
    assert node.image("layers:1") not in found["repo_tags"]


def test_pull_chooses_the_platform(node: Node, pod: Pod) -> None:
    node.pull("index:1")
    assert node.script(pod, "cat /extra/file", image="index:1") == "second layer"


def test_layers_and_whiteouts(node: Node, pod: Pod) -> None:
    node.pull("layers:1")
    assert node.script(pod, "cat /extra/file; ls /bin/nc 2>/dev/null", image="layers:1") == "second layer"


def test_pull_of_zstd_layers(node: Node) -> None:
    image = node.pull("zstd:1")
    assert _status(node, image) is not None
    _remove(node, image)


@pytest.mark.parametrize(
    ("name", "credentials"),
    [
        ("busybox:1", {}),
        ("busybox:1", {"username": "nobody", "password": "asked"}),
        ("busybox:1", {"auth": "bm9ib2R5OmFza2Vk"}),
        ("busybox:1", {"username": "u", "password": "p", "server_address": "registry.example"}),
    ],
    ids=["none", "user", "auth", "another-server"],
)
def test_credentials_that_nobody_asks_for_do_no_harm(node: Node, name: str, credentials: Json) -> None:
    assert node.call("PullImage", image={"image": node.image(name)}, auth=credentials)["image_ref"] == node.pull(name)


def test_pull_takes_the_pods_config(node: Node, pod: Pod) -> None:
    spec = {"image": node.image(), "annotations": {"a": "b"}, "user_specified_image": node.image()}
    assert node.call("PullImage", image=spec, sandbox_config=pod.config)["image_ref"] == node.pull()


def test_an_image_in_use_can_be_removed(node: Node, pod: Pod) -> None:
    node.pull("layers:1")
    container = node.idle(pod, image="layers:1")
    _remove(node, node.image("layers:1"))
    assert node.execute(container, "cat", "/extra/file") == (0, "second layer\n", "")
    assert node.status(container)["image_ref"]


@pytest.mark.parametrize("name", ["none-such:1", "busybox:none-such", "busybox@sha256:" + "0" * 64])
def test_pull_of_what_is_not_there(node: Node, name: str) -> None:
    node.refuse("PullImage", "NOT_FOUND", image={"image": node.image(name)})


@pytest.mark.parametrize(
    "reference",
    [
        case("a/UPPER:1", containerd=UNKNOWN),
        case("a b", containerd=UNKNOWN),
        case("-", containerd=UNKNOWN),
        case("x:bad tag", containerd=UNKNOWN),
        case("example.com/a@sha256:short", containerd=UNKNOWN),
        case("http://example.com/a", containerd=UNKNOWN),
    ],
)
def test_pull_of_what_is_no_reference(node: Node, reference: str) -> None:
    node.refuse("PullImage", "INVALID_ARGUMENT", image={"image": reference})


@differs(containerd="containerd 1.6 does not say RegistryUnavailable, by which a kubelet tells what it was")
def test_pull_from_where_nobody_listens(node: Node) -> None:
    message = node.refuse("PullImage", "UNKNOWN", image={"image": "127.0.0.1:1/a/b:1"})
    assert message.startswith("RegistryUnavailable")


@pytest.mark.parametrize("rpc", ["PullImage", "ImageStatus", "RemoveImage"])
@pytest.mark.parametrize("image", [{}, {"image": ""}], ids=["absent", "empty"])
@differs(containerd="containerd reads an empty reference as one of an image that is not there")
def test_a_reference_is_needed(node: Node, rpc: str, image: Json) -> None:
    node.refuse(rpc, "INVALID_ARGUMENT", image=image)


def test_many_pulls_of_one_image(node: Node) -> None:
    _remove(node, node.image("layers:1"))
    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(lambda _: node.pull("layers:1"), range(6)))) == 1


def test_filesystems(node: Node) -> None:
    answer = node.call("ImageFsInfo")
    for usage in [*answer["image_filesystems"], *answer["container_filesystems"]]:
        assert usage["fs_id"]["mountpoint"].startswith("/")
        assert int(usage["timestamp"]) > 0
        assert "used_bytes" in usage
    assert answer["image_filesystems"]


@differs(containerd=OLD)
def test_filesystems_of_writable_layers(node: Node) -> None:
    assert node.call("ImageFsInfo")["container_filesystems"]


def test_nothing_is_pinned_unless_configured(node: Node) -> None:
    status = _status(node, node.pull())
    assert status is not None
    assert status["pinned"] is False
