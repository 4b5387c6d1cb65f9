"""criu's refusals in its own words, and cgroups that are frozen and let go."""

import os
from pathlib import Path

import pytest

from crinoid.core.api.errors import CommandFailed, CrinoidError, DeadlineExceeded, InvalidArgument, Unsupported
from crinoid.plugins.runtimes.oci.criu import Criu, explain
from crinoid.plugins.runtimes.processes import freezing

LOG = """(00.005198) Warn  (criu/a.c:1): a warning
(00.005259) Error (criu/tty.c:1): tty: Found dangling tty
(00.005300) Error (criu/cr-dump.c:2): Dumping FAILED.
"""


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "criu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


async def test_a_kernel_that_lacks_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "echo 'Error (criu/x.c:1): no such thing in this kernel' >&2; exit 1")
    with pytest.raises(Unsupported, match=r"criu can't work on this host; .*no such thing in this kernel"):
        await Criu(10).check()


async def test_it_is_asked_until_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, f"echo x >>{tmp_path}/asked; [ -e {tmp_path}/works ]")
    criu = Criu(10)
    for _ in range(2):
        with pytest.raises(Unsupported, match="exit code 1"):
            await criu.check()
    (tmp_path / "works").touch()
    for _ in range(2):
        await criu.check()
    assert (tmp_path / "asked").read_text() == "x\n" * 3


@pytest.mark.parametrize("error", [CommandFailed(("runc",), 1, "type NOTIFY errno 0"), InvalidArgument("not found")])
def test_its_log_tells_more_than_the_runtime(tmp_path: Path, error: CrinoidError) -> None:
    (tmp_path / "dump.log").write_text(LOG)
    told = explain(error, tmp_path / "dump.log")
    assert type(told) is CommandFailed
    assert "tty: Found dangling tty" in told.message
    assert "Dumping FAILED" in told.message
    assert "warning" not in told.message
    assert str(error) in told.message


def test_without_a_log_the_error_stays(tmp_path: Path) -> None:
    error = CommandFailed(("runc",), 1, "no such program")
    assert explain(error, tmp_path / "dump.log") is error
    late = DeadlineExceeded("late")
    (tmp_path / "dump.log").write_text(LOG)
    assert explain(late, tmp_path / "dump.log") is late


class Cgroup:
    """A directory with the files of a freezer, of cgroup v1 or v2."""

    def __init__(self, directory: Path, unified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = directory / ("cgroup.freeze" if unified else "freezer.state")
        self.file.touch()
        self.frozen = True
        monkeypatch.setattr(freezing, "is_unified", lambda: unified)
        monkeypatch.setattr(freezing, "cgroup_directory", lambda _controller, _path: directory)
        monkeypatch.setattr(freezing, "is_frozen", lambda _path: self.frozen)


@pytest.mark.parametrize(("unified", "words"), [(True, ("1", "0")), (False, ("FROZEN", "THAWED"))])
async def test_freezing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unified: bool, words: tuple[str, str]) -> None:
    cgroup = Cgroup(tmp_path, unified, monkeypatch)
    await freezing.freeze("/c", 5)
    assert cgroup.file.read_text() == words[0]
    freezing.thaw("/c")
    freezing.thaw("/c")
    assert cgroup.file.read_text() == words[1]
    cgroup.frozen = False
    with pytest.raises(DeadlineExceeded, match="has not come to a stop"):
        await freezing.freeze("/c", 0.05)
    assert cgroup.file.read_text() == words[1], "who can't be frozen whole goes on"


async def test_a_host_without_a_freezer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "cgroup_directory", lambda _controller, _path: None)
    with pytest.raises(Unsupported, match="no freezer"):
        await freezing.freeze("/c", 1)
    freezing.thaw("/c")
