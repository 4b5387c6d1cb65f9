"""What a run found: samples by figure and endpoint, also as a figure grows with the number of something; and gaps."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.figures import BY_KEY, UNITS_PER_S

Samples = dict[str, dict[str, list[float]]]
"""Values by figure and endpoint, in the figure's unit."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What could not be measured, and why."""

    scenario: str
    endpoint: str
    reason: str


@dataclass
class Results:
    """Samples, and where the next ones go. ``growth`` is by axis and number: ``growth["pods"][50]`` are samples.

    ``busy`` is, by scenario, the CPU that others took, in percent of one core.
    """

    samples: Samples = field(default_factory=dict)
    growth: dict[str, dict[int, Samples]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    busy: dict[str, dict[str, float]] = field(default_factory=dict)
    _place: Samples | None = None

    def add(self, key: str, endpoint: str, value: float) -> None:
        """Add a value in the figure's unit."""
        place = self.samples if self._place is None else self._place
        place.setdefault(BY_KEY[key].key, {}).setdefault(endpoint, []).append(value)

    @contextlib.contextmanager
    def timed(self, key: str, endpoint: str) -> Iterator[None]:
        """Add the time that the block takes; nothing if it fails."""
        began = time.perf_counter()
        yield
        self.add(key, endpoint, (time.perf_counter() - began) * UNITS_PER_S[BY_KEY[key].unit])

    @contextlib.contextmanager
    def at(self, axis: str, number: int) -> Iterator[None]:
        """Add what is added inside as a part of the growth along an axis."""
        with self._placed(self.growth.setdefault(axis, {}).setdefault(number, {})):
            yield

    @contextlib.contextmanager
    def ignored(self, warming: bool = True) -> Iterator[None]:
        """Forget what is added inside, for a round that warms up."""
        if not warming:
            yield
            return
        with self._placed({}):
            yield

    @contextlib.contextmanager
    def _placed(self, place: Samples) -> Iterator[None]:
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before
