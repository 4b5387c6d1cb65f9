"""The table of metrics, what is taken from a reading, and the limits of a pod's cgroup."""

import dataclasses

from crinoid.core.api.linux.procfs import OpenFiles, count_open_files, device_name, soft_limit
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.stats import (
    CgroupDetails,
    CgroupUsage,
    DeviceUsage,
    HugepageUsage,
    InterfaceUsage,
    Pressure,
    PressureStats,
)
from crinoid.core.lifecycle.stats.metric_table import LABELS, METRICS, DiskFigures, Reading
from crinoid.core.lifecycle.stats.metrics import take_samples

SECOND_NS = 10**9
BASE = ("app", "/pod/c1", "busybox", "c1", "ns", "pod")
STALLS = PressureStats(full=Pressure(2_500_000, 0, 0, 0), some=Pressure(7_000_000, 0, 0, 0))
USAGE = CgroupUsage(
    timestamp_ns=1,
    cpu_ns=7 * SECOND_NS + 5,
    memory_usage_bytes=100,
    memory_working_set_bytes=90,
    memory_rss_bytes=80,
    page_faults=70,
    major_page_faults=7,
    pids=6,
    cpu_pressure=STALLS,
    memory_pressure=STALLS,
    io_pressure=STALLS,
)
CGROUP = CgroupDetails(
    usage=USAGE,
    memory_max_usage_bytes=110,
    own_page_faults=60,
    devices=(DeviceUsage(0, 9999, 1, 2, 3, 4),),
    hugepages=(HugepageUsage("2MB", 5, 6), HugepageUsage("1GB", 7)),
    processes=(1, 2),
    cpu_shares=1000,
    cpu_quota_us=50,
    cpu_period_us=100,
)
WHOLE = Reading(
    timestamp_ns=9 * SECOND_NS,
    started_ns=8 * SECOND_NS,
    cgroup=CGROUP,
    files=OpenFiles(12, 3),
    open_files_limit=1024,
    disk=DiskFigures("/dev/vda", 1, 2, 3, 4),
    interfaces=(InterfaceUsage("eth0", 1, 2, 3, 4, 5, 6, 7, 8), InterfaceUsage("net1", 0, 0, 0, 0)),
    resources=LinuxResources(cpu_shares=1024),
)
SUITES_NAMES = """blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors
fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total
fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total
memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes
memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total
network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes
sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft"""
"""What the conformance suite looks for, without the ``container_`` before each."""


def values_of(reading: Reading) -> dict[tuple[str, ...], int]:
    samples = take_samples(reading, BASE)
    return {(one.metric.name.removeprefix("container_"), *one.label_values[6:]): one.value for one in samples}


def test_every_metric_that_the_suite_names_is_there_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert {f"container_{name}" for name in SUITES_NAMES.split()} <= set(names)
    assert all(metric.help and metric.labels[:6] == LABELS for metric in METRICS)
    counters = {metric.name for metric in METRICS if metric.is_counter}
    assert counters == {name for name in names if name.endswith(("_total", "_failcnt"))} - {"container_fs_inodes_total"}


def test_a_whole_reading_has_a_sample_of_every_metric_with_all_labels() -> None:
    samples = take_samples(WHOLE, BASE)
    assert {one.metric.name for one in samples} == {metric.name for metric in METRICS}
    assert all(len(one.label_values) == len(one.metric.labels) for one in samples)
    assert all(one.label_values[:6] == BASE and one.timestamp_ns == 9 * SECOND_NS for one in samples)


def test_values() -> None:
    values = values_of(WHOLE)
    assert values["cpu_usage_seconds_total", "total"] == 7
    assert values["memory_failures_total", "pgfault", "container"] == 60
    assert values["memory_failures_total", "pgfault", "hierarchy"] == 70
    assert values["blkio_device_usage_total", "0:9999", "0", "9999", "Write"] == 2
    assert (values["fs_reads_total", "0:9999"], values["fs_writes_total", "0:9999"]) == (3, 4)
    assert (values["hugetlb_usage_bytes", "1GB"], values["hugetlb_max_usage_bytes", "2MB"]) == (7, 6)
    assert ("hugetlb_max_usage_bytes", "1GB") not in values
    assert (values["pressure_io_stalled_seconds_total",], values["pressure_io_waiting_seconds_total",]) == (2, 7)
    assert (values["network_transmit_bytes_total", "eth0"], values["network_receive_packets_total", "eth0"]) == (3, 5)
    assert (values["processes",], values["threads",], values["sockets",]) == (2, 6, 3)
    assert (values["spec_cpu_shares",], values["start_time_seconds",], values["last_seen",]) == (1024, 8, 9)


def test_what_was_not_read_has_no_sample() -> None:
    assert values_of(Reading(timestamp_ns=SECOND_NS, started_ns=0)) == {("start_time_seconds",): 0, ("last_seen",): 1}
    bare = dataclasses.replace(CGROUP, usage=CgroupUsage(timestamp_ns=1), cpu_quota_us=0, memory_max_usage_bytes=None)
    reading = dataclasses.replace(WHOLE, cgroup=bare, open_files_limit=-1)
    missing = {name[0] for name in values_of(WHOLE)} - {name[0] for name in values_of(reading)}
    pressure = {name for name in SUITES_NAMES.split() if name.startswith("pressure_")}
    assert missing == pressure | {"spec_cpu_quota", "memory_max_usage_bytes", "ulimits_soft"}


def test_processes_tell_their_files_and_limits() -> None:
    import os
    import socket

    with socket.socket():
        mine = count_open_files([os.getpid(), 2**22 + 1])
    assert mine.descriptors > mine.sockets >= 1
    assert (soft_limit(os.getpid(), "Max open files") or 0) > 0
    assert soft_limit(2**22 + 1, "Max open files") is None
    assert soft_limit(os.getpid(), "Max nonsense") is None
    assert device_name(0, 9999) == "0:9999"
