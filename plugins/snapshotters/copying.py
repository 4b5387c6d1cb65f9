"""Copies a tree as it is: hard links, owners, modes, times, extended attributes, devices, and holes stay.

The ``native`` snapshotter stacks layers this way. Where the file system shares blocks between files (reflink), no data
is copied. The source must be at rest. Everything blocks.
"""

import contextlib
import enum
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.api.errors import Unsupported

_FICLONE = 0x40049409
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_PIECE_BYTES = 1 << 20
_COPY_AT_ONCE_BYTES = 1 << 30


class Reflink(enum.StrEnum):
    """Whether files may share their blocks with the copied ones."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Interrupted(Exception):
    """The copy was told to give up; what is there of it is for the caller to remove."""


def copy_tree(source: Path, target: Path, reflink: Reflink, cancelled: threading.Event) -> None:
    """Copy what is in one directory into another that is empty, and the attributes of the directory itself.

    Raises OSError with the path, Unsupported where ``ALWAYS`` can't be had, Interrupted.
    """
    with _opened_directory(source) as source_fd, _opened_directory(target) as target_fd:
        _Copy(source_fd, target_fd, reflink, cancelled).run()


def can_reflink(directory: Path) -> bool:
    """Try whether files of a directory can share blocks."""
    one, other = directory / "reflink-source", directory / "reflink-target"
    try:
        one.write_bytes(b"x" * 65536)
        with one.open("rb") as source, other.open("wb") as target:
            return _clone(source.fileno(), target.fileno())
    finally:
        one.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


class _Copy:
    """One copy under way. Names are relative to the two directories, as long as the kernel takes them in one piece."""

    def __init__(self, source_fd: int, target_fd: int, reflink: Reflink, cancelled: threading.Event) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._reflink = reflink
        self._cancelled = cancelled
        self._links: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        """Directories get their attributes last: what is made in them changes their times."""
        directories = [(".", os.fstat(self._source_fd))]
        for name, _ in directories:  # grows as it goes
            for entry in self._entries(name):
                path = f"{name}/{entry.name}"
                below = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(below.st_mode):
                    os.mkdir(path, 0o700, dir_fd=self._target_fd)
                    directories.append((path, below))
                else:
                    self._copy_entry(path, below)
        for name, status in reversed(directories):
            self._copy_attributes(name, status)

    def _entries(self, name: str) -> Iterator["os.DirEntry[str]"]:
        if self._cancelled.is_set():
            raise Interrupted
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._source_fd)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def _copy_entry(self, path: str, status: os.stat_result) -> None:
        """Copy what is no directory; a further name of an inode becomes a hard link."""
        inode = (status.st_dev, status.st_ino)
        if inode in self._links:
            first = self._links[inode]
            os.link(first, path, src_dir_fd=self._target_fd, dst_dir_fd=self._target_fd, follow_symlinks=False)
            return
        if stat.S_ISREG(status.st_mode):
            self._copy_file(path, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(path, dir_fd=self._source_fd), path, dir_fd=self._target_fd)
        else:
            os.mknod(path, status.st_mode, status.st_rdev, dir_fd=self._target_fd)
        self._copy_attributes(path, status)
        if status.st_nlink > 1:
            self._links[inode] = path

    def _copy_file(self, path: str, status: os.stat_result) -> None:
        if self._cancelled.is_set():
            raise Interrupted
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._source_fd)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(path, flags, 0o600, dir_fd=self._target_fd)
            try:
                self._copy_content(source, target, status.st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _copy_content(self, source: int, target: int, size: int) -> None:
        if self._reflink is not Reflink.NEVER and size:
            if _clone(source, target):
                return
            if self._reflink is Reflink.ALWAYS:
                raise Unsupported('the file system can\'t share blocks between files, which reflink = "always" wants')
            self._reflink = Reflink.NEVER  # the next file has no better chance
        os.ftruncate(target, size)
        for start, end in _data_ranges(source, size):
            while start < end:
                if self._cancelled.is_set():
                    raise Interrupted
                try:  # within the kernel, which may do it on the storage (NFS 4.2)
                    copied = os.copy_file_range(source, target, min(end - start, _COPY_AT_ONCE_BYTES), start, start)
                except OSError as error:
                    if error.errno not in _NO_COPY_RANGE:
                        raise
                    piece = os.pread(source, min(end - start, _PIECE_BYTES), start)
                    copied = os.pwrite(target, piece, start)
                if not copied:
                    break  # the file is shorter than it said
                start += copied

    def _copy_attributes(self, path: str, status: os.stat_result) -> None:
        """Owner first: changing it takes away set-user-id bits and file capabilities. Times last."""
        os.chown(path, status.st_uid, status.st_gid, dir_fd=self._target_fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode), dir_fd=self._target_fd)
        # No call for attributes takes a directory's descriptor: /proc has names for what a descriptor leads to.
        source, target = f"/proc/self/fd/{self._source_fd}/{path}", f"/proc/self/fd/{self._target_fd}/{path}"
        try:
            names = os.listxattr(source, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            names = []
        for name in names:
            value = os.getxattr(source, name, follow_symlinks=False)
            try:
                os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or not name.startswith("security."):
                    raise  # a label of a security module that is off may be lost, nothing else
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(path, ns=times, dir_fd=self._target_fd, follow_symlinks=False)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are no holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


@contextlib.contextmanager
def _opened_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
