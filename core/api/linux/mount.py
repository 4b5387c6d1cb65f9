"""Mounts: makes what a snapshotter or pod asks for, and undoes it (mount(2), and fsopen(2) and its kin).

Everything blocks, and raises OSError with the target and what the kernel had to say.
"""

import contextlib
import errno
import functools
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.linux import libc, loop
from crinoid.core.api.linux.threads import call_in_fresh_thread
from crinoid.core.api.values.snapshot import Mount

_MS_REC = 0x4000
_UMOUNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_ATTR_IDMAP = 0x100000
_VALUE_BYTES = 255  # of one fsconfig string
_DATA_BYTES = 4095  # of mount(2)'s last argument: a page with its closing zero
_CLONE_FS = 0x200
_MAX_STACKED = 100
_DIRECTORIES = {"lowerdir+", "upperdir", "workdir"}
_SHOWN = 1000  # characters of the options, in an error

# mount(8)'s words to the flags of mount(2) and the attributes of mount_setattr(2).
_FLAGS = {
    "ro": (0x1, 0x1),
    "nosuid": (0x2, 0x2),
    "nodev": (0x4, 0x4),
    "noexec": (0x8, 0x8),
    "sync": (0x10, 0),
    "dirsync": (0x80, 0),
    "nosymfollow": (0x100, 0x200000),
    "noatime": (0x400, 0x10),
    "nodiratime": (0x800, 0x80),
    "relatime": (0x200000, 0),
    "strictatime": (0x1000000, 0x20),
    "lazytime": (0x2000000, 0),
}
_CLEARING = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "symfollow": "nosymfollow",
    "atime": "noatime",
    "diratime": "nodiratime",
}
_ATIME_ATTRIBUTES = 0x70
_PROPAGATION = {"unbindable": 0x20000, "private": 0x40000, "slave": 0x80000, "shared": 0x100000}
_IGNORED = {"defaults"}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """fstab-like options, sorted out: words for the kernel, and ``data`` for the file system, in its own order."""

    words: frozenset[str] = frozenset()
    cleared: frozenset[str] = frozenset()
    recursive: bool = False
    propagation: int = 0
    data: tuple[str, ...] = field(default=())

    @property
    def flags(self) -> int:
        """The flags for mount(2), without those of propagation."""
        return _sum(_FLAGS[word][0] for word in self.words)

    @property
    def attributes(self) -> int:
        """The attributes for fsmount(2) and mount_setattr(2)."""
        return _sum(_FLAGS[word][1] for word in self.words)

    @property
    def cleared_attributes(self) -> int:
        """The attributes for mount_setattr(2) to take away."""
        return _sum(_FLAGS[word][1] for word in self.cleared)


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort options out; of two that contradict each other the later holds."""
    words: set[str] = set()
    cleared: set[str] = set()
    recursive, propagation, data = False, 0, []
    for option in options:
        if option in _FLAGS:
            words.add(option)
            cleared.discard(option)
        elif option in _CLEARING:
            words.discard(_CLEARING[option])
            cleared.add(_CLEARING[option])
        elif option in ("bind", "rbind"):
            recursive = option == "rbind"
        elif (kind := option.removeprefix("r")) in _PROPAGATION or option in _PROPAGATION:
            propagation = _PROPAGATION[option] if option in _PROPAGATION else _PROPAGATION[kind] | _MS_REC
        elif option not in _IGNORED:
            data.append(option)
    return MountOptions(frozenset(words), frozenset(cleared), recursive, propagation, tuple(data))


def mount(mount: Mount, target: Path) -> None:
    """Make one mount at an existing target.

    ``type`` ``bind`` takes ``bind`` or ``rbind`` and flags, which hold for all of the tree with ``rbind``; ``overlay``
    takes any number of ``lowerdir+=PATH``, topmost first; any other is a file system with flags and data. Nothing is
    mounted when it raises.
    """
    options = parse_options(mount.options)
    if mount.type in ("bind", "rbind", "none"):
        _bind(Path(mount.source), target, options)
    elif mount.type == "overlay":
        _mount_overlay(mount.source, target, options)
    else:
        _mount_file_system(mount, target, options)


def bind(source: Path, target: Path, readonly: bool = False, recursive: bool = False) -> None:
    """Show a directory or file at another place; read-only with all that is mounted below it, if asked."""
    words = frozenset({"ro"}) if readonly else frozenset[str]()
    _bind(source, target, MountOptions(words=words, recursive=recursive))


def bind_mapped(source: Path, target: Path, options: MountOptions, maps: int) -> None:
    """Show a directory or file at another place with other owners, by the maps of the user namespace open as ``maps``.

    Of what is mounted below the source, with ``recursive``, only the top is mapped where the rest can't be. Raises
    OSError: EINVAL when the file system or the kernel has no id-mapped mounts, EPERM for a mount that has maps already.
    """
    recursive = _AT_RECURSIVE if options.recursive else 0
    with _opened(_open_tree(source, _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | recursive)) as tree:
        try:
            _map_owners(tree, recursive, maps, target)
        except OSError as error:
            if error.errno != errno.EINVAL or not recursive:
                raise
            _map_owners(tree, 0, maps, target)
        if options.words or options.cleared or options.propagation:
            _mount_setattr(tree, options, recursive, target)
        _move_mount(tree, target)


def clone(source: Path) -> int:
    """Return a mount as a descriptor, for ``attach`` in this or another mount namespace; closing it undoes it."""
    return _open_tree(source, _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)


def clone_read_only(source: Path) -> int:
    """Return a mount that nothing can be written through, as ``clone`` does; what is opened there keeps it."""
    tree = clone(source)
    try:
        _mount_setattr(tree, MountOptions(words=frozenset({"ro"})), 0, source)
    except BaseException:
        os.close(tree)
        raise
    return tree


def map_owners(tree: int, maps: int, target: Path) -> None:
    """Give a mount that ``clone`` made the maps of a user namespace; raises OSError as ``bind_mapped`` does."""
    _map_owners(tree, 0, maps, target)


def attach(tree: int, target: Path) -> None:
    """Show what ``clone`` made at the target; the descriptor stays the caller's to close."""
    _move_mount(tree, target)


