"""What the slot wrapper reports about every hook call; ``daemon`` gives it metrics and traces to report to."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a hook: its answer, or the error that its caller gets, which is a cancellation if none of ours."""

    arguments: Mapping[str, object]
    seconds: float
    answer: object = None
    error: BaseException | None = None


class Tape(Protocol):
    """Takes down calls of hooks, as a whole, while somebody records them. Nothing here raises, or blocks."""

    def begin_hook(self, role: str, slot: str, hook: str, arguments: Mapping[str, object]) -> int:
        """Take down that a hook is called; return the call's number, above 0."""

    def end_hook(self, number: int, role: str, slot: str, hook: str, ended: Ended) -> None:
        """Take down what came of it; ``number`` 0, or another tape's: this one has not seen its begin."""


class Instruments(Protocol):
    """Where measurements go. Both methods are called on the event loop and must not block."""

    @property
    def tape(self) -> Tape | None:
        """Where calls are taken down now: it comes and goes."""

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Take one finished call; ``outcome`` is ``ok``, ``cancelled`` or the reason of the error raised."""

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Open a trace span around a call."""


class NoInstruments:
    """Measures nothing."""

    tape: Tape | None = None

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Forget the call."""

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Return a span that does nothing."""
        return nullcontext()


NO_INSTRUMENTS = NoInstruments()
