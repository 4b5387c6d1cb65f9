"""What an EROFS image looks like on disk, as far as ``writer`` writes and ``image`` reads it.

Block 0 holds the superblock, block 1 the root's inode. The metadata area begins at block 0, so that an inode's number
(nid) is its offset in units of 32 bytes. Every inode is of the extended kind, with 32 bit owners and a time of its own.
Source: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.

Imported by the confined child: nothing but struct and os.
"""

import os
import stat
import struct

MAGIC = 0xE0F5E1E2
BLOCK_BYTES = 4096
SLOT_BYTES = 32
INODE_BYTES = 64
SUPERBLOCK_OFFSET = 1024
ROOT_NID = BLOCK_BYTES // SLOT_BYTES
"""The superblock has 16 bits for it."""
WHITEOUT_NID = 2048 // SLOT_BYTES
"""The inode of all whiteouts, character devices 0:0, in block 0 behind the superblock."""
MOST_BLOCKS = 0xFFFF_FFFF

# magic, checksum, compatible features, block bits, extension slots, root nid, inodes, epoch, nanoseconds, blocks,
# metadata's first block, shared attributes' first block, uuid, volume name, incompatible features, and zeros
SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sI44x")
_CHECKSUM_FEATURE, _TIME_FEATURE = 1, 2
# format, attribute count, mode, -, size, first block or device, number, uid, gid, seconds, nanoseconds, links
INODE = struct.Struct("<HHHHQIIIIqII16x")
DIRENT = struct.Struct("<QHBx")
"""nid, offset of the name in its block, type"""
ATTRIBUTES = struct.Struct("<IB7x")
"""name filter, number of shared attributes"""
ATTRIBUTE = struct.Struct("<BBH")
"""length of the name, prefix, size of the value"""

PLAIN, INLINE = 0, 2
_EXTENDED = 1
FILE, DIRECTORY, CHARACTER_DEVICE, BLOCK_DEVICE, FIFO, SOCKET, SYMLINK = range(1, 8)

_PREFIXES = (("user.", 1), ("trusted.", 4), ("security.", 6))
_WHOLE_NAMES = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}
_PREFIX_OF = {number: prefix for prefix, number in _PREFIXES} | {number: name for name, number in _WHOLE_NAMES.items()}
MOST_ATTRIBUTE_BYTES = BLOCK_BYTES - INODE_BYTES
"""They stay in the block of their inode, as on ext4."""
_LARGEST_NAME, _LARGEST_VALUE = 255, 0xFFFF


def format_of(data_layout: int) -> int:
    """Return the format field of an extended inode."""
    return _EXTENDED | data_layout << 1


def data_layout_of(format_: int) -> int:
    """Return where an inode's data are. Raises ValueError for what ``writer`` never writes."""
    if format_ & _EXTENDED and (data_layout := format_ >> 1) in (PLAIN, INLINE):
        return data_layout
    raise ValueError(f"inode format {format_:#x}")


