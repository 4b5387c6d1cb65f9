"""Subnets that no other daemon of this run has: all of them are on one host, and a route leads to one bridge."""

import itertools
import os
import random

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_STRIPES = 8
_octets = itertools.cycle(random.sample(range(_WORKER % _STRIPES, 240, _STRIPES), 240 // _STRIPES))


def third_octet() -> int:
    """Draw a number below 240 for ``10.X.number.0/24``: not drawn before, and none that another worker draws."""
    return next(_octets)
