"""Asks the kernel ahead of time for what a runtime's binary would wait for: moving processes between cgroups.

Begun as soon as a container, or a process in one, is going to be started; the wait goes by while everything else is
prepared. Making and removing cgroups waits as well meanwhile: what can be made before should be.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from crinoid.core.api.linux import cgroups

_PAUSE_S = 0.004
"""Between two moves: a grace period, for which the kernel stays ready, takes two of its ticks (4 ms) and more."""
_REST_S = 10.0
"""How long the thread waits for somebody to want it again: to start one takes longer than to wake it."""


class CgroupWarmup:
    """One thread that keeps the kernel ready as long as somebody wants it; nobody waits for it."""

    def __init__(self, warm_up: Callable[[], None] = cgroups.warm_up) -> None:
        """``warm_up`` asks the kernel once."""
        self._warm_up = warm_up
        self._changed = threading.Condition()
        self._wanting = 0
        self._until_s = 0.0
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Have the kernel ready as long as the block lasts."""
        self._want(1)
        try:
            yield
        finally:
            self._want(-1)

    def linger(self, duration_s: float) -> None:
        """Have the kernel ready for a while from now on."""
        self._until_s = time.monotonic() + duration_s
        self._want(0)

    def _want(self, more: int) -> None:
        with self._changed:
            self._wanting += more
            if not self._is_wanted():
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_ready, name="warmup", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def _is_wanted(self) -> bool:
        return self._wanting > 0 or time.monotonic() < self._until_s

    def _keep_ready(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(self._is_wanted, _REST_S):
                    self._thread = None  # under the lock: who wants it next sees that, and starts another
                    return
            self._warm_up()
            time.sleep(_PAUSE_S)
