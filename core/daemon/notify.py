"""Tells systemd of the daemon's state (sd_notify(3)): a datagram to the socket named by ``NOTIFY_SOCKET``."""

import logging
import os
import socket

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
