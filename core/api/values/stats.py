"""What a container or pod uses, read from cgroups and network devices; times in ns since the epoch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a pressure file: stalled microseconds in all, and averages in percent."""

    total_us: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class PressureStats:
    """Pressure stall information of one resource; only cgroup v2 has it."""

    full: Pressure
    some: Pressure


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUsage:
    """What the processes of one cgroup use. ``None``: the cgroup version or its controllers don't tell.

    ``memory_working_set_bytes`` is usage less inactive page cache, never below 0. ``memory_limit_bytes`` is ``None``
    where there is no limit.
    """

    timestamp_ns: int
    cpu_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_rss_bytes: int = 0
    memory_limit_bytes: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    swap_usage_bytes: int | None = None
    swap_limit_bytes: int | None = None
    pids: int = 0
    cpu_pressure: PressureStats | None = None
    memory_pressure: PressureStats | None = None
    io_pressure: PressureStats | None = None


@dataclass(frozen=True, slots=True)
class InterfaceUsage:
    """Counters of one network interface since it was made."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """All interfaces of a pod but loopback; ``default`` is the first one, ``None`` without any."""

    timestamp_ns: int
    interfaces: tuple[InterfaceUsage, ...] = field(default=())

    @property
    def default(self) -> InterfaceUsage | None:
        """The interface that was attached first."""
        return self.interfaces[0] if self.interfaces else None
