"""The demo's daemon: ``crinoid serve`` in a process of its own, over directories of its own."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, Unavailable
from crinoid.core.api.linux import process
from crinoid.core.cri.client import Client, Json

_START_S = 120.0
_STOP_S = 60.0


class Daemon:
    """Starts, stops and kills the daemon, and calls it."""

    def __init__(self, config: Path, socket: Path, log: Path) -> None:
        self.config = config
        self.socket = socket
        self._log = log
        self._process: process.Process | None = None

    @property
    def pid(self) -> int:
        """The daemon's process; 0 while none runs."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start, and wait until it answers."""
        command = (sys.executable, "-m", "crinoid", "serve", "--config", str(self.config))
        with self._log.open("ab") as log:
            self._process = process.spawn(command, env=_environment(), fds={1: log.fileno(), 2: log.fileno()})
        ended = asyncio.create_task(self._process.wait())
        try:
            await self._wait_until_served(ended)
        finally:
            ended.cancel()

    async def stop(self) -> int:
        """Stop as a service manager does: pods run on. Return the exit code."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill without warning."""
        await self._end(signal.SIGKILL)

    async def call(self, rpc: str, request: Mapping[str, object] | None = None, timeout_s: float = 120) -> Json:
        """Call an RPC."""
        async with Client(f"unix://{self.socket}") as client:
            return await client.call(rpc, request, timeout_s)

    def log_tail(self) -> str:
        """Return the end of what the daemon wrote."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else "(it wrote nothing)"

    async def _wait_until_served(self, ended: "asyncio.Task[int]") -> None:
        deadline = time.monotonic() + _START_S
        while not ended.done() and time.monotonic() < deadline:
            try:
                await self.call("Version", timeout_s=5)
            except CrinoidError:
                await asyncio.sleep(0.05)
            else:
                return
        raise Unavailable("the daemon does not serve; its log tells why")

    async def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        ending, self._process = self._process, None
        ending.kill(number)
        try:
            return await asyncio.wait_for(ending.wait(), _STOP_S)
        except TimeoutError:
            ending.kill(signal.SIGKILL)
            return await ending.wait()
        finally:
            ending.close()


def _environment() -> dict[str, str]:
    """Our own, without what a service manager meant for us alone."""
    return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
