"""One file or directory with images, as read once: which references it has, and where each blob's bytes are.

A catalog holds one :class:`LayoutIndex` for each layout directory and each archive, for as long as the file stays as it
was.
"""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from crinoid.core.api.errors import CorruptContent, InvalidArgument, Unavailable
from crinoid.core.api.linux import files
from crinoid.core.api.manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    DescriptorDocument,
    IndexDocument,
    is_digest,
    read_index,
)
from crinoid.core.api.values.image import ImageReference

_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another."""

    mtime_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        return cls(found.st_mtime_ns, found.st_size, found.st_ino)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a blob's bytes are: ``size`` bytes of a file from ``offset`` on; ``stamp`` is the file's when read."""

    path: Path
    offset: int
    size: int
    stamp: Stamp

    def open(self) -> FileIO:
        """Open the file; raise Unavailable when it is not what it was."""
        file = open_regular(self.path)
        if Stamp.of(os.fstat(file.fileno())) != self.stamp:
            file.close()
            raise changed(self.path)
        return file

    def read(self, max_bytes: int) -> bytes:
        """Return the whole blob, which is small; raise CorruptContent when it is not."""
        if self.size > max_bytes:
            raise CorruptContent(f"{self.path}: a document of {self.size} bytes, more than {max_bytes}")
        with self.open() as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) != self.size:
            raise changed(self.path)
        return content


@dataclass(frozen=True, slots=True)
class LayoutIndex:
    """The images of one layout directory or archive.

    ``names`` has full references (``registry/repository:tag``), each with all that the layout calls so, such as one
    manifest for each platform; ``blobs`` the spans of an archive's blobs by digest,
    ``documents`` those that are in no file, such as the manifest made for a docker-archive. Blobs of a directory are
    looked up when asked for. ``images`` are the images in the index's order, with or without a name.
    """

    path: Path
    names: Mapping[str, tuple[DescriptorDocument, ...]]
    targets: Mapping[str, DescriptorDocument]
    blobs: Mapping[str, Span]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    is_directory: bool = False
    images: tuple[DescriptorDocument, ...] = ()

    def find(self, reference: ImageReference) -> tuple[DescriptorDocument, ...]:
        """Return what the reference names here; a digest decides where there is one, whatever the name."""
        if reference.digest:
            return tuple(filter(None, [self.targets.get(reference.digest)]))
        return self.names.get(str(reference), ())

    def span(self, digest: str) -> Span | None:
        """Return where a blob is, ``None`` when it is not here."""
        if not self.is_directory:
            return self.blobs.get(digest)
        path = self.path / "blobs" / digest.replace(":", "/")
        try:
            found = path.stat()
        except OSError:
            return None
        return Span(path, 0, found.st_size, Stamp.of(found)) if stat.S_ISREG(found.st_mode) else None

    def read(self, digest: str, max_bytes: int) -> bytes | None:
        """Return a small blob, ``None`` when it is not here."""
        if digest in self.documents:
            return self.documents[digest]
        span = self.span(digest) if is_digest(digest) else None
        return span.read(max_bytes) if span else None


def read_layout(index: IndexDocument, path: Path, place: str, blobs: Mapping[str, Span] | None) -> LayoutIndex:
    """Return the layout of an OCI layout; ``blobs`` ``None`` for a directory. What an index lists has a digest, too."""
    targets = {entry.digest: entry for entry in index.manifests}
    images = tuple(entry for entry in index.manifests if entry.media_type in INDEX_TYPES | MANIFEST_TYPES)
    names = _name_entries(images, place)
    layout = LayoutIndex(path, names, targets, blobs or {}, is_directory=blobs is None, images=images)
    for entry in index.manifests:
        if entry.media_type not in INDEX_TYPES:
            continue
        try:
            content = layout.read(entry.digest, MAX_DOCUMENT_BYTES)
            inner = read_index(content or b"{}", f"{layout.path}: index {entry.digest}")
        except (CorruptContent, Unavailable):  # one that is broken hides no other image of the layout
            continue
        targets.update({item.digest: item for item in inner.manifests})
    return layout


def _name_entries(images: tuple[DescriptorDocument, ...], place: str) -> dict[str, tuple[DescriptorDocument, ...]]:
    """Return the references that the entries of an ``index.json`` have; ``place`` is the directory's or archive's name.

    A full name counts as it is; a mere tag, as umoci and skopeo write it, is a tag of the place's name; a single
    entry without a name, or several for a platform each, are the place's ``latest``.
    """
    platforms = {entry.platform for entry in images}
    alone = len(images) == 1 or (None not in platforms and len(platforms) == len(images))
    names: dict[str, tuple[DescriptorDocument, ...]] = {}
    for entry in images:
        given = [text for key in (_CONTAINERD_NAME, _REF_NAME) if (text := entry.annotations.get(key, ""))]
        # image-spec's annotations.md has ref.name hold a tag, containerd and others write a whole reference.
        texts = [f"{place}:{text}" if not set(text) & set("/:@") else text for text in given]
        if alone and not given:
            texts = [f"{place}:latest"]
        for name in dict.fromkeys(filter(None, map(full_name, texts))):
            names[name] = (*names.get(name, ()), entry)
    return names


def full_name(text: str) -> str | None:
    """Return a name in full form, ``None`` when it is none."""
    try:
        return str(ImageReference.parse(text))
    except InvalidArgument:
        return None


def open_regular(path: Path) -> FileIO:
    """Open a regular file to read; never wait for a FIFO. Raises Unavailable when it is gone."""
    try:
        return files.open_regular(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise CorruptContent(f"{path} is not a regular file") from error
        raise Unavailable(f"{path}: {error.strerror}") from error


def changed(path: Path) -> Unavailable:
    """Return the error for a file that is not what it was a moment ago."""
    return Unavailable(f"{path} changed while it was read; the next pull reads it anew")
