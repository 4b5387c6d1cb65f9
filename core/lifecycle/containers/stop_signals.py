"""Stop signals by name or number, as images and the CRI write them (OCI image-spec, config.md, "StopSignal")."""

import re
import signal

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.lifecycle.user_ids import quote

_REALTIME = re.compile(r"SIGRT(?P<end>MIN|MAX)(?P<offset>[+-][0-9]{1,3})?")
_NUMBER = re.compile(r"(?P<number>[0-9]{1,6})")


def signal_number(name: str) -> int:
    """Return the number of ``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3``. Raises InvalidArgument for none of these."""
    upper = name.strip().upper() if name.isascii() else ""
    if match := _NUMBER.fullmatch(upper):
        number = int(match["number"])
    elif match := _REALTIME.fullmatch(_prefixed(upper)):
        number = (signal.SIGRTMIN if match["end"] == "MIN" else signal.SIGRTMAX) + int(match["offset"] or 0)
    else:
        number = signal.Signals.__members__.get(_prefixed(upper), 0)
    if not 1 <= number <= signal.SIGRTMAX:
        raise InvalidArgument(f"stop signal {quote(name)} is no signal of this kernel")
    return int(number)


def _prefixed(name: str) -> str:
    return name if name.startswith("SIG") else f"SIG{name}"
