"""Slices are stopped by systemctl, for which a script stands in."""

import os
from pathlib import Path

import pytest

from crinoid.core.api.errors import CommandFailed, DeadlineExceeded
from crinoid.core.api.linux import cgroups
from crinoid.core.lifecycle.resources import slices

SLICE = "/crinoid.slice/crinoid-one.slice"


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were removed."""
    found: list[str] = []
    monkeypatch.setattr(cgroups, "remove", found.append)
    return found


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: list[str]) -> Path:
    """A file with what systemctl was told; the slice is there."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cgroups, "exists", lambda path: path == SLICE)
    write_systemctl(tmp_path, "echo $* >>$0.told")
    return tmp_path / "systemctl.told"


def write_systemctl(directory: Path, script: str) -> None:
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_slice_is_systemds_to_stop(told: Path, removed: list[str]) -> None:
    slices.remove(SLICE)
    assert told.read_text() == "stop -- crinoid-one.slice\n"
    assert removed == [SLICE], "runc makes directories of it that systemd does not know"


def test_one_that_was_never_started_is_not_asked_for(told: Path) -> None:
    slices.remove("/crinoid.slice/crinoid-two.slice")
    assert not told.exists()


def test_any_other_cgroup_is_no_unit(told: Path, removed: list[str]) -> None:
    slices.remove("/crinoid/one")
    assert removed == ["/crinoid/one"]
    assert not told.exists()


def test_what_systemd_says_is_told(told: Path) -> None:
    write_systemctl(told.parent, "echo 'Failed to stop it: Connection timed out' >&2; exit 1")
    with pytest.raises(CommandFailed, match="systemctl ended with exit code 1: Failed to stop it: Connection timed"):
        slices.remove(SLICE)


def test_one_that_does_not_answer_is_not_waited_for(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_STOP_S", 0.1)
    write_systemctl(told.parent, "sleep 600")
    with pytest.raises(DeadlineExceeded, match=r"has not stopped crinoid-one\.slice"):
        slices.remove(SLICE)
