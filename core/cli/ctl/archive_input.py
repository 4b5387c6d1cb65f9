"""Opens what ``ctl load`` is given: a layout directory, an archive, compressed or not, or a stream of one.

What can't be read in place is written to a file without a name in ``$TMPDIR`` (or /var/tmp) first. Nothing of an
archive is ever unpacked by its names: of each member only the place of its bytes is noted.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crinoid.core.api.archives import ArchiveFault, NotSupported
from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound, ResourceExhausted, Unsupported
from crinoid.core.api.layouts.archives import read_archive
from crinoid.core.api.layouts.directories import read_directory
from crinoid.core.api.layouts.layout_index import LayoutIndex
from crinoid.core.api.manifests import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    DescriptorDocument,
    PlatformDocument,
    parse,
    read_manifest,
)
from crinoid.core.lifecycle.images.unpack.blob import Blob
from crinoid.core.lifecycle.images.unpack.decompression import decompress, load_codec

_PIECE_BYTES = 1 << 20
_CHECK_BYTES = 32 << 20
_KEPT_FREE = 0.05
"""Of the file system that a spool is written to: a compressed archive may be any size once it is not."""
_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"\x04\x22\x4d\x18")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image of an archive: its full names, maybe none, and the documents that they mean, one for each platform."""

    names: tuple[str, ...]
    targets: tuple[DescriptorDocument, ...]

    def __str__(self) -> str:
        return ", ".join(self.names) or self.targets[0].digest


@contextmanager
def opened(path: str, place: str) -> Iterator[LayoutIndex]:
    """Give a block what is at a path, or on standard input for ``-``; ``place`` as in ``read_archive``.

    Raises NotFound, CorruptContent, Unsupported, and ResourceExhausted where the spool would fill the disk.
    """
    with ExitStack() as spools:
        try:
            if path != "-" and Path(path).is_dir():
                yield read_directory(Path(path), place)
                return
            plain = _plain(path, spools)
            try:
                yield read_archive(plain, place)
            except CrinoidError as error:
                if plain == Path(path) or str(plain) not in error.message:
                    raise
                # A spool has no name that says something to anybody.
                raise type(error)(error.message.replace(str(plain), _shown(path))) from error
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename or path}: there is no such file") from error
        except PermissionError as error:
            raise CorruptContent(f"{error.filename or path} can't be read: {error.strerror}") from error


def spool_directory() -> str:
    """Return where what is too large for memory may lie for a while; /tmp is memory on many hosts."""
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108  # made by tempfile, under names of its own


def list_images(index: LayoutIndex) -> list[ArchivedImage]:
    """Return the images, each once with all its names, and those without a name after them."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, entries in index.names.items():
        names.setdefault(tuple(entry.digest for entry in entries), []).append(name)
    found = [
        ArchivedImage(tuple(called), tuple(_placed(index, entry) for entry in index.names[called[0]]))
        for called in names.values()
    ]
    named = {digest for digests in names for digest in digests}
    nameless = tuple(_placed(index, entry) for entry in index.images if entry.digest not in named)
    nameless = tuple(entry for entry in nameless if not (entry.platform and entry.platform.architecture == "unknown"))
    platforms = {entry.platform for entry in nameless}
    if len(platforms) == len(nameless) > 1 and None not in platforms:  # one image, for a platform each
        return [*found, ArchivedImage((), nameless)]
    return [*found, *(ArchivedImage((), (entry,)) for entry in nameless)]


def _placed(index: LayoutIndex, entry: DescriptorDocument) -> DescriptorDocument:
    """Say what platform a manifest is for, where the index does not: its configuration does."""
    if entry.platform is not None or entry.media_type in INDEX_TYPES:
        return entry
    try:
        manifest = read_manifest(index.read(entry.digest, MAX_DOCUMENT_BYTES) or b"{}", entry.digest)
        content = index.read(manifest.config.digest, MAX_DOCUMENT_BYTES) or b"{}"
        place = parse(PlatformDocument, content, manifest.config.digest)
    except CorruptContent:  # it fails with its reason once it is asked for
        return entry
    return entry.model_copy(update={"platform": place}) if place.os and place.architecture else entry


def _plain(path: str, spools: ExitStack) -> Path:
    """Return the path of a plain archive: the one given, or one that was written."""
    if path == "-":
        if sys.stdin.isatty():
            raise NotFound("there is no archive on standard input, which is a terminal: name a file, or pipe one in")
        source = _spooled(_pieces(sys.stdin.buffer), spools)
    elif not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe that the shell has made: <(…)
        with Path(path).open("rb") as stream:
            source = _spooled(_pieces(stream), spools)
    else:
        source = Path(path)
    with source.open("rb") as file:
        blob = Blob(file.fileno())
        if not blob.first_bytes(6).startswith(_MAGICS):
            return source
        try:
            load_codec(blob)
            return _spooled(decompress(blob), spools)
        except NotSupported as error:
            words = str(error).removeprefix("the layer is ").partition(";")[0]
            raise Unsupported(
                f"{_shown(path)} is {words}: unpack it to a plain .tar, or to one of gzip or zstd"
            ) from error
        except ArchiveFault as error:
            raise CorruptContent(f"{_shown(path)} can't be decompressed: {error}") from error


def _shown(path: str) -> str:
    return "standard input" if path == "-" else path


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(_PIECE_BYTES):
        yield piece


def _spooled(pieces: Iterable[bytes], spools: ExitStack) -> Path:
    """Write a stream to a file that has no name, so that nothing is left of it whatever ends this process."""
    directory, unchecked = spool_directory(), _CHECK_BYTES
    spool = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  # closed by the stack
    file = spools.enter_context(spool)
    for piece in pieces:
        if (unchecked := unchecked + len(piece)) >= _CHECK_BYTES:
            unchecked = 0
            _check_space(directory)
        try:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) or 0 :]
        except OSError as error:
            raise ResourceExhausted(f"{directory}: {error.strerror}; TMPDIR names another place") from error
    return Path(f"/proc/self/fd/{file.fileno()}")


def _check_space(directory: str) -> None:
    usage = shutil.disk_usage(directory)
    if usage.free < usage.total * _KEPT_FREE:
        raise ResourceExhausted(
            f"the archive, unpacked to {directory}, would fill that disk: less than {_KEPT_FREE:.0%} is free; "
            "TMPDIR names another place"
        )
