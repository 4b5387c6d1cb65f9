"""When what has failed is tried again: each thing by itself, so that one that never succeeds delays no other.

For whatever can't be removed now: host resources that are deferred, trees in a snapshotter's trash, images' layers.
"""

import time
from collections.abc import Hashable, Iterable

FIRST_S, MOST_S = 5.0, 600.0
"""The first wait, after which each is twice as long as the one before, and the longest."""


class Backoff:
    """Due times by key; a key that has not failed yet is due at once. Kept in memory: a start tries everything.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._tries: dict[Hashable, tuple[float, float]] = {}

    def note_failure(self, key: Hashable) -> float:
        """Put off the next try; return for how many seconds."""
        delay_s = min(2 * self._tries[key][1], MOST_S) if key in self._tries else FIRST_S
        self._tries[key] = (time.monotonic() + delay_s, delay_s)
        return delay_s

    def forget(self, key: Hashable) -> None:
        """What has succeeded begins anew. Idempotent."""
        self._tries.pop(key, None)

    def wait_s(self, keys: Iterable[Hashable]) -> float:
        """Return how long it is until one of these is due; others are forgotten."""
        kept = set(keys)
        self._tries = {key: tried for key, tried in self._tries.items() if key in kept}
        due_s = min((self.due_s(key) for key in kept), default=0.0)
        return max(0.0, due_s - time.monotonic())

    def due_s(self, key: Hashable) -> float:
        """Return from when on it is due, by the monotonic clock."""
        return self._tries[key][0] if key in self._tries else 0.0

    def is_due(self, key: Hashable) -> bool:
        """Return whether it is time to try."""
        return self.due_s(key) <= time.monotonic()
