"""Directories of devices: what is found in one, and that it leads nowhere else and has an end."""

import os
import stat
from pathlib import Path

import pytest

from crinoid.core.api.bounds import MAX_DEVICES
from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.values.container import DeviceMapping
from crinoid.core.lifecycle.spec import isolation
from crinoid.core.lifecycle.spec.isolation import build_devices, find_devices

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="making devices needs root")


def null(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return path


@needs_root
def test_what_is_found_in_a_directory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    devices = [null(top / "b"), null(top / "a/deep/er"), null(top / "own")]
    null(tmp_path / "outside/x")
    null(top / "a/shm/x")
    null(top / "pts/0")
    (top / "file").write_text("")
    (top / "link").symlink_to(top / "b")
    (top / "out").symlink_to(tmp_path / "outside")
    (top / "a/up").symlink_to("../..")
    os.mkfifo(top / "fifo")
    assert find_devices(top) == sorted(devices)
    assert find_devices(top, {"own", "er"}) == sorted(devices[:2])
    nodes, rules = build_devices([DeviceMapping("/dev/in", str(top), "r")], privileged=False)
    assert [node["path"] for node in nodes] == ["/dev/in/a/deep/er", "/dev/in/b", "/dev/in/own"]
    assert [rule["access"] for rule in rules] == ["rwm", "r", "r", "r"]


@needs_root
def test_other_file_systems_are_not_entered() -> None:
    """``/dev`` has some of its own, which are each container's, and whatever else is mounted there."""
    own = os.stat("/dev").st_dev
    assert all(path.parent.stat().st_dev == own for path in find_devices(Path("/dev")))


def test_a_directory_of_everything_is_refused_before_it_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "MAX_ENTRIES", 100)
    for number in range(101):
        (tmp_path / f"f{number}").touch()
    with pytest.raises(InvalidArgument, match=f"device {tmp_path}: it has more than 100 files"):
        build_devices([DeviceMapping("/x", str(tmp_path))], privileged=False)


def test_the_host_is_not_walked() -> None:
    with pytest.raises((InvalidArgument, FailedPrecondition), match=r"device (directory )?/"):
        build_devices([DeviceMapping("/x", "/")], privileged=False)


def test_too_many_devices_are_refused_by_name() -> None:
    many = [DeviceMapping(f"/dev/x{number}", "/dev/null") for number in range(MAX_DEVICES + 1)]
    with pytest.raises(InvalidArgument, match=f"devices: {MAX_DEVICES + 1} are too many"):
        build_devices(many, privileged=False)
    nodes, _ = build_devices(many[1:], privileged=False)
    assert len(nodes) == MAX_DEVICES
