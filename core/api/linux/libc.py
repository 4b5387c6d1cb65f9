"""Calls of the C library that Python lacks; every other module of this package makes them by way of this one."""

import ctypes
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

Argument = int | bytes | None
"""What a system call is given: a number, a string or buffer, or a null pointer."""

OPENAT2 = 437
OPEN_TREE = 428
MOVE_MOUNT = 429
FSOPEN = 430
FSCONFIG = 431
FSMOUNT = 432
MOUNT_SETATTR = 442


def call(name: str, *arguments: Argument, path: Path | str = "") -> int:
    """Call a function of the C library; raise OSError, with the path, when it answers -1."""
    return _checked(getattr(_LIBC, name)(*map(_converted, arguments)), name, path)


def syscall(number: int, *arguments: Argument, path: Path | str = "") -> int:
    """Make a system call by number: these are the same on all of Linux's current architectures."""
    return _checked(_LIBC.syscall(ctypes.c_long(number), *map(_converted, arguments)), f"system call {number}", path)


def _converted(argument: Argument) -> object:
    """C's variadic functions take what they find in a register: so every number goes there in full width."""
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)


def _checked(result: int, name: str, path: Path | str) -> int:
    if result != -1:
        return result
    code = ctypes.get_errno()
    raise OSError(code, f"{name}: {os.strerror(code)}", str(path) or None)
