"""Writes what ``ctl save`` is sent: an OCI layout in a tar, or an archive as ``docker save`` has written them.

The bytes depend on the images alone: members have no times and no owners, and stand in the order of the images. So the
same images give the same file. ``skopeo``, ``podman load``, ``docker load``, ``ctr images import`` and ``umoci`` (once
it is unpacked) read them.
"""

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Any, BinaryIO

from crinoid.core.api.archives import ArchiveFault
from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.manifests import OCI_INDEX
from crinoid.core.cli.ctl.archive_input import spool_directory
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.decompression import decompress

_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"

_COPY_BYTES = 1 << 20

Pieces = AsyncIterator[bytes]
"""A blob as it comes."""


class OciWriter:
    """Writes an OCI layout (image-spec, image-layout.md): every blob as it is stored."""

    def __init__(self, target: BinaryIO, images: Sequence[Any]) -> None:
        self._archive = _Archive(target)
        self._archive.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self._archive.add("index.json", _index(images))
        self._archive.add_directory("blobs")
        self._algorithms: set[str] = set()

    async def write(self, blob: Any, pieces: Pieces) -> None:
        """Write a blob."""
        algorithm, _, hexadecimal = blob.digest.partition(":")
        if algorithm not in self._algorithms:
            self._algorithms.add(algorithm)
            self._archive.add_directory(f"blobs/{algorithm}")
        await self._archive.add_stream(f"blobs/{algorithm}/{hexadecimal}", blob.size, pieces)

    def finish(self) -> None:
        """Write the end."""
        self._archive.close()


class DockerWriter:
    """Writes a docker-archive: a configuration and plain layers for each image, and ``manifest.json`` at the end."""

    def __init__(self, target: BinaryIO, images: Sequence[Any]) -> None:
        self._archive = _Archive(target)
        self._images = images
        self._configs = {image.config.digest for image in images}
        self._diff_ids: dict[str, str] = {}
        self._layers: dict[str, list[str]] = {}
        self._written: set[str] = set()

    async def write(self, blob: Any, pieces: Pieces) -> None:
        """Write a blob, if this form has it; configurations come before their layers."""
        if blob.digest in self._configs:
            content = b"".join([piece async for piece in pieces])
            self._learn(blob.digest, content)
            self._archive.add(f"{_hex(blob.digest)}.json", content)
        elif blob.digest in self._diff_ids:
            await self._write_layer(blob, self._diff_ids[blob.digest], pieces)
        else:  # a manifest, which docker's archives don't have
            async for _ in pieces:
                pass

    def finish(self) -> None:
        """Write the list of images, and the end."""
        entries = [
            {
                "Config": f"{_hex(image.config.digest)}.json",
                "RepoTags": list(image.names),
                "Layers": [f"{_hex(diff_id)}/layer.tar" for diff_id in self._layers[image.config.digest]],
            }
            for image in self._images
        ]
        self._archive.add("manifest.json", _json(entries))
        self._archive.close()

    def _learn(self, digest: str, content: bytes) -> None:
        try:
            diff_ids = json.loads(content)["rootfs"]["diff_ids"]
        except (ValueError, KeyError, TypeError):
            raise Unsupported("an artifact has no form as a docker-archive: save it with --format oci") from None
        self._layers[digest] = list(diff_ids)
        for image in self._images:
            if image.config.digest == digest:
                blobs = (layer.digest for layer in image.layers)
                self._diff_ids.update(zip(blobs, diff_ids, strict=True))

    async def _write_layer(self, blob: Any, diff_id: str, pieces: Pieces) -> None:
        """Write a layer as a plain tar; its length is known only once it is decompressed."""
        place = spool_directory()
        with tempfile.TemporaryFile(dir=place) as stored, tempfile.TemporaryFile(dir=place) as plain:
            async for piece in pieces:
                stored.write(piece)
            stored.flush()
            found = hashlib.new(diff_id.partition(":")[0])
            try:
                for chunk in decompress(Blob(stored.fileno())):
                    found.update(chunk)
                    plain.write(chunk)
            except ArchiveFault as error:
                raise CorruptContent(f"layer {blob.digest}: {error}") from error
            if found.hexdigest() != _hex(diff_id):
                raise CorruptContent(f"layer {blob.digest} has the diffID {found.name}:{found.hexdigest()}")
            if diff_id in self._written:
                return
            self._written.add(diff_id)
            self._archive.add_directory(_hex(diff_id))
            size = plain.tell()
            plain.seek(0)
            self._archive.add_file(f"{_hex(diff_id)}/layer.tar", size, plain)


FORMS: Mapping[str, type[OciWriter] | type[DockerWriter]] = {"oci": OciWriter, "docker": DockerWriter}


class _Archive:
    """A tar of members that say nothing of when and by whom they were written. All names are short and plain."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target

    def add(self, name: str, content: bytes) -> None:
        self.add_file(name, len(content), io.BytesIO(content))

    def add_file(self, name: str, size: int, file: IO[bytes]) -> None:
        self._begin(name, size)
        shutil.copyfileobj(file, self._target, _COPY_BYTES)
        self._pad(size)

    def add_directory(self, name: str) -> None:
        self._begin(name, 0, tarfile.DIRTYPE, 0o755)

    async def add_stream(self, name: str, size: int, pieces: Pieces) -> None:
        """Write a member while it comes; ``size`` bytes will come."""
        self._begin(name, size)
        written = 0
        async for piece in pieces:
            written += len(piece)
            self._target.write(piece)
        if written != size:
            raise CorruptContent(f"{name}: {written} bytes came of {size}")
        self._pad(size)

    def close(self) -> None:
        self._target.write(bytes(2 * tarfile.BLOCKSIZE))

    def _begin(self, name: str, size: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mode = kind, size, mode
        self._target.write(member.tobuf(tarfile.GNU_FORMAT))

    def _pad(self, size: int) -> None:
        self._target.write(bytes(-size % tarfile.BLOCKSIZE))


def _index(images: Sequence[Any]) -> bytes:
    """Return the index. A tag is the ref's name, as umoci and skopeo ask for it, unless two images have the same."""
    tags = [name.rpartition(":")[2] for image in images for name in image.names]
    entries: list[dict[str, Any]] = []
    for image in images:
        for name in image.names or ("",):
            tag = name.rpartition(":")[2]
            called = {_REF_NAME: tag if tags.count(tag) == 1 else name, _CONTAINERD_NAME: name} if name else {}
            entries.append(_entry(image.target, called))
    return _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _entry(target: Any, annotations: Mapping[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    if target.platform:
        names = ("os", "architecture", "variant")
        entry["platform"] = dict(zip(names, target.platform.split("/"), strict=False))
    if annotations:
        entry["annotations"] = dict(annotations)
    return entry


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
