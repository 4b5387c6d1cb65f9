"""Images for a client that keeps them in a file (``crinoid ctl save``): what they consist of, and the bytes of it.

All that is sent is verified once more on its way out: an archive that is written of damaged blobs would be found out
only where it is read.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from crinoid.core.api.errors import CorruptContent, CrinoidError, FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux.files import open_regular
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.manifests import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    ManifestDocument,
    PlatformDocument,
    classify,
    parse,
    read_index,
    read_manifest,
)
from crinoid.core.api.values.image import Descriptor, ImageReference, Platform
from crinoid.core.lifecycle.images.catalog import name_of
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ImageRecord

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image as it is to be saved. ``target`` is what its names mean: the manifest, or an index that lists it."""

    names: tuple[str, ...]
    target: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    platform: Platform


@dataclass(frozen=True, slots=True)
class Saving:
    """Images, and every blob that they consist of, once, in the order that they are sent in."""

    images: tuple[SavedImage, ...]
    blobs: tuple[Descriptor, ...]


class Saves:
    """Saves images of the node."""

    def __init__(self, images: ImageService, content: ContentStore) -> None:
        self._images = images
        self._content = content

    @asynccontextmanager
    async def prepared(self, names: Sequence[str], keep_index: bool) -> AsyncIterator[Saving]:
        """Give a block what is to be saved, which stays as long as the block runs.

        ``keep_index``: an image that was pulled by an index is saved as that index, so that its digest means the image
        still, although it lists manifests that are not here. An image is saved with the name that it is asked for by;
        by its id, with all its tags. Raises NotFound, and FailedPrecondition where blobs are not stored.
        """
        if not names:
            raise InvalidArgument("name at least one image to be saved")
        chosen: dict[str, tuple[ImageRecord, dict[str, None]]] = {}
        for name in names:
            if (record := self._images.find(name)) is None:
                raise NotFound(f"there is no image {name!r}; `crinoid ctl images` lists those there are")
            chosen.setdefault(record.id, (record, {}))[1].update(dict.fromkeys(_names_of(record, name)))
        held = {one for record, _ in chosen.values() for one in _all_of(record)}
        async with self._images.holding(held):
            blobs: dict[str, Descriptor] = {}
            images = []
            for record, tags in chosen.values():
                image, needed = await call_in_thread(lambda: self._describe(record, tuple(tags), keep_index))  # noqa: B023
                images.append(image)
                blobs.update((one.digest, one) for one in needed)
            yield Saving(tuple(images), tuple(blobs.values()))

    async def read(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """Yield a blob of a prepared saving in pieces. Raises CorruptContent at the end of one that is damaged."""
        found = hashlib.new(blob.digest.partition(":")[0])
        with await call_in_thread(lambda: open_regular(self._content.path(blob.digest), follow=False)) as file:
            while piece := await call_in_thread(lambda: file.read(PIECE_BYTES)):
                found.update(piece)
                yield piece
        if found.hexdigest() != blob.digest.partition(":")[2]:
            raise CorruptContent(
                f"blob {blob.digest} is damaged: it has digest {found.name}:{found.hexdigest()}; "
                "crinoid image repair fetches it again"
            )

    def _describe(
        self, record: ImageRecord, tags: tuple[str, ...], keep_index: bool
    ) -> tuple[SavedImage, list[Descriptor]]:
        """Find the documents of an image, and the blobs that it needs: documents first, layers from the bottom up."""
        shown = next(iter((*tags, *record.digests)), record.id)
        documents = self._documents(record)
        lacking: list[str] = []
        for target, manifest in _manifests_in(documents, record):
            config = manifest.config.descriptor()
            layers = tuple(layer.descriptor() for layer in manifest.layers)
            if gone := [blob.digest for blob in (config, *layers) if not self._content.has(blob)]:
                lacking = lacking or gone
                continue
            listing = [one for one, content in documents if keep_index and _lists(content, one, target)]
            top = listing[0] if listing else target
            needed = [*listing[:1], target, config, *layers]
            return SavedImage(tags, top, config, layers, self._platform(record, config)), needed
        why = f"blob {lacking[0]} is not stored" if lacking else "its manifest is not stored"
        raise FailedPrecondition(f"image {shown} can't be saved: {why}, as its layers were there: pull it once more")

    def _documents(self, record: ImageRecord) -> list[tuple[Descriptor, bytes]]:
        """Read the indexes and manifests that led to an image, the latest first."""
        found = []
        for digest in reversed(record.manifests):
            try:
                content = self._content.read(digest, MAX_DOCUMENT_BYTES)
                found.append((Descriptor(classify(content, "", digest), digest, len(content)), content))
            except CrinoidError:  # it is not there, is damaged, or is an artifact's configuration
                continue
        return found

    def _platform(self, record: ImageRecord, config: Descriptor) -> Platform:
        if record.artifact:
            return Platform("", "")
        place = parse(PlatformDocument, record.config, f"image configuration {config.digest}")
        return Platform(place.os, place.architecture, place.variant)


def _manifests_in(
    documents: Sequence[tuple[Descriptor, bytes]], record: ImageRecord
) -> list[tuple[Descriptor, ManifestDocument]]:
    """Return the manifests of the image: those that name its configuration, or the artifact's own."""
    found = []
    for blob, content in documents:
        if blob.media_type not in INDEX_TYPES:
            manifest = read_manifest(content, blob.digest)
            if record.id in (blob.digest, manifest.config.digest):
                found.append((blob, manifest))
    return found


def _lists(content: bytes, blob: Descriptor, manifest: Descriptor) -> bool:
    if blob.media_type not in INDEX_TYPES:
        return False
    return manifest.digest in {entry.digest for entry in read_index(content, blob.digest).manifests}


def _names_of(record: ImageRecord, asked: str) -> Sequence[str]:
    """Return the names that an image is saved with."""
    try:
        name = name_of(ImageReference.parse(asked))
    except InvalidArgument:
        name = ""
    if name in record.tags:
        return (name,)
    is_by_digest = name in record.digests or "@" in asked
    return () if is_by_digest else record.tags


def _all_of(record: ImageRecord) -> Sequence[str]:
    return (record.id, *record.manifests, *(layer.digest for layer in record.layers))
