"""Tells systemd of the daemon's state (sd_notify(3)): a datagram to the socket named by ``NOTIFY_SOCKET``."""

import asyncio
import logging
import os
import socket
from pathlib import Path, PurePosixPath

from crinoid.core.api.errors import ConfigurationError

LOG = logging.getLogger(__name__)


def notify(*states: str) -> None:
    """Send states such as ``READY=1``; nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(states).encode(), path)
    except OSError as error:
        LOG.warning("could not notify %s: %s", address, error)


async def ping_watchdog() -> None:
    """Tell systemd twice in each ``WATCHDOG_USEC`` that the event loop lives (sd_watchdog_enabled(3)).

    From the loop itself, so that one that stands still for good has the unit started again. Endless; returns at once
    where no watchdog waits.
    """
    try:
        period_s = int(os.environ.get("WATCHDOG_USEC", "")) / 2e6
    except ValueError:
        return
    while period_s > 0:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


def watchdog_of(pid: int) -> dict[str, str]:
    """Return what the environment of a successor to this daemon needs for systemd's watchdog.

    systemd tells it only to the main process that it has started itself. Raises ConfigurationError where that process
    is a service and we are not called by systemd, which follows no process from elsewhere, nor has its log.
    """
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="surrogateescape")
        cgroups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return {}
    theirs = dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
    if "NOTIFY_SOCKET" in theirs and "NOTIFY_SOCKET" not in os.environ:
        names = (PurePosixPath(line.split(":", 2)[2]).name for line in cgroups)
        unit = next((name for name in names if name.endswith(".service")), "crinoid")
        raise ConfigurationError(f"process {pid} is a service of systemd, which has to do it: systemctl reload {unit}")
    return {name: theirs[name] for name in ("WATCHDOG_USEC",) if name in theirs}
