"""Snapshotters that want layers in other forms than a directory: small ones, to show that the kernel can."""

import dataclasses
import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import zstandard

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.snapshot import LayerDescriptor, LayerForm, LayerStream, LayerTarget
from crinoid.plugins.snapshotters.overlay import OverlaySnapshotter

_OPAQUE = "trusted.overlay.opaque"


class TarSnapshotter(OverlaySnapshotter):
    """Takes the archive of a layer, and unpacks it by itself."""

    form = LayerForm.TAR

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        target: LayerTarget = await super().prepare_layer(chain_id, parent)
        return dataclasses.replace(target, form=self.form)

    @hookimpl
    async def write_layer(self, key: str, stream: LayerStream) -> None:
        tree = self.storage.unfinished_tree(key)
        assert list(tree.iterdir()) == []
        assert os.fstat(stream.fd).st_size == stream.size
        await call_in_thread(lambda: unpack(stream, tree))

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        tree = self.storage.unfinished_tree(key)
        if (mark := tree.parent / "has-root").exists():
            mark.unlink()
        elif parent is not None:
            for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
                self._settle(directory.relative_to(tree), tree, parent)
        await super().commit_layer(key, chain_id, parent)

    def _settle(self, name: Path, tree: Path, parent: str) -> None:
        """A directory without an entry, which has the unpacker's mode, looks as it does below."""
        below = next((lower / name for lower in self.storage.stack(parent) if (lower / name).is_dir()), None)
        directory = tree / name
        if below is not None and directory.stat().st_uid == 0 and stat.S_IMODE(directory.stat().st_mode) == 0o755:
            os.chown(directory, below.stat().st_uid, below.stat().st_gid)
            directory.chmod(stat.S_IMODE(below.stat().st_mode))


class BlobSnapshotter(TarSnapshotter):
    """Takes a layer as it came, and decompresses it, too."""

    form = LayerForm.BLOB


class BringingSnapshotter(OverlaySnapshotter):
    """Brings the layers that it has in a directory by themselves."""

    def __init__(self, config: Any, host: Any) -> None:
        super().__init__(config, host)
        self.asked: list[LayerDescriptor] = []
        self.own: dict[str, str] = {}
        """By digest of the blob, the name of the only file."""

    @hookimpl
    async def bring_layer(self, layer: LayerDescriptor) -> bool:
        self.asked.append(layer)
        if (name := self.own.get(layer.blob.digest)) is None:
            return False
        target = await super().prepare_layer(layer.chain_id, layer.parent)
        (target.directory / name).write_text("brought")
        await super().commit_layer(target.key, layer.chain_id, layer.parent)
        return True


def decompressed(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("zstd"):
        return zstandard.ZstdDecompressor().stream_reader(data).read()
    return gzip.decompress(data) if media_type.endswith("gzip") else data


def unpack(stream: LayerStream, tree: Path) -> None:
    """Unpack an archive, with whiteouts in overlay's form."""
    if stream.file:
        (tree / stream.file).parent.mkdir(parents=True, exist_ok=True)
        (tree / stream.file).write_bytes(os.pread(stream.fd, stream.size, 0))
        return
    plain = io.BytesIO(decompressed(os.pread(stream.fd, stream.size, 0), stream.media_type))
    found = f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"
    if stream.diff_id not in ("", found):
        raise CorruptContent(f"its diffID is {found}")
    with tarfile.open(fileobj=plain) as archive:
        directories = []
        for member in archive:
            path = tree / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == ".wh..wh..opq":
                os.setxattr(path.parent, _OPAQUE, b"y")
            elif path.name.startswith(".wh."):
                os.mknod(path.with_name(path.name.removeprefix(".wh.")), stat.S_IFCHR, 0)
            else:
                archive.extract(member, tree, numeric_owner=True, filter="fully_trusted")
                if path == tree:
                    (tree.parent / "has-root").touch()
                for key, value in member.pax_headers.items():
                    if key.startswith("SCHILY.xattr."):
                        os.setxattr(path, key.removeprefix("SCHILY.xattr."), value.encode(), follow_symlinks=False)
                directories += [(path, member.mtime)] if member.isdir() else []
        for path, mtime in directories:
            os.utime(path, (mtime, mtime))
