"""What a layer becomes in the target, and what stays out of reach of it."""

import ctypes
import errno
import gc
import os
import stat
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.archives import ArchiveFault, Corrupt, NotSupported, TooLarge
from crinoid.core.lifecycle.images.unpack import syscalls
from support.archives import END, ArchiveBuilder, header, pad, pax

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices, owners and trusted attributes need root")
OPAQUE = "trusted.overlay.opaque"


def layer() -> ArchiveBuilder:
    return ArchiveBuilder()


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def snapshot(path: Path) -> list[tuple[object, ...]]:
    """All there is to see of a directory and what is in it; access times aside."""
    seen: list[tuple[object, ...]] = []
    for found in (path, *sorted(path.rglob("*"))):
        status = found.lstat()
        content = found.read_bytes() if found.is_file() and not found.is_symlink() else None
        xattrs = os.listxattr(found, follow_symlinks=False)
        seen.append((found, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_uid, content, xattrs))
    return seen


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


# Kinds of entries


def test_file_has_content_mode_and_time(extract, target: Path) -> None:
    extract(layer().file("a", b"content", mode=0o4751, mtime=1234.5).build())
    status = (target / "a").stat()
    assert (target / "a").read_bytes() == b"content"
    assert stat.S_IMODE(status.st_mode) == 0o4751
    assert status.st_mtime_ns == 1_234_500_000_000


@pytest.mark.parametrize("chunk", [1, 511, 512, 5000, 1 << 20])
def test_content_across_chunks(extract, target: Path, chunk: int) -> None:
    content = os.urandom(9001)
    extract(layer().file("a", content).file("b", content[:512]).file("c").build(), chunk=chunk)
    assert [(target / name).read_bytes() for name in "abc"] == [content, content[:512], b""]


def test_directory_has_mode_and_time_after_what_is_made_in_it(extract, target: Path) -> None:
    extract(layer().directory("d", mode=0o2751, mtime=99).file("d/f").directory("d/e", mode=0o1777, mtime=98).build())
    assert (stat.S_IMODE((target / "d").stat().st_mode), (target / "d").stat().st_mtime) == (0o2751, 99)
    assert (stat.S_IMODE((target / "d/e").stat().st_mode), (target / "d/e").stat().st_mtime) == (0o1777, 98)


def test_root_entry_describes_the_target(extract, target: Path) -> None:
    extract(layer().directory("./", mode=0o711, mtime=77).file("./f").build())
    assert (stat.S_IMODE(target.stat().st_mode), target.stat().st_mtime) == (0o711, 77)


def test_symlink_says_what_it_said(extract, target: Path) -> None:
    extract(layer().symlink("s", "../../etc/passwd", mtime=55).build())
    assert os.readlink(target / "s") == "../../etc/passwd"
    assert (target / "s").lstat().st_mtime == 55


def test_a_symlink_without_a_target_is_the_layer_s_fault(extract) -> None:
    with pytest.raises(Corrupt, match="without a target"):
        extract(layer().symlink("l", "").build())


def test_hard_links_share_a_file(extract, target: Path) -> None:
    tree = extract(layer().file("d/a", b"x").hard_link("b", "d/a").hard_link("b", "./d/a").build())
    assert (target / "b").samefile(target / "d/a")
    assert tree.inodes == 2  # the directory and one file


def test_hard_link_to_a_symlink_is_one_to_the_link(extract, target: Path) -> None:
    extract(layer().file("f").symlink("s", "f").hard_link("h", "s").build())
    assert os.readlink(target / "h") == "f"


def test_fifo(extract, target: Path) -> None:
    extract(layer().add("p", tarfile.FIFOTYPE, mode=0o622).build())
    assert stat.S_ISFIFO((target / "p").stat().st_mode)
    assert stat.S_IMODE((target / "p").stat().st_mode) == 0o622


@needs_root
def test_devices(extract, target: Path) -> None:
    archive = layer().add("c", tarfile.CHRTYPE, devmajor=1, devminor=300, mode=0o666)
    extract(archive.add("b", tarfile.BLKTYPE, devmajor=8, devminor=1, mode=0o600, uid=5).build())
    assert stat.S_ISCHR((target / "c").stat().st_mode)
    assert (target / "c").stat().st_rdev == os.makedev(1, 300)
    assert stat.S_ISBLK((target / "b").stat().st_mode)
    assert (target / "b").stat().st_uid == 5


