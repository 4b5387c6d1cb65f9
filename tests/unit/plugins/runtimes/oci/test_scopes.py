"""What systemd is told of a scope's limits."""

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.runtimes.oci import scopes
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


@pytest.mark.parametrize("kills_all", [True, False])
async def test_what_systemd_undoes_is_written_again(monkeypatch: pytest.MonkeyPatch, kills_all: bool) -> None:
    done: list[object] = []

    async def run(command: tuple[str, ...], **_: object) -> None:
        done.append(command[1])

    monkeypatch.setattr(scopes, "run_checked", run)
    monkeypatch.setattr(scopes, "find_program", lambda *_: "systemctl")
    monkeypatch.setattr(cgroups, "read_file", lambda *_: None)
    monkeypatch.setattr(cgroups, "write_resources", lambda _, resources: done.append(resources))
    await scopes.set_unit_limits("a.slice:crinoid:abc", 1, kills_all=kills_all)
    assert done == ["set-property", LinuxResources(unified={"memory.oom.group": "1"})][: 1 + kills_all]
