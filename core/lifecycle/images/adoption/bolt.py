"""Reads a bolt database (go.etcd.io/bbolt, file format version 2), in which containerd keeps its metadata.

Only what reading takes, over a copy of the file in memory. bolt writes new pages beside the old ones and then one of
two meta pages that names the new root. So a copy is whole if the meta pages were the same before and after it was made;
containerd holds the file's lock as long as it runs, so no lock can be had.

The file: pages of one size; a page has a header of 16 bytes (id, flags, count, overflow), then elements of 16 bytes
that point to keys and values behind them. A branch page's elements name pages, a leaf's have values, some of which are
buckets: a page id to go on at, or, where that is 0, a whole page within the value.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CorruptContent, NotFound, Unavailable
from crinoid.core.api.linux.files import open_regular

MAX_BYTES = 1 << 30
_TRIES = 20
_MAGIC = 0xED0CDAED
_VERSION = 2
_HEADER = struct.Struct("<QHHI")
_META = struct.Struct("<IIIIQQQQQQ")
_LEAF = struct.Struct("<IIII")
_BRANCH = struct.Struct("<IIQ")
_BUCKET = struct.Struct("<QQ")
_BRANCH_PAGE, _LEAF_PAGE = 0x01, 0x02
_BUCKET_ELEMENT = 0x01
_PAGE_SIZES = frozenset(1 << exponent for exponent in range(9, 17))


@dataclass(frozen=True, slots=True)
class _Meta:
    """What a meta page says."""

    page_size: int
    root: int
    transaction: int


class Bolt:
    """A database as it was when it was copied. Its methods raise CorruptContent for a file that is damaged."""

    def __init__(self, content: bytes, what: str) -> None:
        """``what`` names the file in messages."""
        self._content = memoryview(content)
        self._what = what
        if not (metas := _metas_of(content)):
            raise CorruptContent(
                f"{what} is no bolt database of version {_VERSION}, or both its meta pages are damaged"
            )
        meta = max(metas, key=lambda one: one.transaction)
        self._page_size = meta.page_size
        self.root = Bucket(self, meta.root, None)

    def page(self, number: int) -> memoryview:
        """Return a page with what it overflows to."""
        start = number * self._page_size
        if number < 2 or start + self._page_size > len(self._content):
            raise CorruptContent(f"{self._what}: there is no page {number}")
        overflow = _HEADER.unpack_from(self._content, start)[3]
        return self._content[start : start + (1 + overflow) * self._page_size]

    def fault(self, words: str) -> CorruptContent:
        """Return the error for something that can't be."""
        return CorruptContent(f"{self._what}: {words}")


class Bucket:
    """Keys with values, or with buckets; by keys as bytes, in their order."""

    def __init__(self, bolt: Bolt, root: int, inline: memoryview | None) -> None:
        self._bolt = bolt
        self._root = root
        self._inline = inline

    def items(self) -> Iterator[tuple[bytes, "bytes | Bucket"]]:
        """Yield all keys with their values or buckets."""
        if self._inline is not None:
            yield from self._leaf(self._inline)
        else:
            yield from self._walk(self._root, set())

    def bucket(self, key: bytes) -> "Bucket | None":
        """Return the bucket of a key, ``None`` where there is none."""
        return next((value for name, value in self.items() if name == key and isinstance(value, Bucket)), None)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, ``None`` where there is none."""
        return next((value for name, value in self.items() if name == key and isinstance(value, bytes)), None)

    def _walk(self, number: int, seen: set[int]) -> Iterator[tuple[bytes, "bytes | Bucket"]]:
        if number in seen:
            raise self._bolt.fault(f"page {number} comes twice in one bucket")
        seen.add(number)
        page = self._bolt.page(number)
        _, flags, count, _ = _HEADER.unpack_from(page)
        if flags & _LEAF_PAGE:
            yield from self._leaf(page)
        elif flags & _BRANCH_PAGE:
            for index in range(count):
                yield from self._walk(self._element(page, _BRANCH, index)[2], seen)
        else:
            raise self._bolt.fault(f"page {number} is neither a branch nor a leaf")

    def _leaf(self, page: memoryview) -> Iterator[tuple[bytes, "bytes | Bucket"]]:
        if len(page) < _HEADER.size:
            raise self._bolt.fault("a bucket is cut off")
        for index in range(_HEADER.unpack_from(page)[2]):
            flags, position, key_size, value_size = self._element(page, _LEAF, index)
            start = _HEADER.size + index * _LEAF.size + position
            middle, end = start + key_size, start + key_size + value_size
            if end > len(page):
                raise self._bolt.fault("an element reaches beyond its page")
            value = page[middle:end]
            yield bytes(page[start:middle]), self._open(value) if flags & _BUCKET_ELEMENT else bytes(value)

    def _open(self, value: memoryview) -> "Bucket":
        if len(value) < _BUCKET.size:
            raise self._bolt.fault("a bucket is cut off")
        root = _BUCKET.unpack_from(value)[0]
        return Bucket(self._bolt, root, None if root else value[_BUCKET.size :])

    def _element(self, page: memoryview, form: struct.Struct, index: int) -> tuple[int, ...]:
        place = _HEADER.size + index * form.size
        if place + form.size > len(page):
            raise self._bolt.fault("a page has fewer elements than it says")
        return form.unpack_from(page, place)


def read_bolt(path: Path) -> Bolt:
    """Copy a database into memory, also while another process writes to it.

    Raises NotFound, CorruptContent, and Unavailable for one that changes all the time. Blocks.
    """
    try:
        for _ in range(_TRIES):
            with open_regular(path) as file:
                if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                    raise CorruptContent(f"{path} has {size} bytes, more than {MAX_BYTES}")
                content = file.readall()
                file.seek(0)
                if _metas_of(content) == _metas_of(file.read(2 * max(_PAGE_SIZES))):
                    return Bolt(content, str(path))
    except FileNotFoundError as error:
        raise NotFound(f"{path}: there is no such file") from error
    except OSError as error:
        raise CorruptContent(f"{path}: {error.strerror}") from error
    raise Unavailable(f"{path} changes all the time: try again, or stop what writes to it")


def _metas_of(content: bytes) -> set[_Meta]:
    """Return the meta pages that are whole, of pages of whatever size."""
    return {meta for size in _PAGE_SIZES for meta in _metas(content, size)}


def _metas(content: bytes, page_size: int) -> Iterator[_Meta]:
    """Yield the meta pages of a file of such pages that are whole."""
    for number in (0, 1):
        start = number * page_size + _HEADER.size
        if start + _META.size > len(content):
            continue
        magic, version, size, _flags, root, _sequence, _freelist, _pages, transaction, checksum = _META.unpack_from(
            content, start
        )
        body = content[start : start + _META.size - 8]
        if (magic, version, size) == (_MAGIC, _VERSION, page_size) and checksum == _fnv(body):
            yield _Meta(page_size, root, transaction)


def _fnv(content: bytes) -> int:
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
