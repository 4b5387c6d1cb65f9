"""Layers as our confined unpacker hands them on: entries of an archive, their names, and what can be wrong with them.

By default the unpacker makes files of a layer's entries. A snapshotter that keeps layers in another form gives it a
``LayerWriter`` of its own (``LayerTarget.writer``), which runs in the unpacker's child: shut in the target directory,
without network and with little memory, one child a layer.

A child must start fast: what a writer's module imports may not import asyncio, pydantic or even ``re`` (as json, typing
and dataclasses do).
"""

FILE, HARD_LINK, SYMLINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_NO_NAMES = frozenset({b"", b".", b".."})


class Entry:
    """One member of an archive. ``size`` counts its bytes in the archive, ``mtime_ns`` is since the epoch."""

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime_ns", "name", "raw", "size", "sparse", "uid", "xattrs")

    def __init__(self, raw: bytes, kind: bytes) -> None:
        self.raw = raw
        self.kind = kind
        self.name = self.link = b""
        self.mode = self.uid = self.gid = self.size = self.mtime_ns = 0
        self.device = (0, 0)
        self.xattrs: dict[str, bytes] = {}
        #: None, or the logical size and the (offset, length) of each piece of data in it.
        self.sparse: tuple[int, list[tuple[int, int]]] | None = None


class ByteSource:
    """The layer's bytes, from behind the header of the entry at hand on."""

    __slots__ = ()

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes. Raises Corrupt if the stream ends before."""
        raise NotImplementedError

    def write_to(self, fd: int, count: int) -> None:
        """Write the next ``count`` bytes to ``fd`` at its position, copying no more than it must."""
        raise NotImplementedError


class LayerWriter:
    """Keeps the entries of one layer in a form of its own, in files of the target directory.

    Made in the child with a descriptor of the target directory, which is also its root, and the source of the entries'
    data. The methods are called in the order of the archive's entries; ``parent`` and ``name`` are the two parts of an
    entry's name, the parent as it is written, or with ``.`` and ``..`` resolved (``split``); it may lead by way of
    symbolic links of the layer, and may have no entry of its own. A later entry replaces an earlier one of its name,
    but a directory keeps its content and gets new metadata. Methods raise ArchiveFault, or OSError for what the host
    refuses; the layer is discarded then.

    ``used_bytes`` and ``inodes`` count what was made. Nothing is synced here.
    """

    used_bytes: int
    inodes: int

    def __init__(self, directory_fd: int, source: ByteSource) -> None:
        raise NotImplementedError

    def add_file(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a regular file of the next ``entry.size`` bytes of the source: all of them, or, where ``entry.sparse``
        is set, its pieces one after the other."""
        raise NotImplementedError

    def add_directory(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a directory, or give the one that is there its new metadata."""
        raise NotImplementedError

    def describe_root(self, entry: Entry) -> None:
        """Give the root of the layer its metadata."""
        raise NotImplementedError

    def add_symlink(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a symbolic link to ``entry.link``."""
        raise NotImplementedError

    def add_node(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a device or a FIFO."""
        raise NotImplementedError

    def add_hard_link(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make another name for the file ``entry.link``."""
        raise NotImplementedError

    def hide(self, parent: bytes, name: bytes) -> None:
        """Apply a whiteout: of ``name`` in ``parent`` lower layers show nothing, what this one has stays."""
        raise NotImplementedError

    def hide_below(self, parent: bytes) -> None:
        """Apply an opaque whiteout: of all in ``parent`` only what this layer has is left."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is left to write: no entry follows. That the layer's digest is right is known only later."""
        raise NotImplementedError


class ArchiveFault(Exception):
    """Base: the layer can't be unpacked, and the message says why. The caller adds the entry's name.

    ``kind`` is the name that travels from the child to the daemon.
    """

    kind = "corrupt"


class Corrupt(ArchiveFault):
    """The blob is damaged or malformed, or asks for what no layer may ask for."""


class NotADirectory(Corrupt):
    """The layer has something else where a directory must be."""


class TooLarge(ArchiveFault):
    """A limit of the request is passed."""

    kind = "limit"


class NotSupported(ArchiveFault):
    """The layer is sound but uses something that is not done here."""

    kind = "unsupported"


def show(name: bytes) -> str:
    """Write a name from an archive, which is bytes in no known encoding, for a message."""
    return ascii(name[:300].decode("utf-8", "surrogateescape")) if not name.isascii() else repr(name[:300].decode())


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return the parent and the last part of an entry's name; both empty for the root itself.

    A leading slash, ``./``, doubled slashes and a trailing slash mean nothing, and ``a/..`` is nothing, as with
    peers. The parent comes as it is written where it can, so that it serves as a key. Raises Corrupt for a name
    that leads above the root.
    """
    parent, _, base = name.rpartition(b"/")
    if base not in _NO_NAMES:
        return parent, base
    parts = parse(name)
    return (b"/".join(parts[:-1]), parts[-1]) if parts else (b"", b"")


def parse(name: bytes) -> list[bytes]:
    """Return the parts of a path relative to the root. Raises Corrupt for one that leads above it."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise Corrupt(f"the name {show(name)} leads out of the layer")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts
