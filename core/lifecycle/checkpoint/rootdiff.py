"""What a container has changed in the files of its image: a tar of all that is new or different, and what was deleted.

Called by ``capture`` with two mounted trees, while the container is frozen; knows nothing of snapshotters. Files that
agree in type, owner, mode, size, time (ns) and extended attributes count as the same.
"""

import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from crinoid.core.api.errors import CrinoidError

_KERNELS_OWN = frozenset({b"dev", b"proc", b"sys"})
_TYPES: dict[int, bytes] = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
"""What a tar can hold: a socket is nothing without its process, and criu makes it anew."""


def write_diff(base: Path, rootfs: Path, target: Path, given_up: threading.Event) -> tuple[str, ...]:
    """Write a tar of what ``rootfs`` has that ``base`` has not, and return the paths of what it lacks, each with ``/``.

    Blocks; ends with CrinoidError once ``given_up`` is set. Follows no links. ``/dev``, ``/proc`` and ``/sys`` are
    left out below their roots.
    """
    writer = _Writer(given_up)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in changes(os.fsencode(base), os.fsencode(rootfs), writer.deleted.append):
            writer.add(archive, os.fsencode(rootfs), name)
    return tuple(os.fsdecode(b"/" + name) for name in writer.deleted)


def changes(base: bytes, rootfs: bytes, deleted: Callable[[bytes], None], below: bytes = b"") -> Iterator[bytes]:
    """Yield the names, relative to the roots, that are new or different; folders before what is in them."""
    ours, theirs = _entries(_join(rootfs, below)), _entries(_join(base, below))
    for name in sorted(theirs.keys() - ours.keys()):
        deleted(_join(below, name))
    for name, found in sorted(ours.items()):
        path, was = _join(below, name), theirs.get(name)
        if was is None or _differs(_join(base, path), was, _join(rootfs, path), found):
            yield path
        if not stat.S_ISDIR(found.st_mode) or path in _KERNELS_OWN:
            continue
        if was is not None and stat.S_ISDIR(was.st_mode):
            yield from changes(base, rootfs, deleted, path)
        else:
            yield from _all_below(rootfs, path)


class _Writer:
    """Adds files to a tar, hard links as such where both names are in it."""

    def __init__(self, given_up: threading.Event) -> None:
        self.deleted: list[bytes] = []
        self._given_up = given_up
        self._links: dict[tuple[int, int], str] = {}

    def add(self, archive: tarfile.TarFile, rootfs: bytes, name: bytes) -> None:
        if self._given_up.is_set():
            raise CrinoidError("the root file system's changes were not needed any more")
        path = _join(rootfs, name)
        found = os.lstat(path)
        if stat.S_IFMT(found.st_mode) not in _TYPES:
            return
        member = _describe(path, os.fsdecode(name), found)
        if stat.S_ISREG(found.st_mode):
            self._add_file(archive, path, member, found)
        else:
            archive.addfile(member)

    def _add_file(self, archive: tarfile.TarFile, path: bytes, member: tarfile.TarInfo, found: os.stat_result) -> None:
        inode = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and inode in self._links:
            member.type, member.linkname = tarfile.LNKTYPE, self._links[inode]
            archive.addfile(member)
            return
        self._links[inode] = member.name
        member.size = found.st_size
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:
            archive.addfile(member, content)


def _describe(path: bytes, name: str, found: os.stat_result) -> tarfile.TarInfo:
    """The member without content. Times have nanoseconds, which a float can't hold."""
    member = tarfile.TarInfo(name)
    member.type, member.mode = _TYPES[stat.S_IFMT(found.st_mode)], stat.S_IMODE(found.st_mode)
    member.uid, member.gid, member.mtime = found.st_uid, found.st_gid, found.st_mtime_ns // 10**9
    member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if stat.S_ISLNK(found.st_mode):
        member.linkname = os.fsdecode(_link(path))
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    attributes = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in _attributes(path).items()
    }
    member.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09}", **attributes}
    return member


def _entries(folder: bytes) -> dict[bytes, os.stat_result]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}


def _all_below(rootfs: bytes, folder: bytes) -> Iterator[bytes]:
    for name, found in sorted(_entries(_join(rootfs, folder)).items()):
        path = _join(folder, name)
        yield path
        if stat.S_ISDIR(found.st_mode):
            yield from _all_below(rootfs, path)


def _differs(base: bytes, was: os.stat_result, path: bytes, found: os.stat_result) -> bool:
    if _facts(was) != _facts(found):
        return True
    if stat.S_ISLNK(found.st_mode):
        return _link(base) != _link(path)
    return _attributes(base) != _attributes(path)


def _join(folder: bytes, name: bytes) -> bytes:
    return b"%b/%b" % (folder, name) if folder else name


def _link(path: bytes) -> bytes:
    return os.readlink(path)  # noqa: PTH115  # a Path has no bytes


def _facts(found: os.stat_result) -> tuple[int, ...]:
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return (found.st_mode, found.st_uid, found.st_gid, found.st_rdev, size, found.st_mtime_ns)


def _attributes(path: bytes) -> dict[str, bytes]:
    """Return the extended attributes that belong to the file, not to the file system that it lies on."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    kept = [name for name in names if not name.startswith(("trusted.overlay.", "security.selinux"))]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}
