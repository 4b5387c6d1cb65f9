"""Whether a driver has its role's hooks as they are specified: finds what pluggy would pass over in silence.

pluggy takes what is marked and passes arguments by name. A method without a mark or a property would never be called,
and an argument with a default or a keyword-only one never be given anything; nobody would notice an admission policy
that never runs. ``slots`` asks here before it makes a driver (of its class) and after (of the object), and the
contracts of ``core/api/testing`` ask, too.
"""

import difflib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import cast

from crinoid.core.api.hooks import PROJECT

_MARK = f"{PROJECT}_impl"
_LONG_NAME = 8
_BOUND, _METHODS = (MethodType, classmethod), (FunctionType, MethodType, classmethod, staticmethod)


def find_defects(driver: object, specification: type) -> tuple[str, ...]:
    """Return what is wrong with the hooks of a driver or of its class, each with class and method; nothing is called.

    An attribute that is ``None`` leaves a hook out, and so does a method that is inherited from the specification.
    A public method whose name is a slip away from a hook's is taken for that hook. A class is looked at once, and its
    objects for what they have set themselves.
    """
    of: type = driver if isinstance(driver, type) else type(driver)
    own = {} if of is driver else getattr(driver, "__dict__", {})
    hooks = hooks_of(specification)
    if any(name in hooks or isinstance(value, _METHODS) for name, value in own.items()):
        return _look_for_defects(driver, specification)
    return _find_class_defects(of, specification)


@functools.lru_cache(1024)
def _find_class_defects(driver: type, specification: type) -> tuple[str, ...]:
    return _look_for_defects(driver, specification)


def _look_for_defects(driver: object, specification: type) -> tuple[str, ...]:
    hooks = hooks_of(specification)
    found = []
    for name, (owner, attribute) in _members_of(driver).items():
        if name in hooks and attribute is not None and owner is not specification:
            found += [f"{_full_name(owner, driver, name)} {why}" for why in _defects_of(attribute, hooks[name], owner)]
        elif name not in hooks and _is_marked(attribute):
            near = difflib.get_close_matches(name, hooks, n=1, cutoff=0.5)
            hint = f'; did its authors mean "{near[0]}"?' if near else ""
            found.append(
                f"{_full_name(owner, driver, name)} is marked with @hookimpl, but its role has no such hook{hint}"
            )
        elif name not in hooks and isinstance(attribute, _METHODS) and (meant := _misspelt(name, hooks)):
            found.append(
                f'{_full_name(owner, driver, name)} is all but "{meant}" and has no @hookimpl, so it would never be '
                "called: spell it so and mark it, or begin its name with _ if it is no hook"
            )
    return tuple(found)


def find_missing(driver: object, specification: type, optional: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the hooks that a driver or its class lacks, and must have."""
    members = _members_of(driver)
    missing = hooks_of(specification).keys() - frozenset(optional)
    return tuple(sorted(name for name in missing if not _is_marked(members.get(name, (None, None))[1])))


def hooks_of(specification: type) -> Mapping[str, FunctionType]:
    """Return a specification's hooks by name."""
    return {name: value for name, value in vars(specification).items() if hasattr(value, f"{PROJECT}_spec")}


def _misspelt(name: str, hooks: Iterable[str]) -> str:
    """Return the hook whose name this is with a slip: a letter too many, missing, wrong, or two in the wrong order; two
    slips in long names. Empty where there is none, as for names that begin with an underscore."""
    if name.startswith("_"):
        return ""
    return next((hook for hook in hooks if _distance(name, hook) <= (1 if len(hook) < _LONG_NAME else 2)), "")


def _distance(one: str, other: str) -> int:
    """Optimal string alignment distance."""
    if abs(len(one) - len(other)) > 2:
        return 3
    rows: list[list[int]] = [[*range(len(other) + 1)]]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def _members_of(driver: object) -> Mapping[str, tuple[type | None, object]]:
    """Return every attribute with the class that defines it, ``None`` for the object itself; no descriptor is run."""
    of = driver if isinstance(driver, type) else type(driver)
    members: dict[str, tuple[type | None, object]] = {}
    for owner in reversed(of.__mro__):
        members.update((name, (owner, value)) for name, value in vars(owner).items())
    if of is not driver:
        members.update((name, (None, value)) for name, value in getattr(driver, "__dict__", {}).items())
    return members


def _is_marked(attribute: object) -> bool:
    return isinstance(attribute, _METHODS) and (
        hasattr(attribute, _MARK) or hasattr(getattr(attribute, "__func__", None), _MARK)
    )


def _full_name(owner: type | None, driver: object, name: str) -> str:
    of = owner or type(driver)
    return f"{of.__module__}.{of.__qualname__}.{name}"


def _defects_of(attribute: object, hook: FunctionType, owner: type | None) -> Iterator[str]:
    """Tell what is wrong with an attribute that has a hook's name: its binding, mark, kind and arguments."""
    if not isinstance(attribute, _METHODS) or (owner is None and not isinstance(attribute, MethodType)):
        where = "the object has set itself to" if owner is None else "is"
        yield f"{where} {_article(type(attribute).__name__)}, which is never called: a hook is a method of the class"
        return
    if not _is_marked(attribute):
        yield "has the name of a hook but no @hookimpl, so it would never be called: mark it, or give it another name"
        return
    function: FunctionType = getattr(attribute, "__func__", cast("FunctionType", attribute))
    options = getattr(function, _MARK, None) or getattr(attribute, _MARK)
    if any(options.get(each) for each in ("wrapper", "hookwrapper", "specname")):
        yield "is marked with options of pluggy's own: use hookimpl of crinoid.core.api.hooks, which has none"
    kind, due = _kind_of(function), _kind_of(hook)
    if kind != due:
        yield f"is {_article(kind)} where {_article(due)} is due"
    parameters = [*inspect.signature(function).parameters.values()]
    if isinstance(attribute, _BOUND) or (isinstance(attribute, FunctionType) and owner is not None):
        parameters = parameters[1:]  # self or cls
    yield from _defects_of_arguments(parameters, [*inspect.signature(hook).parameters][1:])


def _kind_of(function: object) -> str:
    """Tell what a call returns; a plain wrapper, made with ``functools.wraps``, returns what it wraps."""
    for each in (function, inspect.unwrap(function)):  # type: ignore[arg-type]  # a function or what is in its place
        if inspect.iscoroutinefunction(each):
            return "coroutine function (async def)"
        if inspect.isasyncgenfunction(each):
            return "asynchronous generator"
        if inspect.isgeneratorfunction(each):
            return "generator"
    return "plain function"


def _defects_of_arguments(parameters: list[inspect.Parameter], known: list[str]) -> Iterator[str]:
    """pluggy passes what has no default and is not keyword-only, by the name; the rest gets nothing."""
    given = {each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)}
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            if lost := [name for name in known if name not in given]:
                yield f"takes {str(each).partition(':')[0]}, which would be empty: name {', '.join(lost)}"
        elif each.default is not each.empty:
            if each.name in known:
                yield f"has a default for {each.name}, so it would never be given one: leave the default out"
        elif each.kind is each.KEYWORD_ONLY:
            yield f"has a keyword-only argument, {each.name}, which would never be given: leave the * out"
        elif each.name not in known:
            near = difflib.get_close_matches(each.name, known, n=1, cutoff=0.5)
            hint = f'; did its authors mean "{near[0]}"?' if near else ""
            has = ", ".join(known) or "it has none"
            yield f"wants {each.name}, which is none of the hook's arguments ({has}){hint}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
