"""The place of a container's log, seen to before a monitor opens it, which waits for a FIFO's reader without end.

A pod with a volume of the node's log directory can put anything there: a FIFO or a device, or a link that has the
monitor, as root, write where the pod may not. The pod's own log directory is the kubelet's to name, and an operator may
have moved it by a link; below it only directories and regular files are taken.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.bulkheads import touching

_LONGEST_NAME, _LONGEST_PATH = 251, 4091
"""In bytes; a monitor that opens its log anew appends ``.tmp``."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def prepare_log(directory: Path, log_path: str) -> None:
    """Make the directories of the log ``log_path`` below a pod's ``directory``. Blocks.

    Raises InvalidArgument for a path that can be no file's, FailedPrecondition where something else than a regular file
    is at the log's place, or than a directory above it.
    """
    log = directory / log_path
    *above, name = PurePosixPath(log_path).parts or ("",)
    if not name or len(os.fsencode(name)) > _LONGEST_NAME or len(os.fsencode(log)) > _LONGEST_PATH:
        raise InvalidArgument(
            f"log_path {log_path[:100]!r} can't be a log's: it names no file, or is longer than "
            f"{_LONGEST_NAME} bytes for the name and {_LONGEST_PATH} for all of it"
        )
    touching(log.parent)
    try:
        rights.make_directories(directory, rights.SHOWN_DIRECTORY)
        with _made_below(directory, above) as fd:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return
    except OSError as error:
        raise FailedPrecondition(f"log directory {log.parent} can't be made: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise FailedPrecondition(f"log {log} can't be written: it is {kind}; remove it")


@contextmanager
def _made_below(directory: Path, names: list[str]) -> Iterator[int]:
    """Yield the last of some directories, each made in the one before if need be; no link is followed."""
    fd = os.open(directory, _DIRECTORY)
    try:
        for name in names:
            is_new = False
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
                is_new = True
            below = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
            if is_new:  # by its descriptor: the name may be a link by now
                os.fchmod(fd, rights.SHOWN_DIRECTORY)
        yield fd
    finally:
        os.close(fd)
