"""Removes what a list of paths names: what a checkpointed container had deleted of its image. Runs in the child.

Here and not in the daemon, since the list is a stranger's too: JSON of any shape and any number of paths, each of
which may lead through links.
"""

import errno
import os

from crinoid.core.api.archives import Corrupt, TooLarge, parse, show, split
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.removal import remove, times_kept
from crinoid.core.lifecycle.images.unpack.syscalls import open_directory_in_root

_LONGEST_PATH = 4096  # PATH_MAX


def read_list(blob: Blob, max_bytes: int) -> list[bytes]:
    """Return the paths of a JSON list. Raises Corrupt, TooLarge."""
    import json  # it imports re, for which no layer should wait

    content = bytearray()
    while piece := blob.read(1 << 20):
        content += piece
        if len(content) > max_bytes:
            raise TooLarge(f"it has more than {max_bytes} bytes, the limit")
    try:
        found = json.loads(content.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"it is no JSON list of paths: {error}") from error
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise Corrupt("it is no list of paths")
    try:
        return [path.encode("utf-8", "surrogateescape") for path in found]
    except UnicodeEncodeError as error:
        raise Corrupt(f"a path in it is no text: {error}") from error


class Deletion:
    """Removes each of ``paths`` beneath the root, by way of links that are there. ``current`` is the one at hand."""

    def __init__(self, root_fd: int, paths: list[bytes]) -> None:
        self._root_fd = root_fd
        self._paths = paths
        self.current = b""

    def run(self) -> None:
        """Remove them; what is not there is as good as removed. Raises Corrupt for what is no path below the root."""
        for path in self._paths:
            self.current = path
            parent, base = split(path)
            if not base or b"\0" in path or len(path) > _LONGEST_PATH:
                raise Corrupt(f"{show(path)} can't be deleted")
            self._remove(parent, base)
        self.current = b""

    def _remove(self, parent: bytes, name: bytes) -> None:
        try:
            fd = open_directory_in_root(self._root_fd, b"/".join(parse(parent)) or b".")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        try:
            with times_kept(fd):
                remove(fd, name)
        finally:
            os.close(fd)
