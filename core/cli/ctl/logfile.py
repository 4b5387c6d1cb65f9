"""Reads a container's log where it lies, in the CRI's format, across rotations.

A line is ``TIME STREAM TAGS CONTENT``: TIME in RFC 3339 with nanoseconds, STREAM stdout or stderr, and the first of
the TAGS (parted by colons) P for a piece of a longer line or F for its end. The kubelet rotates a log by renaming it
and asking the runtime to open it anew.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import NotFound, PermissionDenied

_FIRST_SPAN_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A line of the file: a whole line of output, or a part of one when ``partial``."""

    time: str
    stream: str
    content: bytes
    partial: bool


def parse_piece(line: bytes) -> Piece | None:
    """Read a line of the file, which may end with a newline; ``None`` for one that is not of the format."""
    fields = line.removesuffix(b"\n").split(b" ", 3)
    if len(fields) < 3 or fields[1] not in (b"stdout", b"stderr"):
        return None
    time, stream, tags, content = (*fields, b"")[:4]
    kind = tags.partition(b":")[0]
    if kind not in (b"P", b"F"):
        return None
    return Piece(time.decode("ascii", "replace"), stream.decode(), content, kind == b"P")


def join_pieces(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Put the pieces of a line together; lines stand in the order of their first pieces, streams apart."""
    lines: list[list[Piece]] = []
    unfinished: dict[str, list[Piece]] = {}
    for piece in pieces:
        line = unfinished.pop(piece.stream, None)
        if line is None:
            line = []
            lines.append(line)
        line.append(piece)
        if piece.partial:
            unfinished[piece.stream] = line
    return lines


class LogFile:
    """A log that is open for reading; use it with ``with``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise NotFound(f"there is no log {path}; is this the container's node, and was it started?") from None
        except PermissionError:
            raise PermissionDenied(f"the log {path} may not be read; run this as root") from None

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> Iterator[Piece]:
        """Yield what was written since the last call; goes over to the new file after a rotation."""
        yield from self._drain()
        while self._is_rotated():
            yield from self._drain()  # what came between the two looks
            self._reopen()
            yield from self._drain()

    def read_last(self, count: int, stream: str = "") -> list[Piece]:
        """Return the pieces of the last ``count`` lines, of one stream if it is given, and go on from there.

        Only as much of the end is read as it takes.
        """
        size = os.fstat(self._file.fileno()).st_size
        span = _FIRST_SPAN_BYTES
        while True:
            start = max(0, size - span)
            lines = join_pieces([piece for piece in self._drain_from(start) if stream in ("", piece.stream)])
            if start:
                lines = _drop_cut(lines)
            if start == 0 or len(lines) >= count:
                return [piece for line in lines[len(lines) - min(count, len(lines)) :] for piece in line]
            span *= 2

    def _drain_from(self, start: int) -> Iterator[Piece]:
        self._file.seek(max(0, start - 1))
        if start:
            self._file.readline()  # the rest of a line, or just its newline
        return self._drain()

    def _drain(self) -> Iterator[Piece]:
        while line := self._file.readline():
            if not line.endswith(b"\n"):
                self._file.seek(-len(line), os.SEEK_CUR)  # it is still being written
                return
            if (piece := parse_piece(line)) is not None:
                yield piece

    def _is_rotated(self) -> bool:
        """Return whether another file has the name now, or this one was cut."""
        mine = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False  # between the renaming and the opening
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino) or mine.st_size < self._file.tell()

    def _reopen(self) -> None:
        new = self._path.open("rb")
        self._file.close()
        self._file = new


def _drop_cut(lines: list[list[Piece]]) -> list[list[Piece]]:
    """Drop the first line of each stream, whose beginning may lie before what was read."""
    seen: set[str] = set()
    kept = []
    for line in lines:
        if line[0].stream in seen:
            kept.append(line)
        seen.add(line[0].stream)
    return kept
