"""What a container changed is found, whatever it did to its files, and comes back by unpacking."""

import os
import tarfile
import threading
from pathlib import Path

import pytest

from crinoid.core.api.errors import CrinoidError, ResourceExhausted, Unsupported
from crinoid.core.api.linux import files
from crinoid.core.lifecycle.checkpoints.root_diff import write_diff


def make_tree(root: Path) -> None:
    for directory in ("same", "gone/deep", "was-directory", "proc"):
        (root / directory).mkdir(parents=True)
    for file in ("same/file", "gone/deep/file", "was-directory/file", "changed", "touched", "mode", "was-file"):
        (root / file).write_text("as it was")
    (root / "link").symlink_to("same")
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**18 + 123456789, 10**18 + 123456789), follow_symlinks=False)


def diff(tmp_path: Path) -> tuple[dict[str, tarfile.TarInfo], tuple[str, ...]]:
    target = tmp_path / "diff.tar"
    deleted = write_diff(tmp_path / "base", tmp_path / "root", target, threading.Event())
    with tarfile.open(target) as archive:
        return {member.name: member for member in archive}, deleted


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tree(tmp_path / "base")
    make_tree(tmp_path / "root")
    return tmp_path / "root"


def keep_times(path: Path) -> None:
    os.utime(path, ns=(10**18 + 123456789, 10**18 + 123456789), follow_symlinks=False)


def test_nothing_changed(root: Path, tmp_path: Path) -> None:
    assert diff(tmp_path) == ({}, ())


def test_each_kind_of_change(root: Path, tmp_path: Path) -> None:
    (root / "changed").write_text("longer than it was")
    os.utime(root / "touched", ns=(5, 10**18 + 123456790))
    (root / "mode").chmod(0o4755)
    (root / "gone/deep/file").unlink()
    (root / "was-directory/file").unlink()
    (root / "was-directory").rmdir()
    (root / "was-directory").write_text("a file now")
    (root / "was-file").unlink()
    (root / "was-file").mkdir()
    (root / "was-file/new").write_text("new")
    (root / "link").unlink()
    (root / "link").symlink_to("else")
    keep_times(root / "link")
    (root / "proc/1").mkdir()
    os.mkfifo(root / "pipe")
    for directory in (root, root / "gone/deep", root / "gone", root / "proc"):
        keep_times(directory)
    found, deleted = diff(tmp_path)
    assert sorted(found) == ["changed", "link", "mode", "pipe", "touched", "was-directory", "was-file", "was-file/new"]
    assert deleted == ("/gone/deep/file",)
    assert found["link"].linkname == "else"
    assert found["mode"].mode == 0o4755
    assert found["pipe"].isfifo()
    assert found["touched"].pax_headers["mtime"] == "1000000000.123456790"


def test_names_of_one_file_stay_so(root: Path, tmp_path: Path) -> None:
    (root / "one").write_text("content")
    (root / "two").hardlink_to(root / "one")
    (root / "three").hardlink_to(root / "same/file")
    found, _ = diff(tmp_path)
    assert (found["two"].islnk(), found["two"].linkname) == (True, "one")
    assert found["three"].isreg(), "the other name is the image's, and not in the archive"


def test_names_that_are_no_text(root: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("x")
    found, _ = diff(tmp_path)
    assert b"\xff\xfe" in {os.fsencode(name) for name in found}


def test_it_can_be_given_up(root: Path, tmp_path: Path) -> None:
    (root / "new").touch()
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CrinoidError, match="not needed any more"):
        write_diff(tmp_path / "base", root, tmp_path / "diff.tar", given_up)


def nest(root: Path, depth: int) -> None:
    """Make directories in each other, and a file in the last; neither by paths, which are bounded, nor by recursion."""
    directory = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=directory)
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
    os.close(directory)


def test_directories_deeper_than_python_recurses(root: Path, tmp_path: Path) -> None:
    nest(root, 1500)
    try:
        found, _ = diff(tmp_path)
    finally:
        files.remove_tree(root)  # pytest's own removal can't
    assert "/".join(["d"] * 1500 + ["new"]) in found


def test_directories_deeper_than_any_path_are_named(root: Path, tmp_path: Path) -> None:
    nest(root, 2200)
    try:
        with pytest.raises(Unsupported, match=r"nested too deeply to be copied, near 'd/d"):
            diff(tmp_path)
    finally:
        files.remove_tree(root)


def test_a_huge_sparse_file_neither_fills_the_disk_nor_outlasts_its_time(root: Path, tmp_path: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    target, given_up = tmp_path / "diff.tar", threading.Event()
    with pytest.raises(ResourceExhausted, match="keep_free_percent"):
        write_diff(tmp_path / "base", root, target, given_up, 100)
    target.unlink()
    threading.Timer(0.3, given_up.set).start()
    with pytest.raises(CrinoidError, match="not needed any more"):
        write_diff(tmp_path / "base", root, target, given_up)