def unmount(target: Path, lazy: bool = True) -> None:
    """Undo all that is mounted at the target, one over the other. Idempotent; follows no link at its end.

    ``lazy`` detaches at once, whoever still uses it; else it raises OSError (EBUSY).
    """
    for _ in range(_MAX_STACKED):
        try:
            _umount2(target, _UMOUNT_NOFOLLOW | (_UMOUNT_DETACH if lazy else 0))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            raise


def mountpoints(below: Path) -> tuple[Path, ...]:
    """Name the mounts at and below a directory, in the order in which to undo them."""
    text = Path("/proc/self/mountinfo").read_bytes()
    paths = [Path(os.fsdecode(_unescape(line.split(b" ")[4]))) for line in text.split(b"\n")[:-1]]
    return tuple(reversed([path for path in paths if path.is_relative_to(below)]))


def propagation(path: Path) -> tuple[bool, bool]:
    """Return whether the mount that holds a path is shared, and whether it is a slave (mount_namespaces(7))."""
    best, fields = -1, ""
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        words = line.split(b" ")
        point = Path(os.fsdecode(_unescape(words[4])))
        if len(point.parts) >= best and path.is_relative_to(point):
            best, fields = len(point.parts), " ".join(map(os.fsdecode, words[6:])).partition(" - ")[0]
    return "shared:" in fields, "master:" in fields


def make_private(target: Path, recursive: bool = False) -> None:
    """Cut the mount at the target off from its peers: what is mounted on one side no longer shows on the other."""
    _set_propagation(target, _PROPAGATION["private"] | (_MS_REC if recursive else 0))


def make_shared(target: Path, recursive: bool = False) -> None:
    """Make what is mounted below the target show in its copies, and the other way round."""
    _set_propagation(target, _PROPAGATION["shared"] | (_MS_REC if recursive else 0))


def escape_mountinfo(path: bytes) -> bytes:
    """Write a path as mountinfo does: blanks, tabs, newlines and backslashes are three octal digits."""
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % match[0][0], path)


def _bind(source: Path, target: Path, options: MountOptions) -> None:
    """Copy the tree, set its attributes, and only then show it: nobody sees it writable for a moment."""
    recursive = _AT_RECURSIVE if options.recursive else 0
    with _opened(_open_tree(source, _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | recursive)) as tree:
        if options.words or options.cleared or options.propagation:
            _mount_setattr(tree, options, recursive, target)
        _move_mount(tree, target)


