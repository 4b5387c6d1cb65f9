"""Archives of images as other programs write them, made of OCI layouts (``support.images``)."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import zstandard

from support.images import BuiltImage, Compression, read_blob


def tar_of(members: Mapping[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> bytes:
    """Return a tar of files, and of members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


def files_of(layout: Path) -> dict[str, bytes]:
    """Return a layout's files by their names in an archive."""
    return {str(path.relative_to(layout)): path.read_bytes() for path in sorted(layout.rglob("*")) if path.is_file()}


def oci_archive(layout: Path) -> bytes:
    """Return an OCI archive, as ``skopeo copy … oci-archive:`` and ``podman save --format oci-archive`` write it."""
    return tar_of(files_of(layout))


def docker_archive(images: Iterable[tuple[BuiltImage, tuple[str, ...]]], legacy: bool = False) -> bytes:
    """Return what ``docker save`` writes without an index.json: plain layers, and ``manifest.json`` at the end.

    ``legacy``: in the form before 1.10's successors, with a directory for each layer, one of them a link.
    """
    members: dict[str, bytes] = {}
    entries = []
    for image, names in images:
        config = f"{image.config.digest.partition(':')[2]}.json"
        members[config] = read_blob(image.layout, image.config.digest)
        layers = []
        for blob, diff_id in zip(image.layers, image.diff_ids, strict=True):
            hexadecimal = diff_id.partition(":")[2]
            name = f"{hexadecimal}/layer.tar" if legacy else f"{hexadecimal}.tar"
            members[name] = _decompress(read_blob(image.layout, blob.digest), blob.media_type)
            if legacy:
                members[f"{hexadecimal}/VERSION"] = b"1.0"
                members[f"{hexadecimal}/json"] = b"{}"
            layers.append(name)
        entries.append({"Config": config, "RepoTags": list(names) or None, "Layers": layers})
    members["manifest.json"] = json.dumps(entries).encode()
    if legacy:
        members["repositories"] = b"{}"
    return tar_of(members)


def compress(content: bytes, compression: Compression) -> bytes:
    """Compress an archive as a whole."""
    if compression == "gzip":
        return gzip.compress(content, 1)
    return zstandard.compress(content, 1) if compression == "zstd" else content


def _decompress(content: bytes, media_type: str) -> bytes:
    if media_type.endswith("gzip"):
        return gzip.decompress(content)
    return zstandard.ZstdDecompressor().decompressobj().decompress(content) if "zstd" in media_type else content
