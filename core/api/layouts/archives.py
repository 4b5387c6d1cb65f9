"""Reads the index of an archive: an OCI layout in a tar, or what ``docker save`` writes.

Only headers and small documents are read; a blob stays where it is in the archive and is served from there. A
docker-archive has no manifest: one is made from its configuration, always the same for the same archive. Its layers
are plain tars whose digests are the configuration's diffIDs; a layer that is compressed is digested here, once.
"""

import hashlib
import json
import os
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.layouts.layout_index import (
    LayoutIndex,
    Span,
    Stamp,
    changed,
    full_name,
    open_regular,
    read_layout,
)
from crinoid.core.api.manifests import (
    MAX_DOCUMENT_BYTES,
    OCI_CONFIG,
    OCI_MANIFEST,
    DescriptorDocument,
    Document,
    IndexDocument,
    digest_of,
    is_digest,
    parse,
)
from crinoid.core.api.values.image import Descriptor

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES = {"": "", "gzip": "+gzip", "zstd": "+zstd"}
_MAX_MEMBERS = 200_000
_MAX_LINKS = 8
_PIECE_BYTES = 1 << 20


class _SavedImage(Document):
    """An entry of a docker-archive's ``manifest.json``."""

    config: Annotated[str, Field(alias="Config")]
    names: Annotated[tuple[str, ...], Field(alias="RepoTags")] = ()
    layers: Annotated[tuple[str, ...], Field(alias="Layers")] = ()


class _RootFs(Document):
    diff_ids: tuple[str, ...] = ()


class _Config(Document):
    rootfs: _RootFs


@dataclass(frozen=True, slots=True)
class _Members:
    """An archive's regular files by name, and its links."""

    path: Path
    spans: Mapping[str, Span]
    links: Mapping[str, str]

    def find(self, name: str) -> Span:
        """Return a file's span, through links (old ``docker save`` links a layer that occurs twice)."""
        place = name
        for _ in range(_MAX_LINKS):
            if place in self.spans:
                return self.spans[place]
            place = self.links.get(place, "")
        raise CorruptContent(f"{self.path} has no file {name!r}, which its index names")


def read_archive(path: Path, place: str | None = None) -> LayoutIndex:
    """Read an archive's index; ``place`` is what a mere tag in it is a tag of, by default the file's name.

    With an empty ``place`` only full names count. Raises Unsupported for a compressed archive, CorruptContent for one
    that is no archive of images, Unavailable when it changes meanwhile. Blocks.
    """
    place = path.stem if place is None else place
    members = _read_members(path)
    if "index.json" in members.spans:  # a docker-archive since Docker 25 is both; its layout says more
        index = parse(IndexDocument, members.find("index.json").read(MAX_DOCUMENT_BYTES), f"{path}: index.json")
        blobs = {digest: span for name, span in members.spans.items() if (digest := _digest_in(name))}
        return read_layout(index, path, place, blobs)
    if "manifest.json" in members.spans:
        return _docker_index(members, place)
    raise CorruptContent(f"{path} has neither an index.json (OCI layout) nor a manifest.json (docker save)")


