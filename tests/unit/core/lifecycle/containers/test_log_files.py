"""A log's place: made where it can be, and refused by name where anything but a file is."""

import os
import socket
import stat
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.lifecycle.containers.log_files import prepare_log


def test_directories_are_made_and_a_log_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "pods").symlink_to(tmp_path / "moved")
    prepare_log(tmp_path / "pods/p1", "app/0.log")
    assert (tmp_path / "moved/p1/app").is_dir(), "an operator may move the node's log directory by a link"
    (tmp_path / "pods/p1/app/0.log").write_text("old\n")
    prepare_log(tmp_path / "pods/p1", "app/./0.log/")
    assert (tmp_path / "pods/p1/app/0.log").read_text() == "old\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").write_text("")
    (tmp_path / "symbolic link").symlink_to("target")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 7))
    for kind in ("FIFO", "directory", "symbolic link", "socket", "device"):
        if (tmp_path / kind).exists():
            with pytest.raises(FailedPrecondition, match=f"log {tmp_path}/{kind} can't be written: it is a {kind}"):
                prepare_log(tmp_path, kind)


def test_no_link_leads_out_of_the_pods_directory(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/out").symlink_to(tmp_path)
    (tmp_path / "logs/loop").symlink_to("loop")
    for path in ("out/x.log", "loop/x.log", "out/deeper/x.log"):
        with pytest.raises(FailedPrecondition, match="can't be made: Not a directory"):
            prepare_log(tmp_path / "logs", path)
    assert not (tmp_path / "deeper").exists()


@pytest.mark.parametrize("path", [".", "x" * 252, "/".join(["x" * 100] * 41), "é" * 130])
def test_paths_that_can_be_no_logs(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match="can't be a log's"):
        prepare_log(tmp_path, path)
    prepare_log(tmp_path, "x" * 251)
