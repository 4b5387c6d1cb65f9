"""What a container's tar stream may do on this host: nothing but what was asked for."""

import io
import stat
import tarfile
from pathlib import Path

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cli.ctl.copying import extract, split_place


def archive(*members: tuple[str, bytes, bytes, int]) -> io.BytesIO:
    """Write members of name, type, content or link, and mode."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, content, mode in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, mode, 12345
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            tar.addfile(info, io.BytesIO(content))
    file.seek(0)
    return file


def test_a_tree_is_written_under_the_target_s_name(tmp_path: Path) -> None:
    members = archive(
        ("tree", tarfile.DIRTYPE, b"", 0o500),
        ("tree/a", tarfile.REGTYPE, b"content", 0o6755),
        ("tree/hard", tarfile.LNKTYPE, b"tree/a", 0o644),
        ("tree/soft", tarfile.SYMTYPE, b"/etc/passwd", 0o777),
        ("tree/deep/er/b", tarfile.REGTYPE, b"b", 0o600),
        ("tree/fifo", tarfile.FIFOTYPE, b"", 0o600),
        ("tree/disk", tarfile.BLKTYPE, b"", 0o600),
    )
    assert extract(members, tmp_path / "copy") == ["tree/fifo", "tree/disk"]
    copy = tmp_path / "copy"
    assert (copy / "a").read_bytes() == b"content"
    assert stat.S_IMODE((copy / "a").stat().st_mode) == 0o755, "nobody becomes root by a file from a container"
    assert (copy / "a").stat().st_uid != 12345
    assert (copy / "hard").samefile(copy / "a")
    assert (copy / "soft").readlink() == Path("/etc/passwd")
    assert (copy / "deep/er/b").read_bytes() == b"b"
    assert sorted(path.name for path in copy.iterdir()) == ["a", "deep", "hard", "soft"]


@pytest.mark.parametrize(
    "members",
    [
        [("x/../../out", tarfile.REGTYPE, b"bad", 0o644)],
        [("x", tarfile.DIRTYPE, b"", 0o755), ("x/hard", tarfile.LNKTYPE, b"x/../../secret", 0o644)],
        [("x", tarfile.SYMTYPE, b"..", 0o777), ("x/out", tarfile.REGTYPE, b"bad", 0o644)],
        [
            ("x", tarfile.DIRTYPE, b"", 0o755),
            ("x/up", tarfile.SYMTYPE, b"../..", 0o777),
            ("x/up/out", tarfile.REGTYPE, b"bad", 0o644),
        ],
        [
            ("x", tarfile.DIRTYPE, b"", 0o755),
            ("x/up", tarfile.SYMTYPE, b"../..", 0o777),
            ("x/up", tarfile.DIRTYPE, b"", 0o755),
        ],
    ],
    ids=["dots", "hard-link", "link-as-the-tree", "through-a-link", "link-as-a-directory"],
)
def test_nothing_is_written_elsewhere(tmp_path: Path, members: list[tuple[str, bytes, bytes, int]]) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    with pytest.raises((InvalidArgument, OSError)):
        extract(archive(*members), tmp_path / "in/copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret"]
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_link_that_was_there_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "copy").symlink_to("secret")
    extract(archive(("a", tarfile.REGTYPE, b"new", 0o644)), tmp_path / "copy")
    assert ((tmp_path / "secret").read_text(), (tmp_path / "copy").read_text()) == ("secret", "new")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc/hosts", ("web", "/etc/hosts")),
        ("pod/web:x", ("pod/web", "x")),
        ("./a:b", ("", "./a:b")),
        ("/a:b", ("", "/a:b")),
        ("plain", ("", "plain")),
    ],
)
def test_a_place_is_in_a_container_or_here(text: str, place: tuple[str, str]) -> None:
    assert split_place(text) == place


def test_a_container_without_a_path_is_a_mistake() -> None:
    with pytest.raises(InvalidArgument, match="names no path"):
        split_place("web:")
