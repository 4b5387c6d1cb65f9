"""The ``erofs`` snapshotter: each layer one EROFS image, a container's root an overlay of the mounted images.

A layer is written as it comes in, one file instead of thousands: nothing is unpacked, removal is one unlink, and what
a container reads first is where the image's archive has it. An image is mounted once, whoever stands on it; the kernel
can't be made to write to it. Its digest is recorded with it, and where the file system has fs-verity, the kernel
compares each block that is read.
"""

import errno
import hashlib
import os
import threading
from pathlib import Path

from crinoid.core.api import API_VERSION
from crinoid.core.api.archives import ByteSource, Entry
from crinoid.core.api.errors import CorruptContent, NotFound, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc, mount, rights, verity
from crinoid.core.api.linux.threads import call_in_fresh_thread, call_in_thread
from crinoid.core.api.values.snapshot import Mount
from crinoid.plugins.snapshotters.common_hooks import in_thread
from crinoid.plugins.snapshotters.erofs.image import Image, Inode
from crinoid.plugins.snapshotters.erofs.layout import ROOT_NID
from crinoid.plugins.snapshotters.erofs.settling import settle_image
from crinoid.plugins.snapshotters.erofs.writer import IMAGE_FILE, OPAQUE, SETTLE_FILE, ImageWriter
from crinoid.plugins.snapshotters.overlay import OverlayConfig, OverlaySnapshotter
from crinoid.plugins.snapshotters.records import Layer, Snapshot

_CLONE_NEWNS = 0x20000
_DIGEST_FILE = "digest"


class ErofsConfig(OverlayConfig):
    """The options of an ``erofs`` slot, those of ``overlay``."""


class ErofsSnapshotter(OverlaySnapshotter):
    """The driver (entry point ``erofs``)."""

    api_version = API_VERSION
    Config = ErofsConfig
    writer = f"{ImageWriter.__module__}:{ImageWriter.__name__}"
    content = f"fs/{IMAGE_FILE}"

    def __init__(self, config: ErofsConfig, host: Host) -> None:
        super().__init__(config, host)
        self._roots: dict[int, Inode] = {}

    @hookimpl
    async def probe(self) -> None:
        def try_here() -> None:
            with self.storage.trial() as directory:
                try_erofs(directory)

        await super().probe()
        await call_in_thread(try_here)

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        await in_thread(lambda: self._commit(key, chain_id, parent))

    @hookimpl
    async def verify_layer(self, chain_id: str) -> None:
        await in_thread(lambda: self._verify(self.storage.layer(chain_id)))

    def _commit(self, key: str, chain_id: str, parent: str | None) -> None:
        directory = self.storage.unfinished_tree(key)
        if not self.storage.is_whole(chain_id):
            try:
                image = directory / IMAGE_FILE
                lowers = [tree / IMAGE_FILE for tree in self.storage.stack(parent)]
                settle_image(image, lowers, hashlib.sha256(chain_id.encode()).digest()[:16])
                (directory / SETTLE_FILE).unlink()
                verity.enable(image)
                rights.write_file(directory / _DIGEST_FILE, _digest(image).encode())
            except FileNotFoundError as error:
                raise NotFound(f"prepared layer {key} is not whole: {error}") from error
        self.storage.commit(key, chain_id, parent)

    def _verify(self, layer: Layer) -> None:
        """Compare an image with the digest that was recorded; put a damaged one aside. Raises CorruptContent.

        Containers that stand on it keep it mounted; no other ever will be.
        """
        image = self._tree_of(layer) / IMAGE_FILE
        try:
            recorded, found = image.with_name(_DIGEST_FILE).read_text(), _digest(image)
        except OSError as error:  # what fs-verity refuses to read, too
            recorded, found = "readable", f"not: {error}"
        if recorded != found:
            image.replace(image.with_name(f"{IMAGE_FILE}.damaged"))
            raise CorruptContent(f"layer {layer.chain_id}: {image} was {recorded}, and is {found}")

    def fill_snapshot(self, parent: str | None, readonly: bool, directory: Path, cancelled: threading.Event) -> None:
        """A container sees the root of the topmost layer."""
        if parent is not None:
            root = self._root_of(self.storage.layer(parent))
            for name, value in root.attributes.items():
                if not name.startswith("trusted."):
                    os.setxattr(directory, name, value)
            os.chown(directory, root.uid, root.gid)
            directory.chmod(root.mode & 0o7777)

    def mounts_of(self, snapshot: Snapshot) -> tuple[Mount, ...]:
        """Each layer is mounted on its own, and named by the overlay, or by a bind mount if it is the only one."""
        directory = self.storage.snapshot_directory(snapshot)
        layers = self._shown(self.storage.layer_stack(snapshot.parent))
        images = [
            Mount("erofs", str(self._tree_of(layer) / IMAGE_FILE), ("ro",), self._target_of(layer)) for layer in layers
        ]
        stack = tuple(Path(image.target) for image in images)
        return (*reversed(images), *self.stacked(stack, directory, snapshot.readonly))

    def _shown(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Leave out what lies below a layer whose root is opaque."""
        for number, layer in enumerate(layers, 1):
            if OPAQUE in self._root_of(layer).attributes:
                return layers[:number]
        return layers

    def _root_of(self, layer: Layer) -> Inode:
        if layer.number not in self._roots:
            with Image(self._tree_of(layer) / IMAGE_FILE) as image:
                self._roots[layer.number] = image.inode(ROOT_NID)
        return self._roots[layer.number]

    def _tree_of(self, layer: Layer) -> Path:
        return self.storage.root / "layers" / str(layer.number) / "fs"

    def _target_of(self, layer: Layer) -> str:
        """Numbers are given again after a restart, so the name has a part of the chain id, too."""
        return str(self.host.run_dir / "layers" / f"{layer.number}-{layer.chain_id.rpartition(':')[2][:12]}")


def _digest(image: Path) -> str:
    with image.open("rb", buffering=0) as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def try_erofs(directory: Path) -> None:
    """Write an image in a new directory and mount it, in a mount namespace that nobody sees.

    Raises Unsupported, saying what is missing.
    """
    try:
        call_in_fresh_thread(lambda: _write_and_mount(directory))
    except OSError as error:
        raise Unsupported(f"EROFS images can't be mounted in {directory.parent}: {_advice(error)} ({error})") from error


def _write_and_mount(directory: Path) -> None:
    mounted = directory / "mounted"
    mounted.mkdir(parents=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        writer = ImageWriter(fd, ByteSource())
        writer.add_directory(b"", b"found", Entry(b"", b"5"))
        writer.finish()
    finally:
        os.close(fd)
    libc.call("unshare", _CLONE_NEWNS)
    mount.make_private(Path("/"), recursive=True)
    mount.mount(Mount("erofs", str(directory / IMAGE_FILE), ("ro",)), mounted)
    if [path.name for path in mounted.iterdir()] != ["found"]:
        raise OSError(errno.EIO, "an image shows something else than what was written", str(mounted))


def _advice(error: OSError) -> str:
    """Say what to do about the kernel's refusal."""
    match error.errno:
        case errno.ENODEV:
            return "the kernel has no EROFS; load it (modprobe erofs) or use the overlay snapshotter"
        case errno.ENOTBLK | errno.ENOENT | errno.ENXIO:
            return "the kernel mounts files from Linux 6.12 on, and there are no loop devices"
        case _:
            return "use the overlay snapshotter"
