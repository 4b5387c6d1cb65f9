"""``crinoid config``: check the configuration, show it with its origins, print its schema, import another runtime's."""

import json
from collections.abc import Iterator
from typing import Any

import click

from crinoid.core.cli.migration import import_
from crinoid.core.cli.options import config_option, output_option
from crinoid.core.cli.toml_text import write_table
from crinoid.core.config.loader import ConfigPaths, Loaded, examine, load
from crinoid.core.config.origins import name_key, refuse
from crinoid.core.config.positions import KeyPath
from crinoid.core.slots.schema import make_schema
from crinoid.core.slots.selection import ValidSlot
from crinoid.core.slots.selection import check as check_slots
from crinoid.core.slots.selection import examine as examine_slots


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@config_option
def check(paths: ConfigPaths) -> None:
    """Check every file, the options of every driver that is selected, and what else would stop the start.

    Tells every mistake with its file, line, key and the nearest valid name, and exits with 78 for any. Drivers are made
    in directories that are thrown away, as root; nothing else on the host is touched.
    """
    from crinoid.core.daemon.preflight import find_notes, find_problems  # it imports what serves, which takes long

    loaded, problems = examine(paths)
    slots, of_drivers = examine_slots(loaded.config, loaded.origins)
    of_start, notes = find_problems(loaded, slots)
    refuse([*problems, *of_drivers, *of_start])
    for note in (*notes, *find_notes(paths)):
        click.echo(f"note: {note}", err=True)
    files = ", ".join(str(file) for file in loaded.files) or "no file, so all defaults"
    click.echo(f"the configuration is valid: {files}; {len(slots)} slots")


@config.command()
@config_option
@output_option("toml", "json")
def show(paths: ConfigPaths, output: str) -> None:
    """Print the configuration as it is in effect, and where each value came from."""
    loaded = load(paths)
    table = _effective(loaded, check_slots(loaded.config, loaded.origins))
    if output == "toml":
        click.echo("\n".join(write_table(table, loaded.origins.tell)))
        return
    origins = {name_key(key): loaded.origins.tell(key) for key, _ in _leaves(table)}
    click.echo(json.dumps({"config": table, "origins": origins}, indent=2))


@config.command()
def schema() -> None:
    """Print JSON Schema of the configuration, with the options of every installed driver."""
    click.echo(json.dumps(make_schema(), indent=2))


config.add_command(import_)


def _effective(loaded: Loaded, slots: tuple[ValidSlot, ...]) -> dict[str, Any]:
    """Return all values, with the defaults of the drivers' options; Any: the values of TOML."""
    table = loaded.config.model_dump(mode="json")
    for slot in slots:
        place = table
        for key in slot.selection.key:
            place = place[str(key)]
        place["options"] = slot.options.model_dump(mode="json", exclude_none=True)
    return table


def _leaves(table: dict[str, Any], base: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*base, name))
        else:
            yield (*base, name), value
