"""Shows how far a pull is: bars on a terminal, a line for each step and each quarter of a layer elsewhere.

crinoid tells the pulls under way in its verbose Status; other endpoints don't, and show only that something happens.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.values.image import ImageReference
from crinoid.core.cli.ctl.figures import format_size, shorten_id
from crinoid.core.cli.ctl.session import Session

if TYPE_CHECKING:
    from rich.progress import TaskID

FETCHING, DONE = "fetching", "done"
_STEPS = {"waiting": "waiting", FETCHING: "pulling", "unpacking": "unpacking", DONE: "done"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a pull, in bytes of the blob; ``state`` is one of waiting, fetching, unpacking, done."""

    digest: str
    total_bytes: int
    fetched_bytes: int
    state: str


class Display(Protocol):
    """Shows layers."""

    def update(self, layers: Sequence[Layer]) -> None:
        """Show how far the layers are now."""


async def read_progress(session: Session, image: str) -> tuple[Layer, ...] | None:
    """Return the layers of the pull of an image; ``None`` where the endpoint doesn't tell of pulls at all."""
    try:
        status = await session.ask("Status", {"verbose": True})
        pulls = json.loads(status["info"]["pulls"])
        return next((_to_layers(pull) for pull in pulls if pull["reference"] in _spellings(image)), ())
    except (CrinoidError, ValueError, KeyError, TypeError):
        return None


def open_display(image: str) -> AbstractContextManager[Display]:
    """Return the display that standard error can show."""
    return Bars(image) if sys.stderr.isatty() else Lines(image)


class Lines:
    """A line on standard error for each step of each layer, and for each further quarter of its bytes."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._states: dict[str, str] = {}
        self._quarters: dict[str, int] = {}
        self._begin_s = time.monotonic()

    def __enter__(self) -> Self:
        click.echo(f"pulling {self._image}", err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            click.echo(f"pulled {self._image} in {time.monotonic() - self._begin_s:.1f} s", err=True)

    def update(self, layers: Sequence[Layer]) -> None:
        """Tell what has changed."""
        for layer in layers:
            quarter = 4 * layer.fetched_bytes // max(layer.total_bytes, 1)
            if layer.state != self._states.get(layer.digest, "waiting"):
                _tell(layer, _STEPS.get(layer.state, layer.state))
            elif layer.state == FETCHING and quarter > self._quarters.get(layer.digest, 0):
                _tell(layer, f"{format_size(layer.fetched_bytes)} pulled")
            self._states[layer.digest], self._quarters[layer.digest] = layer.state, quarter


def _tell(layer: Layer, words: str) -> None:
    click.echo(f"layer {shorten_id(layer.digest)} ({format_size(layer.total_bytes)}): {words}", err=True)


class Bars:
    """A bar for each layer, in place, and a line for the whole."""

    def __init__(self, image: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

        self._image = image
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        from rich.markup import escape

        self._progress.start()
        self._whole = self._progress.add_task(escape(self._image), total=None, state="resolving")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._progress.stop()

    def update(self, layers: Sequence[Layer]) -> None:
        """Draw the bars; layers are known only some time after the beginning."""
        for layer in layers:
            self._progress.update(
                self._task(layer),
                completed=layer.fetched_bytes if layer.state != DONE else layer.total_bytes,
                state=_STEPS.get(layer.state, layer.state),
            )
        if layers:
            done = sum(layer.state == DONE for layer in layers)
            fetched, total = sum(layer.fetched_bytes for layer in layers), sum(layer.total_bytes for layer in layers)
            self._progress.update(
                self._whole, completed=fetched, total=total, state=f"{done} of {len(layers)} layers done"
            )

    def _task(self, layer: Layer) -> "TaskID":
        if layer.digest not in self._tasks:
            name = f"  {shorten_id(layer.digest)}"
            self._tasks[layer.digest] = self._progress.add_task(name, total=layer.total_bytes, state="waiting")
        return self._tasks[layer.digest]

    def _finish(self) -> None:
        """The last look came before the end; what is pulled now is whole."""
        for task in list(self._progress.tasks):
            total = task.total if task.total is not None else 1
            self._progress.update(task.id, total=total, completed=total, state="done")


def _to_layers(pull: "dict[str, list[dict[str, object]]]") -> tuple[Layer, ...]:
    return tuple(
        Layer(str(one["digest"]), int(str(one["total_bytes"])), int(str(one["fetched_bytes"])), str(one["state"]))
        for one in pull["layers"]
    )


def _spellings(image: str) -> tuple[str, ...]:
    """Return an image as the user wrote it, and in full."""
    try:
        return image, str(ImageReference.parse(image))
    except CrinoidError:
        return (image,)
