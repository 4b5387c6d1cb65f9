"""How streams share the event loop with everybody else: in turns, one short slice a round of the loop.

Without it a connection whose bytes are always there never waits, and so nobody else runs: Python's streams yield only
where they would block.
"""

import asyncio
from collections import deque

SLICE_S = 0.002
"""An RPC takes a handful of rounds of the loop, so it takes a handful of these the longer while streams are flooded."""


class Turns:
    """One for all connections of a server. Whoever is about to do a bounded piece of work awaits ``take`` before.

    In each round of the loop all that ask have one slice together. When it is over they queue, and the rounds after it
    have one slice each for the first in the queue, who goes to its end when its slice is spent. So others wait for one
    slice a round, however many connections there are, and none of these is left out.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._is_open = False  # a slice was given out in this round, or will be in the next
        self._until = 0.0

    async def take(self) -> None:
        """Return at once within the slice of this round, else when it is one's turn."""
        if self._is_open:
            if self._loop.time() < self._until:
                return
            waiter = self._loop.create_future()
            self._queue.append(waiter)
            await waiter
        else:
            self._is_open = True
            self._loop.call_soon(self._next)
        self._until = self._loop.time() + SLICE_S

    def _next(self) -> None:
        """End the slice; the next round, which is after the loop has looked for all that has come, is another's."""
        self._until = 0.0
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():  # it may have been cancelled
                waiter.set_result(None)
                self._loop.call_soon(self._next)  # behind the waiter's own step
                return
        self._is_open = False
