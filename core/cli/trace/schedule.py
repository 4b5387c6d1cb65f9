"""The order of a trace, kept in its replay: who begins when, and which answer comes after which.

Begins and ends of all calls stand in one line, as they were recorded. RPCs are begun, and hooks answered, when it is
their turn; the begin of a hook, and the end of an RPC, is waited for, as long as the trace itself took to get there and
some seconds more. What does not come is told and passed over.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from crinoid.core.cli.trace.model import Call, Edge, Moment

PATIENCE_S = 10.0
_AFTERWARDS_S = 0.2


class Schedule:
    """Goes through the moments of a trace, once."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._asked: dict[Call, asyncio.Event] = {}
        self._turn: dict[Call, asyncio.Event] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._ended: set[int] = set()
        """The RPCs that have ended in the trace by now."""
        self.found: list[str] = []
        """How the replay differs from the trace."""
        self.notes: list[str] = []
        """What else was seen, and need not be a difference in what the node does."""

    def differ(self, text: str) -> None:
        """Tell of a difference."""
        self.found.append(text)

    def note(self, text: str) -> None:
        """Tell of something that may be none."""
        if text not in self.notes:
            self.notes.append(text)

    async def ask(self, call: Call) -> None:
        """Say that a hook of the trace was called; return when its answer's turn has come."""
        self._event(self._asked, call).set()
        await self._event(self._turn, call).wait()

    async def run(
        self, moments: Iterable[Moment], begin: Callable[[Call], Awaitable[None]], has_turn: Callable[[Call], bool]
    ) -> None:
        """Go through all moments. ``begin`` runs an RPC to its end; a hook without a turn is passed over."""
        last_s = 0.0
        for moment in moments:
            call = moment.call
            limit_s, last_s = max(0.0, moment.at_s - last_s) + self._patience_s, moment.at_s
            if call.rpc:
                await self._rpc(moment, limit_s, begin)
            elif has_turn(call):
                await self._hook(moment, limit_s)
            # Who was let go on has its turn before the next moment's comes.
            for _ in range(5):
                await asyncio.sleep(0)

    async def finish(self) -> None:
        """Cancel the RPCs that had not ended when the trace did."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _rpc(self, moment: Moment, limit_s: float, begin: Callable[[Call], Awaitable[None]]) -> None:
        call = moment.call
        if moment.edge is Edge.BEGIN:
            self._running[call.number] = asyncio.ensure_future(begin(call))
            return
        task = self._running[call.number]
        self._ended.add(call.number)
        if call.code == "CANCELLED":  # the client left
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            self.differ(f"{call} ended {call.code} in the trace, and has not ended here")

    async def _hook(self, moment: Moment, limit_s: float) -> None:
        call, asked = moment.call, self._event(self._asked, moment.call)
        if moment.edge is Edge.END:
            self._event(self._turn, call).set()
            return
        if asked.is_set():
            return
        waiting = {asyncio.create_task(asked.wait())}
        caller = self._running.get(call.inside)
        # A hook is not called any more once its RPC has ended, unless it was called after that in the trace, too.
        within = {caller} if caller is not None and call.inside not in self._ended else set()
        await asyncio.wait(waiting | within, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if within and not asked.is_set():
            await asyncio.wait(waiting, timeout=_AFTERWARDS_S)
        for task in waiting:
            task.cancel()
        if not asked.is_set():
            self.differ(f"{call} is not asked here")

    def _event(self, events: dict[Call, asyncio.Event], call: Call) -> asyncio.Event:
        return events.setdefault(call, asyncio.Event())
