"""How long contracts wait: all waits go by one factor, for machines that are slow, such as emulated ones.

``CRINOID_TEST_SLOWNESS=10`` says that this one needs ten times as long. Limits that are a test's subject stay. Pauses
between two looks at something go by it, too: there each look costs as much more.
"""

import os

SLOWNESS = float(os.environ.get("CRINOID_TEST_SLOWNESS") or 1)


def patient(seconds: float) -> float:
    """Return how long to wait here for what takes at most so long on a common machine."""
    return seconds * SLOWNESS
