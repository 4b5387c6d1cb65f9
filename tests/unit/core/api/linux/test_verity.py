"""fs-verity: what the kernel says where there is none."""

import errno
import fcntl
from pathlib import Path

import pytest

from crinoid.core.api.linux import verity


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """EINVAL: of Linux before 6.3 where pages are larger than the tree's blocks, as on some arm64 machines."""

    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    (tmp_path / "file").touch()
    assert verity.enable(tmp_path / "file") is False


def test_another_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ETXTBSY, "open for writing")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="open for writing"):
        verity.enable(tmp_path / "file")
