"""Makes the entries of a layer in the target directory: one method a kind of entry.

Every call names one part of a path in an open directory and follows no link. What an entry replaces is removed first;
a directory that is there already keeps its content. Metadata of directories waits for ``finish``, since whatever is
made in a directory touches its times.
"""

import errno
import os
import stat
from collections.abc import Callable

from crinoid.core.api.archives import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    Corrupt,
    Entry,
    LayerWriter,
    NotADirectory,
    NotSupported,
    parse,
    show,
    split,
)
from crinoid.core.lifecycle.images.unpack.open_directories import Directory, DirectoryCache, list_attributes
from crinoid.core.lifecycle.images.unpack.removal import empty, list_names, remove, times_kept
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.syscalls import open_directory_in_root

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS = 0o7000
_IMPLIED_MODE = 0o755
_BLOCK_BYTES = 4096
_OPAQUE = "trusted.overlay.opaque"
_CAPABILITY = "security.capability"
_NODE_TYPES = {CHARACTER_DEVICE: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK}
_LARGEST_MAJOR, _LARGEST_MINOR = 0xFFF, 0xFFFFF


class _DirectoryMetadata:
    __slots__ = ("mode", "mtime_ns", "path", "xattrs")

    def __init__(self, path: bytes, entry: Entry) -> None:
        self.path = path
        self.mode = entry.mode
        self.mtime_ns = entry.mtime_ns
        self.xattrs = entry.xattrs


