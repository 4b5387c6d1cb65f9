"""Mounts and devices of containers."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.node import LENIENT, OLD, UNKNOWN, Node, Pod, case, differs, wait_for


@pytest.fixture
def directory(node: Node) -> Path:
    """A directory on the node with a file in it."""
    path = node.make_directory()
    (path / "file").write_text("content\n")
    return path


@pytest.fixture
def shared(node: Node) -> Iterator[Path]:
    """A shared mount on the node."""
    path = node.make_directory()
    with mounted(path, "--bind", str(path)):
        subprocess.run(["mount", "--make-shared", path], check=True)
        yield path


@contextlib.contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    """A mount on the node for as long as the context lasts."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", target], check=False)


def _mount(source: object, target: str = "/mnt", **more: Any) -> Any:
    return {"mounts": [{"host_path": str(source), "container_path": target, **more}]}


@pytest.mark.parametrize("target", ["/mnt", "/deep/in/it", "/etc", "/tmp/x", "/none/../other"])
def test_a_directory(node: Node, pod: Pod, directory: Path, target: str) -> None:
    there = target.removeprefix("/none/..")
    assert node.script(pod, f"cat {there}/file; echo new > {there}/new", **_mount(directory, target)) == "content"
    assert (directory / "new").read_text() == "new\n"


