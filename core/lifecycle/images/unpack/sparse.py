"""Sparse files: the four ways in which GNU tar says where the holes are.

The old one is in the header itself (type ``S``); formats 0.0, 0.1 and 1.0 are pax records, and 1.0 keeps its map in
front of the file's data. Source: GNU tar manual, "Storing Sparse Files".
"""

from itertools import pairwise

from crinoid.core.api.archives import FILE, Corrupt, Entry
from crinoid.core.lifecycle.images.unpack.extensions import decimal, without_nul
from crinoid.core.lifecycle.images.unpack.headers import GNU_SPARSE, number
from crinoid.core.lifecycle.images.unpack.stream import ByteReader

_MOST_PIECES = 1 << 20
_LARGEST_BYTES = (1 << 63) - 1  # of an offset in a file: off_t
_Pieces = list[tuple[int, int]]


def resolve_sparse(entry: Entry, records: dict[bytes, list[bytes]], reader: ByteReader) -> None:
    """Fill in ``entry.sparse`` if the entry is a sparse file, and make ``entry.size`` the size of its data alone.

    Takes a map from ``reader`` where it precedes the data. Raises Corrupt for a map that can't be.
    """
    if entry.kind == GNU_SPARSE:
        size, pieces = _read_old_map(entry, reader)
    elif b"GNU.sparse.major" in records:
        size, pieces = _read_map_before_data(entry, records, reader)
    elif b"GNU.sparse.map" in records or b"GNU.sparse.offset" in records:
        size, pieces = _read_recorded_map(records)
    else:
        return
    entry.kind = FILE
    if name := _last(records, b"GNU.sparse.name"):
        entry.name = without_nul(name)
    _check(size, pieces, entry.size)
    entry.sparse = (size, pieces)


def _read_old_map(entry: Entry, reader: ByteReader) -> tuple[int, _Pieces]:
    block = entry.raw
    pieces = _old_pieces(block[386:482])
    more = block[482]
    while more:
        extension = reader.take(512)
        pieces += _old_pieces(extension[:504])
        more = extension[504]
        _bound(len(pieces))
    return number(block[483:495]), pieces


def _old_pieces(field: bytes) -> _Pieces:
    used = (at for at in range(0, len(field), 24) if field[at] and field[at + 12])
    return [(number(field[at : at + 12]), number(field[at + 12 : at + 24])) for at in used]


def _read_recorded_map(records: dict[bytes, list[bytes]]) -> tuple[int, _Pieces]:
    size = decimal(_last(records, b"GNU.sparse.size"))
    if b"GNU.sparse.map" in records:
        numbers = [decimal(part) for part in _last(records, b"GNU.sparse.map").split(b",") if part]
        offsets, lengths = numbers[::2], numbers[1::2]
    else:
        offsets = [decimal(value) for value in records[b"GNU.sparse.offset"]]
        lengths = [decimal(value) for value in records.get(b"GNU.sparse.numbytes", [])]
    if len(offsets) != len(lengths):
        raise Corrupt("its sparse map is malformed")
    return size, list(zip(offsets, lengths, strict=True))


def _read_map_before_data(entry: Entry, records: dict[bytes, list[bytes]], reader: ByteReader) -> tuple[int, _Pieces]:
    if (_last(records, b"GNU.sparse.major"), _last(records, b"GNU.sparse.minor")) != (b"1", b"0"):
        raise Corrupt("its sparse format is neither 0.0, 0.1 nor 1.0")
    start = reader.offset
    lines = _Lines(reader)
    count = _bound(lines.next_number())
    pieces = [(lines.next_number(), lines.next_number()) for _ in range(count)]
    entry.size -= reader.offset - start
    return decimal(_last(records, b"GNU.sparse.realsize")), pieces


class _Lines:
    """Decimal numbers, one a line, in blocks of 512 bytes."""

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._text = b""

    def next_number(self) -> int:
        while b"\n" not in self._text:
            self._text += self._reader.take(512)
            if len(self._text) > 1024:
                raise Corrupt("its sparse map is malformed")
        line, _, self._text = self._text.partition(b"\n")
        return decimal(line)


def _last(records: dict[bytes, list[bytes]], key: bytes) -> bytes:
    return records.get(key, [b""])[-1]


def _bound(count: int) -> int:
    if count > _MOST_PIECES:
        raise Corrupt(f"its sparse map has {count} pieces")
    return count


def _check(size: int, pieces: _Pieces, stored: int) -> None:
    ends = [0, *(end for offset, length in pieces for end in (offset, offset + length)), size]
    if any(later < earlier for earlier, later in pairwise(ends)) or size > _LARGEST_BYTES:
        raise Corrupt("its sparse map has pieces out of order or beyond the end")
    if sum(length for _, length in pieces) != stored:
        raise Corrupt("its sparse map and its data differ in size")
