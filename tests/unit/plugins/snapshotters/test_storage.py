"""Directories and records: what a kill at any moment leaves, damaged records, rubbish of processes that are gone."""

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition, NotFound
from crinoid.core.api.linux import trash as trash_module
from crinoid.core.api.linux.files import disk_usage, remove_tree
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.plugins.snapshotters import storage as storage_module
from crinoid.plugins.snapshotters.records import NOT_MEASURED
from crinoid.plugins.snapshotters.storage import Storage, _is_mounted

LOG = logging.getLogger("test")
DEAD = "4194304-1-0badcafe"  # of a process that no kernel has

# Makes and removes layers and snapshots without end, in an order that a number gives.
CHURN = """
import logging, random, sys
from pathlib import Path
from crinoid.plugins.snapshotters.storage import Storage

def fill(directory):
    for number in range(5):
        (directory / str(number)).mkdir()
        (directory / str(number) / "file").write_text("x" * 5000)

storage, rng = Storage(Path(sys.argv[1]), logging.getLogger(), {}), random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    key, _ = storage.prepare(None, fill)
    chain = f"chain-{rng.randrange(4)}"
    rng.choice([storage.discard, lambda key: storage.commit(key, chain, None)])(key)
    name = f"snapshot-{rng.randrange(4)}"
    storage.remove_snapshot(name)
    storage.create(name, None, False, fill)
    for layer in storage.layers():
        if rng.random() < 0.3:
            storage.remove_layer(layer.chain_id)
"""


def nothing(directory: Path) -> None:
    """Leave the directory empty."""


def add(storage: Storage, chain_id: str, parent: str | None = None) -> None:
    key, _ = storage.prepare(parent, nothing)
    storage.commit(key, chain_id, parent)


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_moment_leaves_layers_whole_or_absent(tmp_path: Path, seed: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path), str(seed)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
        time.sleep(random.Random(seed).uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    storage = Storage(tmp_path, LOG, {})
    storage.begin_cleanup()
    for layer in storage.layers():
        (tree,) = storage.stack(layer.chain_id)
        assert len(list(tree.rglob("file"))) == 5
        assert disk_usage(tree) == storage.layer_usage(layer.chain_id)
    for key in storage.unfinished():
        storage.discard(key)
    for snapshot in storage.snapshots():
        assert len(list(storage.snapshot_directory(snapshot).glob("fs/*/file"))) == 5
        storage.remove_snapshot(snapshot.key)
    for layer in storage.layers():
        storage.remove_layer(layer.chain_id)
    assert storage.trash.wait(patient(30))
    assert [path for path in tmp_path.rglob("*") if path.parent != tmp_path] == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"chain_id": "base"}', "null"])
def test_a_damaged_layer_is_none_and_those_on_it_wait_for_it(tmp_path: Path, damage: str) -> None:
    storage = Storage(tmp_path, LOG, {})
    add(storage, "base")
    add(storage, "top", "base")
    add(storage, "other")
    (record,) = [
        path for path in tmp_path.glob("layers/*/layer.json") if json.loads(path.read_text())["chain_id"] == "base"
    ]
    record.write_text(damage)
    after = Storage(tmp_path, LOG, {})
    assert [after.is_whole(chain_id) for chain_id in ("base", "top", "other")] == [False, False, True]
    with pytest.raises(NotFound, match="base"):
        after.stack("top")
    after.begin_cleanup()
    assert len(list(tmp_path.glob("layers/*"))) == 2
    add(after, "base")
    assert after.is_whole("top")
    for chain_id in ("top", "base"):
        after.remove_layer(chain_id)
    assert [layer.chain_id for layer in Storage(tmp_path, LOG, {}).layers()] == ["other"]


def test_what_a_container_may_live_on_is_left_though_its_record_is_damaged(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})
    add(storage, "base")
    storage.create("container", "base", False, nothing)
    (record,) = tmp_path.glob("layers/*/layer.json")
    record.write_text("")
    after = Storage(tmp_path, LOG, {})
    after.begin_cleanup()
    assert record.parent.is_dir()
    after.remove_snapshot("container")
    Storage(tmp_path, LOG, {}).begin_cleanup()
    assert not record.parent.exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "1 2 0:40 / /run/c/rootfs rw - overlay overlay rw,lowerdir=/x/layers/1/fs,upperdir=/mnt/own/snapshots/5/fs",
            True,
        ),
        ("1 2 0:40 / /run/c/rootfs rw - overlay overlay rw,upperdir=/other/snapshots/5/fs", False),
        ("1 2 8:1 /mnt/own/snapshots/5/fs /run/c/rootfs rw - ext4 /dev/sda1 rw", True),
        ("1 2 8:2 /snapshots/5/fs /run/c/rootfs rw - ext4 /dev/sdb rw", True),  # the root is a disk of its own
        ("1 2 8:1 /data/store/snapshots/5/fs /run/c/rootfs rw - ext4 /dev/sda1 rw", True),  # or a link, or bound
        ("1 2 8:2 /snapshots/55/fs /run/c/rootfs rw - ext4 /dev/sdb rw", False),
        ("1 2 8:2 / /snapshots/5/fs rw - ext4 /dev/sdb rw", False),
    ],
)
def test_what_is_mounted_somewhere_is_found_wherever_the_root_lies(line: str, expected: bool) -> None:
    """A bind mount is told by the path in its file system, which need not have the root's name in it."""
    other = "3 4 0:5 / /proc rw - proc proc rw"
    assert _is_mounted(Path("/mnt/own/snapshots/5"), f"{other}\n{line}\n") is expected
    assert not _is_mounted(Path("/mnt/own/snapshots/5"), "")


