"""Values as other runtimes write them, in crinoid's form. Each raises ValueError for what has none."""

import ipaddress
import re
from typing import Any

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)")
_LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "warning": "warning",
    "error": "error", "fatal": "error", "panic": "error",
}  # fmt: skip
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)


def seconds(text: Any) -> float:
    """Go's durations, such as ``1m30s``."""
    parts = _DURATION.findall(str(text))
    if "".join(number + unit for number, unit in parts) != str(text) or not parts:
        raise ValueError(f"{text!r} is no duration")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def some_seconds(text: Any) -> float:
    """A duration where 0 would be for ever, which crinoid does not wait."""
    if (found := seconds(text)) <= 0:
        raise ValueError(f"{text!r} is no limit at all, and crinoid has one")
    return found


def log_level(text: Any) -> str:
    """logrus's levels."""
    if str(text).lower() not in _LEVELS:
        raise ValueError(f"{text!r} is no level")
    return _LEVELS[str(text).lower()]


def size(text: Any) -> int:
    """Docker's sizes, such as 64M."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no size")
    return int(match[1]) << (10 * " kmgt".index(match[2].lower() or " "))


def address(text: Any) -> str:
    """An address to listen on: crinoid resolves no names."""
    try:
        return str(ipaddress.ip_address(str(text)))
    except ValueError as error:
        raise ValueError(f"{text!r} is no IP address") from error


def parallel(number: Any) -> int:
    """How many at a time, where 0 is without a limit."""
    return min(int(number), 64) if int(number) > 0 else 64


def capability(name: Any) -> str:
    """With the kernel's prefix."""
    return name if str(name).startswith("CAP_") else f"CAP_{name}"


def pairs(items: Any) -> dict[str, str]:
    """``name=value`` as a table."""
    found = {}
    for item in items:
        name, equals, value = str(item).partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not name=value")
        found[name.strip()] = value.strip()
    return found
