"""Writes one layer as an EROFS image, entry by entry as the layer's stream brings them. Runs in the confined child.

Data go to the file as they come, from memory to disk once; what is held is the tree of names. Small files lie behind
their inodes in the same block, so that one read brings both. Large ones have blocks of their own to their last byte: a
tail behind the inode would cost them a read, and their inodes lie close together. Directories come last.

A directory that later may have to look as lower layers say has a block of its own, for ``settling`` to write anew. The
list of these is the file ``SETTLE_FILE``, which is no part of the layer.
"""

import errno
import os
from collections.abc import Callable

from crinoid.core.api.archives import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    ByteSource,
    Corrupt,
    Entry,
    LayerWriter,
    NotADirectory,
    NotSupported,
    TooLarge,
    parse,
    show,
    split,
)
from crinoid.plugins.snapshotters.erofs import layout
from crinoid.plugins.snapshotters.erofs.layout import BLOCK_BYTES, INLINE, INODE, INODE_BYTES, PLAIN, SLOT_BYTES

IMAGE_FILE, SETTLE_FILE = "layer.erofs", "settle"
OPAQUE = "trusted.overlay.opaque"
_OPAQUE_BYTES = 32  # of it among packed attributes, with their head: settling may add it
IMPLIED, RENEWED, HIDING = 1, 2, 4
_CHUNK_BYTES = 64 * BLOCK_BYTES
_IMPLIED_MODE = 0o755
_DIRECTORY_TYPE, _FILE_TYPE, _LINK_TYPE, _CHARACTER_TYPE = 0o040000, 0o100000, 0o120000, 0o020000
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_MOST_LINKS = 40  # as the kernel
_LARGEST_MAJOR, _LARGEST_MINOR = 0xFFF, 0xFFFFF
_WHITEOUT = -1
_NODES = {CHARACTER_DEVICE: (_CHARACTER_TYPE, layout.CHARACTER_DEVICE), BLOCK_DEVICE: (0o060000, layout.BLOCK_DEVICE)}
_FIFO = (0o010000, layout.FIFO)
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT_PLAIN, _FORMAT_INLINE = layout.format_of(PLAIN), layout.format_of(INLINE)


Facts = tuple[int, int, int, int, bytes]
Entries = list[tuple[bytes, int, int]]
_MakeDirectory = Callable[[dict[bytes, "Directory | int"], bytes], "Directory"]


class Directory:
    """A directory in memory. ``names``: a directory, or any other inode as ``nid << 3 | type``, or a whiteout."""

    __slots__ = ("flags", "gid", "mode", "mtime_ns", "names", "nid", "uid", "xattrs")

    def __init__(self) -> None:
        self.names: dict[bytes, Directory | int] = {}
        self.mode = _IMPLIED_MODE
        self.uid = self.gid = self.mtime_ns = self.nid = 0
        self.xattrs: dict[str, bytes] = {}
        self.flags = IMPLIED

    @property
    def is_opaque(self) -> bool:
        return OPAQUE in self.xattrs


class Space:
    """Gives out the blocks of an image."""

    def __init__(self, fd: int, next_block: int) -> None:
        self.fd = fd
        self.next_block = next_block

    def take_blocks(self, count: int) -> int:
        """Return the first of so many blocks in a row. Raises OSError when a file system has no more."""
        block = self.next_block
        self.next_block += count
        if self.next_block > layout.MOST_BLOCKS:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return block


