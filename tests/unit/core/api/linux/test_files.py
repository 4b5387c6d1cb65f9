"""Whole files, confined opening, measuring and removing trees, also very deep ones and ones with traps."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crinoid.core.api.linux import files, libc

_IN_OPEN = 0x20  # inotify(7)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old and long")
    files.write_atomically(target, b"new", mode=0o640)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        files.write_atomically(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_write_leaves_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    if (child := os.fork()) == 0:
        monkeypatch.setattr(os, "rename", lambda *_: os._exit(0))
        files.write_atomically(tmp_path / "a", b"new")
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 2
    files.remove_unfinished_writes(tmp_path)
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "up").symlink_to("../secret")
    (root / "abs").symlink_to("/inner")
    (root / "inner").write_text("inner")
    assert files.read_regular("/abs", 100, root) == b"inner"
    for name in ("up", "../secret", "/../secret"):
        with pytest.raises(FileNotFoundError):
            files.read_regular(name, 100, root)


def test_traps_for_readers_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"x" * 11)
    (tmp_path / "directory").mkdir()
    for name, code in (
        ("fifo", errno.EINVAL),
        ("long", errno.EFBIG),
        ("directory", errno.EINVAL),
        ("none", errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            files.read_regular(name, 10, tmp_path)
        assert caught.value.errno == code
        assert name in str(caught.value)
        with pytest.raises(OSError) as caught:
            files.read_regular(tmp_path / name, 10)
        assert caught.value.errno == code
        assert str(tmp_path / name) in str(caught.value)


def test_what_is_no_regular_file_is_not_opened_at_all(tmp_path: Path) -> None:
    """Some devices act when they are opened; an image may have any of them in the place of a file."""
    os.mkfifo(tmp_path / "fifo")
    watch = libc.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        libc.call("inotify_add_watch", watch, os.fsencode(tmp_path / "fifo"), _IN_OPEN)
        for place in (("fifo", 9, tmp_path), (tmp_path / "fifo", 9)):
            with pytest.raises(OSError, match="not a regular file"):
                files.read_regular(*place)
        with pytest.raises(BlockingIOError):
            os.read(watch, 100)
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        assert os.read(watch, 100), "an open would have been seen"
    finally:
        os.close(watch)


def test_usage_counts_blocks_and_each_inode_once(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "a").write_bytes(b"x" * 10_000)
    os.link(top / "a", top / "b")
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (top / "out").symlink_to("/usr")
    usage = files.disk_usage(top)
    assert usage.inodes == 4
    expected = sum((top / name).lstat().st_blocks for name in (".", "a", "sparse", "out"))
    assert usage.used_bytes == expected * 512 < 1 << 20


def test_usage_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.disk_usage(tmp_path / "none")


def test_a_tree_deeper_than_path_max_is_measured_and_removed(tmp_path: Path) -> None:
    depth = 1500
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("0123456789", dir_fd=fd)
        below = os.open("0123456789", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert files.disk_usage(top).inodes == depth + 1
    files.remove_tree(top)
    assert not top.exists()


def test_what_can_not_be_removed_stays_and_all_else_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An immutable file, as ``chattr +i`` makes one."""
    top = tmp_path / "top"
    for directory in ("a", "b/c", "d"):
        (top / directory).mkdir(parents=True)
        for name in ("stays" if directory == "b/c" else "x", "y"):
            (top / directory / name).touch()
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        if path == "stays":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as immutable:
        immutable.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError, match=f"not permitted: 'stays in {top}'"):
            files.remove_tree(top)
    assert sorted(str(path.relative_to(top)) for path in top.rglob("*")) == ["b", "b/c", "b/c/stays"]
    files.remove_tree(top)
    assert not top.exists()


def test_several_threads_remove_the_same_tree(tmp_path: Path) -> None:
    """Deep enough for directories to be moved up on the way, which the others find there, or find gone."""
    for round_ in range(8):
        top = tmp_path / str(round_)
        for branch in range(4):
            path = top / str(branch)
            for level in range(150):
                path /= str(level)
            path.mkdir(parents=True)
            (path / "file").touch()
        with ThreadPoolExecutor(3) as threads:
            for done in [threads.submit(files.remove_tree, top) for _ in range(3)]:
                done.result()
        assert not top.exists()


def test_removing_follows_no_link_and_is_idempotent(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    (top / "directory").mkdir(parents=True)
    (top / "directory" / "file").touch()
    (top / "link").symlink_to(kept)
    (tmp_path / "direct").symlink_to(kept)
    for path in (top, top, tmp_path / "direct"):
        files.remove_tree(path)
        assert not os.path.lexists(path)
    assert (kept / "file").exists()
