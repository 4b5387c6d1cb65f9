"""The ``layout`` driver: serves images from OCI layouts and archives on the node's disk (image-spec, image-layout.md).

The source for a node without a network: put a directory or a ``.tar`` into the configured directory, and it can be
pulled at once, by the names it carries. Blobs are read in place; nothing is copied or unpacked here.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from pydantic import model_validator

from crinoid.core.api.config import AbsolutePath, DriverConfig
from crinoid.core.api.errors import CorruptContent, NotFound, NotServed, Unavailable, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.layouts.layout_index import LayoutIndex, Span, Stamp, changed
from crinoid.core.api.manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    DescriptorDocument,
    IndexDocument,
    ManifestDocument,
    PlatformDocument,
    choose,
    classify,
    parse,
    read_index,
    read_manifest,
    verify,
)
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    Platform,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)
from crinoid.plugins.registries.layout.catalog import Catalog

_PIECE_BYTES = 1 << 20
_MAX_DEPTH = 3


class LayoutOptions(DriverConfig):
    """What a slot of this driver may be told."""

    directory: AbsolutePath = Path("/var/lib/crinoid/layouts")
    """Holds OCI layout directories, and `.tar` archives of such layouts or by `docker save`. It need not exist."""

    @model_validator(mode="before")
    @classmethod
    def _take_former_name(cls, options: object) -> object:
        """``directory`` was called ``folder`` in 0.1."""
        if isinstance(options, Mapping) and "folder" in options and "directory" not in options:
            return {("directory" if name == "folder" else name): value for name, value in options.items()}
        return options


class LayoutRegistry:
    """An image source: the layouts and archives of one directory. Of several with one name, that for the platform
    counts, and the first by file name of those."""

    api_version = "1.0"
    Config = LayoutOptions

    def __init__(self, config: LayoutOptions, host: Host) -> None:
        self._directory = config.directory
        self._catalog = Catalog(config.directory, host.log)

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Look the reference up among the names and digests of all layouts; new files count at once."""
        return await asyncio.to_thread(self._resolve, request)

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Open the blob where it lies, in any layout that has it: a digest is the same everywhere."""
        return await asyncio.to_thread(self._open, request)

    @hookimpl
    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        """Look through the manifests of all layouts: index.json lists those that refer to another, too."""
        return await asyncio.to_thread(self._referrers, request)

    @hookimpl
    async def status(self) -> SourceStatus:
        """Tell what of the directory can't be used; the source is ready as long as the directory can be read."""
        return await asyncio.to_thread(self._status)

    def _resolve(self, request: ResolveRequest) -> ResolvedImage:
        found = [(layout, entry) for layout in self._catalog.indexes() for entry in layout.find(request.reference)]
        if not found:
            if not self._directory.exists():
                raise NotServed(f"pull {request.reference}: there is no directory {self._directory}")
            problems = self._catalog.problems()
            skipped = f"; skipped there: {'; '.join(problems[:5])}" if problems else ""
            raise NotFound(f"pull {request.reference}: no layout in {self._directory} has it{skipped}")
        if len(found) > 1 and not request.reference.digest:
            found = [_choose_among(found, request)]
        layout, entry = found[0]
        return _resolve_in(layout, entry.descriptor(), request)

    def _open(self, request: BlobRequest) -> "FileStream | DocumentStream":
        digest = request.blob.digest
        for layout in self._catalog.indexes():
            if digest in layout.documents:
                return DocumentStream(layout.documents[digest][request.offset :])
            if span := layout.span(digest):
                if span.size != request.blob.size:
                    place = f"pull {request.reference}: {span.path}: blob {digest}"
                    raise CorruptContent(f"{place} has {span.size} bytes, not {request.blob.size}")
                return FileStream(span, request.offset)
        raise NotFound(f"pull {request.reference}: no layout in {self._directory} has the blob {digest}")

    def _referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        wanted = (request.reference.digest, request.artifact_type)
        found: dict[str, Descriptor] = {}
        for layout in self._catalog.indexes():
            for entry in layout.targets.values():
                if entry.media_type in MANIFEST_TYPES and _subject_and_type(layout, entry) == wanted:
                    found[entry.digest] = entry.descriptor()
        return tuple(found.values())

    def _status(self) -> SourceStatus:
        if self._directory.exists() and not os.access(self._directory, os.R_OK | os.X_OK):
            return SourceStatus(ready=False, message=f"{self._directory} can't be read")
        return SourceStatus(ready=True, message="; ".join(self._catalog.problems()))


class _ReferringManifest(ManifestDocument):
    subject: DescriptorDocument | None = None


