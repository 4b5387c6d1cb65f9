"""What the daemon remembers, and what is on the host of pods and containers that it does not."""

from collections.abc import Iterator

from crinoid.core.api.errors import CrinoidError
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.cli.doctor import look
from crinoid.core.config.loader import Loaded
from crinoid.core.lifecycle.strays.strays import describe

_AREA = Area("state")


def examine_state(loaded: Loaded) -> Iterator[Finding]:
    """Look for a database that was put aside, and for what is on no record."""
    for aside in sorted(loaded.config.root.glob("state.db.broken-*")):
        if aside.name[-4:] not in ("-wal", "-shm"):
            yield _AREA.warning(
                "database", f"{aside} was damaged and put aside", "look into it, and remove it when nothing is missing"
            )
    try:
        strays = look(loaded)
    except CrinoidError as error:
        yield _AREA.failure("database", error.message, "see to it that it can be read")
        return
    if not strays:
        yield _AREA.ok("strays", "nothing is on this host that is on no record")
    for line in describe(strays):
        yield _AREA.warning("strays", f"{line}, on no record", "see 'crinoid doctor', which can adopt or remove it")
