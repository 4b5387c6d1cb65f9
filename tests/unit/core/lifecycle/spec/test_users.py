"""Identity: the CRI's rules, the image's files, and links in those files that must not lead out of the image."""

import os
import stat
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.values.container import ContainerSecurity
from crinoid.core.lifecycle.spec.users import identify
from crinoid.core.state.records import ProcessUser

PASSWD = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:A:/home/alice:/bin/sh\nbad line\nodd:x:a:b:c:/:\n"
GROUP = "root:x:0:\nstaff:x:50:alice,bob\nextra:x:51:alice\nalice:x:1001:\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("security", "image_user", "expected", "home"),
    [
        (ContainerSecurity(), "", ProcessUser(0, 0, (0,)), "/root"),
        (ContainerSecurity(), "alice", ProcessUser(1000, 1001, (50, 51, 1001)), "/home/alice"),
        (ContainerSecurity(), "1000", ProcessUser(1000, 1001, (50, 51, 1001)), "/home/alice"),
        (ContainerSecurity(), "alice:staff", ProcessUser(1000, 50, (50, 51)), "/home/alice"),
        (ContainerSecurity(), "4000:60", ProcessUser(4000, 60, (60,)), "/"),
        (ContainerSecurity(run_as_user=1000), "root", ProcessUser(1000, 1001, (50, 51, 1001)), "/home/alice"),
        (ContainerSecurity(run_as_username="alice"), "", ProcessUser(1000, 1001, (50, 51, 1001)), "/home/alice"),
        (ContainerSecurity(run_as_user=7, run_as_group=8), "alice", ProcessUser(7, 8, (8,)), "/"),
        (ContainerSecurity(run_as_group=8), "alice", ProcessUser(1000, 8, (8, 50, 51)), "/home/alice"),
        (ContainerSecurity(run_as_user=7, supplemental_groups=(9, 5)), "", ProcessUser(7, 0, (0, 5, 9)), "/"),
        (
            ContainerSecurity(run_as_user=1000, supplemental_groups=(9,), strict_groups=True),
            "",
            ProcessUser(1000, 1001, (9, 1001)),
            "/home/alice",
        ),
    ],
)
def test_identity(rootfs: Path, security: ContainerSecurity, image_user: str, expected: ProcessUser, home: str) -> None:
    identity = identify(security, image_user, rootfs)
    assert (identity.user, identity.home) == (expected, home)


@pytest.mark.parametrize(
    ("security", "image_user", "words"),
    [
        (ContainerSecurity(run_as_username="carol"), "", "'carol' is not in the image's /etc/passwd"),
        (ContainerSecurity(), "alice:nogroup", "'nogroup' is not in the image's /etc/group"),
        (ContainerSecurity(run_as_group=5), "", "run_as_group needs"),
        (ContainerSecurity(run_as_user=-1), "", "-1 is not between"),
        (ContainerSecurity(run_as_user=1 << 32), "", "not between 0 and"),
        (ContainerSecurity(supplemental_groups=(-5,)), "", "-5 is not between"),
    ],
)
def test_refusals(rootfs: Path, security: ContainerSecurity, image_user: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        identify(security, image_user, rootfs)


def test_without_files_numbers_still_do(tmp_path: Path) -> None:
    assert identify(ContainerSecurity(run_as_user=5), "", tmp_path).user == ProcessUser(5, 0, (0,))
    with pytest.raises(InvalidArgument):
        identify(ContainerSecurity(), "alice", tmp_path)


def test_a_link_out_of_the_image_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mallory:x:666:666::/:\n")
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "image/etc/passwd").symlink_to(outside)
    with pytest.raises(InvalidArgument):
        identify(ContainerSecurity(), "mallory", tmp_path / "image")


ROOT_BY_NUMBER = "root:x:0:0:root:/root:/bin/sh\n1234:x:0:0::/root:/bin/sh\n"
"""The second line is the attack: who runs as 1234 is to be no root."""


