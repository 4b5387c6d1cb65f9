"""``crinoid state``: records and ledger as JSON lines, written with ``export`` and read with ``import``."""

from pathlib import Path

import click

from crinoid import __version__
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths

_FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), default="-")


@click.group()
def state() -> None:
    """Write what the daemon remembers to a file, and read it again: the way down to an earlier crinoid."""


@state.command()
@config_option
@_FILE
def export(paths: ConfigPaths, file: Path) -> None:
    """Write all records and the ledger to FILE (standard output by default), a JSON object a line.

    It may hold secrets of containers' environment: a new file is readable for root alone. Stop the daemon before, so
    that nothing is missing; pods and containers run on.
    """
    from crinoid.core.api.linux import rights
    from crinoid.core.config.loader import load
    from crinoid.core.state.transfer import copied
    from crinoid.core.state.transfer import export as write

    with copied(load(paths).config.root / "state.db") as connection:
        text = "".join(f"{line}\n" for line in write(connection, __version__))
    if str(file) == "-":
        click.echo(text, nl=False)
    else:
        rights.write_file(file, text)


@state.command(name="import")
@config_option
@_FILE
def import_(paths: ConfigPaths, file: Path) -> None:
    """Read FILE (standard input by default), which 'crinoid state export' wrote, into an empty state.

    No daemon may run. Of records of a newer crinoid the fields that this one does not know are named, and lost.
    """
    from crinoid.core.config.loader import load
    from crinoid.core.daemon.directories import taken
    from crinoid.core.state.transfer import import_into

    config = load(paths).config
    with click.open_file(str(file)) as lines, taken(config):
        told = import_into(config.root / "state.db", lines)
    for line in told:
        click.echo(line, err=True)
