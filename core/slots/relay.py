"""A driver whose hooks are all answered by one function: for calls that go elsewhere, as to a record of them."""

import functools
import inspect
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, cast

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.hooks import PROJECT, hookimpl
from crinoid.core.api.hooks.conformance import hooks_of

Ask = Callable[[str, dict[str, object]], Any]
"""Answers a hook by its name and arguments: with a coroutine, unless the hook is none."""


def relay(specification: type, hooks: Collection[str], ask: Ask) -> object:
    """Return a driver with these hooks of a role's specification, each of which ``ask`` answers."""
    members: dict[str, Any] = {"api_version": API_VERSION, "Config": NoOptions}
    for name, hook in hooks_of(specification).items():
        if name in hooks:
            members[name] = hookimpl(_method(name, hook, ask))
    return type(f"Relay{specification.__name__}", (), members)()


def _method(name: str, hook: FunctionType, ask: Ask) -> FunctionType:
    """Return a method with the hook's own signature, by which pluggy passes arguments."""
    parameters = tuple(inspect.signature(hook).parameters)[1:]  # without self

    def answer(_self: object, *arguments: object) -> Any:
        return ask(name, dict(zip(parameters, arguments, strict=True)))

    async def answer_later(_self: object, *arguments: object) -> Any:
        return await ask(name, dict(zip(parameters, arguments, strict=True)))

    made = functools.update_wrapper(answer_later if inspect.iscoroutinefunction(hook) else answer, hook)
    vars(made).pop(f"{PROJECT}_spec", None)
    return cast("FunctionType", made)
