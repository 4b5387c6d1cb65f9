"""A driver that stands for one in another process: a class with the same hooks, made of the role's specification.

``binding`` binds it as it binds any other, so nothing above knows the difference.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, Protocol

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.conformance import hooks_of
from crinoid.core.config.models import IsolationConfig


class OpenOptions(DriverConfig):
    """Options that another process has validated."""

    model_config = DriverConfig.model_config | {"extra": "allow"}


class DriverProcess(Protocol):
    """What a proxy needs of the process: see ``plugin_process``."""

    isolation: IsolationConfig
    restarts: int

    @property
    def problem(self) -> str:
        """Why no call is taken now; empty where calls are."""

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""

    @property
    def memory_bytes(self) -> int | None:
        """What it has in memory; ``None`` while there is none."""

    def attach(self) -> None:
        """Be served by the running loop from now on, if there is one."""

    async def end(self) -> None:
        """End the process for good. Idempotent."""

    def end_now(self) -> None:
        """As ``end``, where no loop runs; blocks."""

    async def call_hook(self, name: str, arguments: Mapping[str, object]) -> Any:
        """Call a hook of the driver."""

    def constant(self, name: str) -> Any:
        """Return what a hook that is no coroutine has answered at the start."""


class Proxy:
    """Base of all proxies; ``process`` is where the driver is."""

    api_version = ""
    Config = OpenOptions

    def __init__(self, process: DriverProcess) -> None:
        self.process = process


def make_proxy(
    process: DriverProcess, specification: type, hooks: Iterable[str], attributes: Mapping[str, object]
) -> Proxy:
    """Make a driver with these hooks, and attributes of the class."""
    known = hooks_of(specification)
    methods = {name: _method_of(name, known[name]) for name in hooks}
    kind = type(specification.__name__.replace("Hooks", "Proxy"), (Proxy,), {**attributes, **methods})
    made: Proxy = kind(process)
    return made


def _method_of(name: str, hook: FunctionType) -> Callable[..., Any]:
    """Return a method with the hook's signature, by which pluggy passes arguments."""
    names = tuple(inspect.signature(hook).parameters)[1:]  # without self

    async def call(self: Any, *arguments: object) -> Any:
        return await self.process.call_hook(name, dict(zip(names, arguments, strict=True)))

    def constant(self: Any) -> Any:
        return self.process.constant(name)

    method = functools.wraps(hook)(call if inspect.iscoroutinefunction(hook) else constant)
    vars(method).pop("crinoid_spec", None)
    return hookimpl(method)
