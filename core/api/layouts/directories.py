"""Reads the index of an OCI layout that is a directory (image-spec, image-layout.md)."""

from pathlib import Path

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.layouts.layout_index import LayoutIndex, open_regular, read_layout
from crinoid.core.api.manifests import MAX_DOCUMENT_BYTES, IndexDocument, parse


def read_directory(path: Path, place: str | None = None) -> LayoutIndex:
    """Read the index of a layout directory; ``place`` as in ``read_archive``. Raises CorruptContent."""
    if not (path / "index.json").exists():
        raise CorruptContent(f"{path} is no image layout: it has no index.json")
    with open_regular(path / "index.json") as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise CorruptContent(f"{path}/index.json is longer than {MAX_DOCUMENT_BYTES} bytes")
    index = parse(IndexDocument, content, f"{path}/index.json")
    return read_layout(index, path, path.name if place is None else place, None)
