"""Folders that a layer's entries lie in without having an entry of their own: they look as in the layer below.

An overlay layer is unpacked without its parents, so the unpacker makes such a folder as root's with mode 0755, which
would hide the owner and mode (say, of a sticky ``/tmp``) that a lower layer gave it. Called by ``layers`` between
unpacking and commit, when all lower layers are there. What overlayfs would show is read from the lower folders, so
nothing needs to be mounted.
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.files import open_in_root
from crinoid.core.api.values.snapshot import LayerTarget, Mount, WhiteoutForm
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.store import Ledger, LedgerEntry

LOG = logging.getLogger(__name__)
OWNER = "images"
"""Owner of all that images have in the ledger: none of it outlives the daemon's process."""
VIEW = "view"
_OPAQUE = "trusted.overlay.opaque"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def adopt_implied(
    ledger: Ledger, slot: SnapshotterSlot, parent: str, target: LayerTarget, implied: Sequence[str]
) -> None:
    """Give the implied folders of an unpacked layer the owner, mode and attributes that ``parent`` shows for them."""
    if not implied or target.whiteouts is not WhiteoutForm.OVERLAY:
        return
    async with _view(ledger, slot, parent) as mounts:
        await asyncio.to_thread(copy_attributes, lower_folders(mounts), target.directory, implied)


@asynccontextmanager
async def _view(ledger: Ledger, slot: SnapshotterSlot, parent: str) -> AsyncIterator[tuple[Mount, ...]]:
    key = f"view-{uuid.uuid4().hex}"
    entry = ledger.intend(OWNER, VIEW, key, {"snapshotter": slot.name})
    try:
        yield await slot.create_snapshot(key, parent, readonly=True)
    finally:
        await finish(_close_view(ledger, slot, key, entry))


async def _close_view(ledger: Ledger, slot: SnapshotterSlot, key: str, entry: LedgerEntry) -> None:
    try:
        await slot.remove_snapshot(key)
        ledger.strike(entry)
    except CrinoidError as error:
        LOG.warning("a read-only snapshot is left until the next start: %s", error.message)


def lower_folders(mounts: Sequence[Mount]) -> tuple[Path, ...]:
    """Return the folders that a snapshot's mounts stack, topmost first; none for mounts of another kind."""
    if len(mounts) != 1:
        return ()
    mount = mounts[0]
    if mount.type == "bind":
        return (Path(mount.source),)
    if mount.type != "overlay":
        return ()
    found: list[Path] = []
    for option in mount.options:
        if option.startswith("lowerdir+="):
            found.append(Path(option.removeprefix("lowerdir+=")))
        elif option.startswith("lowerdir="):
            found += [Path(part) for part in option.removeprefix("lowerdir=").split(":")]
    return tuple(found)


def copy_attributes(lowers: Sequence[Path], target: Path, folders: Sequence[str]) -> None:
    """Make each folder of ``target`` look as it does in the stack of lower layers; leave it where it is not there.

    Blocks. A folder of the target that is one no more, or a link by now, is left alone.
    """
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(_opened(os.open(target, _FOLDER)))
        roots = [stack.enter_context(_opened(os.open(lower, _FOLDER))) for lower in lowers]
        for folder in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, _LinkError):
                _copy_one(roots, root, folder)


class _LinkError(OSError):
    """A symbolic link where a folder was expected."""


def _copy_one(lowers: Sequence[int], root: int, folder: str) -> None:
    source = find_folder(lowers, folder)
    if source is None:
        return
    with _opened(source), _opened(_open_folder(root, folder)) as target:
        facts = os.fstat(source)
        os.fchown(target, facts.st_uid, facts.st_gid)
        os.fchmod(target, stat.S_IMODE(facts.st_mode))
        for name in os.listxattr(source):
            if not name.startswith("trusted.overlay."):
                os.setxattr(target, name, os.getxattr(source, name))
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def find_folder(lowers: Sequence[int], folder: str) -> int | None:
    """Open the folder that overlayfs would take the attributes from: the topmost, unless something hides it.

    ``lowers`` are descriptors, topmost first. A whiteout, a file or a link hides what is below, and so does an opaque
    folder on the way.
    """
    for lower in lowers:
        found, hides = _look(lower, folder)
        if found is not None or hides:
            return found
    return None


def _look(lower: int, folder: str) -> tuple[int | None, bool]:
    """Walk into one layer; return the folder if it is there, and whether lower layers are hidden."""
    hides = False
    current = os.dup(lower)
    try:
        for part in Path(folder).parts:
            following = os.open(part, _FOLDER, dir_fd=current)
            os.close(current)
            current = following
            hides = hides or _is_opaque(current)
    except FileNotFoundError:
        os.close(current)
        return None, hides
    except OSError as error:
        os.close(current)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None, True
        raise
    return current, hides


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _open_folder(root: int, folder: str) -> int:
    try:
        return open_in_root(root, folder, _FOLDER)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _LinkError(error.errno, "is a link", folder) from error
        raise


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
