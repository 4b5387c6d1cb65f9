"""The hook specifications, one class a role: what the kernel calls, and what a driver may implement.

``hookimpl`` marks a driver's methods. A driver is a class with::

    api_version = "1.0"                       # of crinoid.core.api, as the driver was written for
    Config = MyOptions                        # a DriverConfig
    def __init__(self, config: MyOptions, host: Host) -> None: ...
    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment: ...

It is found by its entry point in the role's group and bound to a slot of its own, so a hook has exactly one
answer. A driver may leave out a hook that its specification calls optional, and any parameter it has no use for.
A method that has a hook's name and no mark, or is not as the specification says (``conformance``), stops the start.
Hooks are coroutines, called on the daemon's one event loop: what blocks goes to a thread.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

PROJECT = "crinoid"

_hookspec = pluggy.HookspecMarker(PROJECT)
_hookimpl = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: "F") -> "F":
    """Mark a driver's method as the implementation of the hook of the same name."""
    return _hookimpl(function)


def hookspec(function: "F") -> "F":
    """Mark a hook of a role: one driver answers."""
    return _hookspec(firstresult=True)(function)


def broadcast(function: "F") -> "F":
    """Mark a hook of the extensions: every one is called."""
    return _hookspec(function)
