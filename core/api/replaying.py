"""Sequences that are found only as far as somebody looks."""

import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Replayed(Generic[T]):
    """What an iterator yields, for any number of loops, and taken from it no further than one of them goes."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._taken: list[T] = []

    def __iter__(self) -> Iterator[T]:
        for number in itertools.count():
            if number == len(self._taken):
                self._taken.extend(itertools.islice(self._source, 1))
            if number == len(self._taken):
                return
            yield self._taken[number]