@pytest.mark.parametrize(
    ("security", "image_user"),
    [
        (ContainerSecurity(run_as_user=1234), ""),
        (ContainerSecurity(run_as_username="1234"), ""),
        (ContainerSecurity(run_as_username="+01234"), "root"),
        (ContainerSecurity(), "1234"),
        (ContainerSecurity(), "001234:"),
        (ContainerSecurity(), "+1234"),
        (ContainerSecurity(), f"{'0' * 5000}1234"),
    ],
)
def test_a_number_is_an_id_and_never_a_name(rootfs: Path, security: ContainerSecurity, image_user: str) -> None:
    (rootfs / "etc/passwd").write_text(ROOT_BY_NUMBER)
    (rootfs / "etc/group").write_text("root:x:0:1234,+01234,001234\n1234:x:0:\n")
    assert identify(security, image_user, rootfs).user == ProcessUser(1234, 0, (0,))


def test_a_number_as_the_group_is_an_id_and_so_are_those_of_the_files(rootfs: Path) -> None:
    (rootfs / "etc/group").write_text("root:x:0:\n5678:x:0:\n")
    assert identify(ContainerSecurity(), "alice:5678", rootfs).user == ProcessUser(1000, 5678, (5678,))
    (rootfs / "etc/passwd").write_text("0:x:7:7::/:\nbob:x:+0008:009::/bob\n")
    assert identify(ContainerSecurity(), "bob", rootfs).user == ProcessUser(8, 9, (9,))
    assert identify(ContainerSecurity(), "", rootfs).user == ProcessUser(0, 0, (0,))


@pytest.mark.parametrize("number", ["-1", "2147483648", "4294967295", "4294967296", "18446744073709551616", "9" * 5000])
def test_a_number_that_is_no_id_is_refused_by_name_although_a_user_is_called_so(rootfs: Path, number: str) -> None:
    (rootfs / "etc/passwd").write_text(f"{number}:x:0:0::/:\n")
    (rootfs / "etc/group").write_text(f"{number}:x:0:\n")
    for security, image_user, what in (
        (ContainerSecurity(), number, "the image's user"),
        (ContainerSecurity(), f"0:{number}", "the image's group"),
        (ContainerSecurity(run_as_username=number), "", "run_as_username"),
    ):
        with pytest.raises(InvalidArgument, match=rf"{what} '{number[:100]}'.* is no valid id"):
            identify(security, image_user, rootfs)


def test_digits_of_other_scripts_and_numbers_with_more_in_them_are_names(rootfs: Path) -> None:
    for name in ("\uff11", "\u00b2", "1_0", " 0", "0x0", "1e3"):
        with pytest.raises(InvalidArgument, match="is not in the image's /etc/passwd"):
            identify(ContainerSecurity(), name, rootfs)


SPOILERS = (
    b"two:x:\xc2\xb2:\xc2\xb2::/:\n",
    b"many:x:%b:0::/:\n" % (b"9" * 5000),
    b"next:x:5:5:A\xc2\x85B\xe2\x80\xa8C:/:\n",
    b"latin:x:5:5:\xff\xfe:/:\n",
    b"nul\0:x:5:5:\0:/\0:\n",
    b"\n:\n::::::::::::\n",
    b"long:x:5:5:%b:/:\n" % (b"g" * 8_000_000),
    b"# carol:x:0:0\n+::::::\n",
)


@pytest.mark.parametrize("spoiler", SPOILERS, ids=range(len(SPOILERS)))
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_no_other_line_spoils_the_one_that_is_needed(rootfs: Path, spoiler: bytes, ending: bytes) -> None:
    carol = b"carol:x:1300:1301:C\xc2\x85:/home/carol:/bin/sh" + ending
    (rootfs / "etc/passwd").write_bytes(spoiler + carol + spoiler)
    groups = [
        b"crew:x:1302:" + b"x" * 5000 + b",carol,dave",
        b"half:x:1303",
        b"odd:x:\xc2\xb2:carol",
        b"last:x:1304:carol",
    ]
    (rootfs / "etc/group").write_bytes(spoiler + ending.join(groups) + ending)
    expected = ProcessUser(1300, 1301, (1301, 1302, 1304))
    for user in ("carol", "1300"):
        found = identify(ContainerSecurity(), user, rootfs)
        assert (found.user, found.home) == (expected, "/home/carol")
    assert identify(ContainerSecurity(), "carol:half", rootfs).user.gid == 1303


