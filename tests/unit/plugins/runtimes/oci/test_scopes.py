"""What systemd is told of a scope's limits."""

import pytest

from crinoid.plugins.runtimes.oci.scopes import scope_properties


@pytest.mark.parametrize(
    ("name", "value", "properties"),
    [
        ("memory.high", "1048576\n", ["MemoryHigh=1048576"]),
        ("memory.max", "max\n", ["MemoryMax=infinity"]),
        ("memory.swap.max", "0\n", ["MemorySwapMax=0"]),
        ("pids.max", "7\n", ["TasksMax=7"]),
        ("cpu.max", "25000 50000\n", ["CPUQuota=50.00%", "CPUQuotaPeriodSec=50000us"]),
        ("cpu.max", "max 100000\n", ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]),
        ("cpu.max", "333 100000\n", ["CPUQuota=0.33%", "CPUQuotaPeriodSec=100000us"]),
        ("cpu.weight", "77\n", ["CPUWeight=77"]),
        ("cpuset.cpus", "0-1,3\n", ["AllowedCPUs=0-1,3"]),
        ("cpuset.cpus", "\n", ["AllowedCPUs="]),
        ("memory.oom.group", "1\n", []),
    ],
)
def test_settings_and_properties(name: str, value: str, properties: list[str]) -> None:
    assert list(scope_properties({name: value}.get)) == properties
