"""The directories of CDI files, as they are now: looked over at every use, only what changed is read again.

A look costs one ``stat`` a file, so there is no watch that could be lost with its directory, and a device that a vendor
has just described can be used at once. Later directories win over earlier ones; two files of one directory that claim
the same device make it unusable.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import FailedPrecondition, NotFound
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.lifecycle.cdi.cdi_files import BrokenFile, CdiDevice, Document, read_document

LOG = logging.getLogger(__name__)
_ENDINGS = frozenset({".json", ".yaml"})
_YOUNG_NS = 50_000_000
"""A file that changed so short a time ago may change again without its times showing it."""
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A device and the file that has it; ``number`` is its place in the file's list."""

    document: Document
    number: int

    @property
    def device(self) -> CdiDevice:
        """The device itself."""
        return self.document.spec.devices[self.number]

    @property
    def name(self) -> str:
        """The full name."""
        return f"{self.document.spec.kind}={self.device.name}"

    @property
    def place(self) -> str:
        """``file:line``."""
        return self.document.place("devices", self.number)


@dataclass(frozen=True, slots=True)
class _Read:
    """What reading a file gave; ``stamp`` ``None`` for one that is too young to rely on."""

    stamp: _Stamp | None
    content: Document | BrokenFile


class Directories:
    """All devices of some directories. Any thread may ask."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(directories)
        self._known: dict[Path, _Read] = {}
        self._reported: set[str] = set()
        self._lock = threading.Lock()

    def find(self, names: Iterable[str]) -> list[FoundDevice]:
        """Return the devices with these full names. Raises NotFound, and FailedPrecondition for a contested one."""
        touching(", ".join(map(str, self._directories)))
        with self._lock:
            layers = self._look()
            broken = set(self._broken_files())
            for problem in sorted(broken - self._reported):
                LOG.warning("CDI file %s; its devices can't be used", problem)
            self._reported = broken
        return [self._choose(name, layers) for name in names]

    def survey(self) -> tuple[set[str], list[str]]:
        """Return all full names, and what is wrong: files that can't be used, devices that are described twice."""
        with self._lock:
            layers = self._look()
        names, problems = set[str](), self._broken_files()
        for documents in layers:
            here = [f"{document.spec.kind}={one.name}" for document in documents for one in document.spec.devices]
            for name in sorted({name for name in here if here.count(name) > 1} - names):
                try:
                    self._choose(name, layers)
                except FailedPrecondition as error:
                    problems.append(error.message)
            names.update(here)
        return names, problems

    def _look(self) -> list[list[Document]]:
        """Bring what is known up to date; return the good files, by directory, the most important directory first."""
        known: dict[Path, _Read] = {}
        layers = []
        for directory in reversed(self._directories):
            for path in _files(directory):
                read = self._refreshed(path)
                if read is not None:
                    known[path] = read
            here = [known[path].content for path in sorted(known) if path.parent == directory]
            layers.append([content for content in here if isinstance(content, Document)])
        self._known = known
        return layers

    def _refreshed(self, path: Path) -> _Read | None:
        old = self._known.get(path)
        stamp: _Stamp | None = None
        try:
            stamp = _stamp(path)
            if old is not None and old.stamp == stamp:
                return old
            if time.time_ns() - stamp[-1] < _YOUNG_NS:
                stamp = None
            return _Read(stamp, read_document(path))
        except FileNotFoundError:
            return None
        except BrokenFile as error:
            return _Read(stamp, error)

    def _choose(self, name: str, layers: list[list[Document]]) -> FoundDevice:
        for documents in layers:
            found = [
                FoundDevice(document, number)
                for document in documents
                for number, device in enumerate(document.spec.devices)
                if f"{document.spec.kind}={device.name}" == name
            ]
            if len(found) > 1:
                places = " and ".join(one.place for one in found)
                raise FailedPrecondition(f"CDI device {name} is described twice, at {places}: remove one of them")
            if found:
                return found[0]
        broken = "; ".join(self._broken_files())
        hint = f"; files that can't be used: {broken}" if broken else ""
        raise NotFound(f"CDI device {name} is in no file of {', '.join(map(str, self._directories))}{hint}")

    def _broken_files(self) -> list[str]:
        return [str(read.content) for read in self._known.values() if isinstance(read.content, BrokenFile)]


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix in _ENDINGS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        LOG.warning("CDI directory %s can't be listed: %s", directory, error.strerror)
        return []


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenFile(f"{path}:1: it can't be looked at: {error.strerror}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
