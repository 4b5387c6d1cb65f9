"""What of an overlay layer only the layers below decide: how implied directories look, and which whiteouts hide
something.

An overlay layer is unpacked without its parents, so the unpacker makes a directory that entries lie in, but that has no
entry of its own, as root's with mode 0755, which would hide the owner and mode (say, of a sticky ``/tmp``) that a lower
layer gave it. The root is such a directory, too: the last layer with an entry ``./`` decides. Called by ``layers``
between unpacking and commit, when all lower layers are there. What overlayfs would show is read from the lower
directories, so nothing needs to be mounted.
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.files import open_in_root
from crinoid.core.api.linux.mount import lower_paths
from crinoid.core.api.replaying import Replayed
from crinoid.core.api.values.snapshot import LayerTarget, Mount
from crinoid.core.lifecycle.images.unpack.layer import UnpackResult
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.store import Ledger

LOG = logging.getLogger(__name__)
OWNER = "images"
"""Owner of all that images have in the ledger: none of it outlives the daemon's process."""
VIEW = "view"
LEFT = "left"
"""In the data of an entry: nothing uses it any more, and its snapshotter could not discard it."""
_MAX_LINKS = 40  # as in the kernel
_OPAQUE = "trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def settle(
    ledger: Ledger, slot: SnapshotterSlot, parent: str | None, target: LayerTarget, unpacked: UnpackResult
) -> None:
    """Give an unpacked layer what only the layers below it decide, now that all of them are committed.

    Its implied directories get the owner, mode and attributes that ``parent`` shows for them, and whiteouts that hide
    nothing there go. Of layers that were unpacked into a copy of those below, only directories are left that took the
    place of links.
    """
    if parent is None:
        if unpacked.hiding:
            await asyncio.to_thread(settle_tree, (), target.directory, unpacked)
    elif unpacked.implied or unpacked.hiding:
        async with _view(ledger, slot, parent) as mounts:
            if lowers := lower_directories(mounts):  # of mounts of another kind, nothing is known
                await asyncio.to_thread(settle_tree, lowers, target.directory, unpacked)


@asynccontextmanager
async def _view(ledger: Ledger, slot: SnapshotterSlot, parent: str) -> AsyncIterator[tuple[Mount, ...]]:
    """Have a read-only snapshot of the lower layers for as long as the block runs; the ledger has it from before."""
    key = f"view-{uuid.uuid4().hex}"
    entry = ledger.record(OWNER, VIEW, key, {"snapshotter": slot.name})

    async def close() -> None:
        try:
            await slot.remove_snapshot(key)  # idempotent: it may never have been made
            ledger.forget(entry)
        except CrinoidError as error:
            ledger.update(entry, {**entry.data, LEFT: True})
            LOG.warning("a read-only snapshot is left until the next garbage collection: %s", error.message)

    try:
        yield await slot.create_snapshot(key, parent, readonly=True)
    finally:
        await finish(close())


def lower_directories(mounts: Sequence[Mount]) -> tuple[Path, ...]:
    """Return the directories that a snapshot's mounts stack, topmost first; none for mounts of another kind."""
    if len(mounts) != 1:
        return ()
    mount = mounts[0]
    if mount.type == "bind":
        return (Path(mount.source),)
    if mount.type != "overlay":
        return ()
    return tuple(map(Path, lower_paths(mount.options)))


def settle_tree(lowers: Sequence[Path], target: Path, unpacked: UnpackResult) -> None:
    """Do ``settle``'s work; ``lowers`` are the directories below, topmost first. Blocks.

    overlayfs looks for whiteouts only in directories that it merges with a lower one: anywhere else they would be
    listed as files that can't be opened.
    """
    if not unpacked.hiding and {*unpacked.implied} <= {"."}:
        lowers = lowers[:1]  # as of most layers: the topmost one's root is what overlayfs shows of roots
    with contextlib.ExitStack() as stack:
        # All is named from open directories: a layer's links, absolute ones too, must not lead into the host.
        root = stack.enter_context(_opened(os.open(target, _DIRECTORY)))
        # No further down than somebody looks, as a rule into the topmost: an image may have hundreds of layers, and
        # each of them is settled.
        roots = Replayed(stack.enter_context(_opened(os.open(lower, _DIRECTORY))) for lower in lowers)
        if unpacked.hiding:
            for directory in dict.fromkeys((*unpacked.hiding, *unpacked.implied)):
                with _passed_over():
                    _remove_idle_whiteouts(roots, root, directory)
        # Last, for what was done above has changed the times of directories.
        renewed = frozenset(unpacked.renewed)
        for directory in unpacked.implied:
            if directory not in renewed:
                with _passed_over():
                    _copy_attributes(roots, root, directory)


