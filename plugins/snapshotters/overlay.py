"""The ``overlay`` snapshotter: each layer a directory, a container's root an overlay mount of them (overlayfs).

Layers are unpacked apart from each other, so they can be unpacked at the same time, and a container costs two empty
directories. What this needs of the host, ``probe`` tries out.
"""

import contextlib
import difflib
import errno
import os
import stat
import threading
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from crinoid.core.api import API_VERSION
from crinoid.core.api.errors import Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc, mount
from crinoid.core.api.linux.threads import call_in_fresh_thread, call_in_thread
from crinoid.core.api.values.snapshot import Mount, SnapshotterFeatures, WhiteoutForm
from crinoid.plugins.snapshotters.common_hooks import DirectoryConfig, DirectorySnapshotter, copy_root_attributes
from crinoid.plugins.snapshotters.records import Snapshot

_CLONE_NEWNS = 0x20000
_MAX_STACKED = 500  # OVL_MAX_STACK
_MAX_NAMED = 300  # of names such as 1234567/fs
_OPAQUE = "trusted.overlay.opaque"
_OURS = ("lowerdir", "upperdir", "workdir", "ro", "rw")


_KNOWN = (
    *("index", "metacopy", "nfs_export", "redirect_dir", "uuid", "verity", "volatile", "xino"),
    *("context", "noatime", "nodev", "nodiratime", "relatime"),
)
"""Options of overlayfs.rst that leave whiteouts as they are here, in trusted attributes, and of mount(8)."""


def _not_ours(options: tuple[str, ...]) -> tuple[str, ...]:
    for option in options:
        name = option.partition("=")[0]
        if name.removesuffix("+") in _OURS or "," in option:
            raise ValueError(f"{option!r} is not for the configuration to say: one option each, and no layers")
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(_KNOWN)}"
            raise ValueError(f"overlayfs has no option {name!r} that fits here{hint}")
    return options


class OverlayConfig(DirectoryConfig):
    """The options of an ``overlay`` slot."""

    mount_options: Annotated[tuple[str, ...], AfterValidator(_not_ours)] = ("index=off",)
    """Options of every container's overlay mount, one each, such as ``metacopy=on``. With ``volatile`` what a container
    writes is never synced to disk: that is faster, but the kernel mounts such a root only once."""


