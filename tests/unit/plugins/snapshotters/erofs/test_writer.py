import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.api.archives import ArchiveFault, Corrupt, NotSupported, TooLarge
from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.tree import Tree
from crinoid.plugins.snapshotters.erofs.image import DamagedImage, Image
from crinoid.plugins.snapshotters.erofs.layout import crc32c
from support.archives import END, ArchiveBuilder, header, pax
from support.erofs import read_tree, walk, write_image

_NAMES = st.sampled_from(["a", "b", "c", "!", "-", "~", "ä", "long" * 60])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_SIZES = st.sampled_from([0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12287, 70_000])
_TIMES = st.sampled_from([-5.5, 0, 1.25, 1_700_000_000, 1_700_000_000.123456789, (1 << 32) + 1])
_ENTRIES = st.tuples(
    st.sampled_from(["file", "file", "directory", "symlink", "link", "fifo"]), _PATHS, _PATHS, _SIZES, _TIMES
)


@given(st.lists(_ENTRIES, min_size=1, max_size=14))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_image_holds_what_would_be_unpacked(tmp_path_factory: pytest.TempPathFactory, entries) -> None:
    base = tmp_path_factory.mktemp("image")
    archive = build(entries)
    try:
        expected = unpacked(archive, base / "unpacked")
    except (ArchiveFault, OSError):
        with pytest.raises((ArchiveFault, OSError)):
            write_image(archive, base)
        return
    with Image(write_image(archive, base)) as image:
        found = {path: seen(inode, image.data(inode)) for path, inode in walk(image)}
    assert found == expected


def build(entries) -> bytes:
    builder = ArchiveBuilder()
    for number, (kind, path, other, size, mtime) in enumerate(entries):
        match kind:
            case "file":
                builder.file(path, bytes([number + 1]) * size, mtime=mtime, mode=0o600 + number)
            case "directory":
                builder.directory(path, mtime=mtime, mode=0o700 + number)
            case "symlink":
                builder.symlink(path, "/" * (size % 2) + other, mtime=mtime)
            case "link":
                builder.hard_link(path, other)
            case "fifo":
                builder.add(path, tarfile.FIFOTYPE, mtime=mtime, mode=0o640)
    return builder.build()


def unpacked(archive: bytes, target: Path) -> dict[bytes, object]:
    """Unpack as for overlay, and tell what there is."""
    old = os.umask(0)
    target.mkdir()
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = ByteReader(iter([archive]))
        tree = Tree(fd, True, reader)
        Extraction(reader, tree, None).run()
    finally:
        os.close(fd)
        os.umask(old)
    implied = {os.fsencode(target) + b"/" + path for path in tree.implied} | {os.fsencode(target)}
    found: dict[bytes, object] = {}
    for path in (target, *target.rglob("*")):
        status = path.lstat()
        mtime_ns, data, links = status.st_mtime_ns, None, status.st_nlink
        if stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.fsencode(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            mtime_ns = 0 if os.fsencode(path) in implied else mtime_ns
            links = 2 + sum(one.is_dir() and not one.is_symlink() for one in path.iterdir())
        name = b"" if path == target else os.fsencode(path.relative_to(target))
        mode = status.st_mode if name else stat.S_IFDIR | 0o755
        found[name] = (mode, mtime_ns, links, data)
    return found


def seen(inode, data: bytes) -> object:
    is_data = stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode)
    return (inode.mode, inode.mtime_ns, inode.links, data if is_data else None)


def test_names_are_sorted_over_the_blocks_of_a_directory(tmp_path: Path) -> None:
    archive = ArchiveBuilder()
    names = [f"d/{number:0{3 + number % 200}}" for number in range(3000, 0, -1)]
    for name in names:
        archive.file(name)
    tree = read_tree(write_image(archive.build(), tmp_path))
    assert sorted(tree) == sorted([b"", b"d", *map(str.encode, names)])
    assert tree[b"d"].size > 50 * 4096