def _subject_and_type(layout: LayoutIndex, entry: DescriptorDocument) -> tuple[str, str]:
    """Return the digest that a manifest refers to, and its artifact type; nothing where it can't be read.

    Source: image-spec, manifest.md, ``subject`` and ``artifactType``.
    """
    try:
        content = _read_document(layout, entry.descriptor(), str(layout.path))
        manifest = parse(_ReferringManifest, content, entry.digest)
    except (CorruptContent, Unavailable, Unsupported):  # it hides no other
        return "", ""
    kind = manifest.artifact_type or manifest.config.media_type
    return (manifest.subject.digest, kind) if manifest.subject else ("", kind)


_Found = tuple[LayoutIndex, DescriptorDocument]


def _choose_among(found: Sequence[_Found], request: ResolveRequest) -> _Found:
    """Return what fits the platform best of all that has the name, the first by file name of several.

    Raises Unsupported when nothing does. A single one is not asked: what it is for, its configuration says in the end.
    """
    entries = [_placed(layout, entry, request.platform) for layout, entry in found]
    what = f"pull {request.reference}: {', '.join(dict.fromkeys(str(layout.path) for layout, _ in found))}"
    chosen = choose(IndexDocument(manifests=tuple(entries)), request.platform, what)
    return next(one for one in found if one[1].digest == chosen.digest)


def _placed(layout: LayoutIndex, entry: DescriptorDocument, platform: Platform) -> DescriptorDocument:
    """Return an entry with the platform that it is for, where the index does not say: an index for any it lists."""
    if entry.platform is not None:
        return entry
    try:
        content = layout.read(entry.digest, MAX_DOCUMENT_BYTES) or b"{}"
        if entry.media_type in INDEX_TYPES:
            choose(read_index(content, entry.digest), platform, entry.digest)
            place = PlatformDocument(os=platform.os, architecture=platform.architecture, variant=platform.variant)
        else:
            config = read_manifest(content, entry.digest).config
            place = parse(PlatformDocument, layout.read(config.digest, MAX_DOCUMENT_BYTES) or b"{}", config.digest)
    except Unsupported:  # nothing in it is for this platform
        place = PlatformDocument(os="unknown", architecture="unknown")
    except (CorruptContent, Unavailable):  # it is chosen only when nothing else is there, and fails with its reason
        return entry
    return entry.model_copy(update={"platform": place}) if place.architecture else entry


def _resolve_in(layout: LayoutIndex, target: Descriptor, request: ResolveRequest) -> ResolvedImage:
    what = f"pull {request.reference}: {layout.path}"
    content = _read_document(layout, target, what)
    manifest, found = target, content
    for _ in range(_MAX_DEPTH):
        if manifest.media_type not in INDEX_TYPES:
            read_manifest(found, f"{what}: manifest {manifest.digest}")
            return ResolvedImage(target, content, manifest, found)
        index = f"{what}: index {manifest.digest}"
        manifest = choose(read_index(found, index), request.platform, index)
        found = _read_document(layout, manifest, what)
    raise CorruptContent(f"{what}: more than {_MAX_DEPTH} indexes inside each other")


def _read_document(layout: LayoutIndex, descriptor: Descriptor, what: str) -> bytes:
    content = layout.read(descriptor.digest, MAX_DOCUMENT_BYTES)
    if content is None:
        raise CorruptContent(f"{what} names the manifest {descriptor.digest}, but does not have it")
    verify(content, descriptor.digest, f"{what}: manifest")
    classify(content, descriptor.media_type, f"{what}: manifest {descriptor.digest}")
    if len(content) != descriptor.size:
        raise CorruptContent(f"{what}: manifest {descriptor.digest} has {len(content)} bytes, not {descriptor.size}")
    return content


class DocumentStream:
    """The stream of a document that is kept in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> "DocumentStream":
        return self

    async def __anext__(self) -> bytes:
        piece, self._content = self._content[:_PIECE_BYTES], self._content[_PIECE_BYTES:]
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Drop the rest. Idempotent."""
        self._content = b""


class FileStream:
    """The stream of a part of a file; a file that changes meanwhile ends it with Unavailable."""

    def __init__(self, span: Span, offset: int) -> None:
        self._span = span
        self._position = offset
        self._file = span.open()

    def __aiter__(self) -> "FileStream":
        return self

    async def __anext__(self) -> bytes:
        if self._file.closed or self._position >= self._span.size:
            await self.aclose()
            raise StopAsyncIteration
        try:
            piece = await asyncio.to_thread(self._read)
        except BaseException:
            await self.aclose()
            raise
        self._position += len(piece)
        return piece

    async def aclose(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def _read(self) -> bytes:
        wanted = min(_PIECE_BYTES, self._span.size - self._position)
        piece = os.pread(self._file.fileno(), wanted, self._span.offset + self._position)
        if not piece or Stamp.of(os.fstat(self._file.fileno())) != self._span.stamp:
            raise changed(self._span.path)
        return piece
