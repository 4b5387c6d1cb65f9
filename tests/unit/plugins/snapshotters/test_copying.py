"""Trees are copied as they are; what can't be shared is copied, or refused where sharing is wanted."""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import Unsupported
from crinoid.plugins.snapshotters.copying import Interrupted, Reflink, can_reflink, copy_tree

ROOT = os.geteuid() == 0


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    return source, target


def copy(source: Path, target: Path, reflink: Reflink = Reflink.AUTO) -> None:
    copy_tree(source, target, reflink, threading.Event())


def refuse(number: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def describe(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that a copy must keep."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev)
        found[str(path.relative_to(directory))] = (*facts, status.st_nlink, content, xattrs)
    return found


def make_everything(source: Path) -> None:
    (source / "a/b").mkdir(parents=True)
    (source / "a/file").write_bytes(os.urandom(300_000))
    os.link(source / "a/file", source / "a/b/linked")
    (source / "empty").touch()
    (source / "link").symlink_to("a/../../outside")
    os.link(source / "link", source / "link-linked", follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o604)
    (source / "odd \udcff name").write_text("bytes that are no text")
    os.setxattr(source / "a", "user.note", b"of a directory")
    (source / "a").chmod(0o2750)
    if ROOT:
        os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.setxattr(source / "link", "trusted.note", b"of a link", follow_symlinks=False)
        os.setxattr(source / "a/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.chown(source / "a/file", 12, 34)
        (source / "a/file").chmod(0o6711)
        os.setxattr(source / "a/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.chown(source / "link", 56, 78, follow_symlinks=False)
    for path in source.rglob("*"):
        os.utime(path, ns=(1, 1_000_000_000_000_000_007), follow_symlinks=False)


@pytest.mark.parametrize("reflink", [Reflink.AUTO, Reflink.NEVER])
def test_a_tree_is_copied_with_all_its_attributes(trees: tuple[Path, Path], reflink: Reflink) -> None:
    make_everything(trees[0])
    copy(*trees, reflink)
    assert describe(trees[1]) == describe(trees[0])


def test_without_copy_file_range_data_goes_by_hand(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
    make_everything(trees[0])
    copy(*trees)
    assert describe(trees[1]) == describe(trees[0])


def test_other_faults_of_copying_are_not_hidden(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    (trees[0] / "file").write_text("x")
    with pytest.raises(OSError) as caught:
        copy(*trees, Reflink.NEVER)
    assert caught.value.errno == errno.EIO


def test_holes_stay_holes(trees: tuple[Path, Path]) -> None:
    with (trees[0] / "sparse").open("wb") as file:
        file.truncate(1 << 32)
        os.pwrite(file.fileno(), b"middle", 1 << 31)
    copy(*trees)
    status = (trees[1] / "sparse").stat()
    assert status.st_size == 1 << 32
    assert status.st_blocks * 512 < 1 << 20
    with (trees[1] / "sparse").open("rb") as file:
        assert os.pread(file.fileno(), 8, (1 << 31) - 1) == b"\0middle\0"


def test_sharing_that_is_wanted_and_can_not_be_had(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse(errno.EOPNOTSUPP))
    (trees[0] / "file").write_text("x")
    assert not can_reflink(trees[1])
    with pytest.raises(Unsupported, match="reflink"):
        copy(*trees, Reflink.ALWAYS)


def test_a_file_that_is_shared_is_not_copied(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Few test machines have a file system that can: a fake one does as it would."""

    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.sendfile(target, source, 0, 1 << 20)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    (trees[0] / "file").write_text("shared")
    assert can_reflink(trees[1])
    copy(*trees, Reflink.ALWAYS)
    assert (trees[1] / "file").read_text() == "shared"


def test_a_copy_can_be_told_to_give_up(trees: tuple[Path, Path]) -> None:
    (trees[0] / "file").write_text("x")
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Interrupted):
        copy_tree(*trees, Reflink.AUTO, cancelled)
    assert list(trees[1].iterdir()) == []


@pytest.mark.parametrize("name, fails", [("security.selinux", False), ("user.note", True)])
def test_labels_of_absent_security_modules_may_be_lost_but_nothing_else(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str, fails: bool
) -> None:
    (trees[0] / "file").touch()
    monkeypatch.setattr(os, "listxattr", lambda *a, **k: [name])
    monkeypatch.setattr(os, "getxattr", lambda *a, **k: b"x")
    monkeypatch.setattr(os, "setxattr", lambda *a, **k: refuse(errno.EOPNOTSUPP)())
    with pytest.raises(OSError) if fails else contextlib.nullcontext():
        copy(*trees)
