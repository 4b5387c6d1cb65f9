"""``crinoid upgrade``: the crinoid that is installed now takes over from the daemon that runs; see docs/upgrades.md."""

import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

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
    before = asyncio.run(serving_pid(config, timeout_s))
    if before is None:
        raise ConfigurationError(
            f"no daemon that can be taken over runs over {config.run}: start or restart it instead"
        )
    chosen = ("--config", str(paths.main)) if paths.required else ()
    command = [sys.executable, "-m", "crinoid", "serve", "--takeover", *chosen]
    environment = {**os.environ, **watchdog_of(before)}
    pid = start_orphan(command, environment)
    has_ended = ConfigurationError(
        f"the new daemon, process {pid}, has ended, see its log; process {before} serves on if it has not been "
        f"taken over"
    )
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:  # init, whose child it is, was quick to reap it
        raise has_ended from None
    deadline_s = time.monotonic() + timeout_s
    while asyncio.run(serving_pid(config)) != pid:
        if select.select([end], [], [], _PAUSE_S)[0]:
            raise has_ended
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(f"process {pid} does not serve after {timeout_s:g} s: see its log")
    click.echo(f"process {pid} has taken over from {before}")


def start_orphan(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start a program as a child of init, and return its process id. Raises ConfigurationError.

    systemd looks at who the parent is when a service names another main process: of one that is no child of its own, as
    that of a control process that has not ended, it thinks that its end would not be seen. So it would wait for none,
    and send SIGKILL right after SIGTERM at every stop from then on (systemd 252, ``service_enter_signal``).
    """
    reading, writing = os.pipe()
    if (between := os.fork()) == 0:
        try:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
            )
            os.write(writing, str(started.pid).encode())
        except OSError as error:
            os.write(writing, f"{command[0]}: {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(between, 0)  # only now is what it has started init's
    with open(reading) as pipe:
        told = pipe.read()
    if not told.isdigit():
        raise ConfigurationError(f"the new daemon can't be started: {told}")
    return int(told)
