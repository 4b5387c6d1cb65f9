"""How ids, ages, sizes and instants are shown to people."""

import time
from datetime import UTC, datetime

ID_LENGTH = 13
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_AGES = (
    ("year", 365 * 86400, 2),
    ("month", 30 * 86400, 2),
    ("week", 7 * 86400, 2),
    ("day", 86400, 2),
    ("hour", 3600, 1),
    ("minute", 60, 1),
    ("second", 1, 1),
)
"""Units with their length in seconds, and from how many on they are used."""


def shorten_id(text: str, full: bool = False) -> str:
    """Cut an id or a digest to as much as tells it apart, unless ``full``."""
    return text if full else text.removeprefix("sha256:")[:ID_LENGTH]


def format_age(since_ns: int, now_ns: int | None = None) -> str:
    """Return how long ago an instant in Unix nanoseconds was: ``3 minutes ago``."""
    seconds = ((time.time_ns() if now_ns is None else now_ns) - since_ns) // 1_000_000_000
    if seconds < 1:
        return "just now"
    unit, length_s = next((unit, length_s) for unit, length_s, least in _AGES if seconds >= length_s * least)
    number = seconds // length_s
    return f"{number} {unit}{'' if number == 1 else 's'} ago"


def format_size(size_bytes: float) -> str:
    """Tell a size in decimal units with three digits: ``1.23MB``."""
    step = 0
    while size_bytes >= 1000 and step < len(_SIZES) - 1:
        size_bytes /= 1000
        step += 1
    return f"{size_bytes:.3g}{_SIZES[step]}" if size_bytes < 999.5 else f"{size_bytes:.0f}{_SIZES[step]}"


def to_rfc3339(instant_ns: int) -> str:
    """Write Unix nanoseconds as local time with all digits that are not zero; 0 is Go's zero time, as in crictl."""
    if instant_ns == 0:
        return "0001-01-01T00:00:00Z"
    seconds, fraction = divmod(instant_ns, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, UTC).astimezone()
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    zone = local.strftime("%z")
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:5]}"
    return f"{local:%Y-%m-%dT%H:%M:%S}{digits}{zone}"
