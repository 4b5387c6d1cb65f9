"""Id-mapped mounts: the same files with other owners, for pods that have a user namespace (mount_setattr(2)).

Called by ``lifecycle`` for root file systems and volumes, whatever snapshotter or runtime is in use. Everything blocks.

The kernel maps one mount, not a stack: a bind mount gets the maps itself; an overlay can't have any, so each of its
lower layers gets them (Linux >= 5.19), and its upper directory starts out as the mapped root's. Those mounts of layers
are made in a mount namespace that ends at once: the overlay keeps what it needs of them, and nothing is left to undo.
"""

import contextlib
import errno
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, Unsupported
from crinoid.core.api.linux import libc, mount
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.api.linux.namespaces import user_namespace
from crinoid.core.api.linux.threads import call_in_fresh_thread
from crinoid.core.api.values.pod import IdMapping
from crinoid.core.api.values.snapshot import Mount

_CLONE_NEWNS = 0x20000
_SCRATCH = ".idmaps-"
_BINDS = ("bind", "rbind", "none")
_TRIED = (IdMapping(host_id=1 << 16, container_id=0, length=1 << 16),)


@dataclass(frozen=True, slots=True)
class IdMaps:
    """Which ids of files are which ids of the host: ``container_id`` on disk shows as ``host_id``.

    ``pin`` is a user namespace that has these maps; without one, one is made for the moment.
    """

    uids: tuple[IdMapping, ...]
    gids: tuple[IdMapping, ...]
    pin: Path | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The user namespace as a descriptor, for the block."""
        if self.pin is None:
            with user_namespace(self.uids, self.gids) as fd:
                yield fd
            return
        fd = os.open(self.pin, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def chown(self, path: Path) -> None:
        """Make a file or directory, not what is in it, belong to whom it would show as through the maps.

        An id outside of the maps stays as it is. Not idempotent.
        """
        found = path.lstat()
        uid, gid = to_host(found.st_uid, self.uids), to_host(found.st_gid, self.gids)
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=False)


def to_host(number: int, mappings: Sequence[IdMapping]) -> int | None:
    """Return the host's id for one of the namespace; ``None`` for one that is not mapped."""
    for one in mappings:
        if one.container_id <= number < one.container_id + one.length:
            return one.host_id + number - one.container_id
    return None


def mount_mapped(wanted: Mount, target: Path, maps: IdMaps) -> None:
    """As ``mount.mount``, with the owners mapped. An overlay's upper directory must be new: its own owner is changed.

    Raises Unsupported where the file system or the kernel has no id-mapped mounts, naming what was to be mapped.
    """
    with maps.opened() as fd:
        if wanted.type in _BINDS:
            _bind(Path(wanted.source), target, mount.parse_options(wanted.options), fd)
        elif wanted.type == "overlay":
            for upper in _named("upperdir=", wanted.options):
                maps.chown(Path(upper))
            _attach(call_in_fresh_thread(lambda: _stack_apart(wanted, target, fd)), target)
        else:
            _attach(call_in_fresh_thread(lambda: _mount_apart(wanted, target, fd)), target)


def try_in(directory: Path) -> None:
    """Try out a mapped bind mount and an overlay over mapped layers below a directory, where nobody sees; one at a
    time.

    Raises Unsupported, saying which of them this file system and kernel can't do.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stale in directory.glob(f"{_SCRATCH}*"):  # its maker was killed
        remove_tree(stale)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=directory))
    try:
        call_in_fresh_thread(lambda: _try_apart(scratch))
    except OSError as error:
        raise Unsupported(f"id-mapped mounts don't work in {directory}: {error}") from error
    finally:
        remove_tree(scratch)


def _bind(source: Path, target: Path, options: mount.MountOptions, maps: int) -> None:
    try:
        mount.bind_mapped(source, target, options, maps)
    except OSError as error:
        raise _explained(error, str(source)) from error


def _attach(tree: int, target: Path) -> None:
    try:
        mount.attach(tree, target)
    finally:
        os.close(tree)


def _stack_apart(wanted: Mount, target: Path, maps: int) -> int:
    """Stack an overlay on mapped layers, in a mount namespace of this thread's own; return it as a descriptor.

    The layers are mounted below the target, in a tmpfs that only this namespace has, so their names are short.
    """
    _leave_mount_namespace()
    mount.mount(Mount("tmpfs", "layers", ("mode=700",)), target)
    lowers = mount.lower_paths(wanted.options)
    rest = [option for option in wanted.options if not option.startswith("lowerdir")]
    for number, lower in enumerate(lowers):
        (target / str(number)).mkdir()
        _bind(Path(lower), target / str(number), mount.MountOptions(), maps)
    merged = target / "merged"
    merged.mkdir()
    stacked = (*(f"lowerdir+={target / str(number)}" for number in range(len(lowers))), *rest)
    try:
        mount.mount(Mount("overlay", wanted.source, stacked), merged)
    except OSError as error:
        raise _explained(error, f"the layers of {target}") from error
    return mount.clone(merged)


def _mount_apart(wanted: Mount, target: Path, maps: int) -> int:
    """Mount a file system where nobody sees it, and map it before it is shown."""
    _leave_mount_namespace()
    mount.mount(wanted, target)
    tree = mount.clone(target)
    try:
        mount.map_owners(tree, maps, target)
    except OSError as error:
        os.close(tree)
        raise _explained(error, f"the {wanted.type} file system {wanted.source}") from error
    return tree


def _try_apart(scratch: Path) -> None:
    parts = [scratch / name for name in ("one", "two", "bound", "stacked")]
    for part in parts:
        part.mkdir()
    (parts[0] / "file").touch()
    maps = IdMaps(_TRIED, _TRIED)
    _leave_mount_namespace()
    mount_mapped(Mount("bind", str(parts[0])), parts[2], maps)
    mount_mapped(Mount("overlay", "overlay", (f"lowerdir+={parts[0]}", f"lowerdir+={parts[1]}", "ro")), parts[3], maps)
    for shown in (parts[2], parts[3]):
        if (shown / "file").stat().st_uid != _TRIED[0].host_id:
            raise OSError(errno.EOPNOTSUPP, "the owner of a file is not mapped", str(shown))


def _leave_mount_namespace() -> None:
    libc.call("unshare", _CLONE_NEWNS)
    mount.make_private(Path("/"), recursive=True)


def _explained(error: OSError, what: str) -> CrinoidError | OSError:
    if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
        return error
    if error.errno == errno.EPERM:
        return Unsupported(
            f"the owners of files can't be mapped in {what}: it is mounted with maps of its own ({error})"
        )
    return Unsupported(
        f"the owners of files can't be mapped in {what}: its file system has no id-mapped mounts with this kernel "
        f"({platform.release()}): {error}"
    )


def _named(prefix: str, options: Sequence[str]) -> list[str]:
    return [option.removeprefix(prefix) for option in options if option.startswith(prefix)]
