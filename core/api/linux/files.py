"""Files that must be whole, files that others may have laid traps in, and what trees of them take on disk.

All of it blocks; call it in a thread where the tree may be large. Errors are OSError with the path.
"""

import contextlib
import errno
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path

from crinoid.core.api.linux import libc
from crinoid.core.api.values.snapshot import DiskUsage

_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own blocks are
_HOP_BYTES = 3000  # a longer path is walked in several steps: the kernel takes at most 4095 at once
_MAX_DEPTH = 64
_TEMPORARY = ".tmp"
_PARK = ".crinoid-remove-"
_REMOVE_TRIES = 100


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole, synced to disk: a reader, and a crash, sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            sync(fd, path)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def unfinished_write(path: Path) -> Iterator[Path]:
    """Give a block a name beside a path, for a file that is renamed to it once it is whole; else it is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished_writes(directory: Path) -> None:
    """Remove what ``write_atomically`` and ``unfinished_write`` leave in a directory when their process is killed.

    Nobody may write there now.
    """
    for left in directory.glob(f".*{_TEMPORARY}"):
        left.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with _opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        sync(fd, path)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        sync(fd, path)


def sync(fd: int, path: Path) -> None:
    """fsync(2), with the path in the error: a disk that fails is to be told by its file."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def open_in_root(root_fd: int, path: str | bytes, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open a path as a process would that has ``root_fd`` as its root: no link and no ``..`` leads out of it."""
    return _openat2(root_fd, path, flags, mode, _RESOLVE_IN_ROOT)


def open_regular(path: Path | str, root: Path | None = None, *, follow: bool = True) -> FileIO:
    """Open a regular file that others may have replaced by anything, to read it; ``root`` as in ``open_in_root``.

    Never waits for a FIFO and never opens a device, some of which act when they are opened: only what is known to be a
    regular file is opened to read. Raises FileNotFoundError, and OSError for what is no regular file (EINVAL), such as
    a link as the last part of the path, unless ``follow``.
    """
    shown = _shown(path, root)
    try:
        with _opened(_open_path(path, root, 0 if follow else os.O_NOFOLLOW)) as found:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", shown)
            # The same inode, whatever has become of its name meanwhile.
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, shown) from error
    return FileIO(fd, "rb")


def read_regular(path: Path | str, max_bytes: int, root: Path | None = None, *, follow: bool = True) -> bytes:
    """Read a regular file as a whole, as ``open_regular`` opens it. Raises OSError beyond ``max_bytes`` (EFBIG)."""
    with BufferedReader(open_regular(path, root, follow=follow)) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"longer than {max_bytes} bytes", _shown(path, root))
    return content


def _shown(path: Path | str, root: Path | None) -> str:
    return str(path) if root is None else f"{root}/{str(path).lstrip('/')}"


def _open_path(path: Path | str, root: Path | None, flags: int) -> int:
    flags |= os.O_PATH | os.O_CLOEXEC
    if root is None:
        return os.open(path, flags)
    with _opened(os.open(root, flags | os.O_DIRECTORY)) as root_fd:
        return open_in_root(root_fd, str(path), flags)


def disk_usage(path: Path) -> DiskUsage:
    """Measure a tree, or a file, by its allocated blocks, each inode once; stays on its file system.

    What appears or vanishes meanwhile may be counted or not. Raises FileNotFoundError for ``path`` itself.
    """
    top = path.lstat()
    seen = {top.st_ino}
    blocks = top.st_blocks
    if stat.S_ISDIR(top.st_mode):
        for status in _walk(path, top.st_dev):
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                blocks += status.st_blocks
    return DiskUsage(blocks * _BLOCK_BYTES, len(seen))


def _walk(path: Path, device: int) -> Iterator[os.stat_result]:
    """Yield the status of all below a directory, however deep, with one directory open at a time."""
    with _opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root_fd:
        pending = [b"."]
        while pending:
            directory = pending.pop()
            for name, status in _entries(root_fd, directory):
                if status.st_dev == device:
                    yield status
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(directory + b"/" + os.fsencode(name))


def _entries(root_fd: int, directory: bytes) -> Iterator[tuple[str, os.stat_result]]:
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        _opened(_open_below(root_fd, directory)) as fd,
        os.scandir(fd) as entries,
    ):
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def _open_below(root_fd: int, directory: bytes) -> int:
    """Open a directory below another by a path of any length; a link on the way is an error."""
    fd = os.dup(root_fd)
    while directory:
        cut = len(directory) if len(directory) <= _HOP_BYTES else directory.rindex(b"/", 0, _HOP_BYTES)
        hop, directory = directory[:cut], directory[cut + 1 :]
        with _opened(fd):
            fd = _openat2(fd, hop, os.O_RDONLY | os.O_DIRECTORY, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    return fd


def remove_tree(path: Path) -> None:
    """Remove a tree or a file; idempotent, also beside others that remove the same. Follows no link and enters no
    mount (EXDEV): unmount first.

    What can't be removed stays, such as an immutable file, with the directories above it; all else goes. Then the first
    failure is raised.
    """
    for _ in range(_REMOVE_TRIES):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            if path.is_symlink() or not path.is_dir():
                if os.path.lexists(path):
                    raise
                return
            failures = _remove_directory(path)
        else:
            return
        if failures and failures[0].errno != errno.ENOTEMPTY:  # else another has parked something there meanwhile
            raise OSError(failures[0].errno, failures[0].strerror, f"{failures[0].filename} in {path}")
    if failures:
        raise failures[0]


def _remove_directory(path: Path) -> list[OSError]:
    failures: list[OSError] = []
    try:
        with _opened(_open_directory(os.O_RDONLY, None, path)) as fd:
            park = _Park(fd)
            _empty(fd, park, 0, failures)
            while park.names:
                name = park.names.pop()
                _remove_below(fd, name, park, 0, failures)
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        failures.append(error)
    return failures


class _Park:
    """Where directories that lie too deep for the number of open descriptors are moved, to be emptied later."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.names: list[str] = []

    def take(self, directory_fd: int, name: str) -> None:
        parked = f"{_PARK}{secrets.token_hex(8)}"
        os.rename(name, parked, src_dir_fd=directory_fd, dst_dir_fd=self.fd)
        self.names.append(parked)


def _empty(fd: int, park: _Park, depth: int, failures: list[OSError]) -> None:
    with os.scandir(fd) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        try:
            if not is_directory:
                os.unlink(name, dir_fd=fd)
            elif depth < _MAX_DEPTH:
                _remove_below(fd, name, park, depth + 1, failures)
            else:
                park.take(fd, name)
        except FileNotFoundError:  # another removes the same
            continue
        except OSError as error:
            failures.append(error)


def _remove_below(fd: int, name: str, park: _Park, depth: int, failures: list[OSError]) -> None:
    """Remove a directory; one in which something stays is no failure of its own."""
    known = len(failures)
    try:
        with _opened(_open_directory(os.O_RDONLY, fd, name)) as below:
            _empty(below, park, depth, failures)
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if len(failures) == known:
            failures.append(error)


def _open_directory(flags: int, dir_fd: int | None, name: Path | str) -> int:
    if dir_fd is None:
        return os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return _openat2(dir_fd, os.fsencode(name), flags | os.O_DIRECTORY, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS)


def _openat2(dir_fd: int, path: str | bytes, flags: int, mode: int, resolve: int) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    while True:
        try:
            return libc.syscall(libc.OPENAT2, dir_fd, name, how, len(how), path=os.fsdecode(name))
        except BlockingIOError:  # the kernel saw a rename on the way and asks to try again
            continue


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
