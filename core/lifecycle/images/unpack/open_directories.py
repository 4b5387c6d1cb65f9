"""Open directories of the tree that is being unpacked, by the parent's name as entries write it.

Most entries have the parent of the entry before, so most cost no lookup at all. Directories that entries take for
granted are made here. Every path goes through ``openat2(RESOLVE_IN_ROOT)``: a symbolic link of the layer may stand in
for a directory, as ``/lib`` does, and leads nowhere but into the tree.
"""

import errno
import os
import resource
import stat
from collections.abc import Callable

from crinoid.core.api.archives import Corrupt, parse, show
from crinoid.core.lifecycle.images.unpack.syscalls import open_directory_in_root

_MOST_DIRECTORIES_OPEN = 4096
_PATH_MAX = 4096
_MOST_LINKS = 40  # as the kernel
_ACCESS_LISTS = "system.posix_acl_default"


class Directory:
    """An open directory. The descriptor is closed with the last reference.

    ``path``: where it is, without links, as ``find_or_make`` has it; "." is the root. ``inherits``: what is made in it
    gets its group or access list, unless told otherwise.
    """

    __slots__ = ("fd", "inherits", "inode", "mtime_ns", "path")

    def __init__(self, fd: int, path: bytes = b".") -> None:
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self.inode = status.st_ino
        self.mtime_ns = status.st_mtime_ns
        self.inherits = bool(status.st_mode & stat.S_ISGID) or _ACCESS_LISTS in list_attributes(fd)

    def __del__(self) -> None:
        os.close(self.fd)


class DirectoryCache:
    """The directories of one tree.

    ``make_missing`` makes a directory of that name in a directory where there is none, or returns where the symbolic
    link of that name points. ``implied`` holds the path of each directory that was made without an entry of its own, by
    inode; the root is there from the start.

    ``has_lower``: lower layers are in the tree, too. Then ``make_missing`` is asked about each link on the way to what
    is made, for only those of this layer are followed; and ``found`` holds the path and the time of each directory that
    was there, by inode.
    """

    def __init__(
        self, root_fd: int, make_missing: Callable[[Directory, bytes], bytes | None], has_lower: bool = False
    ) -> None:
        self._root_fd = root_fd
        self._has_lower = has_lower
        self._make_missing = make_missing
        self._open: dict[bytes, Directory] = {}
        self._room = min(_MOST_DIRECTORIES_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._last_name = b""
        self.root = self._last = Directory(os.dup(root_fd))
        self.implied: dict[int, bytes] = {self.root.inode: b"."}
        self.found: dict[int, tuple[bytes, int]] = {self.root.inode: (b".", self.root.mtime_ns)} if has_lower else {}

    def find_or_make(
        self, name: bytes, make_missing: Callable[[Directory, bytes], bytes | None] | None = None
    ) -> Directory:
        """Return the directory of that name, made with its parents where missing. Raises Corrupt, OSError."""
        if name == self._last_name:
            return self._last
        directory = self._open.pop(name, None)
        if directory is None:
            parts = parse(name)
            directory = self._try_open(parts) or self._make(parts, make_missing or self._make_missing)
        return self._remember(name, directory)

    def find(self, name: bytes) -> Directory | None:
        """Return the directory of that name, by way of anybody's links, or None where there is none."""
        if name == self._last_name:
            return self._last
        return self._open.get(name) or self._try_open(parse(name), follow=True)

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

    def _try_open(self, parts: list[bytes], parent: Directory | None = None, follow: bool = False) -> Directory | None:
        """``parent``: what ``parts`` without the last are, if that is open. The path may be too long for one call."""
        path = b"/".join(parts) or b"."
        start, way = (self._root_fd, path) if parent is None else (parent.fd, parts[-1])
        try:
            directory = Directory(open_directory_in_root(start, way, follow), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP and not follow:
                return None
            raise
        if self._has_lower and not follow:
            self.found.setdefault(directory.inode, (path, directory.mtime_ns))
        return directory

    def _make(self, wanted: list[bytes], make_missing: Callable[[Directory, bytes], bytes | None]) -> Directory:
        """Walk down from the root, making what is missing. A link that leads nowhere is followed, and its end made."""
        done: list[bytes] = []
        todo = wanted[::-1]
        parent = self.root
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":  # no link is left in what is done
                done = done[:-1]
                parent = self._try_open(done) or self.root
                continue
            directory = self._try_open([*done, part], parent)
            if directory is None:
                link = make_missing(parent, part)
                if link is not None:
                    if links == _MOST_LINKS:
                        raise Corrupt(f"too many symbolic links on the way to {show(b'/'.join(wanted))}")
                    links += 1
                    todo += [step for step in reversed(link.split(b"/")) if step not in (b"", b".")]
                    if link.startswith(b"/"):
                        done, parent = [], self.root
                    continue
                directory = Directory(open_directory_in_root(parent.fd, part), b"/".join([*done, part]))
                if len(directory.path) < _PATH_MAX:  # nobody could open it by its path, to give it looks
                    self.implied[directory.inode] = directory.path
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
