"""What a container or pod uses, read from cgroups and network devices; times in ns since the epoch."""

from dataclasses import dataclass, field

from crinoid.core.api.values.network import DEFAULT_INTERFACE


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
class DeviceUsage:
    """What a cgroup has read from and written to one block device, in bytes and in operations."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class HugepageUsage:
    """Huge pages of one size (``2MB``) in use, in bytes; version 2 doesn't tell the most there ever was (``None``)."""

    size: str
    usage_bytes: int
    max_usage_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupDetails:
    """What a cgroup tells beyond :class:`CgroupUsage`, for metrics. ``None``: it doesn't.

    Times in nanoseconds, memory in bytes; counters count from the making of the cgroup. ``own_…`` leave out the cgroups
    below. Limits are 0 where there is none; ``cpu_quota_us`` is microseconds in each ``cpu_period_us``.
    """

    usage: CgroupUsage
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_cache_bytes: int = 0
    memory_kernel_bytes: int = 0
    memory_mapped_bytes: int = 0
    memory_active_file_bytes: int = 0
    memory_inactive_file_bytes: int = 0
    memory_max_usage_bytes: int | None = None
    memory_limit_hits: int = 0
    own_page_faults: int = 0
    own_major_page_faults: int = 0
    oom_kills: int = 0
    devices: tuple[DeviceUsage, ...] = ()
    hugepages: tuple[HugepageUsage, ...] = ()
    processes: tuple[int, ...] = ()
    threads_max: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_shares: int = 0
    memory_limit_bytes: int = 0
    memory_reservation_bytes: int = 0
    memory_swap_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InterfaceUsage:
    """Counters of one network interface since it was made."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """All interfaces of a pod but loopback, by name; ``default`` is the pod's own, which its network attached."""

    timestamp_ns: int
    interfaces: tuple[InterfaceUsage, ...] = field(default=())

    @property
    def default(self) -> InterfaceUsage | None:
        """The pod's own interface; ``None`` where somebody removed it, whatever other interfaces are there.

        It goes by its name: what comes first may be a tunnel that the kernel makes in every network namespace.
        """
        return next((one for one in self.interfaces if one.name == DEFAULT_INTERFACE), None)
