"""How a list is shown, the same for ``ps``, ``pods`` and ``images``: table, ids only, facts, or a document."""

from collections.abc import Mapping
from dataclasses import dataclass

import click

from crinoid.core.cli.ctl.flags import TABLE, flag, gather, output


@dataclass(frozen=True, slots=True)
class Listing:
    """How to show a list."""

    output: str = TABLE
    quiet: bool = False
    verbose: bool = False
    no_trunc: bool = False

    def is_document(self) -> bool:
        """Return whether a program will read it."""
        return self.output != TABLE


listing = gather(
    "listing",
    Listing,
    output(),
    flag("--quiet", "-q", help="Only ids."),
    flag("--verbose", "-v", help="All facts, one a line."),
    flag("--no-trunc", help="Whole ids."),
)


def print_ids(items: list[dict[str, str]]) -> None:
    """Print an id a line."""
    for item in items:
        click.echo(item["id"])


def format_labels(item: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str | Mapping[str, str]]]:
    """Return the facts that all objects have."""
    return [("Labels", item["labels"]), ("Annotations", item["annotations"])]
