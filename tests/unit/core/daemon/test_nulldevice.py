"""What is said of the host's null device."""

import os
from pathlib import Path

import pytest

from crinoid.core.daemon.nulldevice import find_problem


@pytest.mark.skipif(os.geteuid() != 0, reason="making devices needs root")
def test_a_null_device_is_roots_and_for_all(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
    device.chmod(0o666)
    assert find_problem(device) == ""
    device.chmod(0o644)
    assert f"mode 644: chown 0:0 {device} && chmod 666" in find_problem(device)
    device.chmod(0o666)
    os.chown(device, 1000, 5)
    assert "is 1000:5's" in find_problem(device)


def test_what_is_no_null_device(tmp_path: Path) -> None:
    assert "can't be had: No such file" in find_problem(tmp_path / "null")
    (tmp_path / "null").touch(mode=0o666)
    assert "is not the null device" in find_problem(tmp_path / "null")
