"""What kernel and driver's process tell each other first, and what each may ask of the other beside the hooks.

The root object of the child is :class:`PluginControl` with the hooks of its role, that of the kernel
:class:`HostControl`. First ``load``, then ``make``; hooks after that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

from crinoid.core.slots.isolation.interfaces import Interface

PROTOCOL = 1
"""The version of all that docs/isolation.md says."""
MAX_LOGGED = 16 << 10
"""Characters of a message that a driver logs."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Which driver is wanted, with the options of its slot; ``api_version`` and ``version`` are the kernel's."""

    protocol: int
    api_version: str
    version: str
    role: str
    driver: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A driver that was found, and not made yet.

    ``api_version`` is what the driver was written for, ``host_api_version`` what it is loaded with: that of crinoid in
    the child's environment, empty for one that needs none. ``options`` are all with their defaults. ``problems``: what
    is wrong with the options, each with its key path. ``replaceable`` is an extension's own, as in docs/plugins.md.
    """

    protocol: int
    api_version: str
    distribution: str = ""
    version: str = ""
    target: str = ""
    host_api_version: str = ""
    hooks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[tuple[tuple[str, ...], str], ...] = ()
    import_s: float = 0.0
    replaceable: bool = False


@dataclass(frozen=True, slots=True)
class MakeRequest:
    """The slot's place on the node, as ``Host`` has it; ``log_level`` in the numbers of Python's logging."""

    slot: str
    state_dir: Path
    run_dir: Path
    version: str
    log_level: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """A driver that is ready. ``constants``: the answers of its hooks that are no coroutines, by hook, as they travel.

    ``hooks`` are all that it has; ``deadline_s`` and ``on_failure`` are an extension's own.
    """

    hooks: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    on_failure: str = "ignore"


class PluginControl(Protocol):
    """What the kernel asks of a driver's process beside the hooks."""

    async def load(self, request: LoadRequest) -> Loaded:
        """Find a driver and look at its options. Raises ConfigurationError."""

    async def make(self, request: MakeRequest) -> Made:
        """Make the driver. Raises ConfigurationError."""

    async def ping(self, log_level: int) -> None:
        """Answer, in the thread that runs the hooks, and log from this level on."""


class HostControl(Protocol):
    """What a driver's process tells the kernel; no answer is sent."""

    def log(self, logger: str, level: int, message: str) -> None:
        """Write a line to the daemon's log."""

    def note_unremoved(self, what: str, reason: str | None) -> None:
        """See ``Host.unremoved``; ``None``: it is removed."""


def _functions(of: type) -> dict[str, FunctionType]:
    return {name: one for name, one in vars(of).items() if isinstance(one, FunctionType) and not name.startswith("_")}


HOST = Interface("host", _functions(HostControl), {}, object)


def plugin_interface(hooks: Mapping[str, FunctionType]) -> Interface:
    """Return the interface of a child's root: the control methods and a role's hooks."""
    return Interface("driver", {**_functions(PluginControl), **hooks}, {}, object)
