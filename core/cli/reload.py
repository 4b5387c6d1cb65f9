"""``crinoid reload`` and ``crinoid log-level``: change what a daemon that runs can change; see docs/upgrades.md."""

import asyncio
from typing import TYPE_CHECKING

import click

from crinoid.core.cli.options import config_of_daemon, config_option
from crinoid.core.config.paths import ConfigPaths

if TYPE_CHECKING:
    from crinoid.core.config.models import Config


@click.command()
@config_option
def reload(paths: ConfigPaths) -> None:
    """Have the daemon that runs read its configuration again, and say what has changed.

    A mistake in it changes nothing. What can't change at once is named: `crinoid upgrade` brings it.
    """
    from crinoid.core.config.loader import load

    click.echo(_command(load(paths).config, "reload"))


@click.command("log-level")
@click.argument("level", type=click.Choice(("debug", "info", "warning", "error")))
@config_option
def log_level(paths: ConfigPaths, level: str) -> None:
    """Have the daemon that runs log from another level on, until its next reload or start."""
    click.echo(_command(config_of_daemon(paths), f"log-level {level}"))


def _command(config: "Config", line: str) -> str:
    from crinoid.core.daemon.takeover import command

    return asyncio.run(command(config, line))
