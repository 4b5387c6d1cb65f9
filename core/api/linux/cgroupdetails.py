"""What a cgroup tells beyond its usage: the figures behind the metrics that the kubelet hands to monitoring.

Reads some twenty small files, so call it in a thread. Sources: the kernel's cgroup-v1 documents (memory, cpu, blkio,
hugetlb) and cgroup-v2.rst.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from crinoid.core.api.linux import cgroups
from crinoid.core.api.values.stats import CgroupDetails, DeviceUsage, HugepageUsage

_NO_LIMIT = 1 << 62
_US = 1000
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def read_details(path: str) -> CgroupDetails:
    """Read all that a cgroup, with those below it, tells. Raises NotFound."""
    return _Reader(path).read_v2() if cgroups.version() == 2 else _Reader(path).read_v1()


def cpu_shares(weight: int) -> int:
    """Convert version 2's weight back to the most of version 1's shares that ``cgroups.cpu_weight`` makes it of."""
    bits = (math.sqrt(125 * 125 + 4 * 612 * (math.log10(weight) + 7 / 34)) - 125) / 2
    return min(max(math.floor(2**bits + 1e-6), 2), 262_144)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the files of one cgroup."""

    path: str

    def read_v1(self) -> CgroupDetails:
        usage = cgroups.read_usage(self.path)
        cpu, memory = self._table("cpu.stat"), self._table("memory.stat")
        times = self._table("cpuacct.stat")
        return CgroupDetails(
            usage=usage,
            cpu_user_ns=times.get("user", 0) * _TICK_NS,
            cpu_system_ns=times.get("system", 0) * _TICK_NS,
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_ns=cpu.get("throttled_time", 0),
            memory_cache_bytes=memory.get("total_cache", 0),
            memory_kernel_bytes=self._number("memory.kmem.usage_in_bytes") or 0,
            memory_mapped_bytes=memory.get("total_mapped_file", 0),
            memory_active_file_bytes=memory.get("total_active_file", 0),
            memory_inactive_file_bytes=memory.get("total_inactive_file", 0),
            memory_max_usage_bytes=self._number("memory.max_usage_in_bytes"),
            memory_limit_hits=self._number("memory.failcnt") or 0,
            own_page_faults=memory.get("pgfault", 0),
            own_major_page_faults=memory.get("pgmajfault", 0),
            oom_kills=self._table("memory.oom_control").get("oom_kill", 0),
            devices=tuple(self._devices_v1()),
            hugepages=tuple(self._hugepages("usage_in_bytes", "max_usage_in_bytes")),
            processes=cgroups.processes(self.path),
            threads_max=self._limit("pids.max"),
            cpu_period_us=self._number("cpu.cfs_period_us") or 0,
            cpu_quota_us=max(0, self._number("cpu.cfs_quota_us") or 0),
            cpu_shares=self._number("cpu.shares") or 0,
            memory_limit_bytes=self._limit("memory.limit_in_bytes"),
            memory_reservation_bytes=self._limit("memory.soft_limit_in_bytes"),
            memory_swap_limit_bytes=self._limit("memory.memsw.limit_in_bytes"),
        )

    def read_v2(self) -> CgroupDetails:
        usage = cgroups.read_usage(self.path)
        cpu, memory, events = self._table("cpu.stat"), self._table("memory.stat"), self._table("memory.events")
        quota, period = (self._text("cpu.max") or "max 0").split()
        weight = self._number("cpu.weight")
        return CgroupDetails(
            usage=usage,
            cpu_user_ns=cpu.get("user_usec", 0) * _US,
            cpu_system_ns=cpu.get("system_usec", 0) * _US,
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_ns=cpu.get("throttled_usec", 0) * _US,
            memory_cache_bytes=memory.get("file", 0),
            memory_kernel_bytes=memory.get("kernel", 0) or memory.get("slab", 0) + memory.get("kernel_stack", 0),
            memory_mapped_bytes=memory.get("file_mapped", 0),
            memory_active_file_bytes=memory.get("active_file", 0),
            memory_inactive_file_bytes=memory.get("inactive_file", 0),
            memory_max_usage_bytes=self._number("memory.peak"),
            memory_limit_hits=events.get("max", 0),
            own_page_faults=memory.get("pgfault", 0),
            own_major_page_faults=memory.get("pgmajfault", 0),
            oom_kills=events.get("oom_kill", 0),
            devices=tuple(parse_io_stat(self._text("io.stat") or "")),
            hugepages=tuple(self._hugepages("current", "")),
            processes=cgroups.processes(self.path),
            threads_max=self._limit("pids.max"),
            cpu_period_us=int(period),
            cpu_quota_us=0 if quota == "max" else int(quota),
            cpu_shares=cpu_shares(weight) if weight else 0,
            memory_limit_bytes=self._limit("memory.max"),
            memory_reservation_bytes=self._limit("memory.min"),
            memory_swap_limit_bytes=self._limit("memory.swap.max"),
        )

    def _text(self, name: str) -> str | None:
        return cgroups.read_file(self.path, name)

    def _number(self, name: str) -> int | None:
        text = self._text(name)
        return None if text is None or text.startswith("max") else int(text)

    def _limit(self, name: str) -> int:
        """A limit beyond all memory is none: version 1 writes a number close to 2**63."""
        value = self._number(name) or 0
        return value if 0 < value < _NO_LIMIT else 0

    def _table(self, name: str) -> dict[str, int]:
        pairs = (line.split() for line in (self._text(name) or "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}

    def _devices_v1(self) -> Iterator[DeviceUsage]:
        volumes = parse_blkio(self._blkio("io_service_bytes"))
        counts = parse_blkio(self._blkio("io_serviced"))
        for major, minor in sorted(volumes.keys() | counts.keys()):
            volume, count = volumes.get((major, minor), {}), counts.get((major, minor), {})
            yield DeviceUsage(
                major,
                minor,
                read_bytes=volume.get("Read", 0),
                write_bytes=volume.get("Write", 0),
                reads=count.get("Read", 0),
                writes=count.get("Write", 0),
            )

    def _blkio(self, name: str) -> str:
        """The counters of all below too, where the kernel has them."""
        return self._text(f"blkio.throttle.{name}_recursive") or self._text(f"blkio.throttle.{name}") or ""

    def _hugepages(self, usage: str, most: str) -> Iterator[HugepageUsage]:
        for size in sorted(cgroups.hugepage_sizes()):
            if (used := self._number(f"hugetlb.{size}.{usage}")) is not None:
                yield HugepageUsage(size, used, self._number(f"hugetlb.{size}.{most}") if most else None)


def parse_blkio(text: str) -> dict[tuple[int, int], dict[str, int]]:
    """Read lines such as ``8:0 Read 4096`` (version 1); the sum at the end is left out."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for words in (line.split() for line in text.splitlines()):
        if len(words) == 3:
            found.setdefault(_device(words[0]), {})[words[1]] = int(words[2])
    return found


def parse_io_stat(text: str) -> Iterator[DeviceUsage]:
    """Read lines such as ``8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`` (version 2)."""
    for name, *pairs in (line.split() for line in text.splitlines() if line.strip()):
        values = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
        if ":" in name and values:
            yield DeviceUsage(*_device(name), *(values.get(key, 0) for key in ("rbytes", "wbytes", "rios", "wios")))


def _device(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(":")
    return int(major), int(minor)
