"""Open directories of the tree that is being unpacked, by the parent's name as entries write it.

Most entries have the parent of the entry before, so most cost no lookup at all. Directories that entries take for
granted are made here. Every path goes through ``openat2(RESOLVE_IN_ROOT)``: a symbolic link may stand in for a
directory, as ``/lib`` does, and leads nowhere but into the tree.
"""

import errno
import os
import resource
import stat
from collections.abc import Callable

from crinoid.core.api.archives import Corrupt, parse, show
from crinoid.core.lifecycle.images.unpack.syscalls import open_directory_in_root

_MOST_DIRECTORIES_OPEN = 4096
_MOST_LINKS = 40  # as the kernel
_ACCESS_LISTS = "system.posix_acl_default"


class Directory:
    """An open directory. The descriptor is closed with the last reference.

    ``inherits``: what is made in it gets its group or access list, unless told otherwise.
    """

    __slots__ = ("fd", "inherits", "inode")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self.inherits = bool(status.st_mode & stat.S_ISGID) or _ACCESS_LISTS in list_attributes(fd)

    def __del__(self) -> None:
        os.close(self.fd)


class DirectoryCache:
    """The directories of one tree.

    ``make_missing`` makes a directory of that name in a directory where there is none, or returns where the symbolic
    link of that name points. ``implied`` holds the path of each directory that was made without an entry of its own, by
    inode; the root is there from the start.
    """

    def __init__(self, root_fd: int, make_missing: Callable[[Directory, bytes], bytes | None]) -> None:
        self._root_fd = root_fd
        self._make_missing = make_missing
        self._open: dict[bytes, Directory] = {}
        self._room = min(_MOST_DIRECTORIES_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._last_name = b""
        self.root = self._last = Directory(os.dup(root_fd))
        self.implied: dict[int, bytes] = {self.root.inode: b"."}

    def find_or_make(self, name: bytes) -> Directory:
        """Return the directory of that name, made with its parents where missing. Raises Corrupt, OSError."""
        if name == self._last_name:
            return self._last
        directory = self._open.pop(name, None)
        if directory is None:
            parts = parse(name)
            directory = self._try_open(parts) or self._make(parts)
        return self._remember(name, directory)

    def find(self, name: bytes) -> Directory | None:
        """Return the directory of that name, or None where there is none."""
        if name == self._last_name:
            return self._last
        directory = self._open.pop(name, None) or self._try_open(parse(name))
        return None if directory is None else self._remember(name, directory)

    def forget(self) -> None:
        """Drop all that is open: a directory or a link to one was replaced, and names may mean something else now."""
        self._open.clear()
        self._last_name, self._last = b"", self.root

    def _remember(self, name: bytes, directory: Directory) -> Directory:
        self._open[name] = directory  # at the end: the dict is ordered by last use
        if len(self._open) > self._room:
            del self._open[next(iter(self._open))]
        self._last_name, self._last = name, directory
        return directory

    def _try_open(self, parts: list[bytes]) -> Directory | None:
        try:
            return Directory(open_directory_in_root(self._root_fd, b"/".join(parts) or b"."))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _make(self, wanted: list[bytes]) -> Directory:
        """Walk down from the root, making what is missing. A link that leads nowhere is followed, and its end made."""
        done: list[bytes] = []
        todo = wanted[::-1]
        parent = self.root
        links = 0
        while todo:
            part = todo.pop()
            directory = self._try_open([*done, part])
            if directory is None:
                link = self._make_missing(parent, part)
                if link is not None:
                    if links == _MOST_LINKS:
                        raise Corrupt(f"too many symbolic links on the way to {show(b'/'.join(wanted))}")
                    links += 1
                    todo += [step for step in reversed(link.split(b"/")) if step]
                    if link.startswith(b"/"):
                        done, parent = [], self.root
                    continue
                directory = Directory(open_directory_in_root(parent.fd, part))
                self.implied[directory.inode] = b"/".join([*done, part])
            done.append(part)
            parent = directory
        return parent


def list_attributes(fd: int) -> list[str]:
    """Return the names of a file's extended attributes; none where the file system has none."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise
