"""Keeps garbage collection apart from attachments: the specification wants GC to run alone (SPEC.md, Lifecycle)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class ReadWriteLock:
    """Lets any number in together (``shared``), or one alone (``exclusive``), who waits for those inside."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._alone = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Wait while somebody is in alone."""
        await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Let nobody in any more and wait until all have left; bounded by the time-outs of those inside."""
        async with self._alone:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
