"""Which lower directory gives an implied directory its looks, as overlayfs would see it."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.images.implied import lower_directories, merged_directories, settle_tree
from crinoid.core.lifecycle.images.unpack.layer import UnpackResult

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners, whiteouts and trusted attributes need root")


@contextmanager
def opened(*directories: Path) -> Iterator[list[int]]:
    with ExitStack() as stack:
        found = []
        for directory in directories:
            found.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, found[-1])
        yield found


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    return tmp_path / "upper"


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    (tmp_path / "lower/a/b").mkdir(parents=True)
    return tmp_path / "lower"


def implying(*directories: str) -> UnpackResult:
    return UnpackResult("", 0, 0, directories)


def found_in(upper: Path, lower: Path, directory: str) -> Path | None:
    """Return the directory of which layer gives its looks to a further layer's, which is empty."""
    (target := upper.parent / "further").mkdir(exist_ok=True)
    with opened(upper, lower, target) as (*lowers, root), merged_directories(lowers, root, directory) as found:
        if (top := next(iter(found), None)) is None:
            return None
        inode = os.fstat(top).st_ino
    return next(
        layer for layer in (upper, lower) if (layer / directory).exists() and (layer / directory).stat().st_ino == inode
    )


def test_the_topmost_counts(upper: Path, lower: Path) -> None:
    assert found_in(upper, lower, "a/b") == lower
    (upper / "a").mkdir()
    assert found_in(upper, lower, "a/b") == lower
    assert found_in(upper, lower, "a") == upper
    (upper / "a/b").mkdir()
    assert found_in(upper, lower, "a/b") == upper
    assert found_in(upper, lower, "c") is None


def test_a_file_or_a_link_hides_what_is_below(upper: Path, lower: Path) -> None:
    (upper / "a").write_text("a file")
    assert found_in(upper, lower, "a/b") is None
    (upper / "a").unlink()
    (upper / "a").symlink_to(lower / "a")
    assert found_in(upper, lower, "a") is None
    assert found_in(upper, lower, "a/b") is None


@needs_root
def test_a_whiteout_hides_what_is_below(upper: Path, lower: Path) -> None:
    (upper / "a").mkdir()
    os.mknod(upper / "a/b", stat.S_IFCHR, 0)
    assert found_in(upper, lower, "a/b") is None
    assert found_in(upper, lower, "a") == upper


@needs_root
def test_an_opaque_directory_hides_what_is_below(upper: Path, lower: Path) -> None:
    (upper / "a").mkdir()
    os.setxattr(upper / "a", "trusted.overlay.opaque", b"y")
    assert found_in(upper, lower, "a/b") is None
    assert found_in(upper, lower, "a") == upper


def test_modes_and_times_are_taken_over(tmp_path: Path, lower: Path) -> None:
    target = tmp_path / "target"
    (target / "a/b").mkdir(parents=True)
    (target / "own").mkdir(mode=0o700)
    os.utime(lower / "a/b", (1000, 2000))
    (lower / "a/b").chmod(0o1777)
    settle_tree([lower], target, implying("a", "a/b", "own", "gone"))
    looks = (target / "a/b").stat()
    assert (stat.S_IMODE(looks.st_mode), looks.st_mtime) == (0o1777, 2000)
    assert stat.S_IMODE((target / "own").stat().st_mode) == 0o700


@needs_root
def test_owners_and_attributes_are_taken_over(tmp_path: Path, lower: Path) -> None:
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    os.chown(lower / "a", 1000, 1001)
    os.setxattr(lower / "a", "trusted.test", b"1")
    os.setxattr(lower / "a", "trusted.overlay.opaque", b"y")
    settle_tree([lower], target, implying("a"))
    assert (target / "a").stat().st_uid == 1000
    assert (target / "a").stat().st_gid == 1001
    assert os.listxattr(target / "a") == ["trusted.test"]


def test_a_link_in_the_layer_is_not_followed(tmp_path: Path, lower: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir(mode=0o700)
    target.mkdir()
    (target / "a").symlink_to(outside)
    (lower / "a").chmod(0o777)
    settle_tree([lower], target, implying("a"))
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([Mount("bind", "/x", ("rbind", "ro"))], ["/x"]),
        ([Mount("overlay", "overlay", ("lowerdir+=/top", "lowerdir+=/low", "index=off"))], ["/top", "/low"]),
        ([Mount("overlay", "overlay", ("lowerdir=/top:/low", "ro"))], ["/top", "/low"]),
        ([Mount("overlay", "overlay", (r"lowerdir=/to\:p:/l\\ow",))], ["/to:p", "/l\\ow"]),
        ([Mount("erofs", "/image")], []),
        ([], []),
    ],
)
def test_lower_directories(mounts: list[Mount], expected: list[str]) -> None:
    assert [str(directory) for directory in lower_directories(mounts)] == expected


@pytest.mark.parametrize("layers", [2, 100])
def test_layers_that_nobody_looks_into_are_not_opened(
    tmp_path: Path, upper: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of n layers is settled, above all below it: to look into all of them would be quadratic."""
    lowers = [tmp_path / f"lower{number}" for number in range(layers)]
    for lower in lowers:
        (lower / "a").mkdir(parents=True)
    (upper / "a").mkdir()
    opened_paths: list[object] = []
    really_open = os.open

    def count(path: object, *arguments: object, **more: object) -> int:
        opened_paths.append(path)
        return really_open(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", count)
    settle_tree(lowers, upper, implying(".", "a"))
    assert [path for path in opened_paths if path in lowers] == lowers[:1]
