"""Image sources that are no slot: a client's archive, the content store of a former runtime.

``pull`` asks them as it asks a registry, and believes as little of what they say. What a name means is found here for
all of them: of several documents the one for the platform, through an index where there is one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.manifests import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    DescriptorDocument,
    IndexDocument,
    choose,
    classify,
    read_index,
    read_manifest,
    verify,
)
from crinoid.core.api.values.image import BlobRequest, Descriptor, ResolvedImage, ResolveRequest

ReadDocument = Callable[[Descriptor], Awaitable[bytes]]
"""Returns a document as the source has it, not verified. Raises what a source raises."""
_MAX_DEPTH = 3


class ImageSource(Protocol):
    """What a pull asks: a slot of the role registry, or something that answers as one."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def name(self) -> str:
        """What it is called by itself, as a slot is in the configuration."""

    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """As ``RegistryHooks.resolve``."""

    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """As ``RegistryHooks.open_blob``."""


async def resolve_targets(
    targets: Sequence[DescriptorDocument], read: ReadDocument, request: ResolveRequest, what: str
) -> ResolvedImage:
    """Find the manifest for the platform in the documents that a name means; ``what`` begins messages.

    Raises Unsupported when there is none, CorruptContent for documents that are not what their descriptors say.
    """
    target = targets[0].descriptor()
    if len(targets) > 1:
        target = choose(IndexDocument(manifests=tuple(targets)), request.platform, what)
    target, content = await _fetch(target, read, what)
    manifest, found = target, content
    for _ in range(_MAX_DEPTH):
        if manifest.media_type not in INDEX_TYPES:
            read_manifest(found, f"{what}: manifest {manifest.digest}")
            return ResolvedImage(target, content, manifest, found)
        index = f"{what}: index {manifest.digest}"
        manifest, found = await _fetch(choose(read_index(found, index), request.platform, index), read, what)
    raise CorruptContent(f"{what}: more than {_MAX_DEPTH} indexes inside each other")


async def _fetch(descriptor: Descriptor, read: ReadDocument, what: str) -> tuple[Descriptor, bytes]:
    """Return a document, verified, with the type that it is of in truth."""
    name = f"{what}: manifest {descriptor.digest}"
    if descriptor.size > MAX_DOCUMENT_BYTES:
        raise CorruptContent(f"{name} has {descriptor.size} bytes, more than {MAX_DOCUMENT_BYTES}")
    content = await read(descriptor)
    verify(content, descriptor.digest, f"{what}: manifest")
    if len(content) != descriptor.size:
        raise CorruptContent(f"{name} has {len(content)} bytes, not {descriptor.size}")
    return Descriptor(classify(content, descriptor.media_type, name), descriptor.digest, descriptor.size), content
