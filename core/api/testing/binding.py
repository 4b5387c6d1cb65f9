"""How the contracts of all roles bind a driver to its hooks: as the kernel does, and with two checks of their own.

A hook that is not marked, or differs from its specification, fails at once. One that holds the event loop's thread for
longer than ``STEP_S`` between two awaits fails when it has answered: nobody else is served in that time. What blocks
goes to a thread (``asyncio.to_thread``).
"""

import inspect
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pluggy

from crinoid.core.api.hooks import PROJECT
from crinoid.core.api.hooks.conformance import find_defects
from crinoid.core.api.testing.patience import patient

STEP_S = patient(2.0)
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def bind_hooks(driver: object, specification: type) -> Any:  # Any: pluggy makes its callers at run time
    """Return what calls a driver's hooks by their names, with arguments by keyword, as its role specifies them."""
    defects = find_defects(driver, specification)
    assert not defects, "; ".join(defects)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specification)
    manager.register(driver)
    manager.check_pending()
    return _Hooks(manager.hook)


class _Hooks:
    def __init__(self, relay: Any) -> None:
        self._relay = relay

    def has(self, hook: str) -> bool:
        """Return whether the driver has a hook."""
        return bool(getattr(self._relay, hook).get_hookimpls())

    def __getattr__(self, hook: str) -> Callable[..., Any]:
        def call(**arguments: object) -> Any:
            answer = getattr(self._relay, hook)(**arguments)
            return [_in_steps(hook, one) for one in answer] if isinstance(answer, list) else _in_steps(hook, answer)

        return call


def _in_steps(hook: str, answer: Any) -> Any:
    async def ask() -> Any:
        steps = _Steps(answer)
        found = await steps
        assert steps.longest_s <= STEP_S, f"{hook} has held the event loop for {steps.longest_s:.2f} s at a time"
        return found

    return ask() if inspect.isawaitable(answer) else answer


class _Steps:
    """Awaits something, and measures how long it holds the thread each time that it runs."""

    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = answer
        self.longest_s = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._answer.__await__()
        step, value = steps.send, None
        while True:
            started_s = _own_time_s()
            try:
                waits_for = step(value)
            except StopIteration as end:
                return end.value
            finally:
                self.longest_s = max(self.longest_s, _own_time_s() - started_s)
            try:
                step, value = steps.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001  # the answer's to handle
                step, value = steps.throw, error


def _own_time_s() -> float:
    """A clock that stands while the thread waits for a processor, as on a machine that is busy with others' work."""
    now_s = time.monotonic()
    try:
        return now_s - int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return now_s
