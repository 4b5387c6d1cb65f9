"""The figures behind metrics, from files as both versions of cgroups write them."""

from pathlib import Path

import pytest

from crinoid.core.api.errors import NotFound
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroupdetails import cpu_shares, parse_blkio, parse_io_stat, read_details
from crinoid.core.api.linux.cgroups import Hierarchies, cpu_weight
from crinoid.core.api.values.stats import DeviceUsage, HugepageUsage


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "_host", lambda: Hierarchies(2, unified=str(tmp_path)))
    monkeypatch.setattr(cgroups, "hugepage_sizes", lambda: frozenset({"2MB", "1GB"}))
    write(
        tmp_path / "pod",
        {
            "cpu.stat": "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 7\nnr_throttled 2\n"
            "throttled_usec 500\n",
            "cpu.max": "20000 100000\n",
            "cpu.weight": "100\n",
            "memory.stat": "anon 10\nfile 20\nkernel 30\nfile_mapped 40\nactive_file 50\ninactive_file 60\npgfault 70\n"
            "pgmajfault 8\n",
            "memory.current": "1000\n",
            "memory.peak": "2000\n",
            "memory.max": "max\n",
            "memory.min": "4096\n",
            "memory.swap.max": "8192\n",
            "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
            "io.stat": "8:0 rbytes=11 wbytes=12 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n",
            "hugetlb.2MB.current": "2097152\n",
            "pids.current": "5\n",
            "pids.max": "max\n",
            "cgroup.procs": "17\n4\n",
        },
    )
    return tmp_path / "pod"


def test_version_2(v2: Path) -> None:
    details = read_details("/pod")
    assert (details.cpu_user_ns, details.cpu_system_ns, details.throttled_ns) == (2_000_000, 1_000_000, 500_000)
    assert (details.periods, details.throttled_periods) == (7, 2)
    assert (details.memory_cache_bytes, details.memory_kernel_bytes, details.memory_mapped_bytes) == (20, 30, 40)
    assert (details.memory_active_file_bytes, details.memory_inactive_file_bytes) == (50, 60)
    assert (details.memory_max_usage_bytes, details.memory_limit_hits, details.oom_kills) == (2000, 3, 1)
    assert (details.own_page_faults, details.own_major_page_faults) == (70, 8)
    assert details.devices == (DeviceUsage(8, 0, 11, 12, 1, 2),)
    assert details.hugepages == (HugepageUsage("2MB", 2_097_152),)
    assert (details.processes, details.threads_max) == ((4, 17), 0)
    assert (details.cpu_quota_us, details.cpu_period_us, details.cpu_shares) == (20_000, 100_000, 1024)
    limits = (details.memory_limit_bytes, details.memory_reservation_bytes, details.memory_swap_limit_bytes)
    assert limits == (0, 4096, 8192)
    assert details.usage.cpu_ns == 3_000_000


