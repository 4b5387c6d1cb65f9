import os
from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.lifecycle.resources.layer_mounts import KIND, LayerMounts
from crinoid.core.state.store import LedgerEntry


class Kernel(HostCalls):
    """Remembers what is mounted, and in which order it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mounted: list[str] = []
        self.done: list[str] = []
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in self.mounted)

    def mount(self, mount: Mount, target: Path) -> None:
        self.mounted.append(str(target))
        self.done.append(f"mount {target.name}")

    def unmount(self, target: Path, lazy: bool = True) -> None:
        if str(target) in self.mounted:
            self.mounted.remove(str(target))
            self.done.append(f"unmount {target.name}")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def layers(root: Path, *names: str) -> list[Mount]:
    return [Mount("erofs", f"/images/{name}", ("ro",), str(root / "slot" / name)) for name in names]


def row(token: str, mounts: list[Mount]) -> LedgerEntry:
    return LedgerEntry(1, "owner", KIND, token, {"targets": [one.target for one in mounts]})


def test_each_is_mounted_once_and_undone_with_its_last_user(kernel: Kernel, tmp_path: Path) -> None:
    mounts = LayerMounts([], lambda: [tmp_path], kernel)
    one, two = layers(tmp_path, "base", "top"), layers(tmp_path, "base", "other")
    mounts.make(one, "1")
    mounts.make(two, "2")
    assert kernel.done == ["mount base", "mount top", "mount other"]
    for _ in range(2):  # undoing is idempotent, and takes away nobody else's
        mounts.undo(row("1", one))
    assert kernel.mounted == [one[0].target, two[1].target]
    mounts.undo(row("2", two))
    assert kernel.mounted == []
    assert kernel.done[3:] == ["unmount top", "unmount other", "unmount base"]
    assert list((tmp_path / "slot").iterdir()) == []


def test_users_of_an_earlier_run_count(kernel: Kernel, tmp_path: Path) -> None:
    shared = layers(tmp_path, "base")
    LayerMounts([], lambda: [tmp_path], kernel).make(shared, "1")
    after = LayerMounts([row("1", shared)], lambda: [tmp_path], kernel)
    after.make(shared, "2")
    after.undo(row("2", shared))
    assert kernel.done == ["mount base"]
    after.undo(row("1", shared))
    assert kernel.mounted == []


def test_a_row_whose_mounts_were_never_made_undoes_nobody_elses(kernel: Kernel, tmp_path: Path) -> None:
    mounts, shared = LayerMounts([], lambda: [tmp_path], kernel), layers(tmp_path, "base")
    mounts.make(shared, "1")
    mounts.undo(row("2", shared))
    assert kernel.mounted == [shared[0].target]


@pytest.mark.parametrize("target", ["/etc", "relative", "{root}/../etc", "{root}", ""])
def test_a_target_elsewhere_is_refused(kernel: Kernel, tmp_path: Path, target: str) -> None:
    mounts = LayerMounts([], lambda: [tmp_path], kernel)
    wrong = [Mount("erofs", "/image", (), target.format(root=tmp_path))]
    with pytest.raises(DriverError, match="where it may not"):
        mounts.require(wrong)
    with pytest.raises(ValueError, match="run_dir"):
        mounts.check_entry(row("1", wrong))
    with pytest.raises(TypeError):
        mounts.check_entry(LedgerEntry(1, "owner", KIND, "1", {"targets": "x"}))
