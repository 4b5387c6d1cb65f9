"""Tests of several workers take turns with those that want the machine to themselves; here threads are the workers."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import turns
from support.patience import patient


class Worker:
    """A thread that takes a turn, and keeps it until it is told to end."""

    def __init__(self, directory: Path, *, alone: bool) -> None:
        self._has_turn, self._ended = threading.Event(), threading.Event()
        self._directory, self._alone = directory, alone
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def has_turn(self, within_s: float = 10) -> bool:
        return self._has_turn.wait(patient(within_s))

    def end(self) -> None:
        self._ended.set()
        self._thread.join(patient(10))

    def _work(self) -> None:
        files = {name: self._directory / name for name in ("turnstile", "machine")}
        with turns.taken(alone=self._alone, **files):
            self._has_turn.set()
            self._ended.wait(patient(60))


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Worker]:
    for name in ("turnstile", "machine"):
        (tmp_path / name).touch()
    return lambda *, alone: Worker(tmp_path, alone=alone)


def test_one_that_is_alone_waits_for_all_others_and_goes_before_new_ones(begin: Callable[..., Worker]) -> None:
    first, second = begin(alone=False), begin(alone=False)
    assert first.has_turn()
    assert second.has_turn()
    alone = begin(alone=True)
    first.end()
    assert not alone.has_turn(0.1)
    late = begin(alone=False)
    assert not late.has_turn(0.1)
    second.end()
    assert alone.has_turn()
    assert not late.has_turn(0.1)
    alone.end()
    assert late.has_turn()
    late.end()


def test_two_that_are_alone_follow_each_other(begin: Callable[..., Worker]) -> None:
    first = begin(alone=True)
    assert first.has_turn()
    second = begin(alone=True)
    assert not second.has_turn(0.1)
    first.end()
    assert second.has_turn()
    second.end()


def test_tests_that_are_alone_keep_their_turn_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[bool] = []

    @contextlib.contextmanager
    def taken(*, alone: bool) -> Iterator[None]:
        took.append(alone)
        yield
        took.append(alone)

    monkeypatch.setattr(turns, "taken", taken)
    mine = turns.Turns()
    for alone, goes_on in ((False, False), (True, True), (True, True), (True, False), (False, False)):
        with mine.one(alone=alone, goes_on=goes_on):
            assert len(took) % 2 == 1, "a turn is held"
    assert took == [False, False, True, True, False, False]
