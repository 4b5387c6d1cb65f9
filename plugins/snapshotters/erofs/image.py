"""Reads an EROFS image of ``writer``, without mounting it: names, inodes, attributes. Tests read data with it, too.

An image was made of what a stranger wrote, and may be damaged since: whatever does not fit raises ``DamagedImage``.
"""

import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import CorruptContent
from crinoid.plugins.snapshotters.erofs import layout
from crinoid.plugins.snapshotters.erofs.layout import BLOCK_BYTES, INODE, INODE_BYTES, SLOT_BYTES

_MOST_DIRECTORY_BYTES = 1 << 30


class DamagedImage(CorruptContent):
    """An image is not as ``writer`` writes them."""


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode. ``device`` as ``os.stat`` has it; ``offset`` and ``size`` say where a directory's or file's data are,
    the last ``tail`` bytes of them behind the inode."""

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    device: int
    offset: int
    tail: int
    tail_offset: int
    attributes: dict[str, bytes] = field(default_factory=dict)


class Image:
    """An image that is open; close it by ``with``."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        self.fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.inodes, self.blocks = self._read_superblock()
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def inode(self, nid: int) -> Inode:
        """Read an inode."""
        start = nid * SLOT_BYTES
        try:
            fields = INODE.unpack(self._read(start, INODE_BYTES))
            format_, count, mode, _, size, first, _, uid, gid, seconds, nanoseconds, links = fields
            head = INODE_BYTES + layout.attributes_bytes(count)
            attributes = layout.unpack_attributes(self._read(start + INODE_BYTES, head - INODE_BYTES))
            is_inline = layout.data_layout_of(format_) == layout.INLINE
        except (ValueError, struct.error) as error:
            raise DamagedImage(f"{self.path}, inode {nid}: {error}") from error
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return Inode(
            nid=nid,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime_ns=seconds * 1_000_000_000 + nanoseconds,
            links=links,
            device=layout.decode_device(first) if is_device else 0,
            offset=0 if is_device else first * BLOCK_BYTES,
            tail=size % BLOCK_BYTES if is_inline else 0,
            tail_offset=start + head,
            attributes=attributes,
        )

    def data(self, inode: Inode) -> bytes:
        """Read all data of a directory, link or small file."""
        if inode.size > _MOST_DIRECTORY_BYTES:
            raise DamagedImage(f"{self.path}, inode {inode.nid}: {inode.size} bytes")
        body = self._read(inode.offset, inode.size - inode.tail) if inode.size > inode.tail else b""
        return body + (self._read(inode.tail_offset, inode.tail) if inode.tail else b"")

    def entries(self, directory: Inode) -> dict[bytes, tuple[int, int]]:
        """Read a directory: nid and type of each name, ``.`` and ``..`` among them."""
        try:
            found = layout.unpack_entries(self.data(directory))
        except (ValueError, struct.error) as error:
            raise DamagedImage(f"{self.path}, directory {directory.nid}: {error}") from error
        return {name: (nid, kind) for name, nid, kind in found}

    def _read_superblock(self) -> tuple[int, int]:
        block = self._read(layout.SUPERBLOCK_OFFSET, BLOCK_BYTES - layout.SUPERBLOCK_OFFSET)
        fields = layout.SUPERBLOCK.unpack_from(block)
        inodes, blocks, uuid = fields[6], fields[9], fields[12]
        if block != layout.pack_superblock(inodes, blocks, uuid) or os.fstat(self.fd).st_size != blocks * BLOCK_BYTES:
            raise DamagedImage(f"{self.path} has no sound superblock")
        return inodes, blocks

    def _read(self, offset: int, count: int) -> bytes:
        data = os.pread(self.fd, count, offset) if count else b""
        if len(data) != count:
            raise DamagedImage(f"{self.path} ends at {offset + len(data)}")
        return data
