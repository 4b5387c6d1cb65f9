"""``crinoid upgrade``: the crinoid that is installed now takes over from the daemon that runs; see docs/upgrades.md."""

import asyncio
import os
import subprocess
import sys
import time

import click

from crinoid.core.api.errors import ConfigurationError, DeadlineExceeded
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths

_PAUSE_S = 0.1


@click.command()
@click.option(
    "--timeout", "timeout_s", default=120.0, show_default=True, help="How many seconds to wait until it serves."
)
@config_option
def upgrade(paths: ConfigPaths, timeout_s: float) -> None:
    """Have the crinoid that is installed now take over from the daemon that runs; no client's call fails.

    Returns once it serves. Where it can't start, the daemon that runs serves on.
    """
    from crinoid.core.config.loader import load
    from crinoid.core.daemon.notify import watchdog_of
    from crinoid.core.daemon.takeover import serving_pid

    config = load(paths).config
    before = asyncio.run(serving_pid(config))
    if before is None:
        raise ConfigurationError(
            f"no daemon that can be taken over runs over {config.run}: start or restart it instead"
        )
    chosen = ("--config", str(paths.main)) if paths.required else ()
    command = [sys.executable, "-m", "crinoid", "serve", "--takeover", *chosen]
    environment = {**os.environ, **watchdog_of(before)}
    successor = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    deadline_s = time.monotonic() + timeout_s
    while asyncio.run(serving_pid(config)) != successor.pid:
        if successor.poll() is not None:
            raise ConfigurationError(
                f"the new daemon ended with {successor.returncode}, see its log; process {before} serves on if it has "
                f"not been taken over"
            )
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(f"process {successor.pid} does not serve after {timeout_s:g} s: see its log")
        time.sleep(_PAUSE_S)
    click.echo(f"process {successor.pid} has taken over from {before}")
