"""Who a container's process is: CRI security context first, then the image's ``User``, by the image's passwd files.

Sources: api.proto, LinuxContainerSecurityContext; OCI image-spec, config.md, "User"; passwd(5), group(5).
"""

from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.api.frozen import dataclass
from crinoid.core.api.linux.files import read_in_root
from crinoid.core.api.values.container import ContainerSecurity
from crinoid.core.state.records import ProcessUser

MAX_ID = (1 << 32) - 2
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's user, and its home folder."""

    user: ProcessUser
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def identify(security: ContainerSecurity, image_user: str, rootfs: Path) -> Identity:
    """Resolve user, group and supplemental groups against ``/etc/passwd`` and ``/etc/group`` in ``rootfs``.

    Raises InvalidArgument for a name that the image doesn't know, and for a group without a user.
    """
    wanted, wanted_group = _wanted(security, image_user)
    account = _account(wanted, rootfs)
    gid = _group_id(wanted_group, rootfs) if wanted_group else account.gid
    groups = set(security.supplemental_groups)
    if not security.strict_groups:
        groups |= set(_memberships(account.name, rootfs))
    for number in (account.uid, gid, *groups):
        if not 0 <= number <= MAX_ID:
            raise InvalidArgument(f"user or group id {number} is not between 0 and {MAX_ID}")
    return Identity(ProcessUser(account.uid, gid, tuple(sorted(groups | {gid}))), account.home or "/")


def _wanted(security: ContainerSecurity, image_user: str) -> tuple[str, str]:
    """Return user and group as texts, each a name or a number; an empty group means the user's own."""
    if security.run_as_user is not None:
        user, group = str(security.run_as_user), ""
    elif security.run_as_username:
        user, group = security.run_as_username, ""
    elif security.run_as_group is not None and not image_user:
        raise InvalidArgument("run_as_group needs run_as_user or run_as_username, or an image that names a user")
    else:
        user, _, group = image_user.partition(":")
    if security.run_as_group is not None:
        group = str(security.run_as_group)
    return user or "0", group


def _account(wanted: str, rootfs: Path) -> _Account:
    number = int(wanted) if wanted.isascii() and wanted.isdigit() else None
    for account in _accounts(rootfs):
        if account.name == wanted or account.uid == number:
            return account
    if number is None:
        raise InvalidArgument(f"user {wanted!r} is not in the image's /etc/passwd")
    return _Account("", number, 0, "/root" if number == 0 else "/")


def _group_id(wanted: str, rootfs: Path) -> int:
    if wanted.isascii() and wanted.isdigit():
        return int(wanted)
    for name, gid, _members in _groups(rootfs):
        if name == wanted:
            return gid
    raise InvalidArgument(f"group {wanted!r} is not in the image's /etc/group")


def _memberships(name: str, rootfs: Path) -> list[int]:
    return [gid for _name, gid, members in _groups(rootfs) if name and name in members]


def _accounts(rootfs: Path) -> Iterator[_Account]:
    for fields in _rows(rootfs, "etc/passwd", 6):
        if fields[2].isdigit() and fields[3].isdigit():
            yield _Account(fields[0], int(fields[2]), int(fields[3]), fields[5])


def _groups(rootfs: Path) -> Iterator[tuple[str, int, list[str]]]:
    for fields in _rows(rootfs, "etc/group", 4):
        if fields[2].isdigit():
            yield fields[0], int(fields[2]), fields[3].split(",")


def _rows(rootfs: Path, name: str, columns: int) -> Iterator[list[str]]:
    try:
        content = read_in_root(rootfs, name, MAX_FILE_BYTES)
    except (NotFound, FileNotFoundError, NotADirectoryError):
        return
    for line in content.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) >= columns:
            yield fields
