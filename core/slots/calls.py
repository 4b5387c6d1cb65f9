"""The one wrapper around every hook call: deadline, type of the answer, name of the culprit, measurements.

Between the facades (``runtime``, ``network``, …), which give hooks their types, and pluggy, which finds the driver's
method. Whatever goes wrong in a driver leaves here as a CrinoidError that begins with role, slot, driver and hook.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from crinoid.core.api.exhaustion import exhausted
from crinoid.core.api.timeline import stage
from crinoid.core.config.models import Deadlines, SlotConfig
from crinoid.core.slots.answers import Check, nothing
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.instruments import Ended, Instruments
from crinoid.core.slots.isolation.proxy import DriverProcess
from crinoid.core.slots.roles import Role
from crinoid.core.slots.running import HookCall, HookCalls, describe, foreign

T = TypeVar("T")

_ABOUT_THE_REQUEST = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition)
"""Errors that say nothing against the driver."""

_MESSAGE_CHARACTERS = 4000

_STATUSES = frozenset(
    {"UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"}
    | {"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL"}
    | {"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
)
"""gRPC's statuses of errors but CANCELLED, which says that the client gave up."""


@dataclass(frozen=True, slots=True)
class LastError:
    """What a slot's driver failed with last, for ``crinoid plugins`` and verbose Status."""

    hook: str
    message: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Binding:
    """A slot as ``binding`` made it: its name, its driver, and pluggy's hook callers, the attributes of ``hooks``."""

    role: Role
    name: str
    config: SlotConfig
    driver: InstalledDriver
    hooks: object
    implemented: frozenset[str]
    instruments: Instruments
    state_dir: Path
    run_dir: Path
    own_deadline_s: float | None = None
    """What the driver says its hooks may take, where it says so."""
    own_on_failure: str = "ignore"
    """Whether a failure of an extension fails the act, by what the driver says."""
    calls: HookCalls = field(default_factory=HookCalls)
    unremoved: Mapping[str, str] = field(default_factory=dict)
    """What the driver could not remove so far: see ``Host``."""
    process: DriverProcess | None = None
    """The process of its own that the driver is in, if it is (``isolation``)."""

    @property
    def label(self) -> str:
        """How the slot is named in errors: ``network "default" (cni)``, or shorter where slot and driver agree."""
        driver = "" if self.name == self.driver.name else f" ({self.driver.name})"
        return f'{self.role.name} "{self.name}"{driver}'


