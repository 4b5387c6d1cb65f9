"""Shuts the child in the directory it unpacks into, before it reads a byte of what a stranger wrote.

Two walls: after ``chroot`` and the loss of CAP_SYS_CHROOT no path leads out, and ``tree`` opens directories by
``openat2(RESOLVE_IN_ROOT)`` anyhow. No descriptor to a directory outside is left open.
"""

import os
import resource
import signal

from crinoid.core.lifecycle.images.unpack import syscalls

_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SYS_ADMIN, _MKNOD, _SETFCAP = 0, 1, 3, 4, 21, 27, 31
#: SYS_ADMIN is what the kernel asks for trusted.* attributes. SYS_RESOURCE is not among them: with it, a layer
#: could fill the blocks that a file system reserves for root.
_NEEDED = frozenset({_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _SYS_ADMIN, _MKNOD, _SETFCAP})
_MEMORY_BYTES = 1 << 30
_OPEN_FILES = 8192


def confine(root_fd: int, first_foreign_fd: int) -> None:
    """Leave this process nothing but ``root_fd`` and what hangs under it. Call before any thread is started.

    ``first_foreign_fd`` and all descriptors above are closed. Raises OSError when not root.
    """
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    os.closerange(first_foreign_fd, highest)  # a directory outside that is open is a way out of the chroot
    os.umask(0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _MEMORY_BYTES)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    os.setgroups([])
    os.fchdir(root_fd)
    os.chroot(".")
    os.chdir("/")
    syscalls.forbid_new_privileges()
    syscalls.keep_capabilities(_NEEDED)


def die_with_parent(parent: int) -> None:
    """End when the daemon ends, even if it was killed: a half unpacked layer is of no use to the next one."""
    syscalls.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))
