"""Finds and loads drivers by their entry points: the only importer of stevedore.

stevedore is lax by default: it logs a driver that can't be imported, takes the last of two of one name, and may
answer from a cache that is older than the installation. Here each of these is an error that names the distribution,
but only for a driver that the configuration selects.
"""

import importlib.metadata
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stevedore.named import NamedExtensionManager

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.hooks.conformance import find_defects, find_missing
from crinoid.core.config.origins import suggest
from crinoid.core.slots.roles import ROLES, Role
from crinoid.core.slots.running import describe

SLOW_S = 0.5
"""How long the import of a driver may take without being named."""


@dataclass(frozen=True, slots=True)
class InstalledDriver:
    """A driver as its distribution declares it.

    ``api_version`` is empty and ``error`` says why where it was loaded and can't be used; both are empty where it
    was not loaded.
    """

    role: str
    name: str
    distribution: str
    version: str
    target: str
    api_version: str = ""
    error: str = ""

    @property
    def title(self) -> str:
        """How errors name the driver: with the distribution that is to blame."""
        return f'{self.role} driver "{self.name}" of distribution {self.distribution} {self.version}'.rstrip()


@dataclass(frozen=True, slots=True)
class LoadedDriver:
    """A driver's class, ready to be made: ``factory(options, host)``, with the model of its options."""

    installed: InstalledDriver
    factory: Any  # a class of a distribution that nobody here knows; its contract is core/api/hooks
    options: type[DriverConfig]
    import_s: float = 0.0
    """How long its import took, the first time."""
    is_replaceable: bool = False
    """Whether it may be made anew while the one before it is in use."""
    discard: Callable[[], None] = lambda: None
    """Ends what loading it has started, where it is not made; blocks. Idempotent."""


class UnusableDriverError(ConfigurationError):
    """A driver that was asked for is missing, broken, doubled or of another plugin API version."""


