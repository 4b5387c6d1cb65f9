"""What is installed, what of it the configuration uses, and what is wrong with it: for ``crinoid plugins``."""

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from crinoid.core.config.models import Config
from crinoid.core.config.origins import NO_ORIGINS, Origins
from crinoid.core.slots.drivers import Installation, InstalledDriver
from crinoid.core.slots.selection import Selection, check_slot, select


class State(enum.Enum):
    """``MISSING``: selected, not installed. ``BROKEN``: can't be loaded. ``MISCONFIGURED``: its options are wrong."""

    SELECTED = "selected"
    AVAILABLE = "available"
    BROKEN = "broken"
    MISSING = "missing"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A driver that is installed, or that the configuration wants; ``slots`` are those that use it, ``isolated`` those
    of them that have it in a process of its own."""

    driver: InstalledDriver
    state: State
    slots: tuple[str, ...] = ()
    error: str = ""
    isolated: tuple[str, ...] = ()


_Problems = Callable[[Iterable[Selection]], list[str]]
"""Tells what is wrong with slots."""


def list_plugins(config: Config | None, origins: Origins = NO_ORIGINS) -> tuple[Plugin, ...]:
    """Return every driver by role and name; without a configuration none is in use. Imports all drivers."""
    selections = tuple(select(config)) if config else ()
    installation = Installation()
    installed = installation.discover(load=True)

    def problems(of: Iterable[Selection]) -> list[str]:
        results = [check_slot(selection, origins, installation) for selection in of]
        return [str(problem) for result in results if isinstance(result, list) for problem in result]

    plugins = [_judge(driver, _using(driver, selections), problems) for driver in installed]
    known = {(driver.role, driver.name) for driver in installed}
    return (*plugins, *_find_missing(selections, known, problems))


def _judge(driver: InstalledDriver, using: tuple[Selection, ...], problems: _Problems) -> Plugin:
    names, isolated = tuple(selection.name for selection in using), _isolated(using)
    if driver.error and len(isolated) == len(names) > 0:  # what counts is the environment of its process
        driver = replace(driver, error="")
    if driver.error:
        return Plugin(driver, State.BROKEN, names, driver.error, isolated)
    errors = problems(using)
    if errors:
        return Plugin(driver, State.MISCONFIGURED, names, "; ".join(errors), isolated)
    return Plugin(driver, State.SELECTED if using else State.AVAILABLE, names, "", isolated)


def _isolated(using: Iterable[Selection]) -> tuple[str, ...]:
    return tuple(selection.name for selection in using if selection.config.isolation is not None)


def _using(driver: InstalledDriver, selections: Iterable[Selection]) -> tuple[Selection, ...]:
    return tuple(s for s in selections if s.role == driver.role and s.config.driver == driver.name)


def _find_missing(
    selections: Iterable[Selection], known: set[tuple[str, str]], problems: _Problems
) -> Iterator[Plugin]:
    for selection in selections:
        if (selection.role, selection.config.driver) not in known:
            absent = InstalledDriver(selection.role, selection.config.driver, "", "", "")
            error = "; ".join(problems((selection,)))
            isolated = _isolated((selection,))
            # One that is installed in its process's own environment is not missing.
            state = State.SELECTED if isolated and not error else State.MISSING
            yield Plugin(absent, state, (selection.name,), error, isolated)
