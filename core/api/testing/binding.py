"""How the contracts of all roles bind a driver to its hooks: as the kernel does, and with checks of their own.

A hook that is not marked, or differs from its specification, fails at once. What a hook answers is of the type that
its specification says. One that has no answer within ``HOOK_S`` fails, and so does one that holds the event loop's
thread for longer than ``STEP_S`` between two awaits, also in a stream or session that it has returned: nobody else is
served in that time. What blocks goes to a thread (``asyncio.to_thread``).

``cuts`` cancels hooks at every await.
"""

import asyncio
import inspect
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

import pluggy

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.hooks import PROJECT
from crinoid.core.api.hooks.conformance import find_defects, hooks_of
from crinoid.core.api.sessions import Session
from crinoid.core.api.testing.patience import patient

T = TypeVar("T")

STEP_S = patient(0.5)
"""How long a hook may hold the event loop's thread at a time."""
HOOK_S = patient(60.0)
"""How long a hook may take."""
MOST_CUTS = 100
_GRACE_S = patient(10.0)
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def bind_hooks(driver: object, specification: type) -> Any:  # Any: pluggy makes its callers at run time
    """Return what calls a driver's hooks by their names, with arguments by keyword, as its role specifies them."""
    defects = find_defects(driver, specification)
    assert not defects, "; ".join(defects)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specification)
    manager.register(driver)
    manager.check_pending()
    answers = {name: typing.get_type_hints(hook)["return"] for name, hook in hooks_of(specification).items()}
    return _Hooks(manager.hook, answers)


class _Hooks:
    def __init__(self, relay: Any, answers: Mapping[str, Any]) -> None:
        self._relay = relay
        self._answers = answers

    def has(self, hook: str) -> bool:
        """Return whether the driver has a hook."""
        return bool(getattr(self._relay, hook).get_hookimpls())

    def __getattr__(self, hook: str) -> Callable[..., Any]:
        due = self._answers[hook]

        def call(**arguments: object) -> Any:
            caller = getattr(self._relay, hook)
            started_s = _own_time_s()
            answer = caller(**arguments)
            _check_step(hook, _own_time_s() - started_s)
            if not caller.get_hookimpls():
                return answer
            if isinstance(answer, list):
                return [_in_steps(hook, one, due) for one in answer]
            if inspect.isawaitable(answer):
                return _in_steps(hook, answer, due)
            return _checked(hook, answer, due)

        return call


def _check_step(what: str, held_s: float) -> None:
    assert held_s <= STEP_S, f"{what} has held the event loop for {held_s:.2f} s at a time"


def _checked(hook: str, answer: Any, due: Any) -> Any:
    """Check an answer's type; give back streams and sessions so that their steps are measured, too."""
    name = due.__name__ if isinstance(due, type) and not typing.get_args(due) else str(due).replace("typing.", "")
    assert _fits(answer, due), f"{hook} returned {answer!r} where {name} is due"
    if due is not None and typing.get_origin(due) is AsyncIterator:
        assert hasattr(answer, "aclose"), f"{hook} returned {answer!r} without aclose, by which a stream is ended early"
    return _Measured(f"{hook}'s answer", answer) if isinstance(answer, AsyncIterator | Session) else answer


def _fits(answer: object, due: Any) -> bool:
    origin, parts = typing.get_origin(due), typing.get_args(due)
    if due is Any or due is object:
        return True
    if due is None or due is NoneType:
        return answer is None
    if origin in (UnionType, typing.Union):
        return any(_fits(answer, part) for part in parts)
    if origin is tuple and isinstance(answer, tuple):
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(_fits(one, parts[0]) for one in answer)
        return len(parts) == len(answer) and all(map(_fits, answer, parts))
    return isinstance(answer, origin or due)


class _Measured:
    """A stream or a session whose coroutines are awaited step by step."""

    def __init__(self, name: str, of: Any) -> None:
        self._name = name
        self._of = of

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._of, attribute)
        name = f"{self._name} {attribute}"
        if attribute in ("stdin", "stdout", "stderr"):
            return None if value is None else _Measured(name, value)
        return _measured(name, value) if callable(value) else value

    def __aiter__(self) -> "_Measured":
        return self

    def __anext__(self) -> Awaitable[bytes]:
        made: Awaitable[bytes] = _measured(self._name, self._of.__anext__)()
        return made


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: object, **by_name: object) -> Any:
        answer = function(*arguments, **by_name)
        return _in_steps(name, answer, Any) if inspect.isawaitable(answer) else answer

    return call


