"""Headers and extensions, from bytes to entries, and what is said about bytes that are none."""

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crinoid.core.api.archives import ArchiveFault, Corrupt, Entry
from crinoid.core.lifecycle.images.unpack.archive import read_entries
from crinoid.core.lifecycle.images.unpack.headers import number
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from support.archives import END, ArchiveBuilder, header, pad, pax, pax_record, seal


def entries(archive: bytes, chunk: int = 700) -> list[Entry]:
    return list(read_entries(ByteReader(archive[at : at + chunk] for at in range(0, len(archive), chunk))))


def first(archive: bytes) -> Entry:
    return entries(archive)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0junk", 0o644),
        (b"\0" * 8, 0),
        (b"        ", 0),
        (b"77777777", 0o77777777),
        (b"\x80\0\0\0\0\0\x01\0", 256),
        (b"\xff" * 8, -1),
        (b"\xff\xff\xff\xff\xff\xff\xff\0", -256),
    ],
)
def test_number_is_octal_or_base_256(field: bytes, value: int) -> None:
    assert number(field) == value


@pytest.mark.parametrize("field", [b"0000648\0", b"-000644\0", b"0x00644\0", b"6_4\0", b"6 4\0"])
def test_number_refuses_what_python_would_take(field: bytes) -> None:
    with pytest.raises(Corrupt, match="octal"):
        number(field)


def test_posix_prefix_makes_part_of_the_name() -> None:
    assert first(header(b"name", prefix=b"some/where") + END).name == b"some/where/name"


def test_gnu_header_keeps_times_where_posix_has_the_prefix() -> None:
    assert first(header(b"name", magic=b"ustar  \0", prefix=b"14524467400") + END).name == b"name"


def test_old_unix_header_with_a_slash_is_a_directory() -> None:
    assert first(header(b"etc/", kind=b"\0", magic=b"") + END).kind == b"5"


def test_signed_checksum_of_old_programs_is_accepted() -> None:
    block = header("ä".encode())
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    assert first(block[:148] + b"%06o\0 " % signed + block[156:] + END).name == "ä".encode()


def test_wrong_checksum_is_refused() -> None:
    with pytest.raises(Corrupt, match="checksum"):
        entries(header(b"a").replace(b"a", b"b", 1) + END)


def test_negative_size_is_refused() -> None:
    with pytest.raises(Corrupt, match="negative"):
        entries(header(b"a", size=b"\xff" * 12) + END)


def test_owner_beyond_32_bits_is_refused() -> None:
    with pytest.raises(Corrupt, match="user or group id"):
        entries(header(b"a", uid=b"\x80\0\0\x01\0\0\0\0") + END)


@pytest.mark.parametrize("value", [b"-1", b"4294967295"])
def test_no_owner_is_root_as_with_chown(value: bytes) -> None:
    entry = first(pax(b"p", {"uid": value, "gid": value}) + header(b"a") + END)
    assert (entry.uid, entry.gid) == (0, 0)
    with pytest.raises(Corrupt, match="user or group id"):
        entries(pax(b"p", {"uid": b"-7"}) + header(b"a") + END)


@pytest.mark.parametrize(
    ("before", "name"),
    [
        (lambda: pax(b"p", {"path": b"one"}) + pax(b"p", {"mtime": b"5"}), b"short"),
        (lambda: pax(b"p", {"path": b"one"}) + pax(b"p", {"path": b"two"}), b"two"),
        (lambda: pax(b"p", {"path": b"one"}) + pax(b"g", {"comment": b"x"}, b"g"), b"short"),
        (lambda: header(b"l", b"L", size=b"%011o" % 4) + pad(b"one\0") + pax(b"p", {"path": b"two"}), b"one"),
        (lambda: pax(b"p", {"path": b"two"}) + header(b"l", b"L", size=b"%011o" % 4) + pad(b"one\0"), b"one"),
    ],
    ids=["two", "two names", "global", "long name first", "long name last"],
)
def test_a_name_is_what_go_s_archive_tar_makes_of_it(before: Callable[[], bytes], name: bytes) -> None:
    """A scanner written in Go must see the files that a container gets; containerd agrees in each of these."""
    assert first(before() + header(b"short") + END).name == name


def test_size_of_a_link_is_no_data() -> None:
    archive = header(b"l", kind=b"1", size=b"00000001000", link=b"x") + header(b"f") + END
    assert [entry.name for entry in entries(archive)] == [b"l", b"f"]


def test_pax_records_correct_the_header() -> None:
    records = {"path": b"long\xff", "uid": b"4000000000", "gid": b"7", "mtime": b"1.25", "size": b"3"}
    entry = first(pax(b"p", records) + header(b"short") + pad(b"abc") + END)
    assert (entry.name, entry.uid, entry.gid, entry.size) == (b"long\xff", 4_000_000_000, 7, 3)
    assert entry.mtime_ns == 1_250_000_000


@pytest.mark.parametrize("time", [b"-1.25", b"-2208988800", b"9223372037", b"884541600000"])
def test_times_that_not_all_file_systems_keep_are_the_epoch(time: bytes) -> None:
    assert first(pax(b"p", {"mtime": time}) + header(b"f") + END).mtime_ns == 0


def test_pax_records_hold_for_one_entry() -> None:
    archive = pax(b"p", {"path": b"long"}) + header(b"one") + header(b"two") + END
    assert [entry.name for entry in entries(archive)] == [b"long", b"two"]