class Tree(LayerWriter):
    """The tree under ``root_fd``. ``overlay``: whiteouts stay, in overlayfs's form; else they remove.

    ``used_bytes`` and ``inodes`` count what was made, in blocks of 4 KiB.
    """

    def __init__(self, root_fd: int, overlay: bool, reader: ByteReader) -> None:
        self._root_fd = root_fd
        self._overlay = overlay
        self._reader = reader
        self._directories = DirectoryCache(root_fd, self._make_missing, has_lower=not overlay)
        self._pending: dict[int, _DirectoryMetadata] = {}
        self._made: dict[int, set[bytes]] = {}
        self._hidden: dict[int, set[bytes]] = {}
        self._renewed: set[int] = set()
        self._over_links: set[int] = set()
        self._hiding: dict[int, bytes] = {}
        self.used_bytes = 0
        self.inodes = 0

    @property
    def implied(self) -> list[bytes]:
        """Paths of directories that were made since entries lie in them, with no entry themselves; "." is the root.

        Where lower layers are in the tree, only those that took the place of a lower layer's link.
        """
        implied = self._directories.implied.items()
        return [path for inode, path in implied if self._overlay or inode in self._over_links]

    @property
    def renewed(self) -> list[bytes]:
        """Those of the implied directories that take the place of a lower one, as a whiteout has its name."""
        return [path for inode, path in self._directories.implied.items() if inode in self._renewed]

    @property
    def hiding(self) -> list[bytes]:
        """Paths of directories in which whiteouts may be. Only where ``overlay``."""
        return list(self._hiding.values())

    def add_file(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a regular file, with the next ``entry.size`` bytes of the reader."""
        directory = self._directories.find_or_make(parent)
        mode = entry.mode
        try:
            fd = os.open(name, _NEW_FILE, mode, dir_fd=directory.fd)
        except FileExistsError:
            self._replace(directory, name)
            fd = os.open(name, _NEW_FILE, mode, dir_fd=directory.fd)
        try:
            if entry.sparse is not None:
                size, pieces = entry.sparse
                for offset, length in pieces:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._reader.write_to(fd, length)
                os.ftruncate(fd, size)  # a hole at the end, too
            elif entry.size:
                self._reader.write_to(fd, entry.size)
            if entry.uid or entry.gid or directory.inherits or mode & _SPECIAL_BITS:
                if directory.inherits:
                    _drop_attributes(fd)
                os.fchown(fd, entry.uid, entry.gid)
                os.fchmod(fd, mode)  # after chown, which clears set-user-id
            if entry.xattrs:
                _set_attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        self.used_bytes += entry.size + (-entry.size % _BLOCK_BYTES)
        self._count(directory, name)

    def add_directory(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a directory, or give the one that is there its new metadata."""
        directory = self._directories.find_or_make(parent)
        is_new = self._make_directory(directory, name, entry.mode)
        child = self._directories.find_or_make(b"%b/%b" % (parent, name) if parent else name)
        if not is_new:
            _drop_attributes(child.fd)
        self._describe(child, entry, is_new)
        self._note(directory, name)

    def describe_root(self, entry: Entry) -> None:
        """Give the target directory itself the metadata of the entry ``./``."""
        self._describe(self._directories.root, entry, is_new=False)

    def add_symlink(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a symbolic link. What it says is nobody's business here: nothing follows it out of the tree."""
        if not entry.link:
            raise Corrupt("it is a symbolic link without a target")
        directory = self._directories.find_or_make(parent)
        self._make(directory, name, lambda: os.symlink(entry.link, name, dir_fd=directory.fd))
        self._finish_node(directory, name, entry)

    def add_node(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make a device or a FIFO."""
        major, minor = entry.device
        if not (0 <= major <= _LARGEST_MAJOR and 0 <= minor <= _LARGEST_MINOR):
            raise Corrupt(f"{major}:{minor} is no device number")
        if entry.kind == CHARACTER_DEVICE and entry.device == (0, 0):
            self.hide(parent, name)  # what overlayfs takes it for
            return
        directory = self._directories.find_or_make(parent)
        mode = entry.mode | _NODE_TYPES.get(entry.kind, stat.S_IFIFO)
        device = os.makedev(major, minor)
        self._make(directory, name, lambda: os.mknod(name, mode, device, dir_fd=directory.fd))
        if entry.uid or entry.gid or directory.inherits or entry.mode & _SPECIAL_BITS:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory.fd, follow_symlinks=False)
            os.chmod(name, entry.mode, dir_fd=directory.fd)  # just made, so no link
        self._finish_node(directory, name, entry)

    def add_hard_link(self, parent: bytes, name: bytes, entry: Entry) -> None:
        """Make another name for a file of this layer or, where whiteouts remove, of those below.

        As with containerd, the file looks as the last entry says that names it.
        """
        directory = self._directories.find_or_make(parent)
        source_parent, source = split(entry.link)
        source_directory = self._directories.find(source_parent) if source else None
        before = _status(source_directory, source) if source_directory else None
        if source_directory is None or before is None or self._is_whiteout(before):
            if self._overlay:
                raise NotSupported(
                    f"it is a hard link to {show(entry.link)}, which is not in this layer; overlay layers are unpacked "
                    "without their parents, use a snapshotter that unpacks into copies, such as native"
                )
            raise Corrupt(f"it is a hard link to {show(entry.link)}, which does not exist")
        if stat.S_ISDIR(before.st_mode):
            raise Corrupt(f"it is a hard link to the directory {show(entry.link)}")
        self._note(directory, name)
        present = _status(directory, name)
        if present is None or not os.path.samestat(present, before):
            self._replace(directory, name)
            if present is not None and stat.S_ISDIR(present.st_mode):  # the way to the file may have been through it
                again = self._directories.find(source_parent)
                if again is None or again.inode != source_directory.inode:
                    raise Corrupt(f"it is a hard link to {show(entry.link)}, which it takes the place of")
            os.link(source, name, src_dir_fd=source_directory.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        self._renew_looks(directory, name, before, entry)

    def _renew_looks(self, directory: Directory, name: bytes, before: os.stat_result, entry: Entry) -> None:
        mode = stat.S_IMODE(before.st_mode)
        if (before.st_uid, before.st_gid) != (entry.uid, entry.gid):
            os.fchdir(directory.fd)  # for attributes there is no call that takes a directory and a name
            capability = _read_capability(name)
            os.chown(name, entry.uid, entry.gid, follow_symlinks=False)
            if capability:
                os.setxattr(name, _CAPABILITY, capability)
            os.fchdir(self._root_fd)
            mode = -1  # chown(2) clears set-user-id, as it does capabilities
        if mode != entry.mode and not stat.S_ISLNK(before.st_mode):
            os.chmod(name, entry.mode, dir_fd=directory.fd)
        if before.st_mtime_ns != entry.mtime_ns:
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory.fd, follow_symlinks=False)

    def hide(self, parent: bytes, name: bytes) -> None:
        """Apply a whiteout of ``name``: what lower layers have there is gone, what this one has stays."""
        directory = self._find_hiding(parent)
        if directory is None:
            return
        if not self._overlay:
            with times_kept(directory.fd):
                self._remove_lower(directory, name)
            return
        present = _status(directory, name)
        if present is not None and stat.S_ISDIR(present.st_mode):
            child = Directory(open_directory_in_root(directory.fd, name))
            if not self._is_idle(child):
                self._set_opaque(child)
                return
            self._replace(directory, name)
            present = None
        if present is None:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory.fd)
            self.inodes += 1

    def hide_below(self, parent: bytes) -> None:
        """Apply an opaque whiteout: of all in the directory ``parent``, only what this layer has is left."""
        directory = self._find_hiding(parent)
        if directory is None:
            return
        if self._overlay:
            os.setxattr(directory.fd, _OPAQUE, b"y")
            return
        with times_kept(directory.fd):
            empty(directory.fd, self._made)
            self._renew_below(directory.fd)
        self._directories.forget()

    def finish(self) -> None:
        """Give the directories their modes, attributes and times."""
        self._directories.forget()
        for inode, path in list(self._hiding.items()):
            if (directory := self._open_again(inode, path)) is not None:
                self._remove_idle_whiteouts(directory)
            else:
                del self._hiding[inode]
        for inode, metadata in self._pending.items():
            if (directory := self._open_again(inode, metadata.path)) is not None:
                for name, value in metadata.xattrs.items():
                    _set_attribute(directory.fd, name, value)
                os.fchmod(directory.fd, metadata.mode)
                os.utime(directory.fd, ns=(metadata.mtime_ns, metadata.mtime_ns))
        self._restore_times()
        # What was replaced later is implied no more, even where there is a directory of that name again.
        implied = self._directories.implied
        self._directories.implied = {inode: path for inode, path in implied.items() if self._open_again(inode, path)}

    def _restore_times(self) -> None:
        """Give lower directories of which this layer says nothing the time that they had."""
        for inode, (path, mtime_ns) in self._directories.found.items():
            if inode in self._pending or (inode in self._directories.implied and path != b"."):
                continue
            if (directory := self._open_again(inode, path)) is not None:
                os.utime(directory.fd, ns=(mtime_ns, mtime_ns))

    def _open_again(self, inode: int, path: bytes) -> Directory | None:
        """Open a directory by its path without links, unless a later entry has replaced it."""
        try:
            directory = Directory(open_directory_in_root(self._root_fd, path, follow=False), path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise
        return directory if directory.inode == inode else None

    def _make(self, directory: Directory, name: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._replace(directory, name)
            make()

    def _finish_node(self, directory: Directory, name: bytes, entry: Entry) -> None:
        if entry.uid or entry.gid or directory.inherits:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory.fd, follow_symlinks=False)
        if entry.xattrs:  # there is no call that takes a directory and a name
            os.fchdir(directory.fd)
            _set_attributes(name, entry)
            os.fchdir(self._root_fd)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=directory.fd, follow_symlinks=False)
        self._count(directory, name)

    def _make_directory(self, directory: Directory, name: bytes, mode: int) -> bool:
        """Make a directory unless there is one; return whether it was made."""
        replaces = False
        try:
            os.mkdir(name, mode & 0o777, dir_fd=directory.fd)
        except FileExistsError:
            present = _status(directory, name)
            if present is not None and stat.S_ISDIR(present.st_mode):
                return False
            self._replace(directory, name)
            os.mkdir(name, mode & 0o777, dir_fd=directory.fd)
            replaces = self._overlay  # what it replaces had hidden the lower directory of that name
        # The inode may have been that of a directory that was removed.
        inode = os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_ino
        self._hidden.pop(inode, None)
        self._pending.pop(inode, None)
        self._renewed.discard(inode)
        self._over_links.discard(inode)
        self._directories.found.pop(inode, None)
        if replaces:
            self._set_opaque(Directory(open_directory_in_root(directory.fd, name)))
        self.inodes += 1
        self.used_bytes += _BLOCK_BYTES
        return True

    def _describe(self, directory: Directory, entry: Entry, is_new: bool) -> None:
        if entry.uid or entry.gid or directory.inherits or not is_new:
            os.fchown(directory.fd, entry.uid, entry.gid)
        self._directories.implied.pop(directory.inode, None)
        self._pending[directory.inode] = _DirectoryMetadata(directory.path, entry)

    def _make_missing(self, directory: Directory, name: bytes) -> bytes | None:
        """Make a directory that entries take for granted, or return where the link in its place points.

        Only links of this layer count: as overlayfs shows it, a directory that an upper layer has hides the link or the
        file of a lower one.
        """
        present = _status(directory, name)
        is_over_link = directory.inode in self._over_links
        if present is not None:
            is_ours = self._overlay or name in self._made.get(directory.inode, ())
            if is_ours and stat.S_ISLNK(present.st_mode):
                return os.readlink(name, dir_fd=directory.fd)
            if is_ours and not self._is_whiteout(present):
                raise NotADirectory(f"{show(name)}, a part of its path, is no directory")
            is_over_link = is_over_link or stat.S_ISLNK(present.st_mode)
        self._make_directory(directory, name, _IMPLIED_MODE)
        if directory.inherits:
            os.chown(name, 0, 0, dir_fd=directory.fd, follow_symlinks=False)
            os.chmod(name, _IMPLIED_MODE, dir_fd=directory.fd)
        if is_over_link:
            self._over_links.add(os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_ino)
        self._note(directory, name)
        return None

    def _make_for_whiteout(self, directory: Directory, name: bytes) -> bytes | None:
        """As ``_make_missing``, but what this layer has hidden, with all below, is not made for a whiteout in it."""
        present = _status(directory, name)
        is_hidden = name in self._hidden.get(directory.inode, ()) if present is None else self._is_whiteout(present)
        if is_hidden:
            raise NotADirectory(f"{show(name)}, a part of its path, is hidden")
        return self._make_missing(directory, name)

    def _replace(self, directory: Directory, name: bytes) -> None:
        """Remove what stands in the way of an entry."""
        present = _status(directory, name)
        if present is None:
            return
        remove(directory.fd, name)
        if stat.S_ISDIR(present.st_mode) or stat.S_ISLNK(present.st_mode):
            self._directories.forget()

    def _find_hiding(self, path: bytes) -> Directory | None:
        """Return the directory that a whiteout is in, which is made as that of any other entry; None where there is
        nothing to hide, since this layer has a file on the way or has hidden all that is there below.

        Which whiteouts hide something is known once lower layers are there: see ``core.lifecycle.images.implied``.
        """
        try:
            directory = self._directories.find_or_make(path, self._make_for_whiteout)
        except NotADirectory:
            return None
        if self._overlay:
            self._hiding[directory.inode] = directory.path
        else:
            self._note_way(directory)
        return directory

    def _note_way(self, directory: Directory) -> None:
        """Note that this layer has a directory, with those that lead to it, which may have been there."""
        above = self._directories.root
        for part in parse(directory.path):
            self._note(above, part)
            above = Directory(open_directory_in_root(above.fd, part))

    def _remove_idle_whiteouts(self, directory: Directory) -> None:
        """Remove whiteouts in an opaque directory: overlayfs would list them, as it merges nothing there."""
        if _OPAQUE not in list_attributes(directory.fd):
            return
        for name in list_names(directory.fd):
            present = _status(directory, name)
            if present is not None and self._is_whiteout(present):
                os.unlink(name, dir_fd=directory.fd)

    def _is_idle(self, directory: Directory) -> bool:
        """Return whether there is no reason for a directory of this layer but whiteouts in it."""
        if directory.inode in self._pending:
            return False
        for name in list_names(directory.fd):
            mode = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            if not self._is_whiteout(mode) and not (
                stat.S_ISDIR(mode.st_mode) and self._is_idle(Directory(open_directory_in_root(directory.fd, name)))
            ):
                return False
        return True

    def _remove_lower(self, directory: Directory, name: bytes) -> None:
        """Remove what lower layers have of that name; a directory that this layer needs in its place is a new one."""
        self._hidden.setdefault(directory.inode, set()).add(name)
        made = self._made.setdefault(directory.inode, set())
        if name in made or not remove(directory.fd, name, self._made):
            present = _status(directory, name)
            if present is not None and stat.S_ISDIR(present.st_mode):
                kept = Directory(open_directory_in_root(directory.fd, name))
                empty(kept.fd, self._made)
                if self._is_idle(kept):
                    remove(directory.fd, name)
                    made.discard(name)
                else:
                    self._renew(kept)
        self._directories.forget()

    def _renew(self, directory: Directory) -> None:
        """Give a lower directory the looks of an implied one, and all below, unless this layer says how they look."""
        self._directories.found.pop(directory.inode, None)
        self._over_links.discard(directory.inode)
        if directory.inode not in self._pending:
            _drop_attributes(directory.fd)
            os.fchown(directory.fd, 0, 0)
            os.fchmod(directory.fd, _IMPLIED_MODE)
        self._renew_below(directory.fd)

    def _renew_below(self, fd: int) -> None:
        """As ``_renew``, in a directory of which nothing is left but what this layer has made."""
        for name in list_names(fd):
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                self._renew(Directory(open_directory_in_root(fd, name)))

    def _is_whiteout(self, status: os.stat_result) -> bool:
        return self._overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _set_opaque(self, directory: Directory) -> None:
        self._renewed.add(directory.inode)
        os.setxattr(directory.fd, _OPAQUE, b"y")

    def _count(self, directory: Directory, name: bytes) -> None:
        self.inodes += 1
        self._note(directory, name)

    def _note(self, directory: Directory, name: bytes) -> None:
        if not self._overlay:  # there, all that is in the target is of this layer
            self._made.setdefault(directory.inode, set()).add(name)


def _status(directory: Directory, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _read_capability(name: bytes) -> bytes:
    try:
        return os.getxattr(name, _CAPABILITY, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return b""
        raise


def _drop_attributes(fd: int) -> None:
    """Remove a lower layer's attributes from a directory: the upper layer's entry says all there is to say."""
    for name in list_attributes(fd):
        if name.startswith(("user.", "trusted.", "system.posix_acl")) and name != _OPAQUE:
            os.removexattr(fd, name)


def _set_attributes(target: int | bytes, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        _set_attribute(target, name, value)


def _has_room(target: int | bytes, value: bytes) -> bool:
    found = os.statvfs(target if isinstance(target, int) else os.path.dirname(target) or b".")  # noqa: PTH120
    return found.f_bavail * found.f_frsize > 16 * len(value) + (1 << 20)


def _set_attribute(target: int | bytes, name: str, value: bytes) -> None:
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOSPC and _has_room(target, value):
            # xattr(7): ext4 keeps a block of them for each inode, others as much or less.
            raise Corrupt(
                f"its extended attributes, with {name!a}, are more than this file system keeps of one file"
            ) from error
        of_node = isinstance(target, bytes) and name.startswith("user.") and error.errno == errno.EPERM
        if error.errno != errno.ENOTSUP and not of_node:  # xattr(7): user.* is for files and directories alone
            error.add_note(f"setting the extended attribute {name!a}")
            raise
