"""A program is run from a copy that nobody can write to; what can't be copied is run from its file."""

import fcntl
import gc
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crinoid.core.api.linux import lsm
from crinoid.plugins.runtimes.binaries.sealing import SealedPrograms


@pytest.fixture
def programs() -> SealedPrograms:
    return SealedPrograms()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy2(shutil.which("true") or "", tmp_path / "program"))


def test_a_copy_is_made_once_and_runs(programs: SealedPrograms, program: Path) -> None:
    copy = programs.path(program)
    assert copy != program
    assert programs.path(program) == copy
    assert subprocess.run([copy], check=False).returncode == 0
    assert copy.read_bytes() == program.read_bytes()


def test_nobody_can_write_to_it(programs: SealedPrograms, program: Path) -> None:
    copy = programs.path(program)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(int(copy.name), fcntl.F_GET_SEALS) == seals, "what runc and crun look for"
    with pytest.raises(PermissionError), copy.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(PermissionError):
        os.truncate(copy, 0)


def test_a_new_program_gets_a_new_copy_and_the_last_one_stays_a_while(programs: SealedPrograms, program: Path) -> None:
    copies = []
    for name in ("true", "false", "sleep"):
        program.unlink()
        shutil.copy2(shutil.which(name) or "", program)
        copies.append(programs.path(program))
    assert subprocess.run([copies[1]], check=False).returncode == 1
    assert len({*copies}) == 3 or not copies[0].exists()
    assert len(programs._copies) == 2


def test_a_script_is_run_from_its_file(programs: SealedPrograms, program: Path) -> None:
    program.write_text("#!/bin/sh\nexit 0\n")
    assert programs.path(program) == program


def test_so_is_all_where_labels_count(programs: SealedPrograms, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsm, "has_selinux", lambda: True)
    assert programs.path(program) == program
    assert programs.path(program) == program


def test_copies_end_with_their_keeper(program: Path) -> None:
    programs = SealedPrograms()
    copy = programs.path(program)
    identity = copy.stat().st_ino
    del programs
    gc.collect()
    assert not copy.exists() or copy.stat().st_ino != identity
