"""Image volumes: an image's files as a volume, whole or in part, read-only, gone with the container."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from integration.conftest import BUSYBOX, SNAPSHOTTERS, Node
from support.images import Entry, build_busybox

DATA = "docker.io/test/data:1"
AT = "/volume"


@pytest.fixture(scope="module", autouse=True)
def data_image(node_of_session: Node) -> Iterator[None]:
    entries = [
        Entry(path="part", kind="directory"),
        Entry(path="part/file", content=b"inner"),
        Entry(path="inside", kind="symlink", target="/part"),
        Entry(path="outside", kind="symlink", target="../../../../../../etc"),
        Entry(path="pipe", kind="fifo"),
    ]
    build_busybox(node_of_session.layouts / "data", DATA, extra=entries)
    node_of_session.pull(DATA)
    yield


def volume(sub_path: str = "", **more: Any) -> dict[str, Any]:
    return {"container_path": AT, "readonly": True, "image": {"image": DATA}, "image_sub_path": sub_path} | more


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_an_image_is_a_read_only_volume(node: Node, snapshotter: str) -> None:
    image_id = node.pull(DATA)
    pod = node.run_pod(handler=f"runc-cni-{snapshotter}")
    container = node.run_container(pod, "sleep", "1000", mounts=[volume()])
    assert node.execute(container, "cat", f"{AT}/part/file") == (0, "inner", "")
    assert node.execute(container, f"{AT}/bin/echo", "runs") == (0, "runs\n", "")
    code, _, error = node.execute(container, "touch", f"{AT}/new")
    assert (code, "Read-only" in error) == (1, True)
    (mount,) = node.status(container)["mounts"]
    assert (mount["image"]["image"], mount["image"]["image_ref"]) == (DATA, image_id)
    assert (mount["host_path"], mount["readonly"]) == ("", True)


@pytest.mark.parametrize("sub_path", ["part", "./part/", "inside"])
def test_a_part_of_an_image(node: Node, sub_path: str) -> None:
    pod = node.run_pod()
    assert node.output(pod, "cat", f"{AT}/file", mounts=[volume(sub_path)]) == "inner"


def test_a_file_of_an_image(node: Node) -> None:
    pod = node.run_pod()
    assert node.output(pod, "cat", AT, mounts=[volume("part/file")]) == "inner"


def test_several_volumes_of_one_image_share_its_snapshot(node: Node) -> None:
    pod = node.run_pod()
    whole = volume(container_path="/whole")
    container = node.run_container(pod, "sleep", "1000", mounts=[volume("part"), whole])
    assert node.execute(container, "cat", f"{AT}/file", "/whole/part/file")[1] == "innerinner"
    kinds = node.daemon.query(f"SELECT kind FROM ledger WHERE owner = '{container}' ORDER BY kind")
    assert [kind for (kind,) in kinds].count("snapshot") == 2


@pytest.mark.parametrize(
    ("sub_path", "code"),
    [
        ("absent", grpc.StatusCode.NOT_FOUND),
        ("part/file/below", grpc.StatusCode.NOT_FOUND),
        ("outside", None),
        ("pipe", grpc.StatusCode.INVALID_ARGUMENT),
        ("../etc", grpc.StatusCode.INVALID_ARGUMENT),
        ("/part", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_sub_path_never_leaves_the_image(node: Node, sub_path: str, code: grpc.StatusCode | None) -> None:
    pod = node.run_pod()
    if code is None:  # the link leads to the image's own /etc
        names = node.output(pod, "ls", AT, mounts=[volume(sub_path)]).split()
        assert "passwd" in names
        assert "debian_version" not in names
        return
    with pytest.raises(grpc.RpcError) as raised:
        node.create(pod, "sleep", "1000", mounts=[volume(sub_path)])
    assert raised.value.code() is code
    assert node.daemon.query(f"SELECT * FROM ledger WHERE owner != '{pod}'") == []


@pytest.mark.parametrize(
    ("mount", "code"),
    [
        (volume(readonly=False), grpc.StatusCode.INVALID_ARGUMENT),
        (volume(host_path="/srv"), grpc.StatusCode.INVALID_ARGUMENT),
        ({"container_path": AT, "host_path": "/srv", "image_sub_path": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
        (volume(image={"image": "docker.io/test/absent:1"}), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_what_is_no_image_volume_is_refused(node: Node, mount: dict[str, Any], code: grpc.StatusCode) -> None:
    pod = node.run_pod()
    with pytest.raises(grpc.RpcError) as raised:
        node.create(pod, "sleep", "1000", mounts=[mount])
    assert raised.value.code() is code


def test_a_volume_outlives_its_image_and_a_restart(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000", mounts=[volume("part")])
    node.call("RemoveImage", image={"image": DATA})
    node.daemon.kill()
    node.daemon.start()
    assert node.execute(container, "cat", f"{AT}/file") == (0, "inner", "")
    node.call("RemoveContainer", container_id=container)
    assert node.pull(DATA)
    assert node.output(pod, "cat", f"{AT}/file", mounts=[volume("part")], image=BUSYBOX, name="again") == "inner"


def test_mount_options_of_an_image_volume(node: Node) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000", mounts=[volume(mount_options=["noexec", "nosuid"])])
    code, _, error = node.execute(container, "sh", "-c", f"{AT}/bin/echo runs")
    assert (code, "Permission denied" in error) == (126, True)
    with pytest.raises(grpc.RpcError) as raised:
        node.create(pod, "sleep", "1000", mounts=[volume(mount_options=["rw"])], name="writing")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
