"""Options that several commands share, and the configuration that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from crinoid.core.config.paths import ConfigPaths

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


def _to_paths(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> ConfigPaths:
    return ConfigPaths.at(value.absolute() if value else None)
