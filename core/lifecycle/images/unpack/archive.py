"""The entries of a layer, one after the other, from the bytes of ``stream``: headers with their extensions applied."""

from collections.abc import Iterator

from crinoid.core.api.archives import DIRECTORY, FILE, Corrupt, Entry
from crinoid.core.lifecycle.images.unpack.extensions import KINDS as EXTENSION_KINDS
from crinoid.core.lifecycle.images.unpack.extensions import Extensions
from crinoid.core.lifecycle.images.unpack.headers import GNU_SPARSE, HeaderParser
from crinoid.core.lifecycle.images.unpack.sparse import resolve_sparse
from crinoid.core.lifecycle.images.unpack.stream import ByteReader

_ZEROS = bytes(512)
_TYPE = 156
"""Where a header has its type."""


def read_entries(reader: ByteReader, must_end: bool = False) -> Iterator[Entry]:
    """Yield the entries; the caller may take ``entry.size`` bytes of data from ``reader`` before the next.

    The archive ends at two blocks of zeros, or where the stream ends between entries; nothing after that is looked at.
    ``must_end``: for an archive whose digest nobody knows, only the zeros count as an end. Raises Corrupt.
    """
    parse = HeaderParser().parse
    extensions = Extensions()
    while (block := reader.take_header()) is not None:
        if block == _ZEROS:
            second = reader.take_header()
            if second is not None and second != _ZEROS:
                raise Corrupt("the archive goes on after a block of zeros")
            return
        entry = parse(block)
        if entry.kind in EXTENSION_KINDS:
            extensions.read(entry, reader)
            continue
        if extensions.any or entry.kind == GNU_SPARSE:
            extensions.apply(entry)
            if entry.kind == GNU_SPARSE:  # its extension blocks are not counted in its size
                resolve_sparse(entry, {}, reader)
                following = reader.offset + entry.size + (-entry.size % 512)
            else:  # a map in front of the data is
                following = reader.offset + entry.size + (-entry.size % 512)
                resolve_sparse(entry, extensions.records, reader)
            extensions = Extensions()
        else:
            following = reader.offset + entry.size + (-entry.size % 512)
        # As before POSIX, of that type alone, as Go reads it; a long name is known only now.
        if entry.name[-1:] == b"/" and entry.kind == FILE and entry.raw[_TYPE] == 0:
            entry.kind = DIRECTORY
        yield entry
        reader.skip(following - reader.offset)
    if must_end:
        raise Corrupt(f"the archive is cut off at byte {reader.offset}: its end is missing")
