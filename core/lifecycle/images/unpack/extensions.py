"""What precedes a header to say what it has no room for: pax records and GNU long names.

Sources: POSIX pax "pax Extended Header", GNU tar manual "Storing Sparse Files", star and libarchive for attributes.
Two runtimes must not see different files in one image. So what Go's archive/tar, which the others read with, makes of
odd archives holds here, too: global pax headers are read over, and end what was said before them; of several pax
headers before one entry the last counts; a GNU long name goes before a pax record's.
"""

import binascii

from crinoid.core.api.archives import Corrupt, Entry, show
from crinoid.core.lifecycle.images.unpack.headers import WITHOUT_DATA, bound_time, check_id
from crinoid.core.lifecycle.images.unpack.stream import ByteReader

PAX, PAX_SOLARIS, PAX_GLOBAL, LONG_NAME, LONG_LINK, VOLUME_LABEL = b"x", b"X", b"g", b"L", b"K", b"V"
_IGNORED = frozenset({PAX_GLOBAL, VOLUME_LABEL})
KINDS = frozenset({PAX, PAX_SOLARIS, LONG_NAME, LONG_LINK}) | _IGNORED

_LARGEST_BYTES = 1 << 20
_STAR_ATTRIBUTE = b"SCHILY.xattr."
_LIBARCHIVE_ATTRIBUTE = b"LIBARCHIVE.xattr."
#: overlayfs keeps its own state there: an archive that sets it could show what other layers hide, or other files. The
#: rest of trusted.* is file systems' own business, too, and nobody in a container could read it; containerd drops it.
_OVERLAY_ATTRIBUTES = ("trusted.", "user.overlay.")


class Extensions:
    """What extended headers have said about the entry that comes next."""

    __slots__ = ("any", "link", "name", "records")

    def __init__(self) -> None:
        self.any = False
        self.name = b""
        self.link = b""
        self.records: dict[bytes, list[bytes]] = {}

    def read(self, header: Entry, reader: ByteReader) -> None:
        """Take the data of an extended header from ``reader``. Raises Corrupt."""
        if header.size > _LARGEST_BYTES:
            raise Corrupt(f"an extended header of {header.size} bytes; at most {_LARGEST_BYTES} are accepted")
        data = reader.take(header.size)
        reader.skip(-header.size % 512)
        if header.kind == PAX_GLOBAL:
            self.any, self.name, self.link, self.records = False, b"", b"", {}
        if header.kind in _IGNORED:
            return
        self.any = True
        if header.kind == LONG_NAME:
            self.name = data.partition(b"\0")[0]
        elif header.kind == LONG_LINK:
            self.link = data.partition(b"\0")[0]
        else:
            self.records = _parse_records(data)

    def apply(self, entry: Entry) -> None:
        """Correct the entry by what was said about it. Raises Corrupt."""
        for key, values in self.records.items():
            value = values[-1]
            if key.startswith(_STAR_ATTRIBUTE):
                _add_attribute(entry, key[len(_STAR_ATTRIBUTE) :], value)
            elif key.startswith(_LIBARCHIVE_ATTRIBUTE):
                _add_attribute(entry, _unquote(key[len(_LIBARCHIVE_ATTRIBUTE) :]), _decode(value))
            elif value:
                _apply_record(entry, key, value)
        entry.name = self.name or entry.name
        entry.link = self.link or entry.link


def _parse_records(data: bytes) -> dict[bytes, list[bytes]]:
    """Split ``length key=value newline`` records. A key's values are kept in order: old sparse maps repeat keys."""
    records: dict[bytes, list[bytes]] = {}
    position = 0
    while position < len(data) and data[position]:  # some programs fill up with NUL
        length, space, _ = data[position : position + 20].partition(b" ")
        if not space or not length.isdigit():
            raise Corrupt("a pax record has no length")
        record = data[position + len(length) + 1 : position + int(length)]
        key, equals, value = record.partition(b"=")
        if not key or not equals or value[-1:] != b"\n" or position + int(length) > len(data):
            raise Corrupt(f"the pax record {show(key)} is malformed")
        records.setdefault(key, []).append(value[:-1])
        position += int(length)
    return records


def _apply_record(entry: Entry, key: bytes, value: bytes) -> None:
    if key == b"path":
        entry.name = without_nul(value)
    elif key == b"linkpath":
        entry.link = without_nul(value)
    elif key == b"size":
        entry.size = 0 if entry.kind in WITHOUT_DATA else decimal(value)
    elif key == b"uid":
        entry.uid = _owner(value)
    elif key == b"gid":
        entry.gid = _owner(value)
    elif key == b"mtime":
        entry.mtime_ns = bound_time(_nanoseconds(value))


def _owner(text: bytes) -> int:
    return check_id(-decimal(text[1:]) if text.startswith(b"-") else decimal(text))


def decimal(text: bytes) -> int:
    """Read a decimal number that fits 63 bits. Raises Corrupt."""
    if not text.isdigit() or len(text) > 19 or int(text) >= 1 << 63:
        raise Corrupt(f"{show(text)} is no number that fits")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    seconds, _, fraction = text.partition(b".")
    sign = -1 if seconds.startswith(b"-") else 1
    if fraction and not fraction.isdigit():
        raise Corrupt(f"{show(text)} is no time")
    return sign * (decimal(seconds.lstrip(b"-")) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))


def without_nul(name: bytes) -> bytes:
    """Return a name from a record. Raises Corrupt for one that the kernel would take for a shorter one."""
    if b"\0" in name:
        raise Corrupt(f"the name {show(name)} has a NUL in it")
    return name


def _add_attribute(entry: Entry, key: bytes, value: bytes) -> None:
    name = without_nul(key).decode("utf-8", "surrogateescape")
    if not name.startswith(_OVERLAY_ATTRIBUTES):
        entry.xattrs[name] = value


def _unquote(text: bytes) -> bytes:
    first, *rest = text.split(b"%")
    try:
        return first + b"".join(bytes.fromhex(part[:2].decode("ascii")) + part[2:] for part in rest)
    except ValueError as error:
        raise Corrupt(f"the attribute name {show(text)} is malformed") from error


def _decode(value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error as error:
        raise Corrupt("the value of a LIBARCHIVE.xattr record is not base 64") from error
