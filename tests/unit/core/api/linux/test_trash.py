"""Trees thrown away: gone at once, removed in the background, tried again where they can't be."""

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from crinoid.core.api import backoff
from crinoid.core.api.linux import trash as trash_module
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.api.linux.trash import Trash
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.values.snapshot import DiskUsage

LOG = logging.getLogger("test")


def make_tree(directory: Path) -> Path:
    (directory / "below").mkdir(parents=True)
    (directory / "below/file").write_bytes(b"x" * 5000)
    return directory


def test_what_is_thrown_away_is_gone_and_removed(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash", LOG, {})
    tree = make_tree(tmp_path / "tree")
    trash.throw(tree)
    assert not tree.exists()
    assert trash.wait(patient(30))
    assert os.listdir(tmp_path / "trash") == []
    assert trash.usage() == DiskUsage(0, 0)
    trash.throw(make_tree(tree))  # its thread has ended, or is just ending
    assert trash.wait(patient(30))


def test_a_start_goes_on_with_what_was_left(tmp_path: Path) -> None:
    make_tree(tmp_path / "trash" / "12-left")
    trash = Trash(tmp_path / "trash", LOG, {})
    assert trash.usage().inodes == 3
    trash.start()
    assert trash.wait(patient(30))


def test_what_fails_waits_longer_each_time_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    def refuse_twice(path: Path) -> None:
        if not path.name.startswith("0-"):
            return remove_tree(path)
        tries.append(time.monotonic())
        if len(tries) <= 2:
            raise OSError(errno.EPERM, "immutable", str(path))
        return remove_tree(path)

    monkeypatch.setattr(trash_module, "remove_tree", refuse_twice)
    monkeypatch.setattr(backoff, "FIRST_S", 0.1)
    bad = make_tree(tmp_path / "trash" / "0-bad")
    unremoved: dict[str, str] = {}
    trash = Trash(tmp_path / "trash", LOG, unremoved)
    trash.start()
    assert not trash.wait(patient(30))
    assert list(unremoved) == [str(bad)]
    other = make_tree(tmp_path / "other")
    trash.throw(other)
    deadline = time.monotonic() + patient(30)
    while (os.listdir(tmp_path / "trash") or unremoved) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.listdir(tmp_path / "trash") == []
    first, second, third = tries
    assert second - first >= 0.1 and third - second >= 0.2
    assert "immutable" in caplog.text and str(bad) in caplog.text
