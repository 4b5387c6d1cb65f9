"""What the directory holds now: each layout and archive is read once, and again when it changed.

Looked at anew at every pull, by a ``stat`` of each entry; that takes microseconds and needs no restart, no watch.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

from crinoid.core.api.errors import CorruptContent, CrinoidError, Unsupported
from crinoid.core.api.layouts.archives import COMPRESSED, read_archive
from crinoid.core.api.layouts.directories import read_directory
from crinoid.core.api.layouts.layout_index import LayoutIndex, Stamp
from crinoid.core.api.linux.bulkheads import touching

_LAYOUT_NAMES = frozenset({"index.json", "oci-layout", "blobs"})
_Stamp = tuple[Stamp, int]  # with the time of a change of owner or mode: what could not be read is tried again


class Catalog:
    """The indexes of a directory. Its methods block, and may be called from several threads."""

    def __init__(self, directory: Path, log: logging.Logger) -> None:
        self._directory = directory
        self._log = log
        self._lock = Lock()
        self._read: dict[Path, tuple[_Stamp, LayoutIndex | CrinoidError]] = {}

    def indexes(self) -> tuple[LayoutIndex, ...]:
        """Return what can be used now, in the order of the names."""
        return tuple(found for found in self._refresh() if isinstance(found, LayoutIndex))

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong with each entry that can't be used, one sentence each."""
        return tuple(found.message for found in self._refresh() if isinstance(found, CrinoidError))

    def _refresh(self) -> list[LayoutIndex | CrinoidError]:
        with self._lock:
            now = {path: self._look(path, stamp, read) for path, stamp, read in self._entries()}
            self._read = now
            return [found for _, found in now.values()]

    def _entries(self) -> Iterator[tuple[Path, _Stamp, Callable[[Path], LayoutIndex]]]:
        """Yield each entry with the stamp that tells whether it changed, and what reads it."""
        touching(self._directory)
        try:
            paths = sorted(path for path in self._directory.iterdir() if not path.name.startswith("."))
        except OSError:
            return
        if self._directory / "index.json" in paths:  # the directory is a layout itself, and may hold others
            paths = [self._directory, *(path for path in paths if path.name not in _LAYOUT_NAMES)]
        for path in paths:
            touching(path)
            index = path / "index.json"
            is_directory = path.is_dir()
            try:
                found = (index if is_directory and index.exists() else path).stat()
            except OSError:
                continue  # removed this moment, or a link to nowhere
            yield path, (Stamp.of(found), found.st_ctime_ns), read_directory if is_directory else _read_file

    def _look(
        self, path: Path, stamp: _Stamp, read: Callable[[Path], LayoutIndex]
    ) -> tuple[_Stamp, LayoutIndex | CrinoidError]:
        if (kept := self._read.get(path)) and kept[0] == stamp:
            return kept
        try:
            return stamp, read(path)
        except CrinoidError as error:
            self._log.warning("image layouts: skipped: %s", error.message)
            return stamp, error
        except OSError as error:
            self._log.warning("image layouts: skipped: %s: %s", path, error.strerror)
            return stamp, CorruptContent(f"{path}: {error.strerror}")


def _read_file(path: Path) -> LayoutIndex:
    if path.name.endswith(COMPRESSED):
        raise Unsupported(f"{path} is compressed: unpack it to a plain .tar, to be read in place")
    if path.suffix != ".tar":
        raise CorruptContent(f"{path} is neither a directory nor a .tar archive")
    return read_archive(path)
