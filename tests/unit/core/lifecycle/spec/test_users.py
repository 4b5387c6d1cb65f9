"""Identity: the CRI's rules, the image's files, and links in those files that must not lead out of the image."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import InvalidArgument
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
        (ContainerSecurity(run_as_user=-1), "", "'-1' is not in"),
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
