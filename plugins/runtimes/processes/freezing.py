"""Freezes all processes of a container by its cgroup and thaws them, without the runtime's binary.

Source: the kernel's cgroup-v2.rst (``cgroup.freeze``, ``cgroup.events``) and cgroup-v1/freezer-subsystem.rst.
"""

import asyncio
import contextlib
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, Unsupported
from crinoid.plugins.runtimes.processes.cgroup_places import cgroup_directory, is_frozen, is_unified

_POLL_S = 0.002
_MAX_POLL_S = 0.1


async def freeze(cgroup: str, timeout_s: float) -> None:
    """Freeze a cgroup and return when every process in it stands still. On any error it is thawed again.

    Raises Unsupported without a freezer, DeadlineExceeded where a process hangs in the kernel.
    """
    file, words = _switch(cgroup)
    try:
        file.write_text(words[0])
        async with asyncio.timeout(timeout_s):
            delay_s = _POLL_S
            while not is_frozen(cgroup):
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _MAX_POLL_S)
    except BaseException as error:
        thaw(cgroup)
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"cgroup {cgroup} has not come to a stop after {timeout_s:g} s") from None
        if isinstance(error, OSError):
            raise CrinoidError(f"cgroup {cgroup} can't be frozen: {error.strerror}") from error
        raise


def thaw(cgroup: str) -> None:
    """Let the processes of a cgroup go on. Idempotent, also when the cgroup is gone."""
    with contextlib.suppress(FileNotFoundError, Unsupported):
        file, words = _switch(cgroup)
        file.write_text(words[1])


def _switch(cgroup: str) -> tuple[Path, tuple[str, str]]:
    """The file to write to, and what: to freeze, to thaw."""
    directory = cgroup_directory("freezer", cgroup)
    if directory is None:
        raise Unsupported("this host has no freezer for cgroups: mount its hierarchy, or use cgroup v2")
    return (
        (directory / "cgroup.freeze", ("1", "0"))
        if is_unified()
        else (directory / "freezer.state", ("FROZEN", "THAWED"))
    )
