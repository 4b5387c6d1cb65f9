"""``crinoid trace``: what a daemon is asked and asks, recorded on a node, and replayed anywhere; see docs/trace.md."""

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cli.groups import SuggestingGroup
from crinoid.core.cli.options import config_of_daemon, config_option
from crinoid.core.config.paths import ConfigPaths

_LOOK_S = 0.5
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@click.group(cls=SuggestingGroup)
def trace() -> None:
    """Record the calls of the daemon that runs, without secrets, and replay them without root and without a node."""


@trace.command()
@config_option
@click.option("--seconds", default=600, show_default=True, metavar="N", help="How long to record at most.")
@click.option("--size", default="64M", show_default=True, metavar="BYTES", help="How much of the disk it may take.")
@click.option("--detach", is_flag=True, help="Return once it records; `crinoid trace stop` ends it.")
def record(paths: ConfigPaths, seconds: int, size: str, detach: bool) -> None:
    """Have the daemon that runs record its RPCs and hook calls, until Ctrl-C; print the path of the trace.

    The daemon goes on as before. Credentials, values of environments and annotations, and all that looks like a secret
    are replaced by "(redacted)"; look through it before you send it: `zcat FILE`.
    """
    told = _ask(paths, f"start {seconds} {_bytes(size)}")
    path = told["path"]
    click.echo(f"recording to {path}, for {seconds} s at most", err=True)
    if not detach:
        with contextlib.suppress(KeyboardInterrupt):
            while told["recording"] and told.get("path") == path:
                time.sleep(_LOOK_S)
                told = _ask(paths, "status")
        if told["recording"]:
            told = _ask(paths, "stop")
            if "calls" in told:  # else it has ended by itself meanwhile
                click.echo(f"{told['calls']} calls, {told['lost']} lost", err=True)
    click.echo(path)


@trace.command()
@config_option
def stop(paths: ConfigPaths) -> None:
    """End the recording; print the path of the trace."""
    told = _ask(paths, "stop")
    if "path" not in told:
        raise InvalidArgument("nothing is being recorded")
    click.echo(f"{told['calls']} calls, {told['lost']} lost", err=True)
    click.echo(told["path"])


@trace.command()
@config_option
def status(paths: ConfigPaths) -> None:
    """Tell whether something is being recorded, and which traces there are."""
    click.echo(json.dumps(_ask(paths, "status"), indent=2))


@trace.command("replay")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--output", "-o", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option(
    "--patience", default=10.0, show_default=True, metavar="S", help="How much longer than then something may take."
)
def replay_trace(file: Path, output: str, patience: float) -> None:
    """Run a trace's calls by the crinoid that is installed here, against fakes; say where it differs. Needs no root.

    Exit code 0: the same codes, hooks and final state; 1: something differs.
    """
    from crinoid.core.cli.trace.model import Trace
    from crinoid.core.cli.trace.replay import replay
    from crinoid.core.cli.trace.view import show

    try:
        read = Trace.read(file)
    except OSError as error:
        raise InvalidArgument(f"{file} can't be read: {error.strerror or error}") from error
    outcome = asyncio.run(replay(read, patience))
    for line in [json.dumps(outcome.as_json(), indent=2)] if output == "json" else show(read, outcome):
        click.echo(line)
    sys.exit(1 if outcome.differences else 0)


def _bytes(text: str) -> int:
    number, unit = text[: -1 if text[-1:].isalpha() else None], text[-1:].upper() if text[-1:].isalpha() else ""
    if not number.isdecimal() or unit not in _UNITS:
        raise InvalidArgument(f"{text!r} is no size, such as 64M")
    return int(number) * _UNITS[unit]


def _ask(paths: ConfigPaths, line: str) -> Any:  # a JSON object
    from crinoid.core.daemon.takeover import command

    return json.loads(asyncio.run(command(config_of_daemon(paths), f"trace {line}")))
