"""Counts of the pulls that ended, by registry and outcome, for metrics.

Written on the event loop's thread; another may read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_MOST_REGISTRIES = 100
OTHER = "other"
"""Stands for registries beyond the first hundred: whoever names images is not to fill the monitoring."""


@dataclass(slots=True)
class PullSums:
    """What the pulls of one registry and outcome come to."""

    count: int = 0
    seconds: float = 0.0
    fetched_bytes: int = 0


class PullFigures:
    """The sums by registry and outcome."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], PullSums] = {}
        self._registries: set[str] = set()

    def note(self, registry: str, outcome: str, seconds: float, fetched_bytes: int) -> None:
        """Add a pull that ended; ``outcome``: ``ok``, ``cancelled``, or the reason of an error."""
        if registry not in self._registries and len(self._registries) >= _MOST_REGISTRIES:
            registry = OTHER
        self._registries.add(registry)
        sums = self._sums.setdefault((registry, outcome), PullSums())
        sums.count += 1
        sums.seconds += seconds
        sums.fetched_bytes += fetched_bytes

    def sums(self) -> Mapping[tuple[str, str], PullSums]:
        """Return a copy."""
        return dict(self._sums)
