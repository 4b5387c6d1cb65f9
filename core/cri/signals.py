"""Stop signals: the CRI's names and numbers against those everybody else uses, ``SIGTERM`` and ``SIGRTMIN+3``."""

import signal
from collections.abc import Mapping

from crinoid.core.cri.wire import api_pb2

_PREFIX = "SIGNAL_"
_DEFAULT = "SIGNAL_RUNTIME_DEFAULT"


def _common_name(wire_name: str) -> str:
    return wire_name.removeprefix(_PREFIX).replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-")


_NAMES: Mapping[int, str] = {
    number: _common_name(wire_name) for wire_name, number in api_pb2.Signal.items() if wire_name != _DEFAULT
}
_WIRE_NAMES: Mapping[str, str] = {name: api_pb2.Signal.Name(number) for number, name in _NAMES.items()}


def decode_signal(number: int) -> str:
    """Return the name of a wire number; empty for the image's own signal."""
    return _NAMES.get(number, "")


def encode_signal(name: str) -> str:
    """Return the wire's name of a signal as images spell it (``SIGTERM``, ``term``, ``15``, ``SIGRTMIN+3``).

    A signal that the CRI has no number for becomes SIGNAL_RUNTIME_DEFAULT.
    """
    text = _of_kernel(int(name)) if name.isascii() and name.isdigit() else name.upper()
    text = text if text.startswith("SIG") else f"SIG{text}"
    return _WIRE_NAMES.get(text) or _WIRE_NAMES.get(_from_nearer_end(text), _DEFAULT)


def _of_kernel(number: int) -> str:
    """Name a signal by the kernel's number."""
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def _from_nearer_end(name: str) -> str:
    """Count a signal for real-time use down from the last one: the CRI has names for 15 above the first only."""
    above = name.removeprefix("SIGRTMIN+")
    if above == name or not above.isdigit():
        return ""
    below = signal.SIGRTMAX - signal.SIGRTMIN - int(above)
    return f"SIGRTMAX-{below}" if below else "SIGRTMAX"
