"""What systemd is told of a scope's limits that are written beside it."""

import pytest

from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.runtimes.oci.scopes import scope_properties


@pytest.mark.parametrize(
    ("name", "value", "properties"),
    [
        ("memory.high", "1048576", ["MemoryHigh=1048576"]),
        ("memory.max", "max", ["MemoryMax=infinity"]),
        ("pids.max", "7", ["TasksMax=7"]),
        ("cpu.max", "25000 50000", ["CPUQuota=50.00%", "CPUQuotaPeriodSec=50000us"]),
        ("cpu.max", "max 100000", ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]),
        ("cpu.max", "333", ["CPUQuota=0.33%", "CPUQuotaPeriodSec=100000us"]),
        ("cpu.weight", "77", ["CPUWeight=77"]),
        ("cpuset.cpus", "0-1,3", ["AllowedCPUs=0-1,3"]),
        ("memory.oom.group", "1", []),
        ("memory.high", "1 MemoryMax=1", []),
    ],
)
def test_unified_settings(name: str, value: str, properties: list[str]) -> None:
    assert scope_properties(LinuxResources(unified={name: value})) == properties


def test_lifted_limits() -> None:
    """A unified setting of the same file has the last word, as it has in the cgroup."""
    lifted = LinuxResources(cpu_quota=-1, memory_limit_bytes=-1, memory_swap_limit_bytes=-1)
    expected = ["CPUQuota=", "CPUQuotaPeriodSec=100000us", "MemoryMax=infinity", "MemorySwapMax=infinity"]
    assert scope_properties(lifted) == expected
    assert scope_properties(LinuxResources(memory_limit_bytes=-1, unified={"memory.max": "5"})) == ["MemoryMax=5"]
    assert scope_properties(LinuxResources(memory_limit_bytes=5, cpu_quota=7)) == []
