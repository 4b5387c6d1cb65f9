"""Gives a written image what only the layers below it decide, before it is committed.

An image is written without its parents. What ``core.lifecycle.images.implied`` does to unpacked directories is done
here to the image: a directory that only follows from the entries in it gets the owner, mode, time and attributes that
lower layers show for it; a whiteout that hides nothing goes, as overlayfs would list it where it merges nothing.
Everything blocks.

Changed directories keep their inodes' places; their entries go to new blocks where they no longer fit.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.replaying import Replayed
from crinoid.plugins.snapshotters.erofs import layout
from crinoid.plugins.snapshotters.erofs.image import DamagedImage, Image, Inode
from crinoid.plugins.snapshotters.erofs.writer import (
    HIDING,
    IMPLIED,
    OPAQUE,
    RENEWED,
    SETTLE_FILE,
    Space,
    finish_image,
    write_directory,
)

_MOST_LINKS = 40  # as the kernel
_WHITEOUT = (layout.WHITEOUT_NID, layout.CHARACTER_DEVICE)
_SLOTS = layout.BLOCK_BYTES // layout.SLOT_BYTES
_Path = tuple[bytes, ...]


def settle_image(path: Path, lowers: Sequence[Path], uuid: bytes) -> None:
    """Settle an image and name it; ``lowers`` are the images below, topmost first.

    Raises DamagedImage, and OSError.
    """
    notes = _read_notes(path.with_name(SETTLE_FILE))
    with ExitStack() as stack:
        image = stack.enter_context(Image(path, writable=True))
        # Each is opened when somebody looks so far down: an image may have hundreds of layers, and each is settled.
        below = Replayed(_Layer(stack.enter_context(Image(lower))) for lower in lowers)
        settled = _Settling(image, below, notes)
        settled.run()
        settled.write(uuid)


def _read_notes(path: Path) -> dict[_Path, int]:
    """Return flags of the directories that may have to change, by path."""
    lines = [line.split(b" ", 2) for line in path.read_bytes().split(b"\0")[:-1]]
    return {_parts(name): int(flags) for flags, _, name in lines}


def _parts(path: bytes) -> _Path:
    return tuple(part for part in path.split(b"/") if part not in (b"", b"."))


@dataclass(slots=True)
class _Directory:
    """A directory of the layer at hand, as it is to be. ``names``: nid and type."""

    nid: int
    above: int
    has_block: bool
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    attributes: dict[str, bytes]
    names: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_opaque(self) -> bool:
        return self.attributes.get(OPAQUE) == b"y"


class _Layer:
    """A lower layer: its directories, read once each."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.root = image.inode(layout.ROOT_NID)
        self._names: dict[int, dict[bytes, tuple[int, int]]] = {}

    def names(self, directory: Inode) -> dict[bytes, tuple[int, int]]:
        """Return what a directory has, ``.`` and ``..`` among it."""
        if directory.nid not in self._names:
            self._names[directory.nid] = self.image.entries(directory)
        return self._names[directory.nid]

    def look(self, path: _Path) -> tuple[Inode | None, bool]:
        """Walk into the layer; return the directory if it is there, and whether lower layers are hidden."""
        current = self.root
        hides = _is_opaque(current)
        for part in path:
            found = self.names(current).get(part)
            if found is None:
                return None, hides
            if found[1] != layout.DIRECTORY:
                return None, True
            current = self.image.inode(found[0])
            hides = hides or _is_opaque(current)
        return current, hides


_Below = Replayed[tuple[_Layer, Inode]]