class Installation:
    """What is installed when this is made; all metadata is read once, which takes milliseconds."""

    def __init__(self) -> None:
        self._points = importlib.metadata.entry_points()
        self._owners: dict[importlib.metadata.Distribution | None, tuple[str, str]] = {None: ("unknown", "")}

    def discover(self, *, load: bool = False) -> tuple[InstalledDriver, ...]:
        """Return every installed driver of every role, by role and name.

        With ``load`` each one is imported, to tell its API version and whether it could be used; what that raises is
        kept in ``error``. Without, nothing is imported.
        """
        found = [self._describe(role, point) for role in ROLES.values() for point in self._of(role)]
        found.sort(key=lambda driver: (driver.role, driver.name, driver.distribution))
        return tuple(self._inspect(driver) for driver in found) if load else tuple(found)

    def load(self, role: str, name: str) -> LoadedDriver:
        """Import the one driver of this role and name; raise UnusableDriverError, saying whose fault it is."""
        points = self._of(ROLES[role])
        rivals = [point for point in points if point.name == name]
        if not rivals:
            raise UnusableDriverError(_say_missing(ROLES[role], name, {point.name for point in points}))
        if len(rivals) > 1:
            owners = " and ".join(sorted(_owner(point) for point in rivals))
            raise UnusableDriverError(f'{role} driver "{name}" is claimed by {owners}: uninstall all but one of them')
        installed = self._describe(ROLES[role], rivals[0])
        started_s = time.monotonic()
        factory = _import(installed, rivals)
        took_s = time.monotonic() - started_s
        options = _check_contract(installed, factory)
        return LoadedDriver(installed, factory, options, took_s, bool(getattr(factory, "replaceable", False)))

    def _of(self, role: Role) -> list[importlib.metadata.EntryPoint]:
        return list(self._points.select(group=role.group))

    def _describe(self, role: Role, point: importlib.metadata.EntryPoint) -> InstalledDriver:
        name, version = self._owner(point.dist)
        return InstalledDriver(role.name, point.name, name, version, point.value)

    def _owner(self, distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
        """Return name and version; each time a distribution is asked for one it reads all of its metadata."""
        if distribution is not None and distribution not in self._owners:
            metadata = distribution.metadata
            self._owners[distribution] = (metadata["Name"], metadata["Version"])
        return self._owners[distribution]

    def _inspect(self, driver: InstalledDriver) -> InstalledDriver:
        try:
            return replace(driver, api_version=self.load(driver.role, driver.name).factory.api_version)
        except UnusableDriverError as error:
            return replace(driver, error=str(error))


class _Drivers(NamedExtensionManager[Any]):
    """stevedore without its caches: it takes the entry points that it is given."""

    def __init__(self, points: list[importlib.metadata.EntryPoint], *arguments: Any, **options: Any) -> None:
        self._given = points
        super().__init__(*arguments, **options)

    def list_entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return self._given


def _owner(point: importlib.metadata.EntryPoint) -> str:
    return f"distribution {point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _import(driver: InstalledDriver, points: list[importlib.metadata.EntryPoint]) -> Any:
    """Let stevedore import the driver's class; whatever its modules raise becomes a UnusableDriverError."""
    failures: list[BaseException] = []

    def keep(manager: object, point: importlib.metadata.EntryPoint, error: BaseException) -> None:
        failures.append(error)

    try:
        found = list(_Drivers(points, ROLES[driver.role].group, [driver.name], on_load_failure_callback=keep))
    except BaseException as error:  # noqa: BLE001  # what stevedore lets through: no Exception but AssertionError
        failures.append(error)
        found = []
    if failures or not found:
        raise UnusableDriverError(_say_broken(driver, failures)) from (failures[0] if failures else None)
    return found[0].plugin


def _check_contract(driver: InstalledDriver, factory: Any) -> type[DriverConfig]:
    """Check what a class must have to be a driver, and return the model of its options."""
    if not isinstance(factory, type):
        raise UnusableDriverError(f"{driver.title}: {driver.target} is no class; report it to its authors")
    version = getattr(factory, "api_version", None)
    if not is_served(version):
        raise UnusableDriverError(_say_version(driver, version))
    options = getattr(factory, "Config", None)
    if not (isinstance(options, type) and issubclass(options, DriverConfig)):
        raise UnusableDriverError(f"{driver.title}: its Config is no DriverConfig; report it to its authors")
    check_hooks(factory, driver)
    return options


def check_hooks(factory_or_driver: object, driver: InstalledDriver) -> None:
    """Raise UnusableDriverError unless a class, or the object made of it, has its role's hooks as specified."""
    role = ROLES[driver.role]
    if defects := find_defects(factory_or_driver, role.specification):
        raise UnusableDriverError(
            f"{driver.title} does not fit its hooks, report it to its authors: {'; '.join(defects)}"
        )
    if missing := find_missing(factory_or_driver, role.specification, role.optional):
        raise UnusableDriverError(
            f"{driver.title} lacks {', '.join(missing)}, which every {role.name} driver must have"
        )


def is_served(version: object) -> bool:
    """Return whether a driver that was written for this version of the API may rely on ours: the same major one, and no
    newer minor one."""
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        return False
    (major, minor), (our_major, our_minor) = (map(int, each.split(".")) for each in (version, API_VERSION))
    return major == our_major and minor <= our_minor


def _say_missing(role: Role, name: str, known: set[str]) -> str:
    advice = f"install the distribution that has it (entry point group {role.group}), or name another"
    page = "docs/troubleshooting.md#driver-not-installed"
    return f'no {role.name} driver "{name}" is installed: {advice} ({page}){suggest(name, known)}'


def _say_broken(driver: InstalledDriver, failures: list[BaseException]) -> str:
    why = "; ".join(describe(error) for error in failures) or "its entry point vanished"
    return f"{driver.title} can't be imported from {driver.target}: {why}. Reinstall or upgrade it, or name another"


def _say_version(driver: InstalledDriver, version: object) -> str:
    said = f"is for plugin API {version}" if isinstance(version, str) else "names no plugin API version"
    return f"{driver.title} {said}, but this is {API_VERSION}: install a version of it that fits, or name another"