def pack_superblock(inodes: int, blocks: int, uuid: bytes) -> bytes:
    """Return the rest of block 0 from the superblock's offset on."""
    fields = (_CHECKSUM_FEATURE | _TIME_FEATURE, 12, 0, ROOT_NID, inodes, 0, 0, blocks, 0, 0, uuid, b"", 0)
    whiteout = INODE.pack(format_of(PLAIN), 0, stat.S_IFCHR, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    gap = WHITEOUT_NID * SLOT_BYTES - SUPERBLOCK_OFFSET - SUPERBLOCK.size
    rest = (bytes(gap) + whiteout).ljust(BLOCK_BYTES - SUPERBLOCK_OFFSET - SUPERBLOCK.size, b"\0")
    checksum = crc32c(SUPERBLOCK.pack(MAGIC, 0, *fields) + rest)
    return SUPERBLOCK.pack(MAGIC, checksum, *fields) + rest


def encode_device(major: int, minor: int) -> int:
    """Return a device number as the kernel stores it."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(device: int) -> int:
    """Return a stored device number as ``os.stat`` shows it."""
    return os.makedev(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)


def pack_attributes(attributes: dict[str, bytes]) -> bytes:
    """Return what follows an inode with extended attributes; of names that no Linux file system keeps, nothing.

    Raises ValueError for a name or value that the kernel refuses.
    """
    entries = [_pack_attribute(*_split(name), value) for name, value in attributes.items() if _split(name)[1] >= 0]
    return ATTRIBUTES.pack(0, 0) + b"".join(entries) if entries else b""


def count_attributes(packed: bytes) -> int:
    """Return what the inode's count of attributes says for packed ones."""
    return (len(packed) - ATTRIBUTES.size) // 4 + 1 if packed else 0


def attributes_bytes(count: int) -> int:
    """Return how many bytes of attributes follow an inode with that count."""
    return ATTRIBUTES.size + 4 * (count - 1) if count else 0


def unpack_attributes(packed: bytes) -> dict[str, bytes]:
    """Read what ``pack_attributes`` wrote. Raises ValueError or struct.error for anything else."""
    found, position = dict[str, bytes](), ATTRIBUTES.size
    while position < len(packed):
        length, prefix, size = ATTRIBUTE.unpack_from(packed, position)
        start = position + ATTRIBUTE.size
        name, value = packed[start : start + length], packed[start + length : start + length + size]
        if prefix not in _PREFIX_OF or len(value) != size:
            raise ValueError("damaged extended attributes")
        found[_PREFIX_OF[prefix] + os.fsdecode(name)] = value
        position = start + length + size + (-(length + size) % 4)
    return found


def _split(name: str) -> tuple[bytes, int]:
    if name in _WHOLE_NAMES:
        return b"", _WHOLE_NAMES[name]
    for prefix, number in _PREFIXES:
        if name.startswith(prefix):
            return os.fsencode(name[len(prefix) :]), number
    return b"", -1


def _pack_attribute(name: bytes, prefix: int, value: bytes) -> bytes:
    is_whole = _PREFIX_OF[prefix] in _WHOLE_NAMES
    if bool(name) is is_whole or len(name) + len(_PREFIX_OF[prefix]) > _LARGEST_NAME or len(value) > _LARGEST_VALUE:
        raise ValueError(f"the extended attribute {_PREFIX_OF[prefix]}{os.fsdecode(name)!a} of {len(value)} bytes")
    return ATTRIBUTE.pack(len(name), prefix, len(value)) + name + value + bytes(-(len(name) + len(value)) % 4)


def entries_bytes(names: list[bytes]) -> int:
    """Return how many bytes ``pack_entries`` makes of entries with these names."""
    total = DIRENT.size * len(names) + sum(map(len, names))
    if total <= BLOCK_BYTES:
        return total
    full = used = 0
    for name in sorted(names):
        need = DIRENT.size + len(name)
        if used + need > BLOCK_BYTES:
            full, used = full + BLOCK_BYTES, 0
        used += need
    return full + used


def pack_entries(entries: "list[tuple[bytes, int, int]]") -> bytes:
    """Return a directory's blocks, the last one shorter. ``entries``: name, nid, type; they are sorted here.

    Names are sorted over all blocks, and in each block stand behind its entries.
    """
    entries.sort()
    blocks = list[bytes]()
    begin = used = 0
    for number, (name, _, _) in enumerate(entries):
        need = DIRENT.size + len(name)
        if used + need > BLOCK_BYTES:
            blocks.append(_pack_block(entries[begin:number]).ljust(BLOCK_BYTES, b"\0"))
            begin, used = number, 0
        used += need
    blocks.append(_pack_block(entries[begin:]))
    return b"".join(blocks)


def _pack_block(entries: "list[tuple[bytes, int, int]]") -> bytes:
    offset = DIRENT.size * len(entries)
    heads = bytearray(offset)
    position = 0
    pack_into = DIRENT.pack_into
    for name, nid, kind in entries:
        pack_into(heads, position, nid, offset, kind)
        position += 12
        offset += len(name)
    return bytes(heads) + b"".join([name for name, _, _ in entries])


def unpack_entries(data: bytes) -> "list[tuple[bytes, int, int]]":
    """Read a directory's blocks. Raises ValueError or struct.error for damaged ones."""
    found = []
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        first = DIRENT.unpack_from(block, 0)[1]
        if not DIRENT.size <= first <= len(block) or first % DIRENT.size:
            raise ValueError("damaged directory")
        heads = [DIRENT.unpack_from(block, at) for at in range(0, first, DIRENT.size)]
        ends = [head[1] for head in heads[1:]] + [len(block)]
        found += [
            (block[offset:end].partition(b"\0")[0], nid, kind)
            for (nid, offset, kind), end in zip(heads, ends, strict=True)
        ]
    return found


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _table()


def crc32c(data: bytes) -> int:
    """Return the Castagnoli CRC as EROFS has it: it begins with all ones, and is not inverted at its end."""
    value = 0xFFFF_FFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value
