"""Plugins that lie in a directory and are started with the daemon, each with its end of a socket as descriptor 3."""

import asyncio
import contextlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.linux import process
from crinoid.core.api.linux.files import read_regular

_MAX_CONFIG_BYTES = 4 << 20
_FILE = re.compile(r"([0-9]{2})-([A-Za-z0-9_.+-]+)")
_SOCKET_FD = 3
_REAP_S = 5.0


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """An executable ``NN-NAME`` and its configuration, empty without any."""

    path: Path
    index: str
    name: str
    config: str


def installed_plugins(directory: Path, configs: Path) -> list[InstalledPlugin]:
    """Return the plugins of a directory, in the order of their index. Blocks. Raises OSError for what can't be read."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        named = _FILE.fullmatch(path.name)
        if named and path.is_file() and os.access(path, os.X_OK):
            found.append(InstalledPlugin(path, named[1], named[2], _read_config(configs, named[1], named[2])))
    return found


class LaunchedPlugin:
    """A plugin that runs as a child of the daemon."""

    def __init__(self, installed: InstalledPlugin, ours: socket.socket, child: process.Process) -> None:
        self.installed = installed
        self.socket = ours
        self._child = child

    async def end(self) -> None:
        """Kill it, with its process group, and reap it; one that hangs in the kernel is reaped later. Idempotent."""
        self._child.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._child.wait(), _REAP_S)
        self._child.close()


def launch(installed: InstalledPlugin) -> LaunchedPlugin:
    """Start a plugin. Raises Unsupported when it can't be executed."""
    ours, theirs = socket.socketpair()
    environment = {
        "NRI_PLUGIN_NAME": installed.name,
        "NRI_PLUGIN_IDX": installed.index,
        "NRI_PLUGIN_SOCKET": str(_SOCKET_FD),
    }
    try:
        fds = {_SOCKET_FD: theirs.fileno(), 1: 2, 2: 2}
        child = process.spawn([str(installed.path)], env=environment, fds=fds)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return LaunchedPlugin(installed, ours, child)


async def open_socket(ours: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams of our end."""
    return await asyncio.open_connection(sock=ours)


def _read_config(directory: Path, index: str, name: str) -> str:
    for path in (directory / f"{index}-{name}.conf", directory / f"{name}.conf"):
        if path.is_file():
            return read_regular(path, _MAX_CONFIG_BYTES).decode()
    return ""
