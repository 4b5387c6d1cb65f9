"""Hooks as drivers write them: what pluggy would pass over or call wrongly is found, by class and method."""

import abc
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pluggy
import pytest

from crinoid.core.api.hooks import PROJECT, broadcast, hookimpl, hookspec
from crinoid.core.api.hooks.conformance import find_defects, find_missing

mark = hookimpl


class Role:
    """A role for these tests."""

    @hookspec
    def features(self) -> str: ...

    @hookspec
    async def attach(self, request: str, plan: str) -> str: ...

    @hookspec
    async def close(self) -> None: ...


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as one finds them: a plain function that returns the coroutine."""

    @functools.wraps(function)
    def call(*arguments: object, **named: object) -> object:
        return function(*arguments, **named)

    return call


class Good:
    @mark
    def features(self) -> str: ...

    @passed_on
    @mark
    async def attach(self, request: str, plan: str, tries: int = 3, **more: object) -> str: ...

    @mark
    async def close(self) -> None: ...

    def helper(self) -> None: ...


class Inherits(Good):
    close = None  # type: ignore[assignment]


class OfTheSpecification(Role):
    @mark
    async def attach(self, request: str) -> str: ...  # type: ignore[override]


class Bound:
    @staticmethod
    @mark
    async def attach(request: str, plan: str) -> str: ...

    @classmethod
    @mark
    async def close(cls) -> None: ...


class Delegates:
    def __init__(self) -> None:
        inner = Good()
        self.attach, self.close = inner.attach, inner.close


@pytest.mark.parametrize("driver", [Good, Good(), Inherits, OfTheSpecification, Bound, Bound(), Delegates()])
def test_what_pluggy_calls_rightly_is_left_in_peace(driver: object) -> None:
    assert find_defects(driver, Role) == ()
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Role)
    manager.register(driver)
    manager.check_pending()


class Unmarked:
    async def attach(self, request: str, plan: str) -> str: ...


class Mixin:
    async def close(self) -> None: ...


class OverridesWithoutMark(Good):
    async def attach(self, request: str, plan: str) -> str: ...


class MixesIn(Mixin, Good):
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    async def close(self) -> None: ...


class OfAbstract(Abstract):
    async def close(self) -> None: ...


class OtherMark:
    @pluggy.HookimplMarker("pytest")
    async def close(self) -> None: ...


class SpecificationMark:
    @broadcast
    async def close(self) -> None: ...


class UnmarkedStatic:
    @staticmethod
    async def close() -> None: ...


NO_MARK = "has the name of a hook but no @hookimpl"


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        (Unmarked, "Unmarked.attach"),
        (OverridesWithoutMark, "OverridesWithoutMark.attach"),
        (MixesIn, "Mixin.close"),
        (OfAbstract, "OfAbstract.close"),
        (OtherMark, "OtherMark.close"),
        (SpecificationMark, "SpecificationMark.close"),
        (UnmarkedStatic, "UnmarkedStatic.close"),
    ],
)
def test_a_forgotten_mark_is_found_with_class_and_method(driver: type, name: str) -> None:
    for each in (driver, driver()):
        (defect,) = find_defects(each, Role)
        assert defect.startswith(f"{__name__}.{name} {NO_MARK}")


def _with(name: str, attribute: object) -> type:
    return type("Driver", (), {name: attribute, "__module__": "plugin"})


async def _keyword_only(self: object, *, request: str) -> str: ...
async def _misnamed(self: object, reqest: str) -> str: ...
async def _default(self: object, request: str = "", plan: str = "x") -> str: ...
async def _catch_all(self: object, **arguments: object) -> str: ...
async def _stars(self: object, *arguments: object) -> str: ...
async def _too_much(self: object, force: bool) -> None: ...
async def _right(self: object, request: str, plan: str) -> str: ...
async def _stream(self: object, request: str) -> AsyncIterator[str]:
    yield request


def _plain(self: object, request: str) -> str: ...
def _generator(self: object, request: str) -> Iterator[str]:
    yield request


async def _slow(self: object) -> str: ...


WRONG: Mapping[str, tuple[str, object, str]] = {
    "keyword-only": ("attach", mark(_keyword_only), "has a keyword-only argument, request"),
    "misnamed": ("attach", mark(_misnamed), 'wants reqest, which is none of .*did its authors mean "request"'),
    "default": ("attach", mark(_default), "has a default for request, so it would never be given one"),
    "catch-all": ("attach", mark(_catch_all), r"takes \*\*arguments, which would be empty: name request, plan"),
    "stars": ("attach", mark(_stars), r"takes \*arguments, which would be empty"),
    "too much": ("close", mark(_too_much), r"wants force, which is none of the hook's arguments \(it has none\)"),
    "asynchronous generator": ("attach", mark(_stream), "is an asynchronous generator where a coroutine function"),
    "context manager": ("attach", mark(asynccontextmanager(_stream)), "is an asynchronous generator where"),
    "plain": ("attach", mark(_plain), r"is a plain function where a coroutine function \(async def\) is due"),
    "generator": ("attach", mark(_generator), "is a generator where a coroutine function"),
    "coroutine": ("features", mark(_slow), r"is a coroutine function \(async def\) where a plain function is due"),
    "property": ("attach", property(mark(_right)), "is a property, which is never called"),  # type: ignore[arg-type]
    "partial": ("attach", functools.partialmethod(_right), "is a partialmethod, which is never called"),
    "value": ("close", 7, "is an int, which is never called"),
    "static with self": ("attach", staticmethod(mark(_right)), "wants self, which is none of"),
    "misspelt": ("atach", mark(_right), 'its role has no such hook; did its authors mean "attach"'),
    "unlike any": ("zzz", mark(_right), "its role has no such hook$"),
    "wrapper": ("close", pluggy.HookimplMarker(PROJECT)(wrapper=True)(_slow), "options of pluggy's own"),
    "named otherwise": ("close", pluggy.HookimplMarker(PROJECT)(specname="attach")(_slow), "options of pluggy's own"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_would_not_be_called_as_specified_is_found(what: str) -> None:
    name, attribute, words = WRONG[what]
    driver = _with(name, attribute)
    for each in (driver, driver()):
        with pytest.raises(AssertionError, match=rf"^plugin\.Driver\.{name} .*{words}"):
            raise AssertionError(" & ".join(find_defects(each, Role)))


def test_a_property_is_not_run() -> None:
    class Trap:
        @property
        def close(self) -> None:
            raise AssertionError("it was run")

    assert len(find_defects(Trap(), Role)) == 1


def test_what_an_object_has_set_itself_to() -> None:
    driver = Good()
    driver.close = None  # type: ignore[method-assign, assignment]  # leaves it out, by its options
    assert find_defects(driver, Role) == ()
    for wrong in (_right, functools.partial(_right), lambda: None, "open"):
        driver.close = wrong  # type: ignore[method-assign, assignment]
        (defect,) = find_defects(driver, Role)
        assert "Good.close the object has set itself to a" in defect


def test_what_is_missing() -> None:
    assert find_missing(Inherits, Role, ()) == ("close",)
    assert find_missing(Inherits, Role, ("close",)) == ()
    assert find_missing(OfTheSpecification, Role, ("close",)) == ("features",)


async def _unmarked(self: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "meant"), [("atach", "attach"), ("attahc", "attach"), ("closes", "close"), ("feetures", "features")]
)
def test_a_slip_in_a_name_that_is_not_marked_is_found(name: str, meant: str) -> None:
    for each in (driver := _with(name, _unmarked), driver()):
        (defect,) = find_defects(each, Role)
        assert defect.startswith(f'plugin.Driver.{name} is all but "{meant}" and has no @hookimpl')


@pytest.mark.parametrize("name", ["_atach", "attachment", "opens", "lose_it", "feet"])
def test_a_name_of_its_own_is_no_slip(name: str) -> None:
    assert find_defects(_with(name, _unmarked), Role) == ()