@pytest.mark.parametrize(
    ("line", "user", "words"),
    [
        ("carol:x:\u00b2:5::/:\n", "carol", r"/etc/passwd, line 2: user id '\u00b2' is no id"),
        (f"carol:x:{'9' * 5000}:5::/:\n", "carol", r"/etc/passwd, line 2: user id '9{100}' is no id"),
        ("carol:x:4294967296:5::/:\n", "carol", r"/etc/passwd, line 2: user id '4294967296' is no id"),
        ("carol:x:-1:5::/:\n", "carol", r"line 2: user id '-1'"),
        ("carol:x:5:none::/:\n", "carol", r"line 2: group id 'none' is no id"),
        ("carol:x:5:none::/:\n", "5", r"line 2: group id 'none' is no id"),
        ("carol:x:5\n", "carol", r"line 2: group id '' is no id"),
        ("carol:\n", "carol", r"line 2: user id '' is no id"),
    ],
)
def test_a_line_that_is_needed_and_is_none_is_named(rootfs: Path, line: str, user: str, words: str) -> None:
    (rootfs / "etc/passwd").write_text(f"root:x:0:0::/:\n{line}carol:x:0:0::/:\n")
    with pytest.raises(FailedPrecondition, match=words):
        identify(ContainerSecurity(), user, rootfs)


def test_a_group_that_is_needed_and_has_no_id_is_named(rootfs: Path) -> None:
    (rootfs / "etc/group").write_text("root:x:0:\nstaff:x:fifty:\n")
    with pytest.raises(FailedPrecondition, match=r"/etc/group, line 2: group id 'fifty' is no id"):
        identify(ContainerSecurity(), "alice:staff", rootfs)


def test_large_files_are_read_and_larger_ones_refused_by_name(rootfs: Path) -> None:
    lines = "".join(f"user{number}:x:{100_000 + number}:5::/:/bin/sh\n" for number in range(60_000))
    (rootfs / "etc/passwd").write_text(f"{lines}last:x:7:8::/last:\n")
    assert (rootfs / "etc/passwd").stat().st_size > 1_800_000
    assert identify(ContainerSecurity(), "last", rootfs).user == ProcessUser(7, 8, (8,))
    os.truncate(rootfs / "etc/group", 1 << 40)
    with pytest.raises(FailedPrecondition, match="/etc/group can't be used: it has more than 16 MiB"):
        identify(ContainerSecurity(), "last:staff", rootfs)
    assert identify(ContainerSecurity(strict_groups=True), "last", rootfs).user.uid == 7, "the other file is not needed"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which has no end


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [_fifo, _device, _directory, _loop])
@pytest.mark.parametrize(("file", "user"), [("passwd", "alice"), ("passwd", "1000"), ("group", "alice")])
def test_what_is_no_file_is_named_and_blocks_nobody(rootfs: Path, make: object, file: str, user: str) -> None:
    (rootfs / "etc" / file).unlink()
    try:
        make(rootfs / "etc" / file)  # type: ignore[operator]  # one of the four above
    except PermissionError:
        pytest.skip("devices can be made by root only")
    with pytest.raises(FailedPrecondition, match=f"the image's /etc/{file} can't be used: "):
        identify(ContainerSecurity(), user, rootfs)


def test_more_groups_than_a_process_can_have_are_refused_by_name(rootfs: Path) -> None:
    groups = tuple(range(1, (1 << 16) + 1))
    with pytest.raises(InvalidArgument, match="supplemental_groups: 65537 are too many"):
        identify(ContainerSecurity(supplemental_groups=groups), "0", rootfs)
    assert (
        len(identify(ContainerSecurity(supplemental_groups=groups[1:]), "0", rootfs).user.supplemental_groups)
        == 1 << 16
    )
