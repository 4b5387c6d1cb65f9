"""What the erofs snapshotter has of its own: mounts of layers that several roots share, and files that are layers."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from integration.pods import until

CONFIG = """
[runtimes.runc]
driver = "runc"
snapshotter = "images"
[snapshotters.images]
driver = "erofs"
"""


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with own_node(tmp_path_factory.mktemp("erofs"), CONFIG) as node:
        yield node


@pytest.fixture
def node(module_node: Node) -> Iterator[Node]:
    yield module_node
    module_node.remove_pods()


def layer_mounts(node: Node) -> list[str]:
    """Return where layers are mounted in the daemon's mount namespace."""
    assert node.daemon.process is not None
    lines = Path(f"/proc/{node.daemon.process.pid}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if f" {node.daemon.run}/snap/" in line and " - erofs " in line]


def run(node: Node, pod: str, name: str) -> str:
    return node.run_container(pod, "sleep", "1000", name=name)


def test_a_layer_is_mounted_once_and_over_a_kill(node: Node) -> None:
    pod = node.run_pod(handler="runc")
    one, two = run(node, pod, "one"), run(node, pod, "two")
    mounts = layer_mounts(node)
    assert len(mounts) == len(set(mounts)) > 0
    node.daemon.kill()
    node.daemon.start()
    assert layer_mounts(node) == mounts
    assert node.execute(one, "sh", "-c", "cat /bin/busybox >/dev/null")[0] == 0
    three = run(node, pod, "three")
    assert layer_mounts(node) == mounts
    for container in (one, two):
        node.call("RemoveContainer", container_id=container)
        assert layer_mounts(node) == mounts
    assert node.execute(three, "echo", "here") == (0, "here\n", "")
    node.call("RemoveContainer", container_id=three)
    assert layer_mounts(node) == []


def test_mounts_of_containers_that_nobody_remembers_are_undone(node: Node) -> None:
    """The records are gone, as after a kill before they are written: the ledger tells what to undo."""
    pod = node.run_pod(handler="runc")
    run(node, pod, "one")
    assert layer_mounts(node)
    node.daemon.kill()
    node.daemon.change("DELETE FROM containers")
    node.daemon.start()
    until(lambda: not layer_mounts(node))


def test_removing_an_image_takes_its_files(node: Node) -> None:
    pod = node.run_pod(handler="runc")
    run(node, pod, "one")
    (root,) = node.daemon.root.glob("plugins/snapshotter/*images*/snapshots/layers")
    images = list(root.glob("*/fs/layer.erofs"))
    assert images
    assert {stat.S_IMODE(image.stat().st_mode) for image in images} == {0o600}
    assert len(list(root.glob("*/fs/digest"))) == len(images)
    node.remove_pods()
    node.call("RemoveImage", image={"image": BUSYBOX})
    until(lambda: not list(root.glob("*/fs/layer.erofs")))
    node.pull()


def test_nothing_writes_to_a_layer(node: Node) -> None:
    pod = node.run_pod(handler="runc")
    container = run(node, pod, "one")
    assert node.daemon.process is not None
    for mount in layer_mounts(node):
        with pytest.raises(OSError, match="Read-only"):
            Path(f"/proc/{node.daemon.process.pid}/root{mount}/new").touch()
    assert node.execute(container, "sh", "-c", "echo x >/bin/busybox.new; rm /etc/passwd")[0] == 0
    assert node.execute(run(node, pod, "two"), "cat", "/etc/passwd")[0] == 0
