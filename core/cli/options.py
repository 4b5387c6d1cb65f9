"""Options that several commands share, and the configuration that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crinoid.core.config.paths import ConfigPaths

if TYPE_CHECKING:
    from crinoid.core.config.models import Config

F = TypeVar("F", bound=Callable[..., Any])  # Any: click calls commands by what their decorators say


def config_option(command: F) -> F:
    """Add ``--config``, given to the command as ``paths``."""
    return click.option(
        "--config",
        "-c",
        "paths",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="CRINOID_CONFIG",
        show_envvar=True,
        metavar="PATH",
        callback=_to_paths,
        help="Configuration file instead of /etc/crinoid/config.toml; drop-ins are in conf.d beside it.",
    )(command)


def output_option(*formats: str) -> Callable[[F], F]:
    """Add ``--output``, given to the command as ``output``; the first format is the default."""
    return click.option(
        "--output",
        "-o",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="Form of the output.",
    )


def config_of_daemon(paths: ConfigPaths, quiet: bool = False) -> "Config":
    """Return the configuration by which the daemon that runs is found; mistakes that don't matter to that are told."""
    from crinoid.core.config.loader import load_places  # it makes models, which takes long

    config, problems = load_places(paths)
    if problems and not quiet:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        click.echo(f"warning: {problems[0]}{more}: crinoid will not start with that (crinoid config check)", err=True)
    return config


def _to_paths(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> ConfigPaths:
    return ConfigPaths.at(value.absolute() if value else None)