class Slot:
    """What all facades share: attributes that describe the slot, and the wrapped call."""

    role: str
    """The role's name."""
    name: str
    """The slot's name in the configuration."""
    driver: str
    """The driver's name."""
    installed: InstalledDriver
    """The driver's distribution and versions."""
    config: SlotConfig
    """The slot's table in the configuration."""
    label: str
    """How errors name the slot: ``network "default" (cni)``, or shorter where slot and driver agree."""
    state_dir: Path
    """The slot's directory that survives a reboot."""
    run_dir: Path
    """The slot's directory that does not survive a reboot."""
    process: DriverProcess | None
    """The process of its own that the driver is in, if it is (``isolation``)."""
    last_error: LastError | None
    """What the driver failed with last."""

    def __init__(self, binding: Binding, deadlines: Deadlines) -> None:
        self._binding = binding
        self._deadlines = deadlines
        self.role, self.name, self.driver = binding.role.name, binding.name, binding.driver.name
        self.installed, self.config = binding.driver, binding.config
        self.state_dir, self.run_dir = binding.state_dir, binding.run_dir
        self.label, self.process = binding.label, binding.process
        self.last_error = None
        self._log = logging.getLogger(f"crinoid.slots.{self.role}.{self.name}")

    def __repr__(self) -> str:
        return f"<{self.label}>"

    def change_deadlines(self, deadlines: Deadlines) -> None:
        """Have calls from now on end by other deadlines."""
        self._deadlines = deadlines

    @property
    def unremoved(self) -> Mapping[str, str]:
        """What the driver could not remove so far, with the reason; a copy. May be called in any thread."""
        return dict(self._binding.unremoved)

    @property
    def problem(self) -> str:
        """Why no hook can be called now, as the driver's process is down; empty where that is not so."""
        return "" if self.process is None else self.process.problem

    async def end(self) -> None:
        """End the driver's process, if it has one of its own. Idempotent."""
        if self.process is not None:
            await self.process.end()

    def implements(self, hook: str) -> bool:
        """Return whether the driver has this hook."""
        return hook in self._binding.implemented

    async def _ask(self, hook: str, check: Check[T], deadline_s: float | None = None, /, **arguments: object) -> T:
        """Call a hook and check its answer; ``deadline_s`` ``None``: the configured one, ``inf``: none."""
        limit_s = self._deadlines.of(hook) if deadline_s is None else deadline_s
        with self._taped(hook, arguments) as take_down, self._watch(hook):
            answer = self._start(hook, arguments)
            if not inspect.isawaitable(answer):
                raise DriverError(f"returned {type(answer).__name__}: the hook must be a coroutine")
            # In a task of its own: whatever the driver does with its cancellation, this returns in bounded time.
            return take_down(check(await self._binding.calls.run(HookCall(self.label, hook), answer, limit_s)))

    async def _notify(self, hook: str, /, **arguments: object) -> None:
        """Call a hook that has no answer; one that the driver leaves out does nothing."""
        if self.implements(hook):
            await self._ask(hook, nothing, **arguments)

    def _ask_now(self, hook: str, check: Check[T], /, **arguments: object) -> T:
        """Call a hook that is no coroutine."""
        with self._watch(hook):
            return check(self._start(hook, arguments))

    def _start(self, hook: str, arguments: dict[str, object]) -> Any:  # Any: a driver may return what it likes
        """Call the driver's method: of a coroutine that makes it, of any other hook it is all there is."""
        try:
            with self._binding.calls.blocking(self.label, hook):
                return getattr(self._binding.hooks, hook)(**arguments)
        except Exception:
            raise
        except BaseException as error:  # nothing is awaited here, so all of it is the driver's
            raise foreign(error) from error

    def _taped(self, hook: str, arguments: dict[str, object]) -> "_Taped":
        """Have a call taken down that happens while there is a tape; one that ends by then counts, too."""
        return _Taped(self._binding.instruments, (self.role, self.name, hook), arguments)

    @contextlib.contextmanager
    def _watch(self, hook: str) -> Iterator[None]:
        """Measure, record and trace a call; ``cancelled`` when neither an answer nor an error came."""
        started_s, outcome = time.monotonic(), "cancelled"
        attributes = {
            "crinoid.role": self.role,
            "crinoid.slot": self.name,
            "crinoid.driver": self.driver,
            "crinoid.hook": hook,
        }
        instruments = self._binding.instruments
        # What waits for a container's end has a stage of its own, which knows how it ended.
        step = contextlib.nullcontext() if hook == "wait" else stage(f"{self.label} {hook}")
        try:
            with instruments.span(f"{self.role}.{hook}", attributes), step, self._named(hook):
                yield
            outcome = "ok"
        except CrinoidError as error:
            outcome = error.reason
            raise
        finally:
            instruments.observe(self.role, self.name, hook, time.monotonic() - started_s, outcome)

    @contextlib.contextmanager
    def _named(self, hook: str) -> Iterator[None]:
        """Turn whatever is raised into a CrinoidError whose message begins with the slot and the hook.

        Its class stays, as that is the gRPC status. Once only: a driver may keep an error and raise it again.
        """
        try:
            yield
        except Exception as error:
            failure = translate(error)
            raised = error if failure is not error else error.__cause__
            if type(failure) is DriverError and (failure is not error or not isinstance(raised, Exception | None)):
                told = raised if raised and len(describe(raised)) <= _MESSAGE_CHARACTERS else None
                self._log.warning("%s %s raised what no driver may raise", self.label, hook, exc_info=told)
            prefix = f"{self.label} {hook}: "
            if not str(failure).startswith(prefix):
                failure.args = (prefix + _bounded(str(failure)),)
            by = f"raised by {prefix.removesuffix(': ')}"
            if not str(failure).startswith(prefix) and by not in failure.message:  # a class that makes its text itself
                failure.add_note(by)
            if not isinstance(failure, _ABOUT_THE_REQUEST):
                self.last_error = LastError(hook, failure.message, time.time_ns())
            if failure is error:
                raise
            raise failure from error

    @contextlib.contextmanager
    def _contained(self, hook: str) -> Iterator[None]:
        """Name the errors of what is awaited in the caller's own task, as a session's streams are, and of nothing else
        but that: a cancellation of the task itself passes through."""
        broken: BrokenPipeError | None = None
        with self._named(hook):
            try:
                yield
            except BrokenPipeError as error:  # a sink's way to say that nobody reads
                broken = error
            except (Exception, GeneratorExit):
                raise
            except BaseException as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise
                raise foreign(error) from error
        if broken is not None:
            raise broken


class _Taped:
    """One call for the tape; without one it costs half a microsecond."""

    __slots__ = ("_answer", "_arguments", "_began_s", "_call", "_instruments", "_number")

    def __init__(self, instruments: Instruments, call: tuple[str, str, str], arguments: dict[str, object]) -> None:
        self._instruments, self._call, self._arguments = instruments, call, arguments
        self._answer: object = None

    def __enter__(self) -> Callable[[T], T]:
        tape = self._instruments.tape
        self._number = 0 if tape is None else tape.begin_hook(*self._call, self._arguments)
        self._began_s = time.monotonic()
        return self._take

    def _take(self, answer: T) -> T:
        self._answer = answer
        return answer

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if (tape := self._instruments.tape) is not None:
            ended = Ended(self._arguments, time.monotonic() - self._began_s, self._answer, error)
            tape.end_hook(self._number, *self._call, ended)


def translate(error: BaseException) -> CrinoidError:
    """Make an error of our tree from any other; a task group's only error counts as itself.

    One of our tree that can't be told, as its text or its status is no such thing, is as foreign as any.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, OSError) and (known := exhausted(error)) is not None:
        return known
    if isinstance(error, CrinoidError):
        with contextlib.suppress(Exception):  # a class of the driver's own may do what it likes
            if isinstance(error.message, str) and error.grpc_status in _STATUSES and isinstance(error.reason, str):
                return error
    return DriverError(_bounded(describe(error)))


def _bounded(text: str) -> str:
    """Cut the middle out of a message that nobody would read, and no log should keep."""
    left = len(text) - _MESSAGE_CHARACTERS
    half = _MESSAGE_CHARACTERS // 2
    return text if left <= 0 else f"{text[:half]} … {left} characters … {text[-half:]}"
