"""When what has failed is tried again: each thing by itself, so that one that never succeeds delays no other."""

import time
from collections.abc import Hashable, Iterable

FIRST_S, MOST_S = 30.0, 600.0


class Backoff:
    """Due times by key; a key that has not failed yet is due at once. Kept in memory: a start tries everything."""

    def __init__(self) -> None:
        self._tries: dict[Hashable, tuple[float, float]] = {}

    def note_failure(self, key: Hashable) -> None:
        """Put off the next try: 30 s after the first failure, then twice as long each time, at most ten minutes."""
        delay_s = min(2 * self._tries[key][1], MOST_S) if key in self._tries else FIRST_S
        self._tries[key] = (time.monotonic() + delay_s, delay_s)

    def wait_s(self, keys: Iterable[Hashable]) -> float:
        """Return how long it is until one of these is due; others are forgotten."""
        kept = set(keys)
        self._tries = {key: tried for key, tried in self._tries.items() if key in kept}
        due_s = min((self._tries[key][0] if key in self._tries else 0.0 for key in kept), default=0.0)
        return max(0.0, due_s - time.monotonic())

    def is_due(self, key: Hashable) -> bool:
        """Return whether it is time to try."""
        return key not in self._tries or self._tries[key][0] <= time.monotonic()
