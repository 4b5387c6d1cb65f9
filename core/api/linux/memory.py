"""Memory that was freed and that the C library keeps: fewer places to keep it in, and giving it back to the kernel.

Only glibc has arenas and can be told to trim them; other C libraries are left alone.
"""

import ctypes

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8


def limit_arenas(count: int) -> None:
    """Have at most so many of mallopt(3)'s arenas, of which each thread would get its own and keep what it once took.

    Call it before the first thread begins.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, count)


def trim() -> None:
    """Give back the pages that lie between what is in use (malloc_trim(3))."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(ctypes.c_size_t(0))