def test_version_2_without_limits_and_peaks(v2: Path) -> None:
    write(v2, {"cpu.max": "max 100000\n", "memory.max": "65536\n", "pids.max": "99\n"})
    (v2 / "memory.peak").unlink()
    details = read_details("/pod")
    assert (details.cpu_quota_us, details.memory_limit_bytes, details.threads_max) == (0, 65536, 99)
    assert details.memory_max_usage_bytes is None


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb")
    by_controller = {name: str(tmp_path / name) for name in names}
    monkeypatch.setattr(cgroups, "_host", lambda: Hierarchies(1, by_controller, unified=str(tmp_path / "unified")))
    monkeypatch.setattr(cgroups, "hugepage_sizes", lambda: frozenset({"2MB"}))
    write(tmp_path / "cpuacct/pod", {"cpuacct.usage": "5000\n", "cpuacct.stat": "user 200\nsystem 100\n"})
    write(
        tmp_path / "cpu/pod",
        {
            "cpu.stat": "nr_periods 7\nnr_throttled 2\nthrottled_time 500\n",
            "cpu.cfs_period_us": "100000\n",
            "cpu.cfs_quota_us": "-1\n",
            "cpu.shares": "512\n",
        },
    )
    write(
        tmp_path / "memory/pod",
        {
            "memory.stat": "pgfault 3\npgmajfault 1\ntotal_cache 20\ntotal_mapped_file 40\ntotal_active_file 50\n"
            "total_inactive_file 60\ntotal_pgfault 70\ntotal_pgmajfault 8\n",
            "memory.usage_in_bytes": "1000\n",
            "memory.max_usage_in_bytes": "2000\n",
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.soft_limit_in_bytes": "4096\n",
            "memory.memsw.limit_in_bytes": "8192\n",
            "memory.kmem.usage_in_bytes": "30\n",
            "memory.failcnt": "3\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        },
    )
    write(
        tmp_path / "blkio/pod",
        {
            "blkio.throttle.io_service_bytes_recursive": "8:0 Read 11\n8:0 Write 12\n8:0 Total 23\nTotal 23\n",
            "blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\n253:1 Read 4\nTotal 7\n",
        },
    )
    write(tmp_path / "hugetlb/pod", {"hugetlb.2MB.usage_in_bytes": "1\n", "hugetlb.2MB.max_usage_in_bytes": "2\n"})
    write(tmp_path / "pids/pod", {"pids.max": "64\n", "cgroup.procs": "4\n"})
    return tmp_path


def test_version_1(v1: Path) -> None:
    details = read_details("/pod")
    assert (details.cpu_user_ns, details.cpu_system_ns) == (2_000_000_000, 1_000_000_000)
    assert (details.periods, details.throttled_periods, details.throttled_ns) == (7, 2, 500)
    assert (details.memory_cache_bytes, details.memory_kernel_bytes, details.memory_mapped_bytes) == (20, 30, 40)
    assert (details.memory_active_file_bytes, details.memory_inactive_file_bytes) == (50, 60)
    assert (details.memory_max_usage_bytes, details.memory_limit_hits, details.oom_kills) == (2000, 3, 1)
    assert (details.own_page_faults, details.own_major_page_faults, details.usage.page_faults) == (3, 1, 70)
    assert details.devices == (DeviceUsage(8, 0, 11, 12, 1, 2), DeviceUsage(253, 1, 0, 0, 4, 0))
    assert details.hugepages == (HugepageUsage("2MB", 1, 2),)
    assert (details.processes, details.threads_max) == ((4,), 64)
    assert (details.cpu_quota_us, details.cpu_period_us, details.cpu_shares) == (0, 100_000, 512)
    limits = (details.memory_limit_bytes, details.memory_reservation_bytes, details.memory_swap_limit_bytes)
    assert limits == (0, 4096, 8192)


def test_a_cgroup_that_is_not_there(v1: Path) -> None:
    with pytest.raises(NotFound):
        read_details("/none")


def test_a_file_is_looked_for_in_the_unified_hierarchy_too(v1: Path) -> None:
    write(v1 / "unified/pod", {"cpu.pressure": "some total=1\n", "memory.stat": "wrong 1\n"})
    assert cgroups.read_file("/pod", "cpu.pressure") == "some total=1\n"
    assert (cgroups.read_file("/pod", "memory.stat") or "").startswith("pgfault")
    assert cgroups.read_file("/pod", "io.pressure") is None


@pytest.mark.parametrize("shares", [2, 64, 512, 1024, 2048, 262_144])
def test_shares_come_back_from_the_weight_as_near_as_it_keeps_them(shares: int) -> None:
    assert cpu_weight(cpu_shares(cpu_weight(shares))) == cpu_weight(shares)
    assert cpu_shares(100) == 1024


def test_odd_lines_are_passed_by() -> None:
    assert parse_blkio("\nTotal 0\n8:16 Discard 3\n") == {(8, 16): {"Discard": 3}}
    assert list(parse_io_stat("\nnone\n8:0 rbytes=5 cost.usage=x\n")) == [DeviceUsage(8, 0, read_bytes=5)]
