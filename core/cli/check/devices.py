"""Devices by CDI: how many are described, and which files can't be used. A node without any has nothing to tell."""

from collections.abc import Iterator

from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.cdi.spec_directories import Directories

_AREA = Area("devices")


def examine_devices(config: Config) -> Iterator[Finding]:
    """Examine the directories of CDI files."""
    names, problems = Directories(config.pods.cdi_spec_dirs).survey()
    if names:
        yield _AREA.ok("CDI", f"{len(names)} devices, such as {min(names)}")
    for problem in problems:
        yield _AREA.warning("CDI", problem, "correct or remove the file, or run its vendor's tool again")