def _docker_index(members: _Members, place: str) -> LayoutIndex:
    what = f"{members.path}: manifest.json"
    try:
        entries = json.loads(members.find("manifest.json").read(MAX_DOCUMENT_BYTES))
    except (ValueError, RecursionError) as error:
        raise CorruptContent(f"{what} is not JSON ({error or type(error).__name__})") from error
    if not isinstance(entries, list):
        raise CorruptContent(f"{what} is not a list of images")
    saved = [parse(_SavedImage, json.dumps(entry).encode(), what) for entry in entries]
    names: dict[str, tuple[DescriptorDocument, ...]] = {}
    layout = LayoutIndex(members.path, names, targets := {}, blobs := {}, documents := {})
    for image in saved:
        content, found = _make_manifest(members, image)
        target = Descriptor(OCI_MANIFEST, digest_of(content), len(content))
        entry = DescriptorDocument.model_validate(
            {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
        )
        targets[target.digest], documents[target.digest] = entry, content
        blobs.update(found)
        # Saved by id, an image has no name: a single one goes by the archive's.
        default = (f"{place}:latest",) if len(saved) == 1 else ()
        for name in dict.fromkeys(filter(None, map(full_name, image.names or default))):
            names[name] = (*names.get(name, ()), entry)
    return replace(layout, images=tuple(targets.values()))


def _make_manifest(members: _Members, image: _SavedImage) -> tuple[bytes, dict[str, Span]]:
    """Return the manifest of a saved image, and the spans of its blobs by digest."""
    config = members.find(image.config)
    content = config.read(MAX_DOCUMENT_BYTES)
    diff_ids = parse(_Config, content, f"{members.path}: {image.config}").rootfs.diff_ids
    if len(diff_ids) != len(image.layers) or not all(map(is_digest, diff_ids)):
        raise CorruptContent(f"{members.path}: {image.config} does not have a diffID for each layer")
    spans = [members.find(name) for name in image.layers]
    layers = [_describe(span, diff_id) for span, diff_id in zip(spans, diff_ids, strict=True)]
    digest = digest_of(content)
    # With fixed keys in a fixed order: its digest has to be the same at the next start, and on the next node.
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": config.size},
        "layers": layers,
    }
    blobs = {str(layer["digest"]): span for layer, span in zip(layers, spans, strict=True)}
    return json.dumps(manifest, separators=(",", ":")).encode(), {digest: config, **blobs}


def _describe(span: Span, diff_id: str) -> dict[str, object]:
    """Describe a layer; the digest of a plain tar is its diffID, which is verified when the layer is stored."""
    with span.open() as file:
        compression = _compression(os.pread(file.fileno(), 6, span.offset))
        if compression not in _SUFFIXES:
            raise Unsupported(f"{span.path}: a layer is compressed by {compression}")
        digest = diff_id
        if compression:
            hashed = hashlib.sha256()
            for start in range(0, span.size, _PIECE_BYTES):
                hashed.update(os.pread(file.fileno(), min(_PIECE_BYTES, span.size - start), span.offset + start))
            digest = f"sha256:{hashed.hexdigest()}"
    return {"mediaType": _LAYER + _SUFFIXES[compression], "digest": digest, "size": span.size}


def _compression(start: bytes) -> str:
    return next((name for magic, name in _MAGICS.items() if start.startswith(magic)), "")


def _read_members(path: Path) -> _Members:
    """Read all headers of a plain tar, whose files can then be read where they lie."""
    spans: dict[str, Span] = {}
    links: dict[str, str] = {}
    with open_regular(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        if compression := _compression(os.pread(file.fileno(), 6, 0)):
            raise Unsupported(f"{path} is compressed by {compression}: unpack it to a plain .tar, to be read in place")
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for number, member in enumerate(archive):
                    if number > _MAX_MEMBERS:
                        raise tarfile.ReadError(f"it has more than {_MAX_MEMBERS} members")
                    name = posixpath.normpath(member.name)
                    if member.isreg() and not member.issparse():
                        if member.offset_data + member.size > stamp.size:  # tarfile seeks over data, and misses that
                            raise tarfile.ReadError(f"{name} is cut off")
                        spans[name] = Span(path, member.offset_data, member.size, stamp)
                    elif member.issym():
                        links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.islnk():  # its target is named from the archive's root, a symbolic link's from here
                        links[name] = posixpath.normpath(member.linkname)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise CorruptContent(f"{path} is not a tar archive, or not a whole one ({error})") from error
        if Stamp.of(os.fstat(file.fileno())) != stamp:
            raise changed(path)  # it is still being copied here, say: offsets of it mean nothing
    return _Members(path, spans, links)


def _digest_in(name: str) -> str:
    """Return the digest that the name of a blob's file spells, or nothing."""
    parts = name.split("/")
    digest = ":".join(parts[1:])
    return digest if len(parts) == 3 and parts[0] == "blobs" and is_digest(digest) else ""