def _passed_over() -> AbstractContextManager[None]:
    """A directory of the target that a later entry has replaced is left alone."""
    return contextlib.suppress(FileNotFoundError, NotADirectoryError, _LinkError)


def _remove_idle_whiteouts(lowers: Iterable[int], root: int, directory: str) -> None:
    """Remove the whiteouts in a directory of the target that hide nothing of lower layers."""
    with (
        _opened(_open_directory(root, directory)) as found,
        merged_directories(lowers, root, directory, found) as below,
    ):
        whiteouts = [name for name in os.listdir(found) if _is_whiteout(found, name)]  # noqa: PTH208
        idle = [name for name in whiteouts if not _is_shown(below, name)]
        with _times_kept(found):
            for name in idle:
                os.unlink(name, dir_fd=found)


@contextlib.contextmanager
def merged_directories(
    lowers: Iterable[int], root: int, directory: str, itself: int | None = None
) -> Iterator[Iterable[int]]:
    """Open the lower directories that a directory of the target is merged with, topmost first, as they are looked at.

    There are none where the target hides them: where it is opaque on the way, its root too, or ``itself`` is.
    """
    if _is_hidden(root, directory) or (itself is not None and _is_opaque(itself)):
        yield ()
    else:
        with _merged(lowers, directory) as below:
            yield below


def _is_hidden(root: int, directory: str) -> bool:
    if directory == ".":
        return False
    above, is_hidden = _look(root, str(Path(directory).parent))
    if above is not None:
        os.close(above)
    return is_hidden


@contextlib.contextmanager
def _merged(lowers: Iterable[int], directory: str) -> Iterator[Iterable[int]]:
    with contextlib.ExitStack() as stack:

        def find() -> Iterator[int]:
            for lower in lowers:
                one, hides = _look(lower, directory)
                if one is not None:
                    yield stack.enter_context(_opened(one))
                if hides:
                    break

        yield Replayed(find())


def _is_shown(directories: Iterable[int], name: str) -> bool:
    """Return whether a name is in directories that overlayfs merges, topmost first."""
    top = next((directory for directory in directories if _exists(directory, name)), None)
    return top is not None and not _is_whiteout(top, name)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_whiteout(directory: int, name: str) -> bool:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


@contextlib.contextmanager
def _times_kept(directory: int) -> Iterator[None]:
    before = os.fstat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


class _LinkError(OSError):
    """A symbolic link where a directory was expected."""


def _copy_attributes(lowers: Iterable[int], root: int, directory: str) -> None:
    """Make a directory of the target look as it does below, where it is there; in the place of a link, as what that
    leads to, as containerd has it."""
    if _is_hidden(root, directory):
        return
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_opened(_open_directory(root, directory)))
        # Of merged directories overlayfs shows the topmost one's owner and mode.
        top = next(iter(stack.enter_context(_merged(lowers, directory))), None)
        if top is None:
            if (top := _follow(lowers, directory)) is None:
                return
            stack.callback(os.close, top)
        facts = os.fstat(top)
        os.fchown(target, facts.st_uid, facts.st_gid)
        os.fchmod(target, stat.S_IMODE(facts.st_mode))  # after chown, which clears set-group-id
        for name in os.listxattr(top):
            if not name.startswith("trusted.overlay."):  # overlayfs's own marks say something of that layer alone
                os.setxattr(target, name, os.getxattr(top, name))
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _follow(lowers: Iterable[int], directory: str) -> int | None:
    """Open what a path of lower layers leads to by way of their links; None where that is no directory."""
    pending, done, links = list(reversed(Path(directory).parts)), list[str](), 0
    while pending:
        match pending.pop():
            case "/":
                done = []
            case "..":
                done = done[:-1]
            case part:
                with _merged(lowers, "/".join(done) or ".") as below:
                    top = next((one for one in below if _exists(one, part)), None)
                    mode = 0 if top is None else os.stat(part, dir_fd=top, follow_symlinks=False).st_mode
                    if stat.S_ISLNK(mode) and links < _MAX_LINKS:
                        links += 1
                        pending += reversed(Path(os.readlink(part, dir_fd=top)).parts)
                    elif stat.S_ISDIR(mode):
                        done.append(part)
                    else:
                        return None
    with _merged(lowers, "/".join(done) or ".") as below:
        found = next(iter(below), None)
        return None if found is None else os.dup(found)


def _look(lower: int, directory: str) -> tuple[int | None, bool]:
    """Walk into one layer; return the directory if it is there, and whether lower layers are hidden."""
    hides = _is_opaque(lower)
    current = os.dup(lower)
    try:
        for part in Path(directory).parts:
            following = os.open(part, _DIRECTORY, dir_fd=current)
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


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _open_directory(root: int, directory: str) -> int:
    try:
        return open_in_root(root, directory, _DIRECTORY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _LinkError(error.errno, "is a link", directory) from error
        raise


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
