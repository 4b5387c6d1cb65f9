"""A slot whose driver is in a process of its own, as ``selection`` and ``binding`` have it: checked, and made.

Nothing of the driver is imported here: a process that loads it tells what it is, and looks at its options.
"""

from dataclasses import dataclass

from crinoid import __version__
from crinoid.core.config.models import IsolationConfig
from crinoid.core.config.positions import KeyPath
from crinoid.core.slots.drivers import LoadedDriver
from crinoid.core.slots.isolation.plugin_process import LoadedProcess, Wanted
from crinoid.core.slots.isolation.proxy import OpenOptions
from crinoid.core.slots.roles import ROLES


@dataclass(frozen=True, slots=True)
class Isolated:
    """A driver that can be used in a process of its own, with its options; or, by key path, what is wrong with them."""

    driver: LoadedDriver
    options: OpenOptions
    problems: tuple[tuple[KeyPath, str], ...]


def load_isolated(role: str, slot: str, driver: str, table: dict[str, object], isolation: IsolationConfig) -> Isolated:
    """Have a process load a driver. Raises UnusableDriverError."""
    process = LoadedProcess(Wanted(ROLES[role], slot, driver, table, isolation, __version__))
    loaded = process.loaded
    if loaded.problems:
        process.end()
    options = OpenOptions.model_validate(dict(loaded.options))
    found = LoadedDriver(process.installed, process.make, OpenOptions, loaded.import_s, loaded.replaceable, process.end)
    return Isolated(found, options, loaded.problems)
