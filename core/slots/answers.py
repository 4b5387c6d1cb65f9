"""What a hook's answer must be: checks that a facade gives to the wrapper with each call.

A check takes whatever the driver returned and returns it typed, or raises DriverError saying what is due.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.stats import CgroupUsage, PressureStats

T = TypeVar("T")
Check = Callable[[object], T]
_MAX_UINT64 = (1 << 64) - 1
_MAX_INT64 = (1 << 63) - 1


def one(expected: type[T]) -> Check[T]:
    """The answer is a value of this type."""

    def check(answer: object) -> T:
        if not isinstance(answer, expected):
            raise DriverError(f"returned {_name(answer)} where {expected.__name__} is due")
        return answer

    return check


def one_or_none(expected: type[T]) -> Check[T | None]:
    """The answer is a value of this type, or nothing."""
    check = one(expected)
    return lambda answer: None if answer is None else check(answer)


def tuple_of(expected: type[T]) -> Check[tuple[T, ...]]:
    """The answer is a tuple whose elements are all of this type."""
    check_whole, check_element = one(tuple), one(expected)
    return lambda answer: tuple(check_element(element) for element in check_whole(answer))


def places(expected: type[T], count: int) -> Check[tuple[T | None, ...]]:
    """The answer is a tuple of so many elements, each of this type or nothing."""
    check_whole, check_element = one(tuple), one_or_none(expected)

    def check(answer: object) -> tuple[T | None, ...]:
        found = tuple(check_element(element) for element in check_whole(answer))
        if len(found) != count:
            raise DriverError(f"returned {len(found)} values where {count} are due")
        return found

    return check


def usage(answer: object) -> CgroupUsage:
    """The answer is a reading whose figures the CRI can carry.

    A kubelet computes with them unasked: it makes JSON of averages, which has no NaN, and rates of times and counters.
    """
    reading = one(CgroupUsage)(answer)
    if not isinstance(reading.timestamp_ns, int) or not 0 < reading.timestamp_ns <= _MAX_INT64:
        raise DriverError(f"returned a reading of the time {reading.timestamp_ns!r}, which is no time in nanoseconds")
    for name in CgroupUsage.__slots__:
        if not _is_figure(value := getattr(reading, name)):
            raise DriverError(f"returned a reading with {value!r} as {name}, which is no figure from 0 to 2^64-1")
    return reading


def usages(count: int) -> Check[tuple[CgroupUsage | None, ...]]:
    """The answer is a tuple of so many readings, each maybe missing."""
    check_places = places(CgroupUsage, count)
    return lambda answer: tuple(None if one is None else usage(one) for one in check_places(answer))


def layers(answer: object) -> tuple[tuple[str, str | None], ...]:
    """The answer is a tuple of chain ids with their parents."""
    pairs = tuple_of(tuple)(answer)
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str | None):
            raise DriverError(f"returned {pair!r} where a chain id and its parent are due")
    return pairs


def json_object(answer: object) -> Mapping[str, object]:
    """The answer can be written to disk as a JSON object; what comes back from there is passed on, whatever the driver
    does with its own."""
    if not isinstance(answer, Mapping):
        raise DriverError(f"returned {_name(answer)} where a JSON object is due")
    try:
        # A copy that came through JSON is what a later daemon reads: no tuples, no keys that are numbers.
        copy: dict[str, object] = json.loads(json.dumps(dict(answer)))
    except (TypeError, ValueError) as error:
        raise DriverError(f"returned an object that is no JSON: {error}") from error
    return copy


def nothing(answer: object) -> None:
    """The hook has no answer; one that is given is ignored."""


def _is_figure(value: object) -> bool:
    """Return whether a reading's field fits: a whole number, an average that is a number, nothing, lines of those."""
    match value:
        case None:
            return True
        case PressureStats(full=full, some=some):
            lines = (full, some)
            averages = [average for line in lines for average in (line.avg10, line.avg60, line.avg300)]
            return all(_is_figure(line.total_us) for line in lines) and all(map(math.isfinite, averages))
        case int():
            return not isinstance(value, bool) and 0 <= value <= _MAX_UINT64
        case _:
            return False


def _name(answer: object) -> str:
    return "nothing" if answer is None else type(answer).__name__
