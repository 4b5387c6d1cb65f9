"""Layers as EROFS images, written in this very process, and what is in them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.plugins.snapshotters.erofs.image import Image, Inode
from crinoid.plugins.snapshotters.erofs.layout import ROOT_NID
from crinoid.plugins.snapshotters.erofs.writer import IMAGE_FILE, ImageWriter


def write_image(archive: bytes, directory: Path, chunk: int = 1 << 20) -> Path:
    """Write a layer's image into a directory; return the image."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = ByteReader(archive[at : at + chunk] for at in range(0, len(archive), chunk))
        Extraction(reader, ImageWriter(fd, reader), None).run()
    finally:
        os.close(fd)
    return directory / IMAGE_FILE


def walk(image: Image) -> Iterator[tuple[bytes, Inode]]:
    """Yield all that is in an image, with its path; the root's is empty."""
    found = [(b"", image.inode(ROOT_NID))]
    for path, inode in found:
        yield path, inode
        if stat.S_ISDIR(inode.mode):
            names = image.entries(inode)
            assert list(names) == sorted(names)
            found += [
                (b"%b/%b" % (path, name) if path else name, image.inode(nid))
                for name, (nid, _) in names.items()
                if name not in (b".", b"..")
            ]


def read_tree(path: Path) -> dict[bytes, Inode]:
    """Read all inodes of an image by their paths."""
    with Image(path) as image:
        return dict(walk(image))