@needs_root
def test_owners_of_all_kinds(extract, target: Path) -> None:
    archive = ArchiveBuilder(uid=1234, gid=4_000_000_000)
    archive.directory("d").file("d/f", mode=0o6755).symlink("d/s", "nowhere").add("d/p", tarfile.FIFOTYPE)
    extract(archive.build())
    owners = {(found.lstat().st_uid, found.lstat().st_gid) for found in target.rglob("*")}
    assert owners == {(1234, 4_000_000_000)}
    assert stat.S_IMODE((target / "d/f").stat().st_mode) == 0o6755


@needs_root
def test_nothing_is_inherited_from_a_lower_directory_with_set_group_id(extract, target: Path) -> None:
    (target / "d").mkdir()
    os.chown(target / "d", 0, 77)
    (target / "d").chmod(0o2755)
    extract(layer().file("d/f").directory("d/e").file("d/i/f").symlink("d/s", "x").build())
    assert {(target / "d" / name).lstat().st_gid for name in ("f", "e", "i", "i/f", "s")} == {0}
    assert stat.S_IMODE((target / "d/e").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "d/i").stat().st_mode) == 0o755


@needs_root
def test_extended_attributes(extract, target: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    records = {"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.k": b"\0v"}
    archive = pax(b"p", records) + header(b"f", mode=b"755", uid=b"1750") + pax(b"p", {"SCHILY.xattr.user.k": b"d"})
    archive += header(b"d", b"5") + pax(b"p", {"SCHILY.xattr.security.t": b"s", "SCHILY.xattr.user.k": b"s"})
    extract(archive + header(b"s", b"2", link=b"f") + END)
    assert os.getxattr(target / "f", "security.capability") == capability
    assert os.getxattr(target / "f", "user.k") == b"\0v"
    assert os.getxattr(target / "d", "user.k") == b"d"
    assert os.listxattr(target / "s", follow_symlinks=False) == ["security.t"]  # links have no user.*
    assert "security.t" not in os.listxattr(target / "f")


@needs_root
@pytest.mark.parametrize("looks", [{"mode": b"711"}, {"mode": b"755", "uid": b"1750"}])
@pytest.mark.parametrize("overlay", [False, True])
def test_a_hard_link_s_looks_take_no_capability_away(
    extract, target: Path, looks: dict[str, bytes], overlay: bool
) -> None:
    """chown(2) does, even where it changes nothing; GNU tar writes attributes with a file's first name alone."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    archive = pax(b"p", {"SCHILY.xattr.security.capability": capability}) + header(b"f", mode=b"755")
    extract(archive + header(b"h", b"1", link=b"f", **looks) + END, overlay)
    found = (target / "f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (int(looks["mode"], 8), int(looks.get("uid", b"0"), 8))
    assert os.getxattr(target / "h", "security.capability") == capability


@needs_root
def test_trusted_attributes_in_an_archive_come_to_nothing(extract, target: Path) -> None:
    """overlayfs keeps its state there, other file systems theirs."""
    records = {"SCHILY.xattr.trusted.overlay.redirect": b"/etc", "SCHILY.xattr.trusted.overlay.opaque": b"y"}
    records |= {"SCHILY.xattr.trusted.other": b"x", "SCHILY.xattr.user.overlay.opaque": b"y"}
    extract(pax(b"p", records) + header(b"d", b"5") + END, overlay=True)
    assert os.listxattr(target / "d") == []


@needs_root
@pytest.mark.parametrize("kind", [b"0", b"5", b"2"])
def test_more_attributes_than_the_file_system_keeps_are_no_full_disk(extract, target: Path, kind: bytes) -> None:
    records = {f"SCHILY.xattr.security.k{number}": b"v" * 60_000 for number in range(15)}
    with pytest.raises(Corrupt, match=r"more than this file system keeps|Argument list too long"):
        extract(pax(b"p", records) + header(b"x", kind, link=b"y") + END)


def test_unknown_type_is_refused(extract) -> None:
    with pytest.raises(NotSupported, match="type 'M'"):
        extract(header(b"part", b"M") + END)


# Names


@pytest.mark.parametrize("name", ["/a/b", "./a/b", "a//b", "a/./b", "x/../a/b", "//a/b"])
def test_names_that_mean_the_same(extract, target: Path, name: str) -> None:
    extract(layer().file(name).build())
    assert tree(target) == {"a", "a/b"}


@pytest.mark.parametrize("name", ["a/b/", "a/b/.", "a/b//", "a/c/.."])
def test_directory_names_with_tails(extract, target: Path, name: str) -> None:
    extract(layer().raw(header(name.encode(), b"5")).build())
    assert "a" in tree(target)
    assert tree(target) <= {"a", "a/b"}


def test_names_are_bytes(extract, target: Path) -> None:
    extract(header(b"\xff\xfe\n\x01", b"0") + END)
    assert os.listdir(os.fsencode(target)) == [b"\xff\xfe\n\x01"]


def test_long_names(extract, target: Path) -> None:
    name = "/".join(["n" * 200] * 15)
    extract(layer().file(name, b"deep").symlink("s", "t" * 4000).build())
    assert (target / name).read_bytes() == b"deep"
    assert len(os.readlink(target / "s")) == 4000


@pytest.mark.parametrize("name", ["n" * 256, "/".join(["n" * 200] * 25)])
def test_names_the_kernel_does_not_take_raise(extract, name: str) -> None:
    with pytest.raises(OSError, match="name too long"):
        extract(layer().file(name).build())


def test_missing_parents_are_made_and_told(extract, target: Path) -> None:
    result = extract(layer().file("a/b/c").directory("a").build(), overlay=True)
    assert stat.S_IMODE((target / "a/b").stat().st_mode) == 0o755
    assert result.implied == [b".", b"a/b"]


# What is there already


@pytest.mark.parametrize("lower", ["file", "directory", "symlink", "link to a directory"])
@pytest.mark.parametrize("upper", ["file", "directory", "symlink", "fifo", "hard link"])
def test_an_entry_replaces_what_is_there(extract, target: Path, lower: str, upper: str) -> None:
    (target / "kept").mkdir()
    (target / "kept/f").write_text("kept")
    match lower:
        case "file":
            (target / "e").write_text("lower")
        case "directory":
            (target / "e/sub").mkdir(parents=True)
        case "symlink":
            (target / "e").symlink_to("nowhere")
        case "link to a directory":
            (target / "e").symlink_to("kept")
    archive = layer().file("other", b"other")
    match upper:
        case "file":
            archive.file("e", b"upper")
        case "directory":
            archive.directory("e", mode=0o700).file("e/new")
        case "symlink":
            archive.symlink("e", "upper")
        case "fifo":
            archive.add("e", tarfile.FIFOTYPE)
        case "hard link":
            archive.hard_link("e", "other")
    extract(archive.build())
    assert (target / "kept/f").read_text() == "kept"
    kinds = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO}
    assert stat.S_IFMT((target / "e").lstat().st_mode) == kinds.get(upper, stat.S_IFREG)
    if upper == "directory":
        assert tree(target / "e") == ({"new", "sub"} if lower == "directory" else {"new"})


def test_lower_hard_links_are_not_written_through(extract, target: Path) -> None:
    (target / "a").write_text("lower")
    (target / "b").hardlink_to(target / "a")
    extract(layer().file("a", b"upper").build())
    assert ((target / "a").read_text(), (target / "b").read_text()) == ("upper", "lower")


def test_an_entry_twice_in_a_layer_counts_the_last_time(extract, target: Path) -> None:
    extract(layer().file("a", b"1").directory("d").file("d/x").file("a", b"2").file("d", b"3").build())
    assert ((target / "a").read_text(), (target / "d").read_text()) == ("2", "3")


def test_metadata_of_a_replaced_directory_goes_with_it(extract, target: Path) -> None:
    archive = (
        layer().directory("other", mode=0o750, mtime=7).directory("d", mode=0o777, mtime=8).directory("d/e", mtime=9)
    )
    extract(archive.directory("other/e", mtime=10).symlink("d", "other").build())
    assert (stat.S_IMODE((target / "other").stat().st_mode), (target / "other").stat().st_mtime) == (0o750, 7)
    assert (target / "other/e").stat().st_mtime == 10


def test_a_directory_may_be_replaced_by_a_link_to_itself(extract, target: Path) -> None:
    extract(layer().directory("d").symlink("d", "d").build())
    assert (target / "d").readlink() == Path("d")


def test_a_file_of_this_layer_is_no_directory(extract) -> None:
    with pytest.raises(Corrupt, match="no directory"):
        extract(layer().file("a").file("a/b").build())


def test_a_lower_file_gives_way_to_a_directory(extract, target: Path) -> None:
    (target / "a").write_text("lower")
    extract(layer().file("a/b").build())
    assert tree(target) == {"a", "a/b"}


def test_symlinked_parents_are_followed_inside(extract, target: Path) -> None:
    archive = (
        layer().directory("usr/lib").symlink("lib", "usr/lib").symlink("abs", "/usr/lib").symlink("up", "../../lib")
    )
    extract(archive.file("lib/a").file("abs/b").file("up/c").build())
    assert sorted(os.listdir(target / "usr/lib")) == ["a", "b", "c"]


def test_a_link_upwards_is_tried_again_while_others_rename(extract, target: Path, monkeypatch) -> None:
    """The kernel can't tell then whether ``..`` has led out, and answers EAGAIN: openat2(2)."""
    syscall, refusals = syscalls._libc.syscall, [errno.EAGAIN] * 3

    def interrupted(number: ctypes.c_long, *arguments: Any) -> int:
        if refusals and arguments[1].value == b"up":
            ctypes.set_errno(refusals.pop())
            return -1
        return int(syscall(number, *arguments))

    monkeypatch.setattr(syscalls, "_libc", SimpleNamespace(syscall=interrupted))
    extract(layer().directory("lib").symlink("up", "../../lib").file("up/c").build())
    assert (os.listdir(target / "lib"), refusals) == (["c"], [])


def test_a_parent_that_is_a_link_to_nowhere_gets_its_end_made(extract, target: Path) -> None:
    result = extract(layer().symlink("lib", "usr/../usr/lib").file("lib/a").build(), overlay=True)
    assert tree(target) == {"lib", "usr", "usr/lib", "usr/lib/a"}
    assert len(result.implied) == 3  # the root, too


def test_links_in_a_circle_are_refused(extract) -> None:
    with pytest.raises((Corrupt, OSError), match="symbolic links"):
        extract(layer().symlink("a", "b").symlink("b", "a").file("a/x").build())


def test_links_that_lead_nowhere_for_long_are_refused(extract) -> None:
    archive = layer()
    for number in range(50):
        archive.symlink(f"l{number}", f"l{number + 1}/x")
    with pytest.raises((Corrupt, OSError), match="symbolic links"):
        extract(archive.file("l0/f").build())


def test_many_directories_outlive_the_cache(extract, target: Path) -> None:
    archive = layer()
    for round_ in range(2):
        for number in range(400):
            archive.file(f"d{number}/f{round_}", b"%d" % number)
    gc.collect()
    open_before = set(os.listdir("/proc/self/fd"))
    extract(archive.build())
    gc.collect()
    assert len(list(target.rglob("f?"))) == 800
    assert set(os.listdir("/proc/self/fd")) <= open_before  # what earlier tests left open may be closed meanwhile


# Whiteouts


def test_whiteout_removes_what_is_lower(extract, target: Path) -> None:
    (target / "d/sub").mkdir(parents=True)
    (target / "d/sub/f").touch()
    (target / "f").touch()
    extract(layer().file(".wh.f").file("d/.wh.sub").file("d/.wh.absent").file("absent/.wh.x").build())
    assert tree(target) == {"d", "absent"}


@pytest.mark.parametrize("whiteout_first", [True, False])
def test_whiteout_leaves_what_the_same_layer_has(extract, target: Path, whiteout_first: bool) -> None:
    (target / "d").mkdir()
    (target / "d/lower").touch()
    archive = layer()
    if whiteout_first:
        archive.file(".wh.d")
    archive.directory("d").file("d/upper")
    if not whiteout_first:
        archive.file(".wh.d")
    extract(archive.build())
    assert tree(target) == {"d", "d/upper"}


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_opaque_hides_lower_content_alone_in_any_order(extract, target: Path, position: int) -> None:
    (target / "d/both/low").mkdir(parents=True)
    (target / "d/implied").mkdir()
    (target / "d/implied/low").touch()
    (target / "d/low").touch()
    entries = ["d", "d/both", "d/implied/new"]
    archive = layer()
    for number in range(4):
        if number == position:
            archive.file("d/.wh..wh..opq")
        if number < 3:
            (archive.file if "new" in entries[number] else archive.directory)(entries[number])
    extract(archive.build())
    assert tree(target) == {"d", "d/both", "d/implied", "d/implied/new"}


def test_deep_lower_content_is_removed(extract, target: Path) -> None:
    deep = target / "/".join(["d"] * 200)
    deep.mkdir(parents=True)
    extract(layer().file(".wh.d").build())
    assert tree(target) == set()


@pytest.mark.parametrize("name", ["", ".", "/", "./", "./.", "d/.."])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
def test_what_has_the_roots_name_and_is_no_directory_is_nothing(extract, target: Path, name: str, kind: bytes) -> None:
    extract(layer().directory("d").add(name, kind, b"data" if kind == tarfile.REGTYPE else b"", linkname="x").build())
    assert tree(target) == {"d"}


@needs_root
@pytest.mark.parametrize("overlay", [False, True])
def test_a_file_looks_as_the_last_entry_says_that_names_it(extract, target: Path, overlay: bool) -> None:
    archive = layer().file("a", b"x").add("b", tarfile.LNKTYPE, linkname="a", mode=0o4711, uid=6, gid=7, mtime=50)
    extract(archive.build(), overlay=overlay)
    looks = (target / "a").stat()
    assert (stat.S_IMODE(looks.st_mode), looks.st_uid, looks.st_gid, looks.st_mtime) == (0o4711, 6, 7, 50)
    assert looks.st_nlink == 2


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh..."])
@pytest.mark.parametrize("overlay", [False, True])
def test_whiteout_of_no_name_is_refused(extract, target: Path, name: str, overlay: bool) -> None:
    (target / "d").mkdir()
    with pytest.raises(Corrupt, match="whiteout"):
        extract(layer().file(name).build(), overlay=overlay)
    assert tree(target) == {"d"}


def test_aufs_files_are_passed_over(extract, target: Path) -> None:
    archive = layer().directory(".wh..wh.plnk").file(".wh..wh.plnk/1.2", b"x").file(".wh..wh.aufs").file("a", b"y")
    extract(archive.build())
    assert tree(target) == {"a"}


def test_a_whiteout_has_no_content(extract) -> None:
    with pytest.raises(Corrupt, match="whiteout"):
        extract(layer().file(".wh.d/f").build())


def test_wh_inside_a_name_means_nothing(extract, target: Path) -> None:
    extract(layer().file("a.wh.b/c.wh.d", b"x").build())
    assert tree(target) == {"a.wh.b", "a.wh.b/c.wh.d"}


@needs_root
def test_overlay_whiteouts(extract, target: Path) -> None:
    extract(layer().file(".wh.gone").file("d/.wh.gone").file("o/.wh..wh..opq").file("o/f").build(), overlay=True)
    assert is_whiteout(target / "gone")
    assert is_whiteout(target / "d/gone")
    assert os.getxattr(target / "o", OPAQUE) == b"y"
    assert tree(target) == {"gone", "d", "d/gone", "o", "o/f"}


@needs_root
@pytest.mark.parametrize("whiteout_first", [True, False])
@pytest.mark.parametrize("implied", [True, False])
def test_overlay_whiteout_of_what_the_layer_makes_anew(
    extract, target: Path, whiteout_first: bool, implied: bool
) -> None:
    archive = layer()
    if whiteout_first:
        archive.file(".wh.d").file(".wh.f")
    if not implied:
        archive.directory("d")
    archive.file("d/f").file("f", b"new")
    if not whiteout_first:
        archive.file(".wh.d").file(".wh.f")
    extract(archive.build(), overlay=True)
    assert os.getxattr(target / "d", OPAQUE) == b"y"
    assert (target / "f").read_text() == "new"


@needs_root
def test_device_0_0_in_an_archive_is_a_whiteout(extract, target: Path) -> None:
    (target / "f").touch()
    extract(layer().add("f", tarfile.CHRTYPE, devmajor=0, devminor=0).build())
    assert tree(target) == set()
    extract(layer().add("f", tarfile.CHRTYPE, devmajor=0, devminor=0).build(), overlay=True)
    assert is_whiteout(target / "f")


@needs_root
def test_overlay_hard_link_to_a_lower_layer_is_told(extract) -> None:
    with pytest.raises(NotSupported, match="not in this layer"):
        extract(layer().hard_link("a", "usr/lower").build(), overlay=True)
    with pytest.raises(NotSupported, match="not in this layer"):
        extract(layer().file(".wh.b").hard_link("a", "b").build(), overlay=True)


def test_hard_link_to_a_lower_file_where_lower_layers_are(extract, target: Path) -> None:
    (target / "lower").write_text("lower")
    extract(layer().hard_link("a", "lower").build())
    assert (target / "a").samefile(target / "lower")


# Sparse files: as GNU tar writes them is in test_layer; these are made by hand.


def test_sparse_map_in_records(extract, target: Path) -> None:
    records = {"GNU.sparse.size": b"5000", "GNU.sparse.map": b"0,3,4000,2", "GNU.sparse.name": b"f"}
    extract(pax(b"p", records) + header(b"GNUSparseFile.0/f", size=b"5") + pad(b"abcde") + END)
    assert (target / "f").read_bytes() == b"abc" + bytes(3997) + b"de" + bytes(998)


def test_sparse_map_before_the_data(extract, target: Path) -> None:
    records = {"major": b"1", "minor": b"0", "realsize": b"5000", "name": b"f"}
    data = pad(b"2\n0\n3\n4000\n2\n") + b"abcde"
    extended = pax(b"p", {f"GNU.sparse.{key}": value for key, value in records.items()})
    extract(extended + header(b"GNUSparseFile.0/f", size=b"%o" % len(data)) + pad(data) + END)
    assert (target / "f").read_bytes() == b"abc" + bytes(3997) + b"de" + bytes(998)


@pytest.mark.parametrize("pieces", [b"0,3,2,2", b"0,3,4999,2", b"0,3", b"0,3,4000", b"9,9,0,1", b"x"])
def test_sparse_maps_that_can_not_be(extract, pieces: bytes) -> None:
    records = {"GNU.sparse.size": b"5000", "GNU.sparse.map": pieces}
    with pytest.raises(Corrupt):
        extract(pax(b"p", records) + header(b"f", size=b"5") + pad(b"abcde") + END)


# Attacks


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    (path / "sub").mkdir(parents=True)
    (path / "secret").write_text("secret")
    return path


ATTACKS = {
    "symlinked parent": lambda out: layer().symlink("l", out).file("l/secret", b"evil").file("l/new", b"evil"),
    "relative symlinked parent": lambda out: layer().symlink("l", "../outside").file("l/secret", b"evil"),
    "chain of links": lambda out: layer().symlink("x", "..").symlink("y", "x/outside").file("y/secret", b"evil"),
    "link below a directory": lambda out: (
        layer().directory("d").symlink("d/l", "../../outside").file("d/l/secret", b"e")
    ),
    "file over a link": lambda out: layer().symlink("l", f"{out}/secret").file("l", b"evil", mode=0o777),
    "directory over a link": lambda out: layer().symlink("l", out).directory("l", mode=0o777, mtime=1).file("l/secret"),
    "link over a directory": lambda out: layer().directory("l", mode=0o777, mtime=1).file("l/f").symlink("l", out),
    "link over a parent": lambda out: layer().directory("a/sub", mode=0o700, mtime=1).symlink("a", out).file("a/sub/f"),
    "hard link by ..": lambda out: layer().hard_link("h", "../outside/secret").file("h", b"evil"),
    "hard link by a link": lambda out: layer().symlink("l", out).hard_link("h", "l/secret"),
    "hard link by a path": lambda out: layer().hard_link("h", f"{out}/secret"),
    "hard link into a link": lambda out: layer().file("f").symlink("l", out).hard_link("l/secret", "f"),
    "hard link to a link": lambda out: layer().symlink("l", f"{out}/secret").hard_link("h", "l").file("h/x"),
    "dots": lambda out: layer().file("../outside/secret", b"evil"),
    "dots after a name": lambda out: layer().file("a/../../outside/secret", b"evil"),
    "dots after a link": lambda out: layer().symlink("l", f"{out}/sub").file("l/../secret", b"evil"),
    "absolute": lambda out: layer().file(f"{out}/secret", b"evil"),
    "whiteout by a link": lambda out: layer().symlink("l", out).file("l/.wh.secret"),
    "opaque by a link": lambda out: layer().symlink("l", out).file("l/.wh..wh..opq"),
    "whiteout of dots": lambda out: layer().file("d/.wh..."),
    "whiteout of a link": lambda out: layer().symlink("l", out).file(".wh.l"),
    "fifo by a link": lambda out: layer().symlink("l", out).add("l/p", tarfile.FIFOTYPE),
    "symlink by a link": lambda out: layer().symlink("l", out).symlink("l/s", "x"),
    "dangling link": lambda out: layer().symlink("l", f"{out}/fresh").file("l/f"),
    "dangling dots": lambda out: layer().symlink("l", "../outside/fresh").file("l/f"),
    "attributes by a link": lambda out: layer().symlink("l", out, pax_headers={"SCHILY.xattr.user.k": "v"}),
    "proc": lambda out: layer().symlink("l", "/proc/self/cwd").file("l/f").file("proc/self/root/f"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("overlay", [False, pytest.param(True, marks=needs_root)])
def test_nothing_outside_is_touched(extract, tmp_path: Path, outside: Path, attack: str, overlay: bool) -> None:
    before = snapshot(outside)
    try:
        extract(ATTACKS[attack](str(outside)).build(), overlay=overlay)
    except ArchiveFault as fault:
        assert str(fault)
    assert snapshot(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "target"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", ".."])
def test_names_that_lead_out_are_refused(extract, name: str) -> None:
    with pytest.raises(Corrupt, match="leads out of the layer"):
        extract(layer().file(name).build())


@pytest.mark.parametrize("link", ["../x", "d/../../x"])
def test_hard_links_that_lead_out_are_refused(extract, link: str) -> None:
    with pytest.raises(Corrupt, match="leads out of the layer"):
        extract(layer().hard_link("h", link).build())


def test_hard_link_to_a_directory_is_refused(extract) -> None:
    with pytest.raises(Corrupt, match="directory"):
        extract(layer().directory("d").hard_link("h", "d").build())


def test_entries_are_limited(extract) -> None:
    extract(layer().file("a").file("b").build(), max_entries=2)
    with pytest.raises(TooLarge, match="2 entries"):
        extract(layer().file("a").file("b").file("c").build(), max_entries=2)


def test_nothing_is_left_to_the_garbage_collector(extract) -> None:
    """It is off in unpackers: a cycle an entry would cost memory without bound."""
    archive = layer().file("gone", b"x").symlink("to", "d")
    for number in range(300):
        archive.directory(f"d{number % 7}").file(f"d{number % 7}/f", b"x", mtime=1.5).file(
            f"e/{'n' * 120}{number}", b"y"
        )
        archive.file(f"d{number % 7}/.wh.f").symlink(f"s{number}", "d0").file(f"s{number}/{number}", b"z")
    blob = archive.build()
    extract(blob, overlay=True)
    gc.collect()
    gc.disable()
    try:
        extract(blob, overlay=True)
        assert gc.collect() < 100
    finally:
        gc.enable()
