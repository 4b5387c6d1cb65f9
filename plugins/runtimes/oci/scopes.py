"""Limits that are written to a scope's cgroup beside its runtime, told to systemd as well.

systemd writes all properties of a unit that belong to one controller whenever one of them changes. So a limit that it
does not know of is undone by the next change, by whomever it is made. Source: systemd.resource-control(5).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.process import run_checked
from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.runtimes.binaries.binary import environment, find_program


def _bytes(name: str) -> Callable[[str], list[str]]:
    return lambda value: [f"{name}={'infinity' if value == 'max' else value}"]


def _cpu_max(value: str) -> list[str]:
    quota, _, period = value.partition(" ")
    period_us = int(period or 100_000)
    percent = "" if quota == "max" else f"{int(quota) / period_us:.2%}"  # empty: none
    return [f"CPUQuota={percent}", f"CPUQuotaPeriodSec={period_us}us"]


def _text(name: str) -> Callable[[str], list[str]]:
    return lambda value: [f"{name}={value}"]


_PROPERTIES: Mapping[str, Callable[[str], list[str]]] = {
    "cpu.max": _cpu_max,
    "cpu.weight": _text("CPUWeight"),
    "cpuset.cpus": _text("AllowedCPUs"),
    "cpuset.mems": _text("AllowedMemoryNodes"),
    "memory.high": _bytes("MemoryHigh"),
    "memory.low": _bytes("MemoryLow"),
    "memory.max": _bytes("MemoryMax"),
    "memory.min": _bytes("MemoryMin"),
    "memory.swap.max": _bytes("MemorySwapMax"),
    "pids.max": _bytes("TasksMax"),
}
"""Settings of cgroup v2 that systemd has a property for; any other it leaves alone."""
_NUMBERS = re.compile(r"(?:max|\d+)(?: \d+)?|[\d,-]+")


def scope_properties(resources: LinuxResources) -> list[str]:
    """Return assignments for ``systemctl set-property``: of unified settings, and of limits that are lifted (-1)."""
    settings = dict(resources.unified)
    for lifted, name in (
        (resources.cpu_quota, "cpu.max"),
        (resources.memory_limit_bytes, "memory.max"),
        (resources.memory_swap_limit_bytes, "memory.swap.max"),
    ):
        if lifted < 0:
            settings.setdefault(name, "max")
    known = ((name, value.strip()) for name, value in settings.items() if name in _PROPERTIES)
    return [one for name, value in known if _NUMBERS.fullmatch(value) for one in _PROPERTIES[name](value)]


async def set_properties(cgroup: str, assignments: list[str], timeout_s: float) -> None:
    """Change properties of a scope for as long as it lives. Raises CrinoidError."""
    unit = PurePosixPath(below_mount(cgroup)).name
    command = (str(find_program("systemctl", "systemd")), "set-property", "--runtime", "--", unit, *assignments)
    await run_checked(command, timeout_s=timeout_s, env=environment())