class OverlaySnapshotter(DirectorySnapshotter):
    """The driver (entry point ``overlay``)."""

    api_version = API_VERSION
    Config = OverlayConfig
    whiteouts = WhiteoutForm.OVERLAY

    def __init__(self, config: OverlayConfig, host: Host) -> None:
        super().__init__(config, host)
        self._options = config.mount_options

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        # Before Linux 6.7 all lower directories stood in one page of options: there, surely fewer fit.
        most = _MAX_STACKED if mount.takes_layers_one_by_one() else _MAX_NAMED
        return SnapshotterFeatures(parallel_unpack=True, root=self.storage.root, max_layers=most)

    @hookimpl
    async def probe(self) -> None:
        def try_here() -> None:
            with self.storage.trial() as directory:
                try_overlay(directory, self._options)

        await call_in_thread(self.storage.begin_cleanup)
        await call_in_thread(try_here)

    def fill_layer(self, parent: str | None, directory: Path, cancelled: threading.Event) -> None:
        """Nothing: the parent may still be unpacked, and what a layer looks like must not hang on that."""

    def fill_snapshot(self, parent: str | None, readonly: bool, directory: Path, cancelled: threading.Event) -> None:
        if parent is not None:
            copy_root_attributes(self.storage.stack(parent)[0], directory)

    def mounts_of(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        directory = self.storage.snapshot_directory(snapshot)
        return self.stacked(shown_trees(self.storage.stack(snapshot.parent)), directory, snapshot.readonly)

    def stacked(self, stack: tuple[Path, ...], directory: Path, readonly: bool) -> tuple[Mount, ...]:
        """An overlay needs a lower layer, and two where it has no upper one: else a bind mount does."""
        if readonly and len(stack) < 2:
            return (Mount("bind", str([*stack, directory / "fs"][0]), ("rbind", "ro")),)
        if not stack:
            return (Mount("bind", str(directory / "fs"), ("rbind",)),)
        lowers = tuple(f"lowerdir+={tree}" for tree in stack)
        if readonly:
            return (Mount("overlay", "overlay", (*lowers, *self._options, "ro")),)
        parts = (f"upperdir={directory / 'fs'}", f"workdir={directory / 'work'}")
        return (Mount("overlay", "overlay", (*lowers, *parts, *self._options)),)


def shown_trees(stack: tuple[Path, ...]) -> tuple[Path, ...]:
    """Leave out what lies below a layer whose root is opaque: overlayfs looks for that mark only below the root."""
    for number, tree in enumerate(stack, 1):
        with contextlib.suppress(OSError):  # no such attribute, as a rule
            if os.getxattr(tree, _OPAQUE) == b"y":
                return stack[:number]
    return stack


def try_overlay(directory: Path, options: tuple[str, ...]) -> None:
    """Mount an overlay in a new directory, in a mount namespace that nobody sees and that ends with the try.

    The directory is the caller's to remove. Raises Unsupported, saying what is missing, unless whiteouts and opaque
    directories work.
    """
    try:
        call_in_fresh_thread(lambda: _mount_and_look(directory, options))
    except OSError as error:
        if options and _works_without(directory / "plain"):
            raise Unsupported(f"the kernel refuses mount_options {', '.join(options)}: {error}") from error
        raise Unsupported(f"overlay snapshots don't work in {directory.parent}: {_advice(error)} ({error})") from error


def _works_without(directory: Path) -> bool:
    """Return whether it is the options that are at fault, and not the place."""
    try:
        call_in_fresh_thread(lambda: _mount_and_look(directory, ()))
    except OSError:
        return False
    return True


def _mount_and_look(directory: Path, options: tuple[str, ...]) -> None:
    lower, middle, upper, work, merged = (directory / name for name in ("lower", "middle", "upper", "work", "merged"))
    for path in (lower / "hidden", middle / "hidden", upper, work, merged):
        path.mkdir(parents=True)
    for path in (lower / "hidden/below", lower / "deleted", lower / "whited"):
        path.touch()
    os.setxattr(middle / "hidden", _OPAQUE, b"y")
    os.mknod(middle / "whited", stat.S_IFCHR, 0)
    libc.call("unshare", _CLONE_NEWNS)
    mount.make_private(Path("/"), recursive=True)
    parts = (f"lowerdir+={middle}", f"lowerdir+={lower}", f"upperdir={upper}", f"workdir={work}")
    mount.mount(Mount("overlay", "overlay", (*parts, *options)), merged)
    (merged / "deleted").unlink()
    status = (upper / "deleted").lstat()
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != 0:
        raise OSError(errno.EOPNOTSUPP, "a deleted file leaves no whiteout", str(upper))
    if list(merged.rglob("*")) != [merged / "hidden"]:
        raise OSError(errno.EOPNOTSUPP, "whiteouts or opaque directories have no effect", str(merged))


def _advice(error: OSError) -> str:
    """Say what to do about the kernel's refusal."""
    match error.errno:
        case errno.EPERM | errno.EACCES if os.geteuid() != 0:
            return "mounting and trusted extended attributes need root"
        case errno.ENODEV:
            return "the kernel has no overlay file system; load it (modprobe overlay) or use the native snapshotter"
        case errno.ENOSPC | errno.EDQUOT:
            return "its disk is full"
        case _:
            return (
                "its file system can't hold an overlay's layers; set the option root to a directory on ext4, or on xfs "
                "with ftype=1, or use the native snapshotter"
            )