class Slots:
    """Places for inodes, in blocks of their own that are written in chunks."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.chunk = bytearray(_CHUNK_BYTES)
        self.base = 0
        self._used = _CHUNK_BYTES
        self._dirty = False

    def take(self, count: int) -> int:
        """Return the place in ``chunk`` of so many bytes, which lie in one block; where it begins, ``base`` says."""
        used = self._used
        room = -used % BLOCK_BYTES
        if count > room:
            used += room
        if used + count > _CHUNK_BYTES:
            self.flush()
            self.base = self._space.take_blocks(_CHUNK_BYTES // BLOCK_BYTES) * BLOCK_BYTES
            used, self._dirty = 0, True
        self._used = used + count + (-count % SLOT_BYTES)
        return used

    def flush(self) -> None:
        """Write the chunk, as far as it is used; what is left of it stays a hole."""
        if self._dirty:
            write_at(self._space.fd, memoryview(self.chunk)[: self._used], self.base)
            self.chunk[:] = bytes(_CHUNK_BYTES)
            self._used, self._dirty = _CHUNK_BYTES, False


class ImageWriter(LayerWriter):
    """Makes the entries of a layer in an image, as ``core.api.archives.LayerWriter`` says."""

    def __init__(self, directory_fd: int, source: ByteSource) -> None:
        self._directory_fd = directory_fd
        self._fd = os.open(IMAGE_FILE, _NEW_FILE, 0o600, dir_fd=directory_fd)
        self._source = source
        self._space = Space(self._fd, 2)
        self._small = Slots(self._space)
        self._large = Slots(self._space)
        self._position = 0
        self._root = Directory()
        self._last_name, self._last = b"", self._root
        self._found: dict[bytes, Directory] = {}
        self._targets: dict[int, bytes] = {}
        self._linked: dict[int, tuple[int, int, int, int]] = {}  # what the last entry says: mode, owner, group, time
        self.used_bytes = 0
        self.inodes = 0

    def add_file(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Write a regular file, with the next ``entry.size`` bytes of the source."""
        names = (self._last if parent == self._last_name else self._find_or_make(parent)).names
        if name in names:
            self._replace(names[name])
        elif len(name) > _LONGEST_NAME:
            raise _too_long()
        attributes = self._pack_attributes(entry, may_have_user=True) if entry.xattrs else b""
        size, first, tail, slots = entry.size, 0, 0, self._large
        head = INODE_BYTES + len(attributes)
        if entry.sparse is not None:
            size, first = entry.sparse[0], self._write_pieces(entry.sparse)
        elif size and head + size <= BLOCK_BYTES:
            tail, slots = size, self._small
        elif size:
            first = self._write_blocks(size)
        at = slots.take(head + tail)
        chunk = slots.chunk
        seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
        self.inodes += 1
        INODE.pack_into(
            chunk,
            at,
            _FORMAT_INLINE if tail else _FORMAT_PLAIN,
            layout.count_attributes(attributes) if attributes else 0,
            _FILE_TYPE | entry.mode,
            0,
            size,
            first,
            self.inodes,
            entry.uid,
            entry.gid,
            seconds,
            nanoseconds,
            1,
        )
        if attributes:
            chunk[at + INODE_BYTES : at + head] = attributes
        if tail:
            chunk[at + head : at + head + tail] = self._source.take(tail)
        names[name] = (slots.base + at) // SLOT_BYTES << 3 | layout.FILE
        self.used_bytes += size + (-size % BLOCK_BYTES)

    def add_directory(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a directory, or give the one that is there its new metadata."""
        names = self._find_or_make(parent).names
        present = names.get(name)
        child = present if isinstance(present, Directory) else self._make_directory(names, name)
        self._describe(child, entry)

    def describe_root(self, entry: Entry) -> None:
        """Give the root the metadata of the entry ``./``."""
        self._describe(self._root, entry)

    def add_symlink(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a symbolic link. What it says is nobody's business here: nothing follows it out of the image."""
        names = self._find_or_make(parent).names
        if not entry.link:
            raise Corrupt("it is a symbolic link without a target")
        if len(entry.link) > _LONGEST_PATH:
            raise _too_long()
        nid = self._add_inode(names, name, entry, (_LINK_TYPE | 0o777, layout.SYMLINK), entry.link)
        self._targets[nid] = entry.link

    def add_node(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a device or a FIFO."""
        major, minor = entry.device
        if not (0 <= major <= _LARGEST_MAJOR and 0 <= minor <= _LARGEST_MINOR):
            raise Corrupt(f"{major}:{minor} is no device number")
        if entry.kind == CHARACTER_DEVICE and entry.device == (0, 0):
            self.hide(parent, name)  # what overlayfs takes it for
            return
        names = self._find_or_make(parent).names
        type_, kind = _NODES.get(entry.kind, _FIFO)
        self._add_inode(names, name, entry, (type_ | entry.mode, kind), device=layout.encode_device(major, minor))

    def add_hard_link(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make another name for a file of this layer, which looks as the last entry says that names it."""
        directory = self._find_or_make(parent)
        source_parent, source = split(entry.link)
        found = self._find(source_parent) if source else None
        inode = None if found is None else found.names.get(source)
        if inode is None or inode == _WHITEOUT:
            raise NotSupported(
                f"it is a hard link to {show(entry.link)}, which is not in this layer; erofs layers are written "
                "without their parents, use a snapshotter that unpacks into copies, such as native"
            )
        if isinstance(inode, Directory):
            raise Corrupt(f"it is a hard link to the directory {show(entry.link)}")
        self._linked[inode] = (entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        present = directory.names.get(name)
        if present != inode:
            self._put(directory.names, name, inode)
            if isinstance(present, Directory) and self._find(source_parent) is not found:
                raise Corrupt(f"it is a hard link to {show(entry.link)}, which it takes the place of")

    def hide(self, parent: bytes, name: bytes) -> None:
        """Apply a whiteout of ``name``: what lower layers have there is gone, what this one has stays."""
        directory = self._find_hiding(parent)
        if directory is None:
            return
        present = directory.names.get(name)
        if isinstance(present, Directory) and not _is_idle(present):
            _renew(present)
        elif present is None or isinstance(present, Directory):
            self._put(directory.names, name, _WHITEOUT)
            self.inodes += 1

    def hide_below(self, parent: bytes) -> None:
        """Apply an opaque whiteout: of all in the directory ``parent``, only what this layer has is left."""
        if (directory := self._find_hiding(parent)) is not None:
            directory.xattrs[OPAQUE] = b"y"

    def finish(self) -> None:
        """Write the directories and the superblock."""
        tree = self._place_directories()
        self._small.flush()
        self._large.flush()
        for directory, above, _ in tree:
            write_directory(self._space, directory.nid, _facts_of(directory), _entries_of(directory, above))
        for inode, count in self._count_links(tree).items():
            self._write_links(inode, count)
        finish_image(self._fd, self.inodes, self._space.next_block)
        os.close(self._fd)
        notes = [b"%d %d %b\0" % (one.flags, one.nid, path or b".") for one, _, path in tree if one.flags]
        fd = os.open(SETTLE_FILE, _NEW_FILE, 0o600, dir_fd=self._directory_fd)
        write_at(fd, b"".join(notes), 0)
        os.close(fd)

    def _place_directories(self) -> list[tuple[Directory, int, bytes]]:
        """Give each directory its nid; return all, each with the nid of the one above and its path, the root first."""
        self._root.nid = layout.ROOT_NID
        tree = [(self._root, layout.ROOT_NID, b"")]
        for directory, _, path in tree:  # grows as it goes
            if directory.flags & HIDING and directory.is_opaque:  # overlayfs would list whiteouts there
                directory.names = {name: inode for name, inode in directory.names.items() if inode != _WHITEOUT}
            if directory is self._root:
                pass
            elif directory.flags:
                directory.nid = self._space.take_blocks(1) * (BLOCK_BYTES // SLOT_BYTES)
            else:
                head = INODE_BYTES + len(layout.pack_attributes(directory.xattrs))
                tail = layout.entries_bytes([*directory.names, b".", b".."]) % BLOCK_BYTES
                tail = tail if head + tail <= BLOCK_BYTES else 0
                at = self._small.take(head + max(tail, min(_OPAQUE_BYTES, BLOCK_BYTES - head)))
                directory.nid = (self._small.base + at) // SLOT_BYTES
            for name, child in directory.names.items():
                if isinstance(child, Directory):
                    tree.append((child, directory.nid, b"%b/%b" % (path, name) if path else name))
        return tree

    def _write_links(self, inode: int, count: int) -> None:
        """Give an inode its number of names, and the looks of the last one's entry."""
        offset, (mode, uid, gid, mtime_ns) = (inode >> 3) * SLOT_BYTES, self._linked[inode]
        facts = list(INODE.unpack(os.pread(self._fd, INODE_BYTES, offset)))
        if inode & 7 != layout.SYMLINK:
            facts[2] = facts[2] & ~0o7777 | mode
        facts[7:] = uid, gid, *divmod(mtime_ns, 1_000_000_000), count
        write_at(self._fd, INODE.pack(*facts), offset)

    def _count_links(self, tree: list[tuple[Directory, int, bytes]]) -> dict[int, int]:
        """Count the names of inodes that hard links were made to: some may have been replaced."""
        counts = dict.fromkeys(self._linked, 0)
        for directory, _, _ in tree if counts else ():
            for inode in directory.names.values():
                if isinstance(inode, int) and inode in counts:
                    counts[inode] += 1
        return counts

    # Names

    def _find_or_make(self, path: bytes) -> Directory:
        """Return the directory of that name, made with its parents where missing. Raises Corrupt."""
        if path == self._last_name:
            return self._last
        directory = self._found.get(path)
        if directory is None:
            directory = self._walk(path, self._make_directory)
            assert directory is not None
            self._found[path] = directory
        self._last_name, self._last = path, directory
        return directory

    def _find(self, path: bytes) -> Directory | None:
        """Return the directory of that name, or None where there is none."""
        return self._found.get(path) or self._walk(path)

    def _walk(self, path: bytes, make: "_MakeDirectory | None" = None) -> Directory | None:
        """Walk down from the root by way of symbolic links. A link that leads nowhere is followed, its end made."""
        if len(path) > _LONGEST_PATH:
            raise _too_long()
        todo, way, links = parse(path)[::-1], [self._root], 0
        while todo:
            part = todo.pop()
            if part == b"..":
                way = way[:-1] or way
                continue
            names = way[-1].names
            found = names.get(part)
            if isinstance(found, Directory):
                way.append(found)
            elif found is not None and found & 7 == layout.SYMLINK and found != _WHITEOUT:
                if links == _MOST_LINKS:
                    raise Corrupt(f"too many symbolic links on the way to {show(path)}")
                links += 1
                target = self._targets[found >> 3]
                todo += [step for step in reversed(target.split(b"/")) if step not in (b"", b".")]
                way = [self._root] if target.startswith(b"/") else way
            elif make is None:
                return None
            elif found in (None, _WHITEOUT):
                way.append(make(names, part))
            else:
                raise NotADirectory(f"{show(part)}, a part of its path, is no directory")
        return way[-1]

    def _find_hiding(self, path: bytes) -> Directory | None:
        """Return the directory that a whiteout is in, which is made as that of any other entry; None where there is
        nothing to hide, since this layer has a file on the way or has hidden all that is there below."""
        directory = self._found.get(path)
        if directory is None:
            try:
                directory = self._walk(path, self._make_for_whiteout)
            except NotADirectory:
                return None
            assert directory is not None
            self._found[path] = directory
        directory.flags |= HIDING
        return directory

    def _put(self, names: "dict[bytes, Directory | int]", name: bytes, inode: "Directory | int") -> None:
        if len(name) > _LONGEST_NAME:
            raise _too_long()
        if name in names:
            self._replace(names[name])
        names[name] = inode

    def _replace(self, present: "Directory | int") -> None:
        """Forget paths, where what a later entry replaces may have been on the way of some."""
        if isinstance(present, Directory) or present & 7 == layout.SYMLINK:
            self._found.clear()
            self._last_name, self._last = b"", self._root

    def _make_directory(self, names: "dict[bytes, Directory | int]", name: bytes) -> Directory:
        """Make a directory; one that takes the place of something else hides the lower directory of its name."""
        child = Directory()
        replaces = name in names
        self._put(names, name, child)
        if replaces:
            _renew(child)
        self.inodes += 1
        self.used_bytes += BLOCK_BYTES
        return child

    def _make_for_whiteout(self, names: "dict[bytes, Directory | int]", name: bytes) -> Directory:
        if name in names:
            raise NotADirectory(f"{show(name)}, a part of its path, is hidden")
        return self._make_directory(names, name)

    def _describe(self, directory: Directory, entry: Entry) -> None:
        opaque = {OPAQUE: b"y"} if directory.is_opaque else {}
        if entry.xattrs:
            self._pack_attributes(entry, may_have_user=True)
        directory.xattrs = opaque | entry.xattrs
        directory.mode, directory.uid, directory.gid = entry.mode, entry.uid, entry.gid
        directory.mtime_ns = entry.mtime_ns
        directory.flags &= ~IMPLIED

    # Inodes

    def _write_blocks(self, count: int) -> int:
        """Write bytes of the source into blocks of their own; return the first."""
        first = self._space.take_blocks((count + BLOCK_BYTES - 1) // BLOCK_BYTES)
        offset = first * BLOCK_BYTES
        if offset != self._position:
            os.lseek(self._fd, offset, os.SEEK_SET)
        self._source.write_to(self._fd, count)
        self._position = offset + count
        return first

    def _write_pieces(self, sparse: tuple[int, list[tuple[int, int]]]) -> int:
        """Write a file with holes, which are holes of the image, too."""
        size, pieces = sparse
        first = self._space.take_blocks((size + BLOCK_BYTES - 1) // BLOCK_BYTES)
        for offset, length in pieces:
            os.lseek(self._fd, first * BLOCK_BYTES + offset, os.SEEK_SET)
            self._source.write_to(self._fd, length)
        self._position = -1
        return first

    def _add_inode(
        self,
        names: "dict[bytes, Directory | int]",
        name: bytes,
        entry: Entry,
        kind: tuple[int, int],
        data: bytes = b"",
        device: int = 0,
    ) -> int:
        """Write an inode that is neither file nor directory, and name it; return its nid."""
        attributes = self._pack_attributes(entry, may_have_user=False) if entry.xattrs else b""
        self.inodes += 1
        head, first, inline = INODE_BYTES + len(attributes), device, data
        if data and head + len(data) > BLOCK_BYTES:
            first, inline = self._space.take_blocks(1), b""
            write_at(self._fd, data, first * BLOCK_BYTES)
        at = self._small.take(head + len(inline))
        inode = INODE.pack(
            _FORMAT_INLINE if inline else _FORMAT_PLAIN,
            layout.count_attributes(attributes),
            kind[0],
            0,
            len(data),
            first,
            self.inodes,
            entry.uid,
            entry.gid,
            *divmod(entry.mtime_ns, 1_000_000_000),
            1,
        )
        self._small.chunk[at : at + head + len(inline)] = inode + attributes + inline
        nid = (self._small.base + at) // SLOT_BYTES
        self._put(names, name, nid << 3 | kind[1])
        return nid

    def _pack_attributes(self, entry: Entry, may_have_user: bool) -> bytes:
        xattrs = entry.xattrs
        if not may_have_user:  # xattr(7): user.* is for files and directories alone
            xattrs = {name: value for name, value in xattrs.items() if not name.startswith("user.")}
        try:
            packed = layout.pack_attributes(xattrs)
        except ValueError as error:
            raise Corrupt(f"{error} is none that Linux has") from error
        if len(packed) > layout.MOST_ATTRIBUTE_BYTES:
            raise TooLarge(f"its extended attributes have {len(packed)} bytes")
        return packed


def _facts_of(directory: Directory) -> Facts:
    owner = (directory.uid, directory.gid)
    return (directory.mode, *owner, directory.mtime_ns, layout.pack_attributes(directory.xattrs))


def _entries_of(directory: Directory, above: int) -> Entries:
    entries = [(b".", directory.nid, layout.DIRECTORY), (b"..", above, layout.DIRECTORY)]
    for name, inode in directory.names.items():
        if isinstance(inode, Directory):
            entries.append((name, inode.nid, layout.DIRECTORY))
        elif inode == _WHITEOUT:
            entries.append((name, layout.WHITEOUT_NID, layout.CHARACTER_DEVICE))
        else:
            entries.append((name, inode >> 3, inode & 7))
    return entries


def write_directory(space: Space, nid: int, facts: Facts, entries: Entries, has_room: bool = True) -> None:
    """Write a directory, whose inode has its place already: with the last part of its entries behind it if they fit.

    ``facts``: mode, uid, gid, time in nanoseconds, packed attributes. ``entries`` are sorted here. ``has_room``: behind
    the inode is the rest of its block, or what these very entries need.
    """
    mode, uid, gid, mtime_ns, attributes = facts
    data = layout.pack_entries(entries)
    tail = len(data) % BLOCK_BYTES
    if not has_room or INODE_BYTES + len(attributes) + tail > BLOCK_BYTES:
        tail = 0
    body, first = len(data) - tail, 0
    if body:
        first = space.take_blocks((body + BLOCK_BYTES - 1) // BLOCK_BYTES)
        write_at(space.fd, data[:body], first * BLOCK_BYTES)
    links = sum(kind == layout.DIRECTORY for _, _, kind in entries)
    inode = INODE.pack(
        _FORMAT_INLINE if tail else _FORMAT_PLAIN,
        layout.count_attributes(attributes),
        _DIRECTORY_TYPE | mode,
        0,
        len(data),
        first,
        nid & 0xFFFF_FFFF,
        uid,
        gid,
        *divmod(mtime_ns, 1_000_000_000),
        links,
    )
    write_at(space.fd, inode + attributes + data[body:], nid * SLOT_BYTES)


def finish_image(fd: int, inodes: int, blocks: int, uuid: bytes = bytes(16)) -> None:
    """Write block 0, and make the file as long as the superblock says."""
    write_at(fd, layout.pack_superblock(inodes, blocks, uuid), layout.SUPERBLOCK_OFFSET)
    os.ftruncate(fd, blocks * BLOCK_BYTES)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it: a short write is the kernel's way to say that the next one will name the fault."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _renew(directory: Directory) -> None:
    directory.flags |= RENEWED
    directory.xattrs[OPAQUE] = b"y"


def _is_idle(directory: Directory) -> bool:
    """Return whether there is no reason for a directory of this layer but whiteouts in it."""
    return bool(directory.flags & IMPLIED) and all(
        _is_idle(child) if isinstance(child, Directory) else child == _WHITEOUT for child in directory.names.values()
    )


def _too_long() -> OSError:
    return OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
