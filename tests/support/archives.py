"""Makes tar archives for tests, kind ones by tarfile and unkind ones byte by byte."""

import io
import os
import tarfile
from dataclasses import dataclass, field
from typing import Any

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass
class ArchiveBuilder:
    """Collects entries; ``build`` gives the archive. Owners are the test's own, so that no root is needed."""

    format: int = tarfile.PAX_FORMAT
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)

    def __post_init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=self.format)  # noqa: SIM115

    def add(self, name: str, kind: bytes, content: bytes = b"", **attributes: Any) -> "ArchiveBuilder":
        """Add an entry of a tar type with any attributes of TarInfo."""
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mtime, info.uid, info.gid = kind, len(content), 1_700_000_000, self.uid, self.gid
        for key, value in attributes.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(content))
        return self

    def file(self, name: str, content: bytes = b"", **attributes: Any) -> "ArchiveBuilder":
        return self.add(name, tarfile.REGTYPE, content, **{"mode": 0o644, **attributes})

    def directory(self, name: str, **attributes: Any) -> "ArchiveBuilder":
        return self.add(name, tarfile.DIRTYPE, **{"mode": 0o755, **attributes})

    def symlink(self, name: str, target: str, **attributes: Any) -> "ArchiveBuilder":
        return self.add(name, tarfile.SYMTYPE, linkname=target, **attributes)

    def hard_link(self, name: str, target: str) -> "ArchiveBuilder":
        return self.add(name, tarfile.LNKTYPE, linkname=target)

    def raw(self, data: bytes) -> "ArchiveBuilder":
        """Add bytes as they are."""
        self._file.write(data)
        self._tar.offset = self._file.tell()
        return self

    def build(self) -> bytes:
        self._tar.close()
        return self._file.getvalue()


def header(name: bytes, kind: bytes = b"0", size: bytes = b"00000000000\0", **fields: bytes) -> bytes:
    """One header, with the fields ``mode uid gid mtime link magic major minor prefix`` as they are given."""
    owner = b"%d" % 0 if os.getuid() == 0 else b""
    uid = fields.get("uid", owner or b"%o" % os.getuid()).ljust(8, b"\0")
    gid = fields.get("gid", b"%o" % os.getgid()).ljust(8, b"\0")
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            fields.get("mode", b"0000644\0").ljust(8, b"\0"),
            uid,
            gid,
            size.ljust(12, b"\0"),
            fields.get("mtime", b"14524467400\0").ljust(12, b"\0"),
            b" " * 8,
            kind,
            fields.get("link", b"").ljust(100, b"\0"),
            fields.get("magic", b"ustar\00000").ljust(8, b"\0"),
            bytes(64),
            fields.get("major", b"").ljust(8, b"\0"),
            fields.get("minor", b"").ljust(8, b"\0"),
            fields.get("prefix", b"").ljust(155, b"\0"),
            fields.get("tail", b"").ljust(12, b"\0"),
        )
    )
    assert len(block) == BLOCK, len(block)
    return seal(block)


def seal(block: bytes) -> bytes:
    """Put the right checksum into a header."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def pad(data: bytes) -> bytes:
    """Fill up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def pax(name: bytes, records: dict[str, bytes], kind: bytes = b"x") -> bytes:
    """A pax extended header with its data."""
    data = b"".join(pax_record(key.encode(), value) for key, value in records.items())
    return header(name, kind, b"%o" % len(data)) + pad(data)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One record with its own length in front."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest
