"""Limits that a scope's cgroup has, told to systemd.

systemd writes all properties of a unit that belong to one controller whenever one of them changes. So a limit that it
does not know of is undone by the next change, by whomever it is made: what is written beside it, and what the binaries
leave out (runc 1.1 tells it of no swap limit of 0, crun of no quota that is lifted).
Source: systemd.resource-control(5).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.process import run_checked
from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.runtimes.binaries.binary import environment, find_program

_PROPERTIES: Mapping[str, str] = {
    "cpu.weight": "CPUWeight",
    "cpuset.cpus": "AllowedCPUs",
    "cpuset.mems": "AllowedMemoryNodes",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}
"""Settings of cgroup v2 that systemd has a property for, besides cpu.max; any other but the next it leaves alone."""
KILLS_ALL = "memory.oom.group"
"""systemd writes 0 there whenever it writes the others, and has no property by which a scope could keep it (252)."""


def scope_properties(read: Callable[[str], str | None]) -> Iterator[str]:
    """Yield assignments for ``systemctl set-property`` from a cgroup's files, which ``read`` returns by name."""
    for name, property_ in _PROPERTIES.items():
        value = read(name)
        if value is not None:  # else its controller is off
            yield f"{property_}={'infinity' if value.strip() == 'max' else value.strip()}"
    if (limit := read("cpu.max")) is not None:
        quota, period_us = limit.split()
        percent = "" if quota == "max" else f"{int(quota) / int(period_us):.2%}"  # empty: none
        yield from (f"CPUQuota={percent}", f"CPUQuotaPeriodSec={period_us}us")


async def ends_as_a_whole(cgroup: str) -> bool:
    """Return whether the kernel is to end all of a scope at once for want of memory (``memory.oom.group``)."""
    return (await asyncio.to_thread(cgroups.read_file, below_mount(cgroup), KILLS_ALL) or "").strip() == "1"


async def set_unit_limits(cgroup: str, timeout_s: float, *, kills_all: bool) -> None:
    """Make the limits that a scope's cgroup has its unit's, for as long as it lives. Raises CrinoidError.

    ``kills_all``: what ``ends_as_a_whole`` was before systemd wrote any.
    """
    path = below_mount(cgroup)
    assignments = await asyncio.to_thread(list, scope_properties(lambda name: cgroups.read_file(path, name)))
    systemctl = str(find_program("systemctl", "systemd"))
    command = (systemctl, "set-property", "--runtime", "--", PurePosixPath(path).name, *assignments)
    await run_checked(command, timeout_s=timeout_s, env=environment())
    if kills_all:
        await asyncio.to_thread(cgroups.write_resources, path, LinuxResources(unified={KILLS_ALL: "1"}))
