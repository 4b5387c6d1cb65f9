"""Drivers with one bug each, and the test of the contract that catches it.

``tests/contract/test_seeded_bugs.py`` runs that test on the driver; ``tools/generate_contract.py`` makes a table.
A bug is a class marked with ``caught_by``, which stands on a driver that is right; its docstring says what is wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Catch:
    """The test that fails, and a pattern of what it says; ``arguments`` are those of a parametrized test."""

    test: str
    words: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    hook_s: float | None = None


def caught_by(test: str, words: str = "", hook_s: float | None = None, **arguments: object) -> Callable[[C], C]:
    """Mark a driver as one with a bug; ``hook_s`` is the deadline of its hooks."""

    def mark(driver: C) -> C:
        driver.catch = Catch(test, words, arguments, hook_s)  # type: ignore[attr-defined]
        return driver

    return mark


def bugs_of(module: ModuleType) -> tuple[Any, ...]:  # Any: classes with ``catch``
    """Return the drivers of a module that have a bug of their own."""
    return tuple(one for one in vars(module).values() if isinstance(one, type) and "catch" in vars(one))
