"""Modes are what is stated, whatever the umask is."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import rights


@pytest.fixture(params=[0o022, 0o077, 0])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("wanted", [rights.DIRECTORY, rights.PASSAGE, rights.SHOWN_DIRECTORY])
def test_directories(umask: int, wanted: int, tmp_path: Path) -> None:
    rights.make_directory(tmp_path / "one", wanted)
    rights.make_directories(tmp_path / "a/b/c", wanted)
    assert [mode(tmp_path / name) for name in ("one", "a", "a/b", "a/b/c")] == [wanted] * 4
    (tmp_path / "a").chmod(0o750)
    rights.make_directories(tmp_path / "a/b/c/d", wanted)
    rights.make_directories(tmp_path / "a/b/c/d", wanted)
    assert mode(tmp_path / "a") == 0o750
    with pytest.raises(FileExistsError):
        rights.make_directory(tmp_path / "one")


@pytest.mark.parametrize("wanted", [rights.FILE, rights.LOG_FILE, rights.SHOWN_FILE])
def test_files(umask: int, wanted: int, tmp_path: Path) -> None:
    rights.write_file(tmp_path / "file", "once \udcff", wanted)
    (tmp_path / "file").chmod(0o666)
    rights.write_file(tmp_path / "file", "twice \udcff", wanted)
    assert (mode(tmp_path / "file"), (tmp_path / "file").read_bytes()) == (wanted, b"twice \xff")


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(".")
    rights.make_directories(tmp_path / "link")
    for name, error in (("file", FileExistsError), ("file/below", NotADirectoryError), ("dangling", FileExistsError)):
        with pytest.raises(error):
            rights.make_directories(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        rights.make_directories(Path("/proc/nowhere/below"))


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="symbolic"):
        rights.write_file(tmp_path / "link", "x")
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives to other groups")
def test_a_group_is_let_in(tmp_path: Path) -> None:
    rights.make_directory(tmp_path / "gate")
    for _ in range(2):
        rights.let_in(tmp_path / "gate", 200_000)
        found = (tmp_path / "gate").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o710, 0, 200_000)


def test_directories_are_spread_where_the_file_system_can(tmp_path: Path) -> None:
    (tmp_path / "layers/1").mkdir(parents=True)
    for _ in range(2):
        rights.spread(tmp_path / "layers")
    rights.spread(tmp_path / "absent")
    rights.spread(Path("/proc"))
    command = ("stat", "--file-system", "--format=%T", str(tmp_path))
    if subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() != "ext2/ext3":
        pytest.skip("the flag is ext4's")
    shown = [
        subprocess.run(("lsattr", "-d", str(path)), capture_output=True, check=True, text=True).stdout.split()[0]
        for path in (tmp_path, tmp_path / "layers", tmp_path / "layers/1")
    ]
    assert ["T" in flags for flags in shown] == [False, True, False]
