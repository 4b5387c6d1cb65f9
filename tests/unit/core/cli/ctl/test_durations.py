"""Durations and instants of the command line."""

import time
from datetime import datetime

import pytest

from crinoid.core.cli.ctl.durations import parse_duration, parse_instant


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("7", 7)])
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "2x", "-1s", "1s2", "two"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


def test_an_instant_is_a_time_or_so_long_ago() -> None:
    assert parse_instant("2023-11-14T22:13:20Z") == 1_700_000_000
    assert parse_instant("1700000000") == 1_700_000_000
    assert parse_instant("2023-11-14T22:13:20") == datetime(2023, 11, 14, 22, 13, 20).astimezone().timestamp()
    assert parse_instant("42m") == pytest.approx(time.time() - 42 * 60, abs=5)
    with pytest.raises(ValueError, match="no time"):
        parse_instant("yesterday")