@pytest.mark.parametrize("target", ["/mnt/file", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/passwd"])
def test_a_file(node: Node, pod: Pod, directory: Path, target: str) -> None:
    assert node.script(pod, f"cat {target}", **_mount(directory / "file", target)) == "content"


@pytest.mark.parametrize("readonly", [True, False])
def test_readonly(node: Node, pod: Pod, directory: Path, readonly: bool) -> None:
    written = node.script(pod, "echo x 2>&1 > /mnt/x || echo refused", **_mount(directory, readonly=readonly))
    assert ("refused" in written) is readonly


def test_the_order_of_mounts_does_not_matter(node: Node, pod: Pod, directory: Path) -> None:
    inner = node.make_directory()
    (inner / "inner").touch()
    (directory / "sub").mkdir()
    mounts = [*_mount(inner, "/mnt/sub")["mounts"], *_mount(directory, "/mnt")["mounts"]]
    assert node.script(pod, "ls /mnt /mnt/sub", mounts=mounts).split() == ["/mnt:", "file", "sub", "/mnt/sub:", "inner"]


def test_a_link_on_the_node_is_followed(node: Node, pod: Pod, directory: Path) -> None:
    link = directory.with_suffix(".link")
    link.symlink_to(directory)
    assert node.script(pod, "cat /mnt/file", **_mount(link)) == "content"


def test_a_link_in_the_image_leads_not_out(node: Node, pod: Pod, directory: Path) -> None:
    """The target is resolved below the container's root."""
    assert node.script(pod, "cat /proc/../mnt/file", **_mount(directory)) == "content"


def test_what_is_absent_on_the_node_is_made_a_directory(node: Node, pod: Pod, directory: Path) -> None:
    absent = directory / "not" / "there"
    assert node.script(pod, "touch /mnt/x && echo made", **_mount(absent)) == "made"
    assert (absent / "x").exists()


def test_one_directory_in_two_containers(node: Node, pod: Pod, directory: Path) -> None:
    node.script(pod, "echo message > /a/note", **_mount(directory, "/a"))
    assert node.script(pod, "cat /b/note", **_mount(directory, "/b")) == "message"


def test_status_tells_the_mounts(node: Node, pod: Pod, directory: Path) -> None:
    (told,) = node.status(node.create(pod, "true", **_mount(directory, readonly=True)))["mounts"]
    assert (told["host_path"], told["container_path"], told["readonly"]) == (str(directory), "/mnt", True)


def test_mounts_on_the_node_are_carried_along(node: Node, pod: Pod, directory: Path) -> None:
    with mounted(directory / "sub", "-t", "tmpfs", "none"):
        (directory / "sub" / "below").touch()
        assert node.script(pod, "ls /mnt/sub", **_mount(directory)) == "below"


@pytest.mark.parametrize(
    ("propagation", "arrives"),
    [
        ("PROPAGATION_PRIVATE", False),
        ("PROPAGATION_HOST_TO_CONTAINER", True),
        ("PROPAGATION_BIDIRECTIONAL", True),
    ],
)
def test_mounts_from_the_node(node: Node, shared: Path, propagation: str, arrives: bool) -> None:
    pod = node.run_pod(security={"privileged": True})
    container = node.idle(pod, security={"privileged": True}, **_mount(shared, propagation=propagation))
    with mounted(shared / "late", "-t", "tmpfs", "none"):
        (shared / "late" / "file").touch()
        assert (node.execute(container, "ls", "/mnt/late")[1] == "file\n") is arrives
    node.remove_pods(len(node.pods) - 1)


@pytest.mark.parametrize(
    ("propagation", "arrives"), [("PROPAGATION_HOST_TO_CONTAINER", False), ("PROPAGATION_BIDIRECTIONAL", True)]
)
def test_mounts_to_the_node(node: Node, shared: Path, propagation: str, arrives: bool) -> None:
    pod = node.run_pod(security={"privileged": True})
    container = node.idle(pod, security={"privileged": True}, **_mount(shared, propagation=propagation))
    script = "mkdir /mnt/made && mount -t tmpfs none /mnt/made && touch /mnt/made/file"
    assert node.execute(container, "sh", "-c", script)[0] == 0
    assert (shared / "made" / "file").exists() is arrives
    assert node.execute(container, "umount", "/mnt/made")[0] == 0
    node.remove_pods(len(node.pods) - 1)


@pytest.mark.parametrize("propagation", ["PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL"])
@differs(containerd=UNKNOWN)
def test_propagation_needs_a_shared_mount(node: Node, pod: Pod, directory: Path, propagation: str) -> None:
    with mounted(directory, "--bind", str(directory)):
        subprocess.run(["mount", "--make-private", directory], check=True)
        config = _mount(directory, propagation=propagation)
        node.refuse_container(pod, "FAILED_PRECONDITION", security={"privileged": True}, **config)


@differs(containerd=OLD)
def test_recursive_read_only(node: Node, pod: Pod, directory: Path) -> None:
    with mounted(directory / "sub", "-t", "tmpfs", "none"):
        config = _mount(directory, readonly=True, recursive_read_only=True)
        assert node.script(pod, "touch /mnt/sub/x 2>/dev/null || echo refused", **config) == "refused"


def test_readonly_alone_is_not_recursive(node: Node, pod: Pod, directory: Path) -> None:
    with mounted(directory / "sub", "-t", "tmpfs", "none"):
        assert node.script(pod, "touch /mnt/sub/x && echo written", **_mount(directory, readonly=True)) == "written"


@differs(containerd=OLD)
@pytest.mark.parametrize(
    "more",
    [
        {"recursive_read_only": True},
        {"recursive_read_only": True, "readonly": True, "propagation": "PROPAGATION_HOST_TO_CONTAINER"},
    ],
    ids=["writable", "propagation"],
)
def test_recursive_read_only_needs(node: Node, pod: Pod, shared: Path, more: Any) -> None:
    node.refuse_container(pod, "INVALID_ARGUMENT", **_mount(shared, **more))


@differs(containerd=OLD)
@pytest.mark.parametrize("option", ["noexec", "nosuid", "nodev"])
def test_mount_options(node: Node, pod: Pod, directory: Path, option: str) -> None:
    written = node.script(pod, "grep ' /mnt ' /proc/mounts", **_mount(directory, mount_options=[option]))
    assert option in written.split()[3].split(",")


def test_termination_message(node: Node, pod: Pod, directory: Path) -> None:
    """The kubelet binds an empty file for it, and reads that."""
    (directory / "message").touch()
    node.script(pod, "printf why > /dev/termination-log", **_mount(directory / "message", "/dev/termination-log"))
    assert (directory / "message").read_text() == "why"


def test_a_volume_hides_that_of_the_image(node: Node, pod: Pod, directory: Path) -> None:
    assert node.script(pod, "cat /data/file", image="volume:1", **_mount(directory, "/data")) == "content"


@pytest.mark.parametrize(
    "mount",
    [
        case({"container_path": "", "host_path": "/tmp"}, name="no-target", containerd=UNKNOWN),
        case({"container_path": "/", "host_path": "/tmp"}, name="root", containerd=UNKNOWN),
        case({"container_path": "/mnt"}, name="no-source", containerd=LENIENT),
        case({"container_path": "/mnt", "host_path": "relative"}, name="relative", containerd=LENIENT),
    ],
)
def test_mounts_that_can_not_be(node: Node, pod: Pod, mount: Any) -> None:
    node.refuse_container(pod, "INVALID_ARGUMENT", mounts=[mount])


def _device(source: str, target: str = "", permissions: str = "rwm") -> Any:
    return {"devices": [{"host_path": source, "container_path": target, "permissions": permissions}]}


@pytest.mark.parametrize("target", ["/dev/mine", "/dev/deep/mine", "/mine"])
def test_a_device(node: Node, pod: Pod, target: str) -> None:
    script = f"head -c 4 {target} | od -An -tx1"
    assert node.script(pod, script, **_device("/dev/zero", target)) == "00 00 00 00"


@pytest.mark.parametrize(("permissions", "write"), [("rwm", "written"), ("r", "refused")])
def test_device_permissions(node: Node, pod: Pod, permissions: str, write: str) -> None:
    """A device that no container has by default: the kernel's log."""
    script = "(: >> /dev/log-device) 2>/dev/null && echo written || echo refused"
    assert node.script(pod, script, **_device("/dev/kmsg", "/dev/log-device", permissions)) == write


def test_a_directory_of_devices(node: Node, pod: Pod) -> None:
    config = _device("/dev/net", "/dev/given") if Path("/dev/net/tun").exists() else _device("/dev/pts", "/dev/given")
    assert node.script(pod, "test -d /dev/given && ls /dev/given | wc -l", **config) != "0"


def test_a_device_that_is_a_link(node: Node, pod: Pod) -> None:
    link = node.make_directory() / "link"
    link.symlink_to("/dev/zero")
    assert node.script(pod, "head -c 1 /dev/mine | od -An -tx1", **_device(str(link), "/dev/mine")) == "00"


@pytest.mark.parametrize(
    "device",
    [
        case(_device("/dev/none-such"), name="absent"),
        case(_device("/etc/passwd"), name="file"),
        case(_device(""), name="no-source"),
    ],
)
def test_devices_that_can_not_be(node: Node, pod: Pod, device: Any) -> None:
    codes = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")
    node.refuse_container(pod, *codes, *(() if node.runtime == "crinoid" else ("UNKNOWN",)), **device)


@differs(containerd=LENIENT)
def test_device_permissions_that_can_not_be(node: Node, pod: Pod) -> None:
    node.refuse_container(pod, "INVALID_ARGUMENT", **_device("/dev/null", "/dev/mine", "xyz"))


def test_unlinked_files_stay_until_unmounted(node: Node, pod: Pod, directory: Path) -> None:
    container = node.idle(pod, **_mount(directory / "file", "/mnt/file"))
    (directory / "file").unlink()
    assert node.execute(container, "cat", "/mnt/file")[1] == "content\n"
    node.call("RemoveContainer", container_id=container)
    wait_for(lambda: str(directory) not in Path("/proc/self/mountinfo").read_text())
