"""The verb logs: shows a container's output from its log on this node, and follows it until the container ends."""

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click

from crinoid.core.api.errors import FailedPrecondition, NotFound
from crinoid.core.cli.ctl.completion import CONTAINER
from crinoid.core.cli.ctl.directory import find_container
from crinoid.core.cli.ctl.durations import INSTANT
from crinoid.core.cli.ctl.flags import flag, gather
from crinoid.core.cli.ctl.logfile import LogFile, Piece
from crinoid.core.cli.ctl.session import Json, Session, in_session

POLL_S = 0.1
_FINAL = ("CONTAINER_EXITED", "CONTAINER_UNKNOWN")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a log, and how; -1 is no limit, ``since`` in seconds since the epoch."""

    tail: int = -1
    limit_bytes: int = -1
    since: float = 0.0
    stream: str = ""
    timestamps: bool = False


_selection = gather(
    "selection",
    Selection,
    click.option("--tail", default=-1, metavar="LINES", help="Only the last lines."),
    click.option("--limit-bytes", default=-1, metavar="BYTES", help="No more than so much."),
    click.option("--since", type=INSTANT, default=0.0, metavar="TIME", help="From a time on, or 42m for 42 minutes."),
    click.option("--stream", "-s", default="", type=click.Choice(("", "stdout", "stderr")), help="Only this stream."),
    flag("--timestamps", "-t", help="Each line with its time."),
)


@click.command()
@click.argument("container", type=CONTAINER)
@_selection
@flag("--follow", "-f", help="Go on until the container ends.")
@flag("--previous", "-p", help="The log of the attempt before.")
@flag("--reopen", "-r", help="Have the log opened anew first, as after a rotation.")
@in_session
async def logs(session: Session, container: str, selection: Selection, **flags: bool) -> None:
    """Show the log of a container."""
    found = await find_container(session, container)
    if flags["reopen"]:
        await session.act("ReopenContainerLog", {"container_id": found["id"]})
    status = (await session.ask("ContainerStatus", {"container_id": found["id"]}))["status"]
    path = find_log(status, flags["previous"])
    await show_log(session, found["id"], path, selection, flags["follow"] and not flags["previous"])


VERBS = (logs,)


def find_log(status: Json, previous: bool = False) -> Path:
    """Return the path of a container's log, or of its attempt before; Raises NotFound or FailedPrecondition."""
    if not status["log_path"]:
        raise FailedPrecondition(f"container {status['id']} was created without a log")
    path = Path(status["log_path"])
    attempt = int(status["metadata"]["attempt"])
    if not previous:
        return path
    if attempt == 0:
        raise NotFound(f"container {status['id']} is the first of its name; there is no attempt before")
    return path.with_name(f"{attempt - 1}{path.suffix}")


async def show_log(session: Session, container_id: str, path: Path, selection: Selection, follow: bool) -> None:
    """Print a log, and go on with what is added to it until the container ends or is removed."""
    printer = LogPrinter(selection)
    with LogFile(path) as log:
        begin = log.read_last(selection.tail, selection.stream) if selection.tail >= 0 else log.read()
        wanted = printer.print(begin)
        while follow and wanted:
            ended = await _has_ended(session, container_id)
            await asyncio.sleep(POLL_S)  # the last lines may reach the log a moment after the end
            wanted = printer.print(log.read()) and not ended


class LogPrinter:
    """Prints pieces of a log, each stream to our own."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._left = selection.limit_bytes
        self._unfinished: set[str] = set()
        self._out = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}

    def print(self, pieces: Iterable[Piece]) -> bool:
        """Print the pieces that are wanted; return whether more may be printed."""
        for piece in pieces:
            if self._is_wanted(piece):
                self._write(piece)
            if self._left == 0:
                break
        for stream in self._out.values():
            stream.flush()
        return self._left != 0

    def _is_wanted(self, piece: Piece) -> bool:
        if self._selection.stream not in ("", piece.stream):
            return False
        return not self._selection.since or _to_seconds(piece.time) >= self._selection.since

    def _write(self, piece: Piece) -> None:
        """Write a piece; the time stands where a line begins, a newline where it ends."""
        data = piece.content if piece.partial else piece.content + b"\n"
        if self._selection.timestamps and piece.stream not in self._unfinished:
            data = piece.time.encode() + b" " + data
        (self._unfinished.add if piece.partial else self._unfinished.discard)(piece.stream)
        if self._left >= 0:
            data = data[: self._left]
            self._left -= len(data)
        self._out[piece.stream].write(data)


async def _has_ended(session: Session, container_id: str) -> bool:
    try:
        answer = await session.ask("ContainerStatus", {"container_id": container_id})
    except NotFound:
        return True
    return answer["status"]["state"] in _FINAL


def _to_seconds(time: str) -> float:
    """Read the time of a piece; one that is none counts as late, so that nothing is hidden by mistake."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return float("inf")
