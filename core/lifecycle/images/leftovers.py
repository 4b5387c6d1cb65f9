"""What pulls that failed have brought: kept for a while, so that the next try goes on from there, and then garbage.

Between the pull, which tells what it leaves, and the garbage collection. What is kept is bounded in time and in space,
so that a node whose pulls fail over and over does not fill its disk with them.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

KEPT_S = 3600.0
"""The kubelet tries again within five minutes, as long as the pod is there."""
KEPT_BYTES = 1 << 30
"""Blobs of failed pulls beyond that go, the oldest pull's first; those of the latest stay, however large they are."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What one pull left: digests of blobs, whole or not, and committed layers from the bottom up."""

    blobs: tuple[str, ...]
    chain_ids: tuple[str, ...] = ()


class Leftovers:
    """The leftovers of failed pulls, the oldest first. ``size`` measures a blob, whole or not; 0 where it is needed."""

    def __init__(self, size: Callable[[str], int]) -> None:
        self._size = size
        self._kept: dict[Leftover, float] = {}

    def add(self, left: Leftover) -> None:
        """Keep what a pull left; the same again begins anew."""
        self._kept.pop(left, None)
        self._kept[left] = time.monotonic()

    def forget(self, blobs: Collection[str]) -> None:
        """Keep nothing of a pull that went well in the end: an image has it now."""
        self._kept = {left: since for left, since in self._kept.items() if not set(left.blobs).issubset(blobs)}

    def names(self) -> set[str]:
        """Return the blobs and layers that are kept."""
        return {name for left in self._kept for name in (*left.blobs, *left.chain_ids)}

    def next_s(self) -> float | None:
        """Tell in how many seconds the next one is due; ``None``: nothing is kept."""
        return max(0.0, min(self._kept.values()) + KEPT_S - time.monotonic()) if self._kept else None

    def take_due(self) -> Sequence[Leftover]:
        """Return what is kept no more, since it is old or there is too much of it."""
        due: list[Leftover] = []
        for left, since in tuple(self._kept.items()):
            if time.monotonic() - since >= KEPT_S:
                due.append(left)
                del self._kept[left]
        sizes: Mapping[Leftover, int] = {left: sum(map(self._size, left.blobs)) for left in self._kept}
        total = sum(sizes.values())
        for left in tuple(self._kept)[:-1]:
            if total <= KEPT_BYTES:
                break
            total -= sizes[left]
            due.append(left)
            del self._kept[left]
        return due
