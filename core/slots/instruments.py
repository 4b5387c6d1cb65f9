"""What the slot wrapper reports about every hook call; ``daemon`` gives it metrics and traces to report to."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Instruments(Protocol):
    """Where measurements go. Both methods are called on the event loop and must not block."""

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Take one finished call; ``outcome`` is ``ok``, ``cancelled`` or the reason of the error raised."""

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Open a trace span around a call."""


class NoInstruments:
    """Measures nothing."""

    def observe(self, role: str, slot: str, hook: str, seconds: float, outcome: str) -> None:
        """Forget the call."""

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """Return a span that does nothing."""
        return nullcontext()


NO_INSTRUMENTS = NoInstruments()
