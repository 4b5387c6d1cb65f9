"""Traces on disk: RPCs and hook calls of a daemon as they happened, for ``crinoid trace replay``; docs/trace.md.

A trace is gzip-compressed JSON lines: a head, then the events, then a tail. ``recorder`` writes them, in a thread;
``core.cli.trace`` reads them. What is written is flushed each second, so a daemon that is killed leaves a trace without
its tail, which can be replayed, too.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import rights

FORMAT = 1
"""The version of the format: raised by whatever a reader of today would misread; further keys raise nothing."""
DIRECTORY = "trace"
"""Where a daemon keeps its traces, below ``root``."""
SUFFIX = ".jsonl.gz"
KEPT = 2
"""How many there are at most: an earlier one goes when another begins."""
_MAX_LINE_BYTES = 64 << 20

Json = dict[str, Any]


class TraceWriter:
    """Writes one trace. Belongs to one thread."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """``size_bytes``: how much of the disk it may take, compressed. Raises OSError."""
        self._limit_bytes = size_bytes
        self.size_bytes = 0
        """How much of the disk it takes."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._raw: IO[bytes] = os.fdopen(os.open(path, flags, rights.FILE), "wb", buffering=0)
        self._packed = gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=1, filename="")

    @property
    def is_full(self) -> bool:
        """Return whether it has taken what it may; only a tail comes then."""
        return self.size_bytes >= self._limit_bytes

    def write(self, event: Mapping[str, object]) -> None:
        """Add a line. Raises OSError."""
        self._packed.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        self.size_bytes = self._raw.tell()

    def flush(self) -> None:
        """Have what was written outlive the process. Raises OSError."""
        self._packed.flush(zlib.Z_SYNC_FLUSH)

    def close(self) -> None:
        """End the file. Raises OSError."""
        try:
            self._packed.close()
            self.size_bytes = self._raw.tell()
        finally:
            self._raw.close()


def list_traces(root: Path) -> list[Path]:
    """Return a daemon's traces, the oldest first."""
    return sorted((root / DIRECTORY).glob(f"*{SUFFIX}"))


def read_trace(path: Path) -> Iterator[Json]:
    """Return the lines of a trace, the head first; one that was cut off ends early. Blocks.

    Raises InvalidArgument for what is no trace, or one of a newer format, and OSError.
    """
    lines = _lines(path)
    head = next(lines, {})
    found = head.get("crinoid trace")
    if not isinstance(found, int):
        raise InvalidArgument(f"{path} is no trace of crinoid's")
    if found > FORMAT:
        raise InvalidArgument(
            f"{path} is a trace of format {found}, by crinoid {head.get('version')}: this one reads up to {FORMAT}"
        )
    yield head
    yield from lines


def _lines(path: Path) -> Iterator[Json]:
    with gzip.open(path, "rb") as file:
        while True:
            try:
                line = file.readline(_MAX_LINE_BYTES)
                if not line.endswith(b"\n"):
                    return
                found = json.loads(line)
            except (EOFError, zlib.error, gzip.BadGzipFile, ValueError):  # it was cut off, or is something else
                return
            if isinstance(found, dict):
                yield found
