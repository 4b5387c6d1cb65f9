"""A container's directory: what is noted is read back, whole or not at all."""

from pathlib import Path

import pytest

from crinoid.core.api.values.runtime import ExitStatus
from crinoid.plugins.runtimes.binaries.bundle import Processes, read_pid
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles


@pytest.fixture
def bundle(tmp_path: Path) -> ConmonFiles:
    return ConmonFiles(tmp_path / "bundle")


def test_notes_come_back(bundle: ConmonFiles) -> None:
    bundle.write_spec({"ociVersion": "1.0.2"})
    processes = Processes(5, 55, 6, 66, "/log")
    status = ExitStatus(255, 12, known=False)
    bundle.write_processes(processes)
    bundle.write_unseen_exit(status)
    assert bundle.read_processes() == processes
    assert bundle.read_unseen_exit() == status


def test_nothing_is_there(bundle: ConmonFiles) -> None:
    assert bundle.read_processes() is None
    assert bundle.read_unseen_exit() is None
    assert bundle.read_exit() is None
    assert read_pid(bundle.pid_file) == 0
    bundle.remove_files(ConmonFiles.NAMES)
    bundle.write_unseen_exit(ExitStatus(0, 0))
    assert not bundle.directory.exists(), "a bundle that was removed is not made again"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_rubbish_is_no_note(bundle: ConmonFiles, content: str) -> None:
    bundle.write_spec({})
    (bundle.directory / "processes.json").write_text(content)
    bundle.pid_file.write_text(content)
    assert bundle.read_processes() is None
    assert read_pid(bundle.pid_file) == 0


@pytest.mark.parametrize(("content", "code"), [("0", 0), ("137\n", 137), ("-1", 255)])
def test_conmons_exit_file(bundle: ConmonFiles, content: str, code: int) -> None:
    bundle.write_spec({})
    bundle.exit_file.write_text(content)
    assert bundle.read_exit() == (code, bundle.exit_file.stat().st_mtime_ns)


def test_only_our_files_are_removed(bundle: ConmonFiles) -> None:
    bundle.write_spec({})
    bundle.write_processes(Processes(1, 1, 1, 1))
    (bundle.directory / "rootfs").mkdir()
    (bundle.directory / "hosts").write_text("")
    bundle.remove_files(ConmonFiles.NAMES)
    bundle.remove_files(ConmonFiles.NAMES)
    assert sorted(path.name for path in bundle.directory.iterdir()) == ["hosts", "rootfs"]