def _mount_file_system(mount: Mount, target: Path, options: MountOptions) -> None:
    data = ",".join(map(_quoted, options.data))
    try:
        _mount2(mount.source, target, mount.type, options.flags, data)
    except OSError as error:
        if error.errno != errno.ENOTBLK or not Path(mount.source).is_file():
            raise
        with loop.attached(Path(mount.source)) as device:  # before Linux 6.12, EROFS mounts no files
            _mount2(device, target, mount.type, options.flags, data)
    if options.propagation:
        _set_propagation_or_unmount(target, options.propagation)


def _mount_overlay(source: str, target: Path, options: MountOptions) -> None:
    if takes_layers_one_by_one():
        try:
            with _opened(_overlay_context(source, options)) as context, _opened(_fsmount(context, options)) as made:
                _move_mount(made, target)
        except OSError as error:
            error.filename = error.filename or str(target)
            raise
    else:
        mount_overlay_by_string(source, target, options)
    if options.propagation:
        _set_propagation_or_unmount(target, options.propagation)


@functools.cache
def takes_layers_one_by_one() -> bool:
    """Return whether the kernel's overlay has ``lowerdir+`` (Linux >= 6.7).

    Before 6.5 the new calls take any option whatever, and complain at the end: so a wrong one is tried, too.
    """
    try:
        with _opened(_fsopen("overlay")) as context:
            _fsconfig(context, _FSCONFIG_SET_STRING, "lowerdir+", "/")
            try:
                _fsconfig(context, _FSCONFIG_SET_FLAG, "no-such-option", None)
            except OSError:
                return True
    except OSError:
        pass
    return False


def _overlay_context(source: str, options: MountOptions) -> int:
    context = _fsopen("overlay")
    try:
        with contextlib.ExitStack() as stack:
            _configure(context, source, options, stack)
    except BaseException:
        os.close(context)
        raise
    return context


def _configure(context: int, source: str, options: MountOptions, stack: contextlib.ExitStack) -> None:
    _fsconfig(context, _FSCONFIG_SET_STRING, "source", source or "overlay")
    if "ro" in options.words:
        _fsconfig(context, _FSCONFIG_SET_FLAG, "ro", None)
    for option in _lowers_apart(options.data):
        key, equals, value = option.partition("=")
        if equals:
            _fsconfig(context, _FSCONFIG_SET_STRING, key, _directory_value(key, value, stack))
        else:
            _fsconfig(context, _FSCONFIG_SET_FLAG, key, None)
    _fsconfig(context, _FSCONFIG_CMD_CREATE, "", None)


def _lowers_apart(data: Sequence[str]) -> list[str]:
    """Put the layers first, each for itself."""
    apart = [f"lowerdir+={path}" for path in lower_paths(data)]
    return apart + [option for option in data if not option.startswith(("lowerdir+=", "lowerdir="))]


