"""What the kernel says when it has no more to give, or can't write, as an error that names what is at fault."""

import errno
import resource

from crinoid.core.api.errors import ResourceExhausted, Unavailable

_USED_UP = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BROKEN = frozenset({errno.EIO, errno.EROFS})


def broken(error: OSError) -> Unavailable | None:
    """Return the error of our tree for a disk that fails, or has been made read-only since it did; ``None`` else."""
    if error.errno not in _BROKEN:
        return None
    return Unavailable(f"a file system of the host fails: {error}; see the kernel's log")


def exhausted(error: OSError) -> ResourceExhausted | None:
    """Return the error of our tree for a system call that failed since something is used up, ``None`` for others."""
    if error.errno not in _USED_UP:
        return None
    if error.errno != errno.EMFILE:
        return ResourceExhausted(f"the host has no more to give: {error}")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ResourceExhausted(
        f"crinoid has all of the {limit} file descriptors open that it may have (RLIMIT_NOFILE): close streams, or "
        f"raise LimitNOFILE of its service ({error})"
    )
