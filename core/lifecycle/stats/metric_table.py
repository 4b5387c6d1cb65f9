"""The table of all metrics: name, unit, labels, and where in a reading of a pod or container its values are.

Names, labels and units are those of cAdvisor, which dashboards know; values are whole numbers, as the API has them, so
seconds are cut. What the host doesn't tell has no value. Source: api.proto, PodSandboxMetrics; cAdvisor,
docs/storage/prometheus.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crinoid.core.api.linux import procfs
from crinoid.core.api.linux.procfs import OpenFiles
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.stats import CgroupDetails, DeviceUsage, InterfaceUsage, Pressure, PressureStats

LABELS = ("container", "id", "image", "name", "namespace", "pod")
"""What every sample is labelled with: ``id`` is the cgroup, ``name`` the container's id."""

_SECOND_NS = 1_000_000_000
_SECOND_US = 1_000_000
Value = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """A writable layer's use, and what its file system has; ``device`` as the kernel names it."""

    device: str
    usage_bytes: int
    limit_bytes: int
    inodes_free: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that was read of one pod or container at ``timestamp_ns``; ``resources`` are the limits it was given."""

    timestamp_ns: int
    started_ns: int
    cgroup: CgroupDetails | None = None
    files: OpenFiles | None = None
    open_files_limit: int | None = None
    disk: DiskFigures | None = None
    interfaces: tuple[InterfaceUsage, ...] = ()
    resources: LinuxResources = field(default_factory=LinuxResources)


@dataclass(frozen=True, slots=True)
class MetricDescriptor:
    """A metric: ``labels`` are all its label keys; ``values`` takes from a reading what it has, with further labels."""

    name: str
    help: str
    is_counter: bool
    labels: tuple[str, ...]
    values: Callable[[Reading], Iterable[Value]]


def _counter(name: str, text: str, values: Callable[[Reading], Iterable[Value]], *labels: str) -> MetricDescriptor:
    return MetricDescriptor(f"container_{name}", text, True, (*LABELS, *labels), values)


def _gauge(name: str, text: str, values: Callable[[Reading], Iterable[Value]], *labels: str) -> MetricDescriptor:
    return MetricDescriptor(f"container_{name}", text, False, (*LABELS, *labels), values)


def _cgroup(take: Callable[[CgroupDetails], int | None], *labels: str) -> Callable[[Reading], Iterable[Value]]:
    """One value of a cgroup."""

    def values(reading: Reading) -> Iterable[Value]:
        value = None if reading.cgroup is None else take(reading.cgroup)
        return () if value is None else ((labels, value),)

    return values


def _faults(reading: Reading) -> Iterable[Value]:
    if (cgroup := reading.cgroup) is not None:
        yield ("pgfault", "container"), cgroup.own_page_faults
        yield ("pgfault", "hierarchy"), cgroup.usage.page_faults
        yield ("pgmajfault", "container"), cgroup.own_major_page_faults
        yield ("pgmajfault", "hierarchy"), cgroup.usage.major_page_faults


def _devices(take: Callable[[DeviceUsage], int]) -> Callable[[Reading], Iterable[Value]]:
    """One value of each block device."""

    def values(reading: Reading) -> Iterable[Value]:
        for device in reading.cgroup.devices if reading.cgroup else ():
            yield (procfs.device_name(device.major, device.minor),), take(device)

    return values


def _device_operations(reading: Reading) -> Iterable[Value]:
    for device in reading.cgroup.devices if reading.cgroup else ():
        labels = (procfs.device_name(device.major, device.minor), str(device.major), str(device.minor))
        yield (*labels, "Read"), device.read_bytes
        yield (*labels, "Write"), device.write_bytes


def _hugepages(reading: Reading) -> Iterable[Value]:
    return [((one.size,), one.usage_bytes) for one in (reading.cgroup.hugepages if reading.cgroup else ())]


def _most_hugepages(reading: Reading) -> Iterable[Value]:
    found = reading.cgroup.hugepages if reading.cgroup else ()
    return [((one.size,), one.max_usage_bytes) for one in found if one.max_usage_bytes is not None]


def _pressure(
    resource: Callable[[CgroupDetails], PressureStats | None], line: Callable[[PressureStats], Pressure]
) -> Callable[[Reading], Iterable[Value]]:
    """The seconds of one line of a pressure file."""

    def take(cgroup: CgroupDetails) -> int | None:
        stats = resource(cgroup)
        return None if stats is None else line(stats).total_us // _SECOND_US

    return _cgroup(take)


def _disk(take: Callable[[DiskFigures], int]) -> Callable[[Reading], Iterable[Value]]:
    return lambda reading: (((reading.disk.device,), take(reading.disk)),) if reading.disk else ()


def _files(take: Callable[[OpenFiles], int]) -> Callable[[Reading], Iterable[Value]]:
    return lambda reading: (((), take(reading.files)),) if reading.files else ()


def _interfaces(take: Callable[[InterfaceUsage], int]) -> Callable[[Reading], Iterable[Value]]:
    return lambda reading: [((one.name,), take(one)) for one in reading.interfaces]


def _open_files_limit(reading: Reading) -> Iterable[Value]:
    limit = reading.open_files_limit
    return () if limit is None or limit < 0 else ((("max_open_files",), limit),)


def _shares(reading: Reading) -> Iterable[Value]:
    """What was asked for, where something was: version 2 keeps a weight that several numbers of shares give."""
    if reading.cgroup is not None:
        yield (), reading.resources.cpu_shares or reading.cgroup.cpu_shares


_CPU = (
    _counter(
        "cpu_usage_seconds_total",
        "CPU time used, in seconds.",
        _cgroup(lambda c: c.usage.cpu_ns // _SECOND_NS, "total"),
        "cpu",
    ),
    _counter(
        "cpu_user_seconds_total",
        "CPU time used by programs, in seconds.",
        _cgroup(lambda c: c.cpu_user_ns // _SECOND_NS),
    ),
    _counter(
        "cpu_system_seconds_total",
        "CPU time used by the kernel, in seconds.",
        _cgroup(lambda c: c.cpu_system_ns // _SECOND_NS),
    ),
    _counter("cpu_cfs_periods_total", "Periods in which the CPU quota was enforced.", _cgroup(lambda c: c.periods)),
    _counter(
        "cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        _cgroup(lambda c: c.throttled_periods),
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total",
        "Time spent waiting for CPU quota, in seconds.",
        _cgroup(lambda c: c.throttled_ns // _SECOND_NS),
    ),
)
_MEMORY = (
    _gauge("memory_usage_bytes", "Memory in use, page cache included.", _cgroup(lambda c: c.usage.memory_usage_bytes)),
    _gauge(
        "memory_working_set_bytes",
        "Memory in use, less inactive page cache.",
        _cgroup(lambda c: c.usage.memory_working_set_bytes),
    ),
    _gauge(
        "memory_max_usage_bytes", "The most memory that was ever in use.", _cgroup(lambda c: c.memory_max_usage_bytes)
    ),
    _gauge("memory_rss", "Anonymous memory in bytes.", _cgroup(lambda c: c.usage.memory_rss_bytes)),
    _gauge("memory_cache", "Page cache in bytes.", _cgroup(lambda c: c.memory_cache_bytes)),
    _gauge("memory_mapped_file", "Mapped files in bytes.", _cgroup(lambda c: c.memory_mapped_bytes)),
    _gauge(
        "memory_kernel_usage",
        "Memory that the kernel uses on behalf of it, in bytes.",
        _cgroup(lambda c: c.memory_kernel_bytes),
    ),
    _gauge("memory_swap", "Swap in use, in bytes.", _cgroup(lambda c: c.usage.swap_usage_bytes or 0)),
    _gauge(
        "memory_total_active_file_bytes", "Active page cache in bytes.", _cgroup(lambda c: c.memory_active_file_bytes)
    ),
    _gauge(
        "memory_total_inactive_file_bytes",
        "Inactive page cache in bytes.",
        _cgroup(lambda c: c.memory_inactive_file_bytes),
    ),
    _counter("memory_failcnt", "Times that the memory limit was met.", _cgroup(lambda c: c.memory_limit_hits)),
    _counter("memory_failures_total", "Page faults, by kind and scope.", _faults, "failure_type", "scope"),
    _counter("oom_events_total", "Processes killed for want of memory.", _cgroup(lambda c: c.oom_kills)),
    _gauge("hugetlb_usage_bytes", "Huge pages in use, in bytes.", _hugepages, "pagesize"),
    _gauge(
        "hugetlb_max_usage_bytes", "The most bytes of huge pages that were ever in use.", _most_hugepages, "pagesize"
    ),
)
_DISK = (
    _gauge("fs_usage_bytes", "What the writable layer takes on disk.", _disk(lambda d: d.usage_bytes), "device"),
    _gauge(
        "fs_limit_bytes", "Size of the file system of the writable layer.", _disk(lambda d: d.limit_bytes), "device"
    ),
    _gauge(
        "fs_inodes_free",
        "Free inodes of the file system of the writable layer.",
        _disk(lambda d: d.inodes_free),
        "device",
    ),
    _gauge("fs_inodes_total", "Inodes of the file system of the writable layer.", _disk(lambda d: d.inodes), "device"),
    _counter("fs_reads_bytes_total", "Bytes read from block devices.", _devices(lambda d: d.read_bytes), "device"),
    _counter("fs_reads_total", "Reads from block devices.", _devices(lambda d: d.reads), "device"),
    _counter("fs_writes_bytes_total", "Bytes written to block devices.", _devices(lambda d: d.write_bytes), "device"),
    _counter("fs_writes_total", "Writes to block devices.", _devices(lambda d: d.writes), "device"),
    _counter(
        "blkio_device_usage_total",
        "Bytes to and from block devices, by operation.",
        _device_operations,
        "device",
        "major",
        "minor",
        "operation",
    ),
)
_NETWORK = (
    _counter("network_receive_bytes_total", "Bytes received.", _interfaces(lambda i: i.rx_bytes), "interface"),
    _counter("network_receive_packets_total", "Packets received.", _interfaces(lambda i: i.rx_packets), "interface"),
    _counter(
        "network_receive_packets_dropped_total",
        "Packets dropped on receipt.",
        _interfaces(lambda i: i.rx_dropped),
        "interface",
    ),
    _counter("network_receive_errors_total", "Errors on receipt.", _interfaces(lambda i: i.rx_errors), "interface"),
    _counter("network_transmit_bytes_total", "Bytes sent.", _interfaces(lambda i: i.tx_bytes), "interface"),
    _counter("network_transmit_packets_total", "Packets sent.", _interfaces(lambda i: i.tx_packets), "interface"),
    _counter(
        "network_transmit_packets_dropped_total",
        "Packets dropped on sending.",
        _interfaces(lambda i: i.tx_dropped),
        "interface",
    ),
    _counter("network_transmit_errors_total", "Errors on sending.", _interfaces(lambda i: i.tx_errors), "interface"),
)
_PRESSURE = tuple(
    _counter(
        f"pressure_{name}_{word}_seconds_total",
        f"Time that {who} waited for {name}, in seconds.",
        _pressure(resource, line),
    )
    for name, resource in (
        ("cpu", lambda c: c.usage.cpu_pressure),
        ("memory", lambda c: c.usage.memory_pressure),
        ("io", lambda c: c.usage.io_pressure),
    )
    for word, who, line in (
        ("stalled", "all tasks", lambda stats: stats.full),
        ("waiting", "some tasks", lambda stats: stats.some),
    )
)
_PROCESSES = (
    _gauge("processes", "Processes.", _cgroup(lambda c: len(c.processes))),
    _gauge("threads", "Threads.", _cgroup(lambda c: c.usage.pids)),
    _gauge("threads_max", "Threads that there may be; 0 for no limit.", _cgroup(lambda c: c.threads_max)),
    _gauge("file_descriptors", "Open file descriptors.", _files(lambda f: f.descriptors)),
    _gauge("sockets", "Open sockets.", _files(lambda f: f.sockets)),
    _gauge("ulimits_soft", "Soft limits of the first process; an absent one is no limit.", _open_files_limit, "ulimit"),
)
_SPEC = (
    _gauge("spec_cpu_period", "Period of the CPU quota in microseconds.", _cgroup(lambda c: c.cpu_period_us)),
    _gauge("spec_cpu_quota", "CPU quota in microseconds a period.", _cgroup(lambda c: c.cpu_quota_us or None)),
    _gauge("spec_cpu_shares", "CPU shares.", _shares),
    _gauge("spec_memory_limit_bytes", "Memory limit; 0 for none.", _cgroup(lambda c: c.memory_limit_bytes)),
    _gauge(
        "spec_memory_reservation_limit_bytes",
        "Memory that is kept from reclaim; 0 for none.",
        _cgroup(lambda c: c.memory_reservation_bytes),
    ),
    _gauge("spec_memory_swap_limit_bytes", "Swap limit; 0 for none.", _cgroup(lambda c: c.memory_swap_limit_bytes)),
    _gauge("start_time_seconds", "Start, in seconds since the epoch.", lambda r: (((), r.started_ns // _SECOND_NS),)),
    _gauge("last_seen", "The last look, in seconds since the epoch.", lambda r: (((), r.timestamp_ns // _SECOND_NS),)),
)
METRICS: tuple[MetricDescriptor, ...] = (*_CPU, *_MEMORY, *_DISK, *_NETWORK, *_PRESSURE, *_PROCESSES, *_SPEC)
"""Every metric there can be."""