@pytest.mark.parametrize("lost", ["fs", "."])
@pytest.mark.parametrize("restart", [False, True])
def test_a_layer_whose_tree_is_lost_can_be_made_again(tmp_path: Path, lost: str, restart: bool) -> None:
    storage = Storage(tmp_path, LOG, {})
    add(storage, "base")
    add(storage, "top", "base")
    storage.create("container", "top", False, nothing)
    base = storage.stack("base")[0]
    remove_tree(base.parent / lost)
    storage = Storage(tmp_path, LOG, {}) if restart else storage
    assert not storage.is_whole("base") and not storage.is_whole("top")
    add(storage, "base")
    for found in (storage, Storage(tmp_path, LOG, {})):
        assert found.is_whole("top")
        assert found.stack("base")[0] != base
    assert not base.parent.exists()
    with pytest.raises(FailedPrecondition, match="layer top"):
        storage.remove_layer("base")


def test_removing_is_a_rename_and_what_can_not_be_emptied_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EPERM, "immutable", str(path))

    monkeypatch.setattr(trash_module, "remove_tree", refuse)
    unremoved: dict[str, str] = {}
    storage = Storage(tmp_path, LOG, unremoved)
    key, directory = storage.prepare(None, nothing)
    (directory / "file").write_bytes(b"x" * 5000)
    storage.commit(key, "chain", None)
    storage.create("container", "chain", False, nothing)
    before = storage.total_usage()
    storage.remove_snapshot("container")
    storage.remove_layer("chain")
    assert storage.layers() == () and storage.snapshots() == ()
    assert not storage.trash.wait(patient(30))
    assert len(unremoved) == 2
    assert storage.total_usage().used_bytes >= before.used_bytes, "disk that is not free counts"
    again = Storage(tmp_path, LOG, {})
    again.begin_cleanup()
    assert not again.trash.wait(patient(30))
    monkeypatch.undo()
    last = Storage(tmp_path, LOG, {})
    last.begin_cleanup()
    assert last.trash.wait(patient(30))
    assert last.total_usage() == DiskUsage(0, 0)


def test_only_rubbish_of_processes_that_are_gone_is_removed(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})
    (tmp_path / "scratch" / DEAD / "fs").mkdir(parents=True)
    mine = storage.new_scratch()
    mine.mkdir()
    storage.begin_cleanup()
    assert list((tmp_path / "scratch").iterdir()) == [mine]
    assert storage.trash.wait(patient(30))


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    one, _ = Storage(tmp_path, LOG, {}).prepare(None, nothing)
    two, _ = Storage(tmp_path, LOG, {}).prepare(None, nothing)
    assert one.partition("-")[0] != two.partition("-")[0]


def test_a_parent_that_something_is_prepared_on_stays(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})
    add(storage, "base")
    key, _ = storage.prepare("base", nothing)
    with pytest.raises(FailedPrecondition, match=f"prepared layer {key}"):
        storage.remove_layer("base")
    storage.discard(key)
    storage.remove_layer("base")


def test_a_layer_is_not_committed_before_its_parent(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})
    key, _ = storage.prepare("base", nothing)
    with pytest.raises(NotFound, match="before its parent base"):
        storage.commit(key, "top", "base")
    assert storage.unfinished() == (key,)
    add(storage, "base")
    storage.commit(key, "top", "base")


def test_what_fails_to_be_filled_is_not_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise OSError(5, "the disk is ill")

    with pytest.raises(OSError, match="ill"):
        storage.prepare(None, fail)
    with pytest.raises(OSError, match="ill"):
        storage.create("container", None, False, fail)
    assert storage.unfinished() == ()
    assert storage.snapshots() == ()
    assert storage.trash.wait(patient(30))
    assert [path for path in tmp_path.rglob("*") if path.parent != tmp_path] == []
    assert os.listdir(tmp_path / "scratch") == []


def test_what_of_a_failed_snapshot_can_not_be_removed_at_once_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, LOG, {})

    def fail(directory: Path) -> None:
        raise OSError(errno.EIO, "the disk is ill")

    with monkeypatch.context() as patched:
        patched.setattr(storage_module, "remove_tree", fail_to_remove)
        with pytest.raises(OSError, match="the disk is ill"):
            storage.create("container", None, False, fail)
    assert os.listdir(tmp_path / "scratch") == []
    assert storage.trash.wait(patient(30))


def fail_to_remove(directory: Path) -> None:
    raise OSError(errno.EBUSY, f"{directory} is in use")


def test_a_layer_is_measured_when_asked_for_and_then_remembered(tmp_path: Path) -> None:
    storage = Storage(tmp_path, LOG, {})
    key, directory = storage.prepare(None, nothing)
    (directory / "file").write_bytes(b"x" * 5000)
    storage.commit(key, "chain", None)
    assert storage.layer("chain").usage == NOT_MEASURED
    (tree,) = storage.stack("chain")
    usage = disk_usage(tree)
    assert storage.layer_usages() == [usage]
    (tree / "file").unlink()
    assert storage.layer_usage("chain") == usage
    assert Storage(tmp_path, LOG, {}).layer_usage("chain") == usage


def test_a_full_disk_hinders_no_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    storage = Storage(tmp_path, LOG, {})
    add(storage, "chain")
    monkeypatch.setattr(storage_module, "write_atomically", refuse)
    assert storage.layer_usage("chain").inodes == 1


def test_a_layer_that_goes_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(path: Path) -> DiskUsage:
        storage.remove_layer("chain")
        return disk_usage(path)

    storage = Storage(tmp_path, LOG, {})
    add(storage, "chain")
    monkeypatch.setattr(storage_module, "disk_usage", lose)
    assert storage.layer_usages() == []
    with pytest.raises(NotFound):
        storage.layer_usage("chain")
