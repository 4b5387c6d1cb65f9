"""Disk space that is the database's already, so that ends and removals are recorded on a full disk.

``store`` asks ``is_whole`` before it writes anything new. The space lies beyond the end of SQLite's log, where the next
records are appended: given by fallocate(2), it can't be taken by whoever fills the disk, as that of a file that is
removed in need can.
"""

import errno
import logging
import os
from pathlib import Path

from crinoid.core.api.linux import libc

LOG = logging.getLogger(__name__)
RESERVE_BYTES = 2 << 20
"""Ends of some hundred containers; on a full disk the log is checkpointed, and written from its start again, then."""
_SLACK_BYTES = 128 << 10
"""How much may be appended before the reserve is made whole again."""
_KEEP_SIZE = 0x01
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own blocks are
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """Space beyond the end of a file that is there, and grows by being appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._supported = True
        self._lacking = False
        self.is_whole()

    def is_whole(self) -> bool:
        """Return whether the reserve is there; first make it whole again where it is not, and there is room."""
        if not self._supported:
            return True
        status = os.fstat(self._descriptor)
        spare_bytes = status.st_blocks * _BLOCK_BYTES - status.st_size
        whole = True
        if spare_bytes < RESERVE_BYTES - _SLACK_BYTES:
            try:
                libc.call("fallocate", self._descriptor, _KEEP_SIZE, status.st_size, RESERVE_BYTES, path=self._path)
            except OSError as error:
                whole = error.errno not in _FULL
                if whole:  # tmpfs of old kernels, NFS: there is no reserve, then
                    LOG.warning("no space for a full disk can be reserved on this file system: %s", error)
                    self._supported = False
        if self._lacking is whole:
            self._lacking = not whole
            if whole:
                LOG.info("there is room on the disk of %s again: new pods, containers and images are taken", self._path)
            else:
                LOG.error("the disk of %s is full: only ends and removals are recorded until there is room", self._path)
        return whole

    def close(self) -> None:
        """Give the descriptor back; the space goes when SQLite truncates or removes the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
