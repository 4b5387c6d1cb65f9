"""The 512-byte headers of tar: old Unix, POSIX ustar and GNU. One header in, one Entry out.

Written for speed: a layer may have hundreds of thousands of them. Extended headers are in ``extensions``.
Sources: POSIX pax (IEEE 1003.1), GNU tar manual "Basic Tar Format".
"""

import struct
from zlib import adler32

from crinoid.core.api.archives import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    Corrupt,
    Entry,
)

GNU_SPARSE = b"S"
_SAME_AS_FILE = frozenset({b"\0", b"7"})
WITHOUT_DATA = frozenset({HARD_LINK, SYMLINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO})
_DEVICES = frozenset({CHARACTER_DEVICE, BLOCK_DEVICE})

# name, mode+uid+gid, size, mtime, checksum, type, link, magic, (user and group name), major, minor, prefix
_FIELDS = struct.Struct("100s24s12s12s8sc100s8s64x8s8s155s12x")
_POSIX_MAGIC = b"ustar\x00"
_ADLER = 65521
_LATEST_S = (1 << 63) // 1_000_000_000  # what 64 bits of nanoseconds hold, in the year 2262
_OWNERS_REMEMBERED = 4096
_LARGEST_ID = 0xFFFF_FFFE
_UNCHANGED = (-1, 0xFFFF_FFFF)


class HeaderParser:
    """Parses headers. Remembers the owners it saw: they are few, and their octal digits slow to read."""

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[int, int, int]] = {}

    def parse(self, block: bytes) -> Entry:
        """Read one header. Raises Corrupt when its checksum or a number in it is wrong."""
        fields = _FIELDS.unpack(block)
        name, owner, size, mtime, checksum, kind, link, magic, major, minor, prefix = fields
        _verify(block, checksum)
        entry = Entry(block, FILE if kind in _SAME_AS_FILE else kind)
        entry.name = name = name.partition(b"\0")[0]
        if prefix[0] and magic[:6] == _POSIX_MAGIC:
            entry.name = prefix.partition(b"\0")[0] + b"/" + name
        if link[0]:
            entry.link = link.partition(b"\0")[0]
        entry.mode, entry.uid, entry.gid = self._owners.get(owner) or self._parse_owner(owner)
        seconds = number(mtime)
        entry.mtime_ns = seconds * 1_000_000_000 if 0 <= seconds < _LATEST_S else 0
        kind = entry.kind
        if kind not in WITHOUT_DATA:
            entry.size = number(size)
            if entry.size < 0:
                raise Corrupt("its size is negative")
        elif kind in _DEVICES:
            entry.device = (number(major), number(minor))
        return entry

    def _parse_owner(self, field: bytes) -> tuple[int, int, int]:
        if len(self._owners) > _OWNERS_REMEMBERED:
            self._owners.clear()
        uid, gid = check_id(number(field[8:16])), check_id(number(field[16:24]))
        owner = self._owners[field] = (number(field[:8]) & 0o7777, uid, gid)
        return owner


def number(field: bytes) -> int:
    """Read a numeric field: octal digits, or base 256 where its first bit is set. Raises Corrupt."""
    digits = field.rstrip(b"\0 ")  # all there is to it, nearly always
    if digits.isdigit() and (value := _octal(digits)) >= 0:
        return value
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if digits.isdigit() and (value := _octal(digits)) >= 0:
        return value
    raise Corrupt(f"{field!r} is no octal number")


def _octal(digits: bytes) -> int:
    try:
        return int(digits, 8)
    except ValueError:  # 8 and 9
        return -1


def bound_time(time_ns: int) -> int:
    """Return a time that all file systems keep: before the epoch, or out of all range, it becomes the epoch, as with
    peers."""
    return time_ns if 0 <= time_ns // 1_000_000_000 < _LATEST_S else 0


def check_id(value: int) -> int:
    """Return a user or group id. Raises Corrupt when Linux has no such id.

    -1 is what chown(2) takes for "leave it": peers hand it on, so the file belongs to root, who makes it.
    """
    if value in _UNCHANGED:
        return 0
    if not 0 <= value <= _LARGEST_ID:
        raise Corrupt(f"{value} is no user or group id")
    return value


def _verify(block: bytes, field: bytes) -> None:
    """Compare the sum of all bytes, with the field itself as eight spaces.

    Adler-32's lower half is that sum, plus one, modulo a prime: a hundred times faster than adding in Python, and
    the digest of the whole stream covers what the modulus lets through.
    """
    try:
        said = number(field)
        matches = (said + sum(field) - 255) % _ADLER == adler32(block) & 0xFFFF
        if not matches:  # some old programs added signed characters
            unsigned = sum(block) - sum(field) + 8 * 0x20
            signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
            matches = said in (unsigned, signed)
    except Corrupt:
        matches = False
    if not matches:
        raise Corrupt("its header's checksum is wrong: this is no tar archive, or it is damaged")
