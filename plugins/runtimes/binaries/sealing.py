"""Programs as sealed copies in memory: what runc and crun make of themselves each time they are run, made once.

A runtime's binary guards itself against being overwritten by a container (CVE-2019-5736): it copies itself to memory
that nobody can write to any more, and begins anew from there. One that begins there has nothing left to do: so crun is
three times as fast, and runc spares a copy of nine megabytes. Source: their ``cloned_binary.c``; runc's memfd-bind.
"""

import fcntl
import os
import weakref
from pathlib import Path

from crinoid.core.api.linux import lsm
from crinoid.core.api.linux.files import open_regular

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_EXEC = 0x10  # Linux 6.3; before it every memfd can be executed
_PIECE_BYTES = 1 << 30
_KEPT = 2
_Identity = tuple[str, int, int, int]


class SealedPrograms:
    """Copies by program, each made anew when its file has changed. They end with this object."""

    def __init__(self) -> None:
        self._copies: dict[_Identity, int] = {}
        self._refused: set[_Identity] = set()

        def close_all(copies: dict[_Identity, int]) -> None:  # no method: it would keep the object alive
            while copies:
                os.close(copies.popitem()[1])

        weakref.finalize(self, close_all, self._copies)

    def path(self, program: Path) -> Path:
        """Return where to run the program from: its copy, or the program itself where there can be none."""
        found = program.stat()
        identity = (str(program), found.st_ino, found.st_size, found.st_ctime_ns)
        if identity in self._refused:
            return program
        if identity not in self._copies:
            try:
                self._copies[identity] = _seal(program)
            except OSError:
                self._refused.add(identity)
                return program
            # The copy before the last one may still be about to be run; older ones are not.
            for old in [one for one in self._copies if one[0] == identity[0]][:-_KEPT]:
                os.close(self._copies.pop(old))
        return Path(f"/proc/{os.getpid()}/fd/{self._copies[identity]}")


def _seal(program: Path) -> int:
    """Copy a program to memory and seal it. Raises OSError where the copy can't be run as the program can."""
    if lsm.has_selinux():
        raise PermissionError("a copy has not the program's SELinux label")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(program.name, flags | _MFD_EXEC)
    except OSError:  # the kernel does not know the flag
        fd = os.memfd_create(program.name, flags)
    try:
        with open_regular(program) as source:
            if source.read(4) != b"\x7fELF":
                raise PermissionError("a script may look at where it lies")
            os.lseek(source.fileno(), 0, os.SEEK_SET)
            while os.sendfile(fd, source.fileno(), None, _PIECE_BYTES):
                pass
        if not os.fstat(fd).st_mode & 0o100:  # the sysctl vm.memfd_noexec
            raise PermissionError("memory files can't be executed here")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
