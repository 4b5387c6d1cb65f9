"""The system calls that Python lacks, one function each. Child side of unpacking, hence nothing but ctypes."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPENAT2 = 437  # the same on every architecture: it came after the numbers were unified
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY_HOW = _OpenHow(_DIRECTORY, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
_NO_LINK_HOW = _OpenHow(_DIRECTORY, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_SYMLINKS)


def open_directory_in_root(root_fd: int, path: bytes, follow: bool = True) -> int:
    """Open the directory ``path`` with the directory ``root_fd`` as the root that no link or ``..`` leads out of.

    Without ``follow`` a link anywhere on the way is ELOOP, or ENOTDIR where it is the last part: openat2(2).
    """
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root_fd),
            ctypes.c_char_p(path),
            ctypes.byref(_DIRECTORY_HOW if follow else _NO_LINK_HOW),
            ctypes.c_size_t(ctypes.sizeof(_OpenHow)),
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EAGAIN:  # a rename or mount anywhere, while a ".." was walked: try again
            raise _last_error(path)


def sync_file_system(fd: int) -> None:
    """Write the file system of ``fd`` to disk: syncfs(2)."""
    if _libc.syncfs(fd) != 0:
        raise _last_error(b"syncfs")


def forbid_new_privileges() -> None:
    """Set PR_SET_NO_NEW_PRIVS."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal_number: int) -> None:
    """Ask for ``signal_number`` when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def keep_capabilities(numbers: frozenset[int]) -> None:
    """Drop every capability of this thread but ``numbers``; for good, since none is left inheritable."""
    masks = [sum(1 << (number % 32) for number in numbers if number // 32 == half) for half in (0, 1)]
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(masks[0], masks[0], 0, masks[1], masks[1], 0)
    if _libc.capset(header, data) != 0:
        raise _last_error(b"capset")


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero) != 0:
        raise _last_error(b"prctl")


def _last_error(what: bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