def lower_paths(options: Iterable[str]) -> list[str]:
    """Return the layers that overlay options name, topmost first: by ``lowerdir+=PATH``, taken as it is, or by
    ``lowerdir=A:B``, in which a backslash escapes."""
    found = []
    for option in options:
        key, _, value = option.partition("=")
        if key == "lowerdir+":
            found.append(value)
        elif key == "lowerdir":
            found += [re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", value)]
    return found


def _directory_value(key: str, value: str, stack: contextlib.ExitStack) -> str:
    """Make a directory's name fit into one fsconfig value; a backslash escapes in all of them but ``lowerdir+``."""
    if key not in _DIRECTORIES:
        return value
    escaped = value if key == "lowerdir+" else value.replace("\\", "\\\\")
    if len(os.fsencode(escaped)) <= _VALUE_BYTES:
        return escaped
    fd = os.open(value, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def mount_overlay_by_string(source: str, target: Path, options: MountOptions) -> None:
    """Mount an overlay the old way, all layers in one string of at most a page.

    Where absolute names do not fit, a thread goes to the directory above all of the layers and uses relative ones.
    """
    lowers = lower_paths(options.data)
    rest = [_quoted(_escaped_option(option)) for option in options.data if not option.startswith("lowerdir")]
    data = _overlay_data(lowers, rest)
    if len(os.fsencode(data)) <= _DATA_BYTES:
        _mount2(source or "overlay", target, "overlay", options.flags, data)
        return
    above = os.path.commonpath(lowers)
    relative = _overlay_data([os.path.relpath(path, above) for path in lowers], rest)

    def mount_from_above() -> None:
        libc.call("unshare", _CLONE_FS)
        os.chdir(above)
        _mount2(source or "overlay", target.absolute(), "overlay", options.flags, relative)

    if len(os.fsencode(relative)) > _DATA_BYTES:
        raise OSError(
            errno.E2BIG, f"{len(lowers)} layers are too many for this kernel; Linux 6.7 takes them", str(target)
        )
    call_in_fresh_thread(mount_from_above)


def _overlay_data(lowers: Sequence[str], rest: Sequence[str]) -> str:
    joined = ":".join(map(_escaped, lowers))
    return ",".join([f"lowerdir={joined}"] * bool(lowers) + [*rest])


def _escaped_option(option: str) -> str:
    key, _, value = option.partition("=")
    return f"{key}={_escaped(value)}" if key in _DIRECTORIES else option


def _escaped(path: str) -> str:
    return re.sub(r"([\\:,])", r"\\\1", path)


def _quoted(option: str) -> str:
    """An SELinux context has commas in it; in a string of several options it needs quotes, in an fsconfig call none."""
    key, _, value = option.partition("=")
    return f'{key}="{value}"' if key.endswith("context") and "," in value else option


def _set_propagation_or_unmount(target: Path, flags: int) -> None:
    try:
        _set_propagation(target, flags)
    except OSError:
        _umount2(target, _UMOUNT_DETACH)
        raise


# One function a system call from here on.


def _mount2(source: str, target: Path, type_: str, flags: int, data: str) -> None:
    if len(os.fsencode(data)) > _DATA_BYTES:
        raise OSError(errno.E2BIG, f"mount options longer than {_DATA_BYTES} bytes", str(target))
    names = [os.fsencode(text) for text in (source, target, type_)]
    try:
        libc.call("mount", *names, flags, os.fsencode(data) if data else None)
    except OSError as error:
        said = f"mount {type_}: {os.strerror(error.errno or 0)} ({data[:_SHOWN]})"
        raise OSError(error.errno, said, str(target)) from None


def _set_propagation(target: Path, flags: int) -> None:
    libc.call("mount", None, os.fsencode(target), None, flags, None, path=target)


def _umount2(target: Path, flags: int) -> None:
    libc.call("umount2", os.fsencode(target), flags, path=target)


def _open_tree(source: Path, flags: int) -> int:
    return libc.syscall(libc.OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, path=source)


def _mount_setattr(tree: int, options: MountOptions, recursive: int, target: Path) -> None:
    cleared = options.cleared_attributes
    if options.attributes & _ATIME_ATTRIBUTES:
        cleared |= _ATIME_ATTRIBUTES  # access times are one value: the kernel wants the old one taken away
    attributes = struct.pack("QQQQ", options.attributes, cleared, options.propagation & ~_MS_REC, 0)
    libc.syscall(libc.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | recursive, attributes, len(attributes), path=target)


def _map_owners(tree: int, recursive: int, maps: int, target: Path) -> None:
    attributes = struct.pack("QQQQ", _ATTR_IDMAP, 0, 0, maps)
    libc.syscall(libc.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | recursive, attributes, len(attributes), path=target)


def _move_mount(tree: int, target: Path) -> None:
    libc.syscall(libc.MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH, path=target)


def _fsopen(type_: str) -> int:
    return libc.syscall(libc.FSOPEN, type_.encode(), _FSOPEN_CLOEXEC, path=type_)


def _fsconfig(context: int, command: int, key: str, value: str | None) -> None:
    arguments = (key.encode() or None, None if value is None else os.fsencode(value), 0)
    try:
        libc.syscall(libc.FSCONFIG, context, command, *arguments, path=value or key)
    except OSError as error:
        raise _explained(error, context, key or "create") from None


def _fsmount(context: int, options: MountOptions) -> int:
    try:
        return libc.syscall(libc.FSMOUNT, context, _FSMOUNT_CLOEXEC, options.attributes)
    except OSError as error:
        raise _explained(error, context, "fsmount") from None


def _explained(error: OSError, context: int, act: str) -> OSError:
    """Add what the file system has to say: the context's descriptor is also its log."""
    with contextlib.suppress(OSError):
        said = os.read(context, 4096).decode(errors="replace").strip()
        return OSError(error.errno, f"overlay {act}: {os.strerror(error.errno or 0)} ({said})", error.filename)
    return OSError(error.errno, f"overlay {act}: {os.strerror(error.errno or 0)}", error.filename)


def _sum(flags: Iterable[int]) -> int:
    total = 0
    for flag in flags:
        total |= flag
    return total


def _unescape(field: bytes) -> bytes:
    """Blanks, tabs, newlines and backslashes are three octal digits in mountinfo."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field).removesuffix(b"//deleted")


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
