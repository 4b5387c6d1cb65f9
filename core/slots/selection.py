"""Which drivers the configuration selects, and whether each can be used with the options it is given.

The step between ``config`` and ``binding``: it loads classes and validates options, but makes nothing, so that
``config check`` can take it too.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crinoid.core.api.config import DriverConfig
from crinoid.core.config.models import DEFAULT_SLOT, Config, SlotConfig
from crinoid.core.config.origins import Origins, Problem, refuse
from crinoid.core.config.positions import KeyPath
from crinoid.core.config.validation import validate
from crinoid.core.slots.drivers import Installation, LoadedDriver, UnusableDriverError


@dataclass(frozen=True, slots=True)
class Selection:
    """A slot that the configuration has, at the key path ``key``."""

    role: str
    name: str
    config: SlotConfig
    key: KeyPath


@dataclass(frozen=True, slots=True)
class ValidSlot:
    """A selection whose driver is loaded and whose options are valid."""

    selection: Selection
    driver: LoadedDriver
    options: DriverConfig


def select(config: Config) -> Iterator[Selection]:
    """Return every slot that is in use, in the order of the configuration, image sources in the order of asking."""
    for name, runtime in config.enabled_runtimes.items():
        yield Selection("runtime", name, runtime, ("runtimes", name))
    yield Selection("network", DEFAULT_SLOT, config.network, ("network",))
    for name, slot in config.networks.items():
        yield Selection("network", name, slot, ("networks", name))
    yield Selection("snapshotter", DEFAULT_SLOT, config.snapshotter, ("snapshotter",))
    for name, slot in config.snapshotters.items():
        yield Selection("snapshotter", name, slot, ("snapshotters", name))
    for name in dict.fromkeys(config.images.sources):
        if name not in config.registries:
            continue  # ``config`` tells it
        yield Selection("registry", name, config.registries[name], ("registries", name))
    for name, extension in config.extensions.items():
        if extension.enabled:
            yield Selection("extension", name, extension, ("extensions", name))


def check(config: Config, origins: Origins) -> tuple[ValidSlot, ...]:
    """Load every selected driver and validate its options; raise a ConfigurationError that lists every problem.

    The host is not touched and no driver is made.
    """
    slots, problems = examine(config, origins)
    if problems:
        for slot in slots:
            slot.driver.discard()
    refuse(problems)
    return slots


def examine(config: Config, origins: Origins) -> tuple[tuple[ValidSlot, ...], list[Problem]]:
    """As ``check``, but return the problems."""
    installation = Installation()
    selections = [*select(config)]
    apart = [selection for selection in selections if selection.config.isolation is not None]
    with ThreadPoolExecutor(max_workers=4) as threads:  # a process takes half a second to start
        found = dict(zip(map(id, apart), threads.map(lambda one: _check_isolated(one, origins), apart), strict=True))
        results = [found.get(id(one)) or check_slot(one, origins, installation) for one in selections]
    problems = [problem for result in results if isinstance(result, list) for problem in result]
    return tuple(result for result in results if isinstance(result, ValidSlot)), problems


def check_slot(selection: Selection, origins: Origins, installation: Installation) -> ValidSlot | list[Problem]:
    """Check one slot."""
    if selection.config.isolation is not None:
        return _check_isolated(selection, origins)
    key = selection.key
    try:
        driver = installation.load(selection.role, selection.config.driver)
    except UnusableDriverError as error:
        return [Problem((*key, "driver"), str(error), origins.nearest((*key, "driver")))]
    options = validate(driver.options, selection.config.options, origins, (*key, "options"))
    return options if isinstance(options, list) else ValidSlot(selection, driver, options)


def _check_isolated(selection: Selection, origins: Origins) -> ValidSlot | list[Problem]:
    """As ``check_slot``, of a driver in a process of its own, which is asked."""
    from crinoid.core.slots.isolation.loading import load_isolated  # of no use to a daemon without such slots

    config, key = selection.config, selection.key
    assert config.isolation is not None
    try:
        found = load_isolated(selection.role, selection.name, config.driver, config.options, config.isolation)
    except UnusableDriverError as error:
        return [Problem((*key, "driver"), str(error), origins.nearest((*key, "driver")))]
    if found.problems:
        places = [((*key, "options", *place), text) for place, text in found.problems]
        return [Problem(place, text, origins.nearest(place)) for place, text in places]
    return ValidSlot(selection, found.driver, found.options)