class _Settling:
    """The layer at hand, with the directories of it that were looked at."""

    def __init__(self, image: Image, lowers: Replayed[_Layer], notes: dict[_Path, int]) -> None:
        self._image = image
        self._lowers = lowers
        self._notes = notes
        self._space = Space(image.fd, image.blocks)
        self._found: dict[_Path, _Directory | None] = {}
        self._changed: dict[_Path, _Directory] = {}

    def run(self) -> None:
        """Do all there is to do, in memory."""
        implied = [path for path, flags in self._notes.items() if flags & IMPLIED]
        hiding = [path for path, flags in self._notes.items() if flags & HIDING]
        if hiding:
            for path in dict.fromkeys((*hiding, *implied)):
                self._remove_idle_whiteouts(path)
        for path in implied:
            if not self._notes[path] & RENEWED:
                self._copy_attributes(path)

    def write(self, uuid: bytes) -> None:
        """Write the directories that changed, and the superblock."""
        for directory in self._changed.values():
            entries = [(name, *inode) for name, inode in directory.names.items()]
            entries += [(b".", directory.nid, layout.DIRECTORY), (b"..", directory.above, layout.DIRECTORY)]
            attributes = layout.pack_attributes(directory.attributes)
            if len(attributes) > layout.MOST_ATTRIBUTE_BYTES:
                raise CorruptContent(f"a directory's extended attributes have {len(attributes)} bytes")
            facts = (directory.mode, directory.uid, directory.gid, directory.mtime_ns, attributes)
            write_directory(self._space, directory.nid, facts, entries, directory.has_block)
        finish_image(self._image.fd, self._image.inodes, self._space.next_block, uuid)

    # The layer at hand

    def _find(self, path: _Path) -> _Directory | None:
        if path not in self._found:
            self._found[path] = self._load(path)
        return self._found[path]

    def _load(self, path: _Path) -> _Directory | None:
        if not path:
            return self._read(layout.ROOT_NID, layout.ROOT_NID, has_block=True)
        above = self._find(path[:-1])
        nid, kind = above.names.get(path[-1], (0, 0)) if above is not None else (0, 0)
        if above is None or kind != layout.DIRECTORY:
            return None
        return self._read(nid, above.nid, has_block=path in self._notes)

    def _read(self, nid: int, above: int, has_block: bool) -> _Directory:
        inode = self._image.inode(nid)
        names = self._image.entries(inode)
        if names.pop(b".", None) is None or names.pop(b"..", None) is None:
            raise DamagedImage(f"{self._image.path}, directory {nid}: it has no names of its own")
        owner = (inode.uid, inode.gid)
        return _Directory(nid, above, has_block, inode.mode & 0o7777, *owner, inode.mtime_ns, inode.attributes, names)

    def _look(self, path: _Path) -> tuple[_Directory | None, bool]:
        hides, current = False, self._find(())
        for count in range(len(path) + 1):
            if count:
                assert current is not None
                if path[count - 1] not in current.names:
                    return None, hides
                current = self._find(path[:count])
            if current is None:
                return None, True
            hides = hides or current.is_opaque
        return current, hides

    def _change(self, path: _Path) -> _Directory:
        directory = self._find(path)
        assert directory is not None
        self._changed[path] = directory
        return directory

    # What is to be done

    def _is_hidden(self, path: _Path) -> bool:
        return bool(path) and self._look(path[:-1])[1]

    def _merged(self, path: _Path) -> _Below:
        """Find the directories that overlayfs merges of lower layers, topmost first, as they are looked at."""

        def find() -> Iterator[tuple[_Layer, Inode]]:
            for lower in self._lowers:
                one, hides = lower.look(path)
                if one is not None:
                    yield lower, one
                if hides:
                    break

        return Replayed(find())

    def _follow(self, path: _Path) -> Inode | None:
        """Return what a path of lower layers leads to by way of their links; None where that is no directory."""
        pending, done, links = list(reversed(path)), list[bytes](), 0
        while pending:
            part = pending.pop()
            if part == b"..":
                done = done[:-1]
                continue
            top = _top(self._merged(tuple(done)), part)
            if top is None:
                return None
            layer, (nid, kind) = top
            if kind == layout.SYMLINK and links < _MOST_LINKS:
                links += 1
                target = layer.image.data(layer.image.inode(nid))
                done = [] if target.startswith(b"/") else done
                pending += reversed(_parts(target))
            elif kind == layout.DIRECTORY:
                done.append(part)
            else:
                return None
        found = next(iter(self._merged(tuple(done))), None)
        return None if found is None else found[1]

    def _remove_idle_whiteouts(self, path: _Path) -> None:
        found = self._find(path)
        if found is None:
            return
        below = self._merged(path)
        hides_nothing = found.is_opaque or self._is_hidden(path)
        for name, inode in list(found.names.items()):
            if inode == _WHITEOUT and (hides_nothing or not _is_shown(below, name)):
                del self._change(path).names[name]

    def _copy_attributes(self, path: _Path) -> None:
        """Make a directory look as it does below, where it is there; in the place of a link, as what that leads to."""
        if self._find(path) is None or self._is_hidden(path):
            return
        top = next(iter(self._merged(path)), None)
        facts = self._follow(path) if top is None else top[1]
        if facts is None:
            return
        directory = self._change(path)
        directory.mode, directory.uid, directory.gid = facts.mode & 0o7777, facts.uid, facts.gid
        directory.mtime_ns = facts.mtime_ns
        lower = {name: value for name, value in facts.attributes.items() if not name.startswith("trusted.overlay.")}
        directory.attributes = directory.attributes | lower


def _is_opaque(inode: Inode) -> bool:
    return inode.attributes.get(OPAQUE) == b"y"


def _top(below: _Below, name: bytes) -> tuple[_Layer, tuple[int, int]] | None:
    """Return what overlayfs takes for a name: that of the first of merged directories that has it."""
    for layer, directory in below:
        if (found := layer.names(directory).get(name)) is not None:
            return layer, found
    return None


def _is_shown(below: _Below, name: bytes) -> bool:
    top = _top(below, name)
    return top is not None and top[1] != _WHITEOUT
