"""A pod's bandwidth limits, which Kubernetes passes as annotations (``kubernetes.io/ingress-bandwidth``)."""

import re
from collections.abc import Mapping
from decimal import Decimal

from crinoid.core.api.errors import InvalidArgument

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[kMGTPE]|[KMGTPE]i|m|e[0-9]+)?")
_UNITS = {"m": Decimal("0.001"), "k": Decimal(10**3), None: Decimal(1)}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", 2)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
_RANGE = (1000, 10**15)


def limits_of(annotations: Mapping[str, str]) -> tuple[int, int]:
    """Return ingress and egress in bits a second, 0 for none. Raises InvalidArgument for what is no sane quantity."""
    return _limit(annotations, "ingress"), _limit(annotations, "egress")


def _limit(annotations: Mapping[str, str], direction: str) -> int:
    key = f"kubernetes.io/{direction}-bandwidth"
    if key not in annotations:
        return 0
    match = _QUANTITY.fullmatch(annotations[key])
    unit = match["unit"] if match else None
    scale = Decimal(10) ** int(unit[1:]) if unit and unit[0] == "e" and len(unit) < 4 else _UNITS.get(unit)
    if match is None or scale is None:
        raise InvalidArgument(f"annotation {key}: {annotations[key]!r} is not a quantity such as 10M")
    bits = int(Decimal(match["number"]) * scale)
    if not _RANGE[0] <= bits <= _RANGE[1]:
        raise InvalidArgument(f"annotation {key}: {annotations[key]!r} is not between 1k and 1P")
    return bits
