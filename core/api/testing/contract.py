"""What the contracts of all roles share: tests that any driver must pass, switches, a guard against hooks that hang.

A test that not every driver can pass is marked ``@needs("streams")``: it is skipped, and says why, where the contract's
``has_streams`` is false.
"""

import signal
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import DriverConfig
from crinoid.core.api.hooks.conformance import find_defects, find_missing, hooks_of
from crinoid.core.api.host import Host
from crinoid.core.api.testing.binding import Steps, _own_time_s
from crinoid.core.api.testing.patience import patient

F = TypeVar("F", bound=Callable[..., Any])

HANG_S = patient(10.0)
"""How long a hook may hold the event loop until it is interrupted."""
_LOOK_S = 1.0


def needs(*abilities: str) -> Callable[[F], F]:
    """Mark a test of a contract as one for drivers with these abilities: ``has_…`` of the contract's class."""

    def mark(test: F) -> F:
        test.abilities = abilities  # type: ignore[attr-defined]
        return test

    return mark


class Contract:
    """What every driver must do, of whichever role."""

    specification: ClassVar[type]
    """The role's hooks."""

    @pytest.fixture(autouse=True)
    def has_what_it_needs(self, request: pytest.FixtureRequest) -> None:
        """Skip a test of something that the driver can't do, by the contract's switches."""
        for ability in getattr(request.function, "abilities", ()):
            if not getattr(self, f"has_{ability}"):
                pytest.skip(f"has_{ability} is false: this driver has no {ability.replace('_', ' ')}")

    @pytest.fixture(autouse=True)
    def guard(self) -> Iterator[None]:
        """Interrupt a hook that blocks the loop without end, which no deadline of the loop's could end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGUSR2, _blame)
        over, main = threading.Event(), threading.main_thread().ident
        assert main is not None

        def look() -> None:
            while not over.wait(_LOOK_S):
                signal.pthread_kill(main, signal.SIGUSR2)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR2, former)

    async def test_its_hooks_are_as_specified(self, driver: object) -> None:
        """All that are due are there, and each is marked and takes what the kernel passes."""
        assert find_defects(driver, self.specification) == ()
        every = hooks_of(self.specification)
        optional = {name for name, hook in every.items() if (hook.__doc__ or "").startswith("Optional.")}
        if any(not hook.crinoid_spec["firstresult"] for hook in every.values()):  # type: ignore[attr-defined]
            optional = set(every)  # extensions
        assert find_missing(driver, self.specification, optional) == (), "hooks that every driver of this role has"

    async def test_it_tells_version_and_options(self, driver: Any) -> None:
        assert issubclass(driver.Config, DriverConfig)
        assert driver.api_version.split(".")[0] == API_VERSION.split(".")[0]

    async def test_making_it_touches_nothing(self, host: Host, driver: object) -> None:
        """``crinoid config check`` makes it, too; at most it prepares directories of its own below ``state_dir``."""
        assert list(host.run_dir.iterdir()) == [], "what __init__ has made in run_dir"


def _blame(_number: int, frame: types.FrameType | None) -> None:
    """Fail in the hook that the signal has interrupted, if it runs for long."""
    while frame is not None:
        steps = frame.f_locals.get("self") if frame.f_code is Steps._drive.__code__ else None
        if isinstance(steps, Steps) and steps.running_since_s is not None:
            held_s = _own_time_s() - steps.running_since_s
            assert held_s < HANG_S, f"{steps.hook} holds the event loop for {held_s:.1f} s, and goes on"
            return
        frame = frame.f_back


def files_below(directory: Path) -> set[str]:
    """Return all paths below a directory, relative to it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