def test_owners_devices_and_attributes(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    records = {"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.k": b"\0v", "SCHILY.xattr.odd": b"x"}
    archive = ArchiveBuilder(uid=4_000_000_000, gid=1234)
    archive.add("c", tarfile.CHRTYPE, devmajor=259, devminor=70_000, mode=0o666)
    archive.add("b", tarfile.BLKTYPE, devmajor=8, devminor=1, mode=0o600)
    archive.raw(pax(b"p", records) + header(b"f", mode=b"4755", uid=b"1750"))
    archive.raw(
        pax(b"p", {"SCHILY.xattr.security.t": b"s", "SCHILY.xattr.user.k": b"s"}) + header(b"s", b"2", link=b"f")
    )
    tree = read_tree(write_image(archive.raw(END).build(), tmp_path))
    assert tree[b"f"].attributes == {"security.capability": capability, "user.k": b"\0v"}
    assert tree[b"s"].attributes == {"security.t": b"s"}  # links have no user.*
    assert (tree[b"f"].mode, tree[b"f"].uid) == (stat.S_IFREG | 0o4755, 0o1750)
    assert (tree[b"c"].device, tree[b"b"].device) == (os.makedev(259, 70_000), os.makedev(8, 1))
    assert (tree[b"c"].uid, tree[b"c"].gid) == (4_000_000_000, 1234)


def test_attributes_fill_a_block_and_no_more(tmp_path: Path) -> None:
    most = {"SCHILY.xattr.user.k": bytes(4000)}
    tree = read_tree(write_image(pax(b"p", most) + header(b"f") + END, tmp_path))
    assert tree[b"f"].attributes == {"user.k": bytes(4000)}
    (tmp_path / "other").mkdir()
    with pytest.raises(TooLarge, match="attributes"):
        write_image(pax(b"p", {"SCHILY.xattr.user.k": bytes(4100)}) + header(b"f") + END, tmp_path / "other")


@pytest.mark.parametrize("key", ["user.", "user." + "n" * 251, "system.posix_acl_access.x"])
def test_attributes_that_linux_does_not_take(tmp_path: Path, key: str) -> None:
    archive = pax(b"p", {f"SCHILY.xattr.{key}": b"v"}) + header(b"f") + END
    if key.startswith("system"):
        assert read_tree(write_image(archive, tmp_path))[b"f"].attributes == {}
    else:
        with pytest.raises(Corrupt, match="extended attribute"):
            write_image(archive, tmp_path)


def test_whiteouts_have_the_form_of_overlay(tmp_path: Path) -> None:
    archive = ArchiveBuilder().file("d/.wh.gone").directory("o").file("o/.wh..wh..opq").file("o/new")
    archive.add("null", tarfile.CHRTYPE, devmajor=0, devminor=0)
    tree = read_tree(write_image(archive.build(), tmp_path))
    for name in (b"d/gone", b"null"):
        assert stat.S_ISCHR(tree[name].mode)
        assert tree[name].device == 0
    assert tree[b"o"].attributes == {"trusted.overlay.opaque": b"y"}
    assert set(tree) == {b"", b"d", b"d/gone", b"o", b"o/new", b"null"}


def test_hard_links_count_the_names_that_are_left(tmp_path: Path) -> None:
    archive = ArchiveBuilder().file("a", b"x").hard_link("b", "a").hard_link("c", "b").symlink("s", "a")
    archive.hard_link("t", "s").file("b", b"new")
    tree = read_tree(write_image(archive.build(), tmp_path))
    assert tree[b"a"] == tree[b"c"]
    assert [tree[name].links for name in (b"a", b"b", b"s", b"t")] == [2, 1, 2, 2]


def test_a_symlink_without_a_target_is_the_layer_s_fault(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="without a target"):
        write_image(ArchiveBuilder().symlink("l", "").build(), tmp_path)


def test_hard_link_to_a_lower_layer_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="native"):
        write_image(ArchiveBuilder().hard_link("b", "nowhere").build(), tmp_path)


def test_holes_of_a_file_are_holes_of_the_image(tmp_path: Path) -> None:
    size = 5 << 30
    records = {"GNU.sparse.size": b"%d" % size, "GNU.sparse.map": b"%d,4" % (size - 4)}
    archive = pax(b"p", records) + header(b"f", size=b"00000000004\0") + b"tail".ljust(512, b"\0") + END
    path = write_image(archive, tmp_path)
    with Image(path) as image:
        inode = dict(walk(image))[b"f"]
        assert (inode.size, inode.tail) == (size, 0)
        assert os.pread(image.fd, 6, inode.offset + size - 6) == b"\0\0tail"
    assert path.stat().st_blocks * 512 < 1 << 20


def test_the_same_layer_makes_the_same_image(tmp_path: Path) -> None:
    archive = ArchiveBuilder().file("d/f", b"x" * 9000).symlink("s", "d").build()
    images = []
    for chunk in (700, 1 << 20):
        (tmp_path / str(chunk)).mkdir()
        images.append(write_image(archive, tmp_path / str(chunk), chunk).read_bytes())
    assert images[0] == images[1]


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_names_and_paths_too_long_are_refused(tmp_path: Path, kind: str) -> None:
    for number, name in enumerate(["n" * 256, "d/" * 2100 + "n"]):
        (tmp_path / str(number)).mkdir()
        builder = ArchiveBuilder()
        getattr(builder, kind)(name, *(["x"] if kind == "symlink" else []))
        with pytest.raises(OSError, match="too long"):
            write_image(builder.build(), tmp_path / str(number))


@pytest.mark.parametrize("offset", [1024, 1030, 1060, 4096 + 2, 4096 + 13])
def test_a_damaged_image_is_told(tmp_path: Path, offset: int) -> None:
    path = write_image(ArchiveBuilder().file("f", b"x").build(), tmp_path)
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedImage):
        read_tree(path)


def test_checksum() -> None:
    assert crc32c(b"123456789") ^ 0xFFFF_FFFF == 0xE306_9283  # the check value of CRC-32C
