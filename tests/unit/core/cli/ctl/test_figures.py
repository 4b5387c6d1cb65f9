"""How ages, sizes, ids and instants are shown."""

import time

import pytest

from crinoid.core.cli.ctl.figures import format_age, format_size, shorten_id, to_rfc3339

DAY = 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (2 * DAY - 1, "47 hours ago"),
        (2 * DAY, "2 days ago"),
        (14 * DAY, "2 weeks ago"),
        (60 * DAY, "2 months ago"),
        (800 * DAY, "2 years ago"),
    ],
)
def test_an_age_has_one_unit(seconds: int, text: str) -> None:
    assert format_age(0, seconds * 1_000_000_000) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.23MB"), (999_900, "1000kB"), (5 * 10**12, "5TB")],
)
def test_a_size_has_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_an_id_is_cut_unless_it_is_asked_for_in_full() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    assert shorten_id(digest) == "0123456789abc"
    assert shorten_id(digest, full=True) == digest


def test_an_instant_has_all_its_digits_and_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert to_rfc3339(1_700_000_000_120_000_000) == "2023-11-15T03:43:20.12+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_instant_is_the_zero_time_of_crictl() -> None:
    assert to_rfc3339(0) == "0001-01-01T00:00:00Z"
