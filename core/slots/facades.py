"""Gives a facade its methods, one for each hook of its role: what a hook takes and returns is written in the role's
specification (``core/api/hooks``) and nowhere else.

A facade inherits from ``Slot`` and from the specification, so a type checker sees the hooks' own signatures, and is
marked ``@calls_hooks``. A hook whose answer is checked for more than its type has an entry in ``checks``; one whose
call is more than that (a deadline of its own, a session that is wrapped) is written as a method of the facade.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.slots.answers import Check, nothing, one, one_or_none, tuple_of

F = TypeVar("F", bound=type)


def calls_hooks(specification: type, checks: Mapping[str, Check[Any]] | None = None) -> Callable[[F], F]:
    """Add to a facade a method for each hook that it does not define itself; ``Any``: answers of all kinds."""

    def complete(facade: F) -> F:
        for name, hook in hooks_of(specification).items():
            if name not in vars(facade):
                setattr(facade, name, _method_of(name, hook, (checks or {}).get(name) or _check_of(name, hook)))
        return facade

    return complete


def _method_of(name: str, hook: FunctionType, check: Check[Any]) -> Callable[..., Any]:
    """Return a method that calls the hook by keyword, as pluggy wants it, however it is called itself."""
    parameters = tuple(inspect.signature(hook).parameters)[1:]  # without self

    # One of three: what is answered at once, what is awaited, and what has no answer, which a driver may leave out.

    def call(self: Any, *arguments: object, **by_name: object) -> Any:
        return self._ask_now(name, check, **dict(zip(parameters, arguments, strict=False)), **by_name)

    async def ask(self: Any, *arguments: object, **by_name: object) -> Any:
        return await self._ask(name, check, **dict(zip(parameters, arguments, strict=False)), **by_name)

    async def notify(self: Any, *arguments: object, **by_name: object) -> None:
        await self._notify(name, **dict(zip(parameters, arguments, strict=False)), **by_name)

    if not inspect.iscoroutinefunction(hook):
        return functools.wraps(hook)(call)
    return functools.wraps(hook)(notify if check is nothing else ask)


def _check_of(name: str, hook: FunctionType) -> Check[Any]:
    """Return the check that a hook's answer is of the type that its specification says."""
    expected = get_type_hints(hook)["return"]
    arguments = get_args(expected)
    if expected is NoneType:
        return nothing
    if isinstance(expected, type) and not arguments:
        return one(expected)
    if isinstance(expected, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return one_or_none(cast("type[Any]", arguments[0]))
    if (
        get_origin(expected) is tuple
        and len(arguments) == 2
        and arguments[1] is Ellipsis
        and isinstance(arguments[0], type)
    ):
        return tuple_of(arguments[0])
    raise TypeError(f"{name} returns {expected}, which needs an entry in the facade's checks")