async def _in_steps(hook: str, answer: Any, due: Any) -> Any:
    assert inspect.isawaitable(answer), f"{hook} is no coroutine: it returned {answer!r}"
    steps = Steps(hook, answer)
    found = await steps
    _check_step(hook, steps.longest_s)
    return _checked(hook, found, due)


class Steps:
    """Awaits a hook: measures how long it holds the thread each time that it runs, ends it at its deadline, and cancels
    it where a :class:`Cut` says so."""

    def __init__(self, hook: str, answer: Awaitable[Any]) -> None:
        self.hook = hook
        self.longest_s = 0.0
        self.running_since_s: float | None = None
        self._answer = answer
        self._expired = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        timers = [loop.call_later(limit_s, self._expire, task) for limit_s in (HOOK_S, HOOK_S + _GRACE_S)]
        try:
            return (yield from self._drive(task))
        finally:
            for timer in timers:
                timer.cancel()

    def _drive(self, task: "asyncio.Task[Any]") -> Generator[Any, Any, Any]:
        steps: Any = self._answer.__await__()
        step, value = steps.send, None
        while True:
            self.running_since_s = started_s = _own_time_s()
            try:
                waits_for = step(value)
            except StopIteration as end:
                return end.value
            except asyncio.CancelledError:
                if not self._expired:
                    raise
                self._uncancel(task)
                raise AssertionError(f"{self.hook} has had no answer for {HOOK_S:g} s") from None
            finally:
                self.running_since_s = None
                self.longest_s = max(self.longest_s, _own_time_s() - started_s)
            if cut := _CUT.get():
                cut.note(self.hook, task, waits_for)
            try:
                step, value = steps.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001  # the answer's to handle
                if self._expired > 1:
                    self._uncancel(task)
                    message = f"{self.hook} has had no answer for {HOOK_S:g} s, and goes on though it was cancelled"
                    raise AssertionError(message) from None
                step, value = steps.throw, error

    def _uncancel(self, task: "asyncio.Task[Any]") -> None:
        for _ in range(self._expired):
            task.uncancel()

    def _expire(self, task: "asyncio.Task[Any]") -> None:
        self._expired += 1
        task.cancel()


def _own_time_s() -> float:
    """A clock that stands while the thread waits for a processor, as on a machine that is busy with others' work."""
    now_s = time.monotonic()
    try:
        return now_s - int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return now_s


class Cut:
    """One cancellation: of what is awaited in it, at the ``number``-th await of its hooks; see ``cuts``."""

    def __init__(self, number: int, late: bool) -> None:
        self.hook = ""
        self._number = number
        self._late = late
        self._seen = 0

    def __str__(self) -> str:
        """How a failure names it."""
        if not self.hook:
            return "not cancelled"
        when = f"as await {self._number} ends" if self._late else f"in await {self._number}"
        return f"cancelled {when} ({self.hook})"

    async def __call__(self, call: Coroutine[Any, Any, T]) -> T | None:
        """Await something that calls hooks; ``None``: it was cancelled, or has failed as it was."""
        token = _CUT.set(self)
        task = asyncio.create_task(call)
        _CUT.reset(token)
        try:
            return await task
        except (asyncio.CancelledError, CrinoidError):
            current = asyncio.current_task()
            if not self.hook or (current is not None and current.cancelling()):
                raise
            return None

    def note(self, hook: str, task: "asyncio.Task[Any]", waits_for: Any) -> None:
        """Count an await of a hook, and cancel it if it is the one."""
        self._seen += 1
        if self._seen != self._number:
            return
        self.hook = hook
        if self._late and waits_for is not None:  # what it waits for is done, and it hears of the cancellation instead
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


_CUT: ContextVar[Cut | None] = ContextVar("cut", default=None)


def cuts() -> Iterator[Cut]:
    """Yield cancellations, at the first await of a hook, at the second, and so on until it ends without one.

    Each await comes twice: cancelled while it waits, and as its wait is over. Do all over in each round::

        for cut in cuts():
            request = make_request()
            await cut(network.attach(request, plan))
            ...  # undo, and look that nothing is left

    Awaits of tasks that a hook makes itself are not counted.
    """
    for late in (False, True):
        for number in range(1, MOST_CUTS + 1):
            cut = Cut(number, late)
            yield cut
            if not cut.hook:
                break
