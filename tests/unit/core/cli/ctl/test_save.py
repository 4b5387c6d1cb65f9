"""The file that images are saved to."""

import errno
import os
from pathlib import Path

import pytest

from crinoid.core.cli.ctl.save import _opened


def test_a_file_that_is_not_whole_has_no_name(tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    target.write_bytes(b"before")
    with _opened(str(target)) as file:
        file.write(b"archive")
        assert os.listdir(tmp_path) == ["out.tar"]  # a kill now leaves no more
        assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out.tar"]
    assert target.read_bytes() == b"archive"


@pytest.mark.parametrize("number", [0, errno.EOPNOTSUPP])
def test_one_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    really_open = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if number and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return really_open(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RuntimeError), _opened(str(tmp_path / "out.tar")) as file:
        file.write(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with _opened(str(tmp_path / "out.tar")) as file:
        file.write(b"whole")
    assert (tmp_path / "out.tar").read_bytes() == b"whole"
