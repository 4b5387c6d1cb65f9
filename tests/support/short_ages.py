"""``crinoid`` whose clients' connections age in seconds: ``python -m support.short_ages serve …``.

``CRINOID_TEST_AGE_S`` says how many. What a daemon that was taken over does at the end is over within a test then.
"""

import os

from crinoid.core.cri import server
from crinoid.core.lifecycle.events.events import EventBus

AGE = "CRINOID_TEST_AGE_S"


def main() -> None:
    server.AGE_S = float(os.environ[AGE])
    made = server.Endpoint.__init__
    made.__defaults__ = (*(made.__defaults__ or ())[:-1], server.AGE_S)  # ``age_s``
    server.RELAY_S = 2 * server.AGE_S
    EventBus.keep.__defaults__ = (0.5 * server.AGE_S,)

    from crinoid.core.cli.main import main as crinoid

    crinoid()


if __name__ == "__main__":
    main()
