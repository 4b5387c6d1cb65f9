"""Durations and instants as the command line takes them, in the forms of crictl (which are Go's)."""

import re
import time
from datetime import datetime
from typing import Any

import click

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Read ``1m30s``, ``500ms`` or a plain number of seconds; return seconds. Raises ValueError."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return float(text)
    if not text or _PART.sub("", text):
        raise ValueError(f"{text!r} is no duration; write it like 2s, 500ms or 1m30s")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def parse_instant(text: str) -> float:
    """Read an RFC 3339 time (local where it has no zone), a Unix time, or a duration, which means so long ago.

    Returns seconds since the epoch. Raises ValueError.
    """
    if re.fullmatch(r"[0-9]{9,}(\.[0-9]*)?", text):
        return float(text)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        pass
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time; write it like 2006-01-02T15:04:05Z, or 42m for 42 minutes ago"
        ) from None


class _Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn text into seconds."""
        try:
            return value if isinstance(value, float) else parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Instant(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic only from click 8.4 on
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn text into seconds since the epoch."""
        try:
            return value if isinstance(value, float) else parse_instant(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Duration()
INSTANT = _Instant()
