"""What takes back the steps of a request that fails half-way: each is named, in sight of the step that it takes back.

``pods``, ``pod_init`` and ``builder`` make things in this form. What a killed daemon leaves is not for this, but for
the ledger (``resources``): a rollback mostly has the ledger's rows undone, and tells whoever was told.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

LOG = logging.getLogger(__name__)


class Rollback(contextlib.AbstractAsyncContextManager["Rollback"]):
    """Runs what was added, the latest first, where its block ends in an error or a cancellation; else nothing.

    Everything runs, also after one that fails, whose error is raised then. A second cancellation does not stop what is
    under way: it goes on in the background.
    """

    def __init__(self, act: str) -> None:
        """``act``: a noun for the log, such as ``RunPodSandbox of X``."""
        self._act = act
        self._undos = contextlib.AsyncExitStack()

    def add(self, what: str, undo: Callable[[], Awaitable[None] | None]) -> None:
        """Add what takes the next step back; ``what`` says it for the log. Add it before the step, which may fail
        half-way: every undo takes it that there may be nothing."""
        self._undos.push_async_callback(self._undo, what, undo)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await self._undos.__aexit__(kind, error, trace)

    async def _undo(self, what: str, undo: Callable[[], Awaitable[None] | None]) -> None:
        LOG.debug("%s has failed: %s", self._act, what)
        if (work := undo()) is not None:
            await asyncio.shield(work)
