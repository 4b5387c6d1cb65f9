"""Walks the entries of a layer and has ``tree``, or a driver's own writer, make them. Runs in the child, confined.

What a name means to a layer is decided here. Source: OCI image-spec, layer.md, "Whiteouts"; AUFS's own files, which
some old images carry, are passed over.
"""

from collections.abc import Callable

from crinoid.core.api import archives
from crinoid.core.api.archives import Corrupt, Entry, LayerWriter, NotSupported, TooLarge, show, split
from crinoid.core.lifecycle.images.unpack.archive import read_entries
from crinoid.core.lifecycle.images.unpack.stream import ByteReader

_WHITEOUT = b".wh."
_OPAQUE_WHITEOUT = b".wh..wh..opq"
_AUFS = b".wh..wh."
_Make = Callable[[bytes, bytes, Entry], None]


class Extraction:
    """One pass over a layer. ``current`` is the name of the entry at hand, for messages."""

    def __init__(self, reader: ByteReader, tree: LayerWriter, max_entries: int | None, must_end: bool = False) -> None:
        self._reader = reader
        self._tree = tree
        self._left = max_entries if max_entries is not None else -1
        self._max_entries = max_entries
        self._must_end = must_end
        self.current = b""
        self._makers: dict[bytes, _Make] = {
            archives.FILE: tree.add_file,
            archives.DIRECTORY: tree.add_directory,
            archives.SYMLINK: tree.add_symlink,
            archives.HARD_LINK: tree.add_hard_link,
            archives.CHARACTER_DEVICE: tree.add_node,
            archives.BLOCK_DEVICE: tree.add_node,
            archives.FIFO: tree.add_node,
        }

    def run(self) -> None:
        """Make all entries and finish the tree; the reader is then at the end of the stream. Raises ArchiveFault."""
        for entry in read_entries(self._reader, self._must_end):
            self.current = name = entry.name
            if self._left == 0:
                raise TooLarge(f"the archive has more than {self._max_entries} entries, the limit")
            self._left -= 1
            parent, base = split(name)
            if base.startswith(_WHITEOUT) or _WHITEOUT in parent:
                self._hide(parent, base, entry)
            elif base:
                self._maker(entry)(parent, base, entry)
            elif entry.kind == archives.DIRECTORY:
                self._tree.describe_root(entry)
            # Anything else of the root's name, or of none, is nothing, as with containerd.
        self.current = b""
        self._tree.finish()
        self._reader.drain()  # the diffID is that of the whole stream, with what follows the archive's end

    def _maker(self, entry: Entry) -> _Make:
        maker = self._makers.get(entry.kind)
        if maker is None:
            raise NotSupported(f"it is of the tar type {show(entry.kind)}, which no layer uses")
        return maker

    def _hide(self, parent: bytes, base: bytes, entry: Entry) -> None:
        parents = [part for part in parent.split(b"/") if part.startswith(_WHITEOUT)]
        if any(part.startswith(_AUFS) for part in parents):
            return
        if parents:
            raise Corrupt("a part of its path is a whiteout, which has no content")
        if not base.startswith(_WHITEOUT):  # ".wh." in the middle of a directory's name means nothing
            self._maker(entry)(parent, base, entry)
        elif base == _OPAQUE_WHITEOUT:
            self._tree.hide_below(parent)
        elif not base.startswith(_AUFS):
            hidden = base[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise Corrupt(f"the whiteout hides {show(hidden)}, which is no name")
            self._tree.hide(parent, hidden)
