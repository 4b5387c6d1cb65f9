"""containerd's images: names from its metadata (bolt), blobs from its content store; nothing is written there.

``ROOT/io.containerd.metadata.v1.bolt/meta.db`` has for each namespace ``v1/NAMESPACE/images/NAME/target`` with digest,
media type and size; ``ROOT/io.containerd.content.v1.content/blobs/sha256/HEX`` the blobs (containerd,
core/metadata/buckets.go; plugins/content/local).
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from crinoid.core.api.errors import CorruptContent, InvalidArgument, NotFound
from crinoid.core.api.linux.files import open_regular
from crinoid.core.api.manifests import DescriptorDocument, is_digest
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference, ResolvedImage, ResolveRequest
from crinoid.core.lifecycle.images.adoption.bolt import Bucket, read_bolt
from crinoid.core.lifecycle.images.targets import resolve_targets

ROOT = Path("/var/lib/containerd")
NAMESPACE = "k8s.io"
_DATABASE = "io.containerd.metadata.v1.bolt/meta.db"
_BLOBS = "io.containerd.content.v1.content/blobs"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FormerImage:
    """A name and what it means."""

    reference: ImageReference
    target: DescriptorDocument


class ContainerdStore:
    """A containerd's root directory."""

    label = "containerd's content store"

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, namespace: str) -> list[FormerImage]:
        """Return all images of a namespace, each name by itself, in the names' order. Blocks.

        What is no name of an image, such as the ids that the CRI plugin keeps as names too, is passed over. Raises
        NotFound where there is no containerd or no such namespace, CorruptContent for metadata that can't be read.
        """
        path = self._root / _DATABASE
        bolt = read_bolt(path)
        version = bolt.root.bucket(b"v1")
        if version is None or (found := version.bucket(namespace.encode())) is None:
            known = [key.decode(errors="replace") for key, _ in version.items() if key != b"version"] if version else []
            raise NotFound(f"{path} has no namespace {namespace!r}; it has: {', '.join(known) or 'none'}")
        images = found.bucket(b"images")
        listed = []
        for key, value in images.items() if images else ():
            if isinstance(value, Bucket) and (reference := _reference(key)) is not None:
                listed.append(FormerImage(reference, _read_target(value, f"{path}: image {reference}")))
        return listed

    def open(self, digest: str) -> FileIO:
        """Open a blob. Raises NotFound, CorruptContent. Blocks."""
        try:
            return open_regular(self._root / _BLOBS / digest.replace(":", "/"), follow=False)
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.label} does not have blob {digest} (any more: discard_unpacked_layers drops layers)"
            ) from error
        except OSError as error:
            raise CorruptContent(f"{self.label}: blob {digest}: {error.strerror}") from error

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Open a blob's stream."""
        file = await asyncio.to_thread(self.open, request.blob.digest)
        return _stream(file, request.offset)

    async def read(self, blob: Descriptor) -> bytes:
        """Return a document, not verified."""

        def read() -> bytes:
            with self.open(blob.digest) as file:
                return file.read(blob.size + 1)

        return await asyncio.to_thread(read)


class ContainerdImage:
    """The image source of one image of a containerd."""

    name, label = "containerd", ContainerdStore.label

    def __init__(self, store: ContainerdStore, image: FormerImage) -> None:
        self.store = store
        self.image = image

    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Read the documents, down to the manifest for the platform."""
        return await resolve_targets([self.image.target], self.store.read, request, self.label)

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Open a blob's stream."""
        return await self.store.open_blob(request)


def _reference(key: bytes) -> ImageReference | None:
    try:
        text = key.decode()
        return None if is_digest(text) else ImageReference.parse(text)
    except (UnicodeDecodeError, InvalidArgument):
        return None


def _read_target(image: Bucket, what: str) -> DescriptorDocument:
    target = image.bucket(b"target")
    digest = (target.get(b"digest") or b"").decode(errors="replace") if target else ""
    if target is None or not is_digest(digest):
        raise CorruptContent(f"{what} has no target that can be verified")
    return DescriptorDocument(
        digest=digest,
        media_type=(target.get(b"mediatype") or b"").decode(errors="replace"),
        size=_varint(target.get(b"size") or b"\0"),
    )


def _varint(content: bytes) -> int:
    """Read a signed number as Go's encoding/binary.PutVarint writes it."""
    value = 0
    for shift, byte in enumerate(content[:10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            break
    return max(0, value >> 1)  # the lowest bit is the sign, and no size is negative


async def _stream(file: FileIO, offset: int) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(os.pread, file.fileno(), _PIECE_BYTES, offset):
            offset += len(piece)
            yield piece
