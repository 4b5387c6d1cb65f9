"""What a container has changed in the files of its image: a tar of all that is new or different, and what was deleted.

Called by ``capture`` with two mounted trees, while the container is frozen; knows nothing of snapshotters. Files that
agree in type, owner, mode, size, time (ns) and extended attributes count as the same.
"""

import errno
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, Unsupported
from crinoid.core.lifecycle.checkpoints.archive import Output

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


def write_diff(
    base: Path, rootfs: Path, target: Path, given_up: threading.Event, keep_free_percent: float = 0.0
) -> tuple[str, ...]:
    """Write a tar of what ``rootfs`` has that ``base`` has not, and return the paths of what it lacks, each with ``/``.

    Blocks; ends with CrinoidError once ``given_up`` is set, with ResourceExhausted when the disk gets full, and with
    Unsupported for a path that no call of the kernel takes. Follows no links. ``/dev``, ``/proc`` and ``/sys`` are left
    out below their roots.
    """
    root = os.fsencode(rootfs)
    deleted: list[bytes] = []
    links: dict[tuple[int, int], str] = {}
    name = b""
    try:
        with Output(target, given_up, keep_free_percent).tar() as archive:
            for name in changes(os.fsencode(base), root, deleted.append):
                if given_up.is_set():
                    raise CrinoidError("the root file system's changes were not needed any more")
                _add(archive, root, name, links)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        near = os.fsdecode(name[:200])
        raise Unsupported(
            f"the root file system has directories nested too deeply to be copied, near {near!a}"
        ) from error
    return tuple(os.fsdecode(b"/" + name) for name in deleted)


def changes(base: bytes, rootfs: bytes, deleted: Callable[[bytes], None]) -> Iterator[bytes]:
    """Yield the names, relative to the roots, that are new or different; directories before what is in them.

    Neither recursion nor all of a tree in memory: how deep and how wide it is, the container has chosen.
    """
    pending = [(b"", True)]
    while pending:
        below, is_directory_in_base = pending.pop()
        ours = _names(_join(rootfs, below))
        theirs = set(_names(_join(base, below))) if is_directory_in_base else set()
        for name in sorted(theirs.difference(ours)):
            deleted(_join(below, name))
        for name in ours:
            path = _join(below, name)
            found = os.lstat(_join(rootfs, path))
            was = os.lstat(_join(base, path)) if name in theirs else None
            if was is None or _differs(_join(base, path), was, _join(rootfs, path), found):
                yield path
            if stat.S_ISDIR(found.st_mode) and path not in _KERNELS_OWN:  # what is mounted there is no file of its own
                pending.append((path, was is not None and stat.S_ISDIR(was.st_mode)))


def _add(archive: tarfile.TarFile, rootfs: bytes, name: bytes, links: dict[tuple[int, int], str]) -> None:
    """Add a file to a tar; hard links as such where both names are in it."""
    path = _join(rootfs, name)
    found = os.lstat(path)
    if stat.S_IFMT(found.st_mode) not in _TYPES:
        return
    member = tarfile.TarInfo(os.fsdecode(name))
    member.type, member.mode = _TYPES[stat.S_IFMT(found.st_mode)], stat.S_IMODE(found.st_mode)
    member.uid, member.gid, member.mtime = found.st_uid, found.st_gid, found.st_mtime_ns // 10**9
    member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if stat.S_ISLNK(found.st_mode):
        member.linkname = os.fsdecode(_link(path))
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)  # a float, as tarfile writes it, can't hold nanoseconds
    attributes = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in _attributes(path).items()
    }
    member.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09}", **attributes}
    if not stat.S_ISREG(found.st_mode):
        archive.addfile(member)
        return
    inode = (found.st_dev, found.st_ino)
    if found.st_nlink > 1 and inode in links:
        member.type, member.linkname = tarfile.LNKTYPE, links[inode]
        archive.addfile(member)
        return
    if found.st_nlink > 1:
        links[inode] = member.name
    member.size = found.st_size  # only now: of a hard link that is named again, a reader would look for data
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:
        archive.addfile(member, content)


def _names(directory: bytes) -> list[bytes]:
    return sorted(os.listdir(directory))  # noqa: PTH208  # a Path has no bytes


def _differs(base: bytes, was: os.stat_result, path: bytes, found: os.stat_result) -> bool:
    if _facts(was) != _facts(found):
        return True
    if stat.S_ISLNK(found.st_mode):
        return _link(base) != _link(path)
    return _attributes(base) != _attributes(path)


def _join(directory: bytes, name: bytes) -> bytes:
    return b"%b/%b" % (directory, name) if directory else name


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