def test_empty_pax_value_leaves_the_header() -> None:
    assert first(pax(b"p", {"path": b""}) + header(b"name") + END).name == b"name"


def test_global_pax_header_is_read_over() -> None:
    archive = pax(b"g", {"path": b"other", "comment": b"x" * 2000}, b"g") + header(b"name") + END
    assert [entry.name for entry in entries(archive)] == [b"name"]


def test_gnu_long_names() -> None:
    name, link = b"n" * 5000, b"l" * 3000
    archive = header(b"././@LongLink", b"L", b"%o" % (len(name) + 1)) + pad(name + b"\0")
    archive += header(b"././@LongLink", b"K", b"%o" % (len(link) + 1)) + pad(link + b"\0")
    entry = first(archive + header(b"n", b"2", link=b"l") + END)
    assert (entry.name, entry.link) == (name, link)


@pytest.mark.parametrize(("kind", "is_directory"), [(b"\0", True), (b"0", False), (b"5", True)])
def test_a_slash_makes_a_directory_of_the_oldest_type_alone(kind: bytes, is_directory: bool) -> None:
    """As containerd has it: GNU tar takes a file of POSIX's type for a directory, too."""
    assert (first(header(b"name/", kind) + END).kind == b"5") is is_directory


def test_cut_name_that_ends_in_a_slash_is_no_directory() -> None:
    name = "d" * 99 + "/file"
    assert first(ArchiveBuilder(tarfile.GNU_FORMAT).file(name).build()).kind == b"0"


def test_extended_attributes_of_both_kinds() -> None:
    records = {"SCHILY.xattr.user.a": b"\0=\n1", "LIBARCHIVE.xattr.user.b%3d": b"AQI"}
    assert first(pax(b"p", records) + header(b"f") + END).xattrs == {"user.a": b"\0=\n1", "user.b=": b"\1\2"}


def test_attributes_of_overlayfs_are_dropped() -> None:
    records = {
        f"SCHILY.xattr.{space}.overlay.{name}": b"y" for space in ("trusted", "user") for name in ("opaque", "x")
    }
    assert first(pax(b"p", {**records, "SCHILY.xattr.user.ok": b"1"}) + header(b"f") + END).xattrs == {"user.ok": b"1"}


@pytest.mark.parametrize(
    "data",
    [b"junk", b"6 a=\n", b"99 path=a\n", b"9 path=ab\n", b"0 a=b\n", b"6 a=bc", b"11 size=-1\n\n", b"11 size=1x\n\n"],
)
def test_malformed_pax_records_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        entries(header(b"p", b"x", b"%o" % len(data)) + pad(data) + header(b"f") + END)


def test_nul_in_a_name_is_refused() -> None:
    with pytest.raises(Corrupt, match="NUL"):
        entries(pax(b"p", {"path": b"a\0b"}) + header(b"f") + END)


def test_huge_extended_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(Corrupt, match="extended header"):
        entries(header(b"p", b"x", b"77777777777"))


def test_data_after_one_zero_block_is_refused() -> None:
    with pytest.raises(Corrupt, match="zeros"):
        entries(header(b"a") + bytes(512) + header(b"b") + END)


def test_archive_may_end_without_zeros() -> None:
    assert [entry.name for entry in entries(header(b"a") + header(b"b"))] == [b"a", b"b"]


def test_no_bytes_are_no_entries() -> None:
    assert entries(b"") == []


@pytest.mark.parametrize("cut", [1, 511, 513, 1023])
def test_cut_archive_is_refused(cut: int) -> None:
    with pytest.raises(Corrupt, match="ends early"):
        entries((header(b"a", size=b"00000001000") + pad(b"x" * 512))[:cut])


def test_pax_value_with_a_length_that_grows_by_its_own_digits() -> None:
    assert [len(pax_record(b"k", b"v" * size)) for size in (92, 93, 94)] == [98, 99, 101]


_SEED = (
    ArchiveBuilder(tarfile.PAX_FORMAT)
    .directory("d")
    .file("d/" + "long" * 60, b"data" * 300, mtime=1.5, pax_headers={"SCHILY.xattr.user.k": "v"})
    .symlink("s", "d")
    .hard_link("h", "s")
    .build()[:6000]
)


@given(st.lists(st.tuples(st.integers(0, len(_SEED) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(_SEED)))
@settings(max_examples=300, deadline=None)
def test_damage_never_raises_anything_but_a_fault(damage: list[tuple[int, int]], length: int) -> None:
    archive = bytearray(_SEED)
    for at, byte in damage:
        archive[at] = byte
    for at in range(0, len(archive) - 511, 512):  # right checksums, so that damage gets past the first check
        if archive[at + 257 : at + 262] == b"ustar":
            archive[at : at + 512] = seal(bytes(archive[at : at + 512]))
    try:
        entries(bytes(archive[:length]))
    except ArchiveFault as fault:
        assert str(fault)


def test_tarfile_and_we_agree_on_a_gnu_archive() -> None:
    builder = ArchiveBuilder(tarfile.GNU_FORMAT)
    builder.file("x" * 300, b"1", uid=1 << 22, mtime=1 << 34).symlink("y", "z" * 400)
    archive = builder.build()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        theirs = tar.getmembers()
    ours = entries(archive)
    assert [(e.name.decode(), e.link.decode(), e.uid, e.size) for e in ours] == [
        (t.name, t.linkname, t.uid, t.size) for t in theirs
    ]
