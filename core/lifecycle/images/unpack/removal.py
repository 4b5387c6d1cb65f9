"""Removes what stands in the way of a layer, or what its whiteouts name. Never follows a link."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Set

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: By inode of a directory, the names in it that this layer made: what a whiteout must leave.
Kept = Mapping[int, Set[bytes]]
_NOTHING: Kept = {}


def remove(directory_fd: int, name: bytes, kept: Kept = _NOTHING) -> bool:
    """Remove ``name`` and all below it but what is ``kept``. Returns whether it is gone. Absent is fine."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        is_empty = _empty_below(directory_fd, name, kept)
        if is_empty:
            os.rmdir(name, dir_fd=directory_fd)
        return is_empty
    return True


def empty(directory_fd: int, kept: Kept = _NOTHING) -> bool:
    """Remove all in an open directory but what is ``kept``. Returns whether nothing is left."""
    mine = kept.get(os.fstat(directory_fd).st_ino, frozenset()) if kept else frozenset()
    left = False
    for name in list_names(directory_fd):
        if name not in mine:
            left |= not remove(directory_fd, name, kept)
        else:
            left = True
            if stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
                _empty_below(directory_fd, name, kept)
    return not left


def list_names(directory_fd: int) -> list[bytes]:
    """Return the names in an open directory."""
    return [os.fsencode(name) for name in os.listdir(directory_fd)]


@contextlib.contextmanager
def times_kept(fd: int) -> Iterator[None]:
    """Let an open directory have the times afterwards that it has now."""
    before = os.fstat(fd)
    yield
    os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def _empty_below(directory_fd: int, name: bytes, kept: Kept) -> bool:
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=directory_fd)
    try:
        return empty(fd, kept)
    finally:
        os.close(fd)
