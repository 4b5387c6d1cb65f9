"""Relabelling of trees, with an attribute that any file system of a test host may keep."""

import os
from pathlib import Path

import pytest

from crinoid.core.api.linux import lsm

ATTRIBUTE = "user.crinoid-test"


def labels(*paths: Path) -> list[bytes]:
    return [os.getxattr(path, ATTRIBUTE, follow_symlinks=False) for path in paths]


def has_attributes(directory: Path) -> bool:
    try:
        os.setxattr(directory, ATTRIBUTE, b"x")
    except OSError:
        return False
    return True


def test_a_tree_is_relabelled_and_links_are_not_followed(tmp_path: Path) -> None:
    if not has_attributes(tmp_path):
        pytest.skip("the file system keeps no attributes of users")
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").touch()
    outside.mkdir()
    (outside / "file").touch()
    os.setxattr(outside / "file", ATTRIBUTE, b"kept")
    (tree / "directory").symlink_to(outside)
    with pytest.raises(OSError, match="not permitted"):  # links keep none of these attributes: here the walk came by
        lsm.relabel(tree, "a:b:c:s0", ATTRIBUTE)
    (tree / "directory").unlink()
    lsm.relabel(tree, "a:b:c:s0", ATTRIBUTE)
    assert labels(tree, tree / "below", tree / "below" / "file") == [b"a:b:c:s0\0"] * 3
    assert labels(outside / "file") == [b"kept"]


def test_a_file_system_without_labels_is_left_alone(tmp_path: Path) -> None:
    lsm.relabel(Path("/proc/self/status"), "label", ATTRIBUTE)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lsm.relabel(tmp_path / "absent", "label", ATTRIBUTE)
