"""Makes drivers without serving, in directories that are thrown away: what ``binding`` would find wrong at the start.

For ``crinoid config check`` and ``crinoid plugin check``. Of the host a driver touches what its ``__init__`` touches,
which is to be nothing but directories that its options name.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, CrinoidError
from crinoid.core.api.host import Host
from crinoid.core.config.models import DeadlinesConfig
from crinoid.core.config.origins import Origins, Problem
from crinoid.core.slots.binding import adopt, hand_over, make
from crinoid.core.slots.calls import Binding
from crinoid.core.slots.drivers import SLOW_S
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.selection import ValidSlot


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a driver: what would stop the start, and what took long."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def try_driver(slot: ValidSlot, origins: Origins, deadlines: DeadlinesConfig) -> Trial:
    """Make a slot's driver and bind it; ask a runtime of the file whether it works here, an image source whether it can
    be asked."""
    selection, title = slot.selection, slot.driver.installed.title
    key = (*selection.key, "driver")
    notes = [f"{title} takes {slot.driver.import_s:.1f} s to import"] if slot.driver.import_s > SLOW_S else []
    with _directories() as (state_dir, run_dir):
        log = logging.getLogger(f"crinoid.plugins.{selection.role}.{selection.name}")
        host = Host(selection.name, state_dir, run_dir, log)
        started_s = time.monotonic()
        process = None
        try:
            if (isolation := selection.config.isolation) is not None and isolation.user:
                hand_over({state_dir: state_dir.parent, run_dir: state_dir.parent}, isolation.user)
            binding = adopt(make(slot, host), slot.driver.installed, selection.config, host)
            process = binding.process
            if (took_s := time.monotonic() - started_s) > SLOW_S:
                notes.append(f"{title} takes {took_s:.1f} s to be made")
            is_named = any(named[: len(selection.key)] == selection.key for named in origins.by_key)
            notes += asyncio.run(_ask(binding, deadlines, is_named))
        except CrinoidError as error:
            return Trial((Problem(key, error.message, origins.nearest(key)),), tuple(notes))
        finally:
            if process is not None:
                process.end_now()
    return Trial((), tuple(notes))


async def _ask(binding: Binding, deadlines: DeadlinesConfig, is_named: bool) -> list[str]:
    """Of what the file names, programs must be there, and settings right; of a default that is worth a note."""
    if binding.role.name == "runtime" and is_named:
        await RuntimeSlot(binding, deadlines.runtime).probe()
    if binding.role.name != "registry":
        return []
    status = await RegistrySlot(binding, deadlines.registry).status()
    notes = [f"{binding.label}: {text}" for text in status.notes]
    if status.ready and not status.message:
        return notes
    problem = f"{binding.label} can't be used as it is: {status.message}"
    if is_named:
        raise ConfigurationError(problem)
    return [problem, *notes]


@contextlib.contextmanager
def _directories() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="crinoid-check-") as directory:
        state_dir, run_dir = Path(directory, "state"), Path(directory, "run")
        for path in (state_dir, run_dir):
            path.mkdir(mode=0o700)
        yield state_dir, run_dir
