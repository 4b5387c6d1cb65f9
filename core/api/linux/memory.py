"""Giving memory back to the kernel: what was freed, which the C library keeps, and programs that have run for now.

Only glibc keeps arenas and can be told to trim them; other C libraries are left alone.
"""

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

_LIBC = ctypes.CDLL(None)
_LOCKED = ctypes.PyDLL(None)
"""Keeps the interpreter's lock: a thread that waits for it while it holds the linker's would wait for ever for one that
loads a library."""
_M_ARENA_MAX = -8
_MADV_DONTNEED = 4
_PT_LOAD, _PT_DYNAMIC = 1, 2
_PF_W = 2
_DT_TEXTREL, _DT_FLAGS, _DF_TEXTREL = 22, 30, 4


class _Segment(ctypes.Structure):
    """``Elf64_Phdr`` of elf(5)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("offset", "address", "physical", "in_file", "size", "alignment")),
    )


class _Program(ctypes.Structure):
    """The beginning of ``struct dl_phdr_info`` of dl_iterate_phdr(3)."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_Segment)),
        ("count", ctypes.c_uint16),
    )


_VISITOR = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Program), ctypes.c_size_t, ctypes.c_void_p)


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


def release_programs() -> None:
    """Unmap the pages of the program and its libraries that nobody can have written to.

    Each is mapped again from the page cache when it is next used: in steps of 64 KiB, a few microseconds each.
    """

    def visit(program: Any, _size: int, _data: object) -> int:  # Any: ctypes' pointers have no type of their own
        for address, size in _read_only_parts(program[0]):
            _LOCKED.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_DONTNEED)
        return 0

    if ctypes.sizeof(ctypes.c_void_p) == ctypes.sizeof(ctypes.c_uint64):
        _LOCKED.dl_iterate_phdr(_VISITOR(visit), None)  # while it visits no library comes or goes


def _read_only_parts(program: _Program) -> Iterator[tuple[int, int]]:
    """Yield address and size of what is mapped for reading and running only, in whole pages.

    Such a page is as it is in the file, unless the linker had to write into the text: those libraries are left out.
    """
    segments = [program.segments[number] for number in range(program.count)]
    if any(_is_patched(program.base + one.address, one.size) for one in segments if one.type == _PT_DYNAMIC):
        return
    page = mmap.PAGESIZE
    for one in segments:
        if one.type == _PT_LOAD and not one.flags & _PF_W:
            start = (program.base + one.address) // page * page
            end = program.base + one.address + one.size
            yield start, -(-(end - start) // page) * page


def _is_patched(address: int, size: int) -> bool:
    """Tell whether a program's dynamic section says that its text had to be relocated."""
    words = (ctypes.c_uint64 * (size // 8)).from_address(address)
    entries = dict(zip(words[::2], words[1::2], strict=False))
    return _DT_TEXTREL in entries or bool(entries.get(_DT_FLAGS, 0) & _DF_TEXTREL)
