"""Takes a few known files out of an archive, flat, and nothing else of it: a checkpoint's parts. Runs in the child.

Unlike a layer, such an archive has no digest that says what it should be; so it must end as archives do.
"""

import os
from collections.abc import Mapping

from crinoid.core.api.archives import FILE, Corrupt, Entry, NotSupported, TooLarge
from crinoid.core.lifecycle.images.unpack.archive import read_entries
from crinoid.core.lifecycle.images.unpack.stream import ByteReader

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Parts:
    """One pass over an archive, into the directory ``root_fd``. ``current`` is the name at hand, for messages.

    ``wanted``: the most bytes of each part, by name; a name that ends in a slash stands for the plain files directly
    in that directory, which is made. Everything else is passed over, as are links and devices of a part's name.
    """

    def __init__(
        self, reader: ByteReader, root_fd: int, wanted: Mapping[bytes, int | None], max_entries: int | None
    ) -> None:
        self._reader = reader
        self._root_fd = root_fd
        self._wanted = wanted
        self._max_entries = max_entries
        self.current = b""

    def run(self) -> None:
        """Write all parts; the reader is then at the end of the stream. Raises ArchiveFault, OSError."""
        for name in self._wanted:
            if name.endswith(b"/"):
                os.mkdir(name[:-1], 0o700, dir_fd=self._root_fd)
        for count, entry in enumerate(read_entries(self._reader, must_end=True)):
            self.current = entry.name
            if count == self._max_entries:
                raise TooLarge(f"the archive has more than {self._max_entries} entries, the limit")
            name = entry.name.removeprefix(b"./").strip(b"/")
            directory, slash, base = name.rpartition(b"/")
            key = directory + slash if slash else name
            if entry.kind == FILE and key in self._wanted and base not in (b"", b".", b".."):
                self._write(name, entry, self._wanted[key])
        self.current = b""
        self._reader.drain_zeros()

    def _write(self, name: bytes, entry: Entry, most: int | None) -> None:
        if entry.sparse is not None:
            raise NotSupported("it is a sparse file; write the archive without sparse files")
        if most is not None and entry.size > most:
            raise TooLarge(f"it has {entry.size} bytes; at most {most} are accepted")
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=self._root_fd)
        except FileExistsError as error:
            raise Corrupt("the archive holds it twice") from error
        try:
            self._reader.write_to(fd, entry.size)
        finally:
            os.close(fd)
