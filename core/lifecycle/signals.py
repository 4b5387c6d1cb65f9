"""Stop signals by name or number, as images and the CRI write them (OCI image-spec, config.md, "StopSignal")."""

import re
import signal

from crinoid.core.api.errors import InvalidArgument

_REALTIME = re.compile(r"SIGRT(?P<end>MIN|MAX)(?P<offset>[+-]\d+)?")


def signal_number(name: str) -> int:
    """Return the number of ``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3``. Raises InvalidArgument for none of these."""
    upper = name.strip().upper()
    if upper.isdigit():
        number = int(upper)
    elif match := _REALTIME.fullmatch(_prefixed(upper)):
        number = (signal.SIGRTMIN if match["end"] == "MIN" else signal.SIGRTMAX) + int(match["offset"] or 0)
    else:
        number = getattr(signal.Signals, _prefixed(upper), 0)
    if not 1 <= number <= signal.SIGRTMAX:
        raise InvalidArgument(f"stop signal {name!r} is no signal of this kernel")
    return int(number)


def _prefixed(name: str) -> str:
    return name if name.startswith("SIG") else f"SIG{name}"
