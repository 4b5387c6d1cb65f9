"""Writes bolt databases for tests: small ones in one page for each bucket, or with branches and overflow pages."""

import struct
from collections.abc import Mapping
from typing import Union

PAGE = 4096
Tree = Mapping[bytes, Union[bytes, "Tree"]]


def write_bolt(tree: Tree, transaction: int = 1, inline: bool = True, per_leaf: int = 1000) -> bytes:
    """Return a database; ``inline``: buckets without buckets stand within their value, as bolt has small ones.

    ``per_leaf``: so many keys are in a leaf; more make a branch.
    """
    pages = _Pages()
    root = _write(pages, tree, inline, per_leaf)
    return b"".join([_meta(0, root, transaction - 1), _meta(1, root, transaction), _page(2, 0x10, 0, b""), *pages.made])


def with_stale_meta(content: bytes, other: bytes) -> bytes:
    """Return the first database with its newer meta page torn, so that the older one counts."""
    return content[:PAGE] + other[: PAGE // 2] + content[PAGE + PAGE // 2 :]


class _Pages:
    def __init__(self) -> None:
        self.made: list[bytes] = []
        self.next = 3

    def add(self, flags: int, count: int, body: bytes) -> int:
        number = self.next
        page = _page(number, flags, count, body)
        self.made.append(page)
        self.next += len(page) // PAGE
        return number


def _write(pages: _Pages, tree: Tree, inline: bool, per_leaf: int) -> int:
    items = []
    for key, value in sorted(tree.items()):
        if isinstance(value, bytes):
            items.append((0, key, value))
        elif inline and all(isinstance(one, bytes) for one in value.values()):
            body = _leaf([(0, name, one) for name, one in sorted(value.items()) if isinstance(one, bytes)])
            items.append((1, key, struct.pack("<QQ", 0, 0) + struct.pack("<QHHI", 0, 2, len(value), 0) + body))
        else:
            items.append((1, key, struct.pack("<QQ", _write(pages, value, inline, per_leaf), 0)))
    groups = [items[start : start + per_leaf] for start in range(0, len(items), per_leaf)] or [[]]
    leaves = [(group[0][1] if group else b"", pages.add(2, len(group), _leaf(group))) for group in groups]
    return leaves[0][1] if len(leaves) == 1 else pages.add(1, len(leaves), _branch(leaves))


def _leaf(items: list[tuple[int, bytes, bytes]]) -> bytes:
    heads, data = b"", b""
    for number, (flags, key, value) in enumerate(items):
        position = (len(items) - number) * 16 + len(data)
        heads += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return heads + data


def _branch(items: list[tuple[bytes, int]]) -> bytes:
    heads, data = b"", b""
    for number, (key, page) in enumerate(items):
        heads += struct.pack("<IIQ", (len(items) - number) * 16 + len(data), len(key), page)
        data += key
    return heads + data


def _page(number: int, flags: int, count: int, body: bytes) -> bytes:
    size = -(-(16 + len(body)) // PAGE)
    return (struct.pack("<QHHI", number, flags, count, size - 1) + body).ljust(size * PAGE, b"\0")


def _meta(number: int, root: int, transaction: int) -> bytes:
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, root, 0, 2, 1000, transaction)
    checksum = 0xCBF29CE484222325
    for byte in body:
        checksum = (checksum ^ byte) * 0x100000001B3 % (1 << 64)
    return _page(number, 0x04, 0, body + struct.pack("<Q", checksum))
