"""Sees changes of the configuration directory when they happen (inotify), also where the directory is yet to be made.

What a pod gets never depends on it: every use compares the files by ``stat`` (``configuration``). The watch is there so
that a change is in the log when it happens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux.inotify import EVERYTHING, DirectoryWatch
from crinoid.core.api.linux.threads import call_within

_RETRY_S = 30.0


class ConfigurationWatch:
    """Calls its listeners after every change in the directory, one after the other. Belongs to the loop's thread."""

    def __init__(self, directory: Path, timeout_s: float, log: logging.Logger) -> None:
        """``timeout_s`` is what looking for the directory may take: it may be on a disk that hangs."""
        self._directory = directory
        self._timeout_s = timeout_s
        self._log = log
        self._listeners: list[Callable[[], Awaitable[object]]] = []
        self._task: asyncio.Task[None] | None = None

    def call(self, listener: Callable[[], Awaitable[object]]) -> None:
        """Add a listener; what it raises of crinoid's errors is logged."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to watch, on the running loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End the watch. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                await self._watch()
            except (OSError, CrinoidError) as error:
                self._log.warning("changes in %s are seen at the next request only: %s", self._directory, error)
                await asyncio.sleep(_RETRY_S)

    async def _watch(self) -> None:
        """Watch the directory until it is gone; where there is none, the nearest one above until the next is made."""
        nearest = await self._find_nearest()
        with DirectoryWatch(nearest, removals=True, directories=True) as watch:
            if nearest == self._directory:
                await self._notify()  # what changed before the watch stood
                async for _ in watch:
                    await self._notify()
            elif nearest == await self._find_nearest():  # else it was made before the watch stood
                awaited = self._directory.relative_to(nearest).parts[0]
                async for name in watch:
                    if name in (awaited, EVERYTHING):
                        break

    async def _find_nearest(self) -> Path:
        def find() -> Path:
            return next(path for path in (self._directory, *self._directory.parents) if path.is_dir())

        return await call_within(self._timeout_s, f"CNI configuration in {self._directory}", find)

    async def _notify(self) -> None:
        for listener in self._listeners:
            try:
                await listener()
            except CrinoidError as error:
                self._log.warning("%s", error.message)
