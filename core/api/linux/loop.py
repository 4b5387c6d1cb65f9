"""Loop devices: a file as a read-only block device, for kernels that mount no files. Everything blocks.

Source: loop(4).
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
_TRIES = 64


@contextlib.contextmanager
def attached(path: Path) -> Iterator[str]:
    """Give a block device of a file to a block that mounts it; it is detached by itself with its last user.

    Raises OSError where there are none.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, fd = _attach(file, path)
        try:
            yield device
        finally:
            os.close(fd)
    finally:
        os.close(file)


def _attach(file: int, path: Path) -> tuple[str, int]:
    info = struct.pack("<QQQQQIIII", 0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR) + os.fsencode(path)[-63:]
    config = struct.pack("<II", file, 0) + info.ljust(232, b"\0") + bytes(64)
    for _ in range(_TRIES):  # another process may be as fast
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
        finally:
            os.close(control)
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _CONFIGURE, config)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise
        else:
            return device, fd
    raise OSError(errno.EBUSY, "no loop device is free", str(path))
