"""Who a container's process is: CRI security context first, then the image's ``User``, by the image's passwd files.

The files are the image's, so anything may be in them. They are read line by line and only the lines that are needed are
judged: those that name the user, the group, or the user as a member. What is wrong with such a line is refused with
file and line.

Sources: api.proto, LinuxContainerSecurityContext; OCI image-spec, config.md, "User"; passwd(5), group(5).
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.linux.files import open_regular
from crinoid.core.api.values.container import ContainerSecurity
from crinoid.core.lifecycle.spec.mounts import check_count
from crinoid.core.lifecycle.user_ids import MAX_ID, MAX_NAME_BYTES, parse_id, quote
from crinoid.core.state.records import ProcessUser

MAX_FILE_BYTES = 16 << 20
"""More than containerd reads (10 MiB), and little enough for one line of this length to be held in memory."""

MAX_GROUPS = 1 << 16
"""Of a process, as the kernel has it (NGROUPS_MAX)."""

_PASSWD, _GROUP = "/etc/passwd", "/etc/group"
_ID = re.compile(rb"[+]?0*([0-9]{1,10})")
_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's user, and its home directory."""

    user: ProcessUser
    home: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of one of the files, and its fields without judgment of them."""

    place: str
    fields: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        return self.fields[0]

    def find_id(self, column: int) -> int | None:
        """Return a field as an id, ``None`` where it is none."""
        match = _ID.fullmatch(self.fields[column]) if column < len(self.fields) else None
        return int(match[1]) if match and int(match[1]) <= MAX_ID else None

    def take_id(self, column: int, what: str) -> int:
        """Return a field as an id. Raises FailedPrecondition that says where it is none."""
        number = self.find_id(column)
        if number is None:
            field = self.fields[column][:100] if column < len(self.fields) else b""
            raise FailedPrecondition(f"{self.place}: {what} {field.decode(errors='replace')!r} is no id")
        return number


def identify(security: ContainerSecurity, image_user: str, rootfs: Path) -> Identity:
    """Resolve user, group and supplemental groups against ``/etc/passwd`` and ``/etc/group`` in ``rootfs``. Blocks.

    A number is an id, also where the files have a user or group whose name looks like it. Raises InvalidArgument for a
    name that the image doesn't know, for a number that is no id and for a group without a user, FailedPrecondition for
    a file that can't be read, or whose line of the user is none.
    """
    # 1. What is asked for: an id or a name each. The request wins over the image; no group means the user's own.
    group: int | str | None = None
    if security.run_as_user is not None:
        user: int | str = security.run_as_user
    elif security.run_as_username:
        user = _id_or_name(security.run_as_username, "run_as_username")
    elif security.run_as_group is not None and not image_user:
        raise InvalidArgument("run_as_group needs run_as_user or run_as_username, or an image that names a user")
    else:
        name, _, group_name = image_user.partition(":")
        user = _id_or_name(name, "the image's user") if name else 0
        group = _id_or_name(group_name, "the image's group") if group_name else None
    group = group if security.run_as_group is None else security.run_as_group

    # 2. The user's line, if it has one: by the id, or by the name, never by a name that looks like the id.
    if isinstance(user, str):
        row = _find_name(user, rootfs, _PASSWD)
        uid = _row_of(row, user, _PASSWD).take_id(2, "user id")
    else:
        rows = _rows(rootfs, _PASSWD, b"%d" % user)
        row, uid = next((one for one in rows if one.find_id(2) == user), None), user

    # 3. The groups: with the policy Merge those that list the user in the image's /etc/group, too (KEP-3619).
    if group is None:
        gid = row.take_id(3, "group id") if row else 0
    elif isinstance(group, str):
        gid = _row_of(_find_name(group, rootfs, _GROUP), group, _GROUP).take_id(2, "group id")
    else:
        gid = group
    groups = {gid, *security.supplemental_groups}
    if row is not None and not security.strict_groups:
        groups |= set(_memberships(row.name, rootfs))
    check_count(groups, MAX_GROUPS, "supplemental_groups")
    for number in (uid, *groups):
        if not 0 <= number <= MAX_ID:
            raise InvalidArgument(f"user or group id {number} is not between 0 and {MAX_ID}")

    # 4. HOME, as a login has it; an environment has no NUL.
    home = "/root" if uid == 0 and row is None else "/"
    if row is not None and len(row.fields) > 5 and row.fields[5] and b"\0" not in row.fields[5]:
        home = row.fields[5].decode(errors="surrogateescape")
    return Identity(ProcessUser(uid, gid, tuple(sorted(groups))), home)


def _id_or_name(text: str, what: str) -> int | str:
    number = parse_id(text, what)
    if number is None and len(text.encode(errors="replace")) > MAX_NAME_BYTES:
        raise InvalidArgument(f"{what} {quote(text)} is longer than the {MAX_NAME_BYTES} bytes of a name")
    return text if number is None else number


def _find_name(wanted: str, rootfs: Path, file: str) -> _Row | None:
    name = wanted.encode(errors="surrogatepass")
    return next((row for row in _rows(rootfs, file, name) if row.name == name), None)


def _row_of(row: _Row | None, wanted: str, file: str) -> _Row:
    if row is None:
        kind = "user" if file == _PASSWD else "group"
        raise InvalidArgument(f"{kind} {quote(wanted)} is not in the image's {file}")
    return row


def _memberships(name: bytes, rootfs: Path) -> Iterator[int]:
    """Yield the groups that list the user. One without a valid id can't be joined, and is passed over."""
    if not name or b"," in name:
        return
    for row in _rows(rootfs, _GROUP, name):
        # not split: one line may list millions
        if len(row.fields) > 3 and b",%b," % name in b",%b," % row.fields[3] and (gid := row.find_id(2)) is not None:
            yield gid


def _rows(rootfs: Path, name: str, needle: bytes) -> Iterator[_Row]:
    """Yield the lines that hold ``needle`` somewhere; a file that is not there has none.

    Lines end at newlines alone, as with every other reader: a name may hold U+0085, which Python takes for the end of a
    line. Raises FailedPrecondition for what can't be read, or not in reasonable memory.
    """
    try:
        file = BufferedReader(open_regular(name, rootfs))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(name, error) from error
    with file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise _unreadable(name, OSError(errno.EFBIG, f"it has more than {MAX_FILE_BYTES >> 20} MiB"))
        try:
            for number, line in enumerate(file, 1):
                if needle in line:
                    fields = line.strip(_SPACE).split(b":", 6)
                    yield _Row(f"the image's {name}, line {number}", tuple(fields))
        except OSError as error:
            raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"the image's {name} can't be used: {error.strerror}")
