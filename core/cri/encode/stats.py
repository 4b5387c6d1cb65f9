"""What containers and pods use. A reading that the host does not give is absent, which is not the same as 0.

A kubelet follows some fields without asking whether they are there, and ends with a nil dereference where one is not.
So a message is either left out where a kubelet asks for it, or has all that a kubelet needs of it; which field is which
stands in docs/conformance.md, "What a kubelet takes for granted", and a test holds every answer to it.

Messages are filled where they stand: protobuf copies one that is given to another, by encoding and decoding it.
"""

from collections.abc import Iterable
from typing import Protocol

from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage, Pressure, PressureStats
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import ContainerUsage, PodUsage

_NS_PER_US = 1000
_MAX_UINT64 = (1 << 64) - 1


class _Usage(Protocol):
    """The fields that messages for pods and for containers have in common."""

    @property
    def cpu(self) -> api_pb2.CpuUsage: ...

    @property
    def memory(self) -> api_pb2.MemoryUsage: ...

    @property
    def io(self) -> api_pb2.IoUsage: ...


def encode_container_stats(container: ContainerUsage) -> api_pb2.ContainerStats:
    """A container's readings; of one that does not run only its writable layer is measured."""
    stats = api_pb2.ContainerStats()
    _fill_container(stats, container)
    return stats


def encode_pod_stats(pod: PodUsage) -> api_pb2.PodSandboxStats:
    """A pod's readings as a whole, and those of its containers."""
    stats = api_pb2.PodSandboxStats()
    _fill_pod(stats, pod)
    return stats


def encode_container_stats_list(containers: Iterable[ContainerUsage]) -> api_pb2.ListContainerStatsResponse:
    """The readings of many containers."""
    answer = api_pb2.ListContainerStatsResponse()
    for container in containers:
        _fill_container(answer.stats.add(), container)
    return answer


def encode_pod_stats_list(pods: Iterable[PodUsage]) -> api_pb2.ListPodSandboxStatsResponse:
    """The readings of many pods."""
    answer = api_pb2.ListPodSandboxStatsResponse()
    for pod in pods:
        _fill_pod(answer.stats.add(), pod)
    return answer


def _fill_container(stats: api_pb2.ContainerStats, container: ContainerUsage) -> None:
    record, attributes = container.record, stats.attributes
    attributes.id = record.id
    attributes.metadata.name = record.config.metadata.name
    attributes.metadata.attempt = record.config.metadata.attempt
    attributes.labels.update(record.config.labels)
    attributes.annotations.update(record.config.annotations)
    if container.usage is not None:
        _fill_usage(stats, container.usage, container.cpu_nano_cores)
        _fill_swap(stats, container.usage)
    _fill_writable_layer(stats, container)


def _fill_pod(stats: api_pb2.PodSandboxStats, pod: PodUsage) -> None:
    metadata, attributes = pod.record.config.metadata, stats.attributes
    attributes.id = pod.record.id
    attributes.metadata.name = metadata.name
    attributes.metadata.uid = metadata.uid
    attributes.metadata.namespace = metadata.namespace
    attributes.metadata.attempt = metadata.attempt
    attributes.labels.update(pod.record.config.labels)
    attributes.annotations.update(pod.record.config.annotations)
    linux = stats.linux
    linux.SetInParent()  # though it be empty: the kubelet reads its containers unasked
    if pod.usage is not None:
        _fill_usage(linux, pod.usage, pod.cpu_nano_cores)
        linux.process.timestamp = pod.usage.timestamp_ns
        _fill_number(linux.process.process_count, pod.usage.pids)
    if pod.network is not None and pod.network.default is not None:
        _fill_network(linux.network, pod.network, pod.network.default)
    for container in pod.containers:
        _fill_container(linux.containers.add(), container)


def _fill_usage(stats: _Usage, usage: CgroupUsage, nano_cores: int | None) -> None:
    """CPU, memory and I/O."""
    cpu = stats.cpu
    cpu.timestamp = usage.timestamp_ns
    _fill_number(cpu.usage_core_nano_seconds, usage.cpu_ns)
    _fill_number(cpu.usage_nano_cores, nano_cores)
    _fill_pressure(cpu, usage.cpu_pressure)
    _fill_memory(stats.memory, usage)
    if usage.io_pressure is not None:
        stats.io.timestamp = usage.timestamp_ns
        _fill_pressure(stats.io, usage.io_pressure)


def _fill_memory(memory: api_pb2.MemoryUsage, usage: CgroupUsage) -> None:
    memory.timestamp = usage.timestamp_ns
    _fill_number(memory.working_set_bytes, usage.memory_working_set_bytes)
    _fill_number(memory.available_bytes, _remainder(usage.memory_limit_bytes, usage.memory_working_set_bytes))
    _fill_number(memory.usage_bytes, usage.memory_usage_bytes)
    _fill_number(memory.rss_bytes, usage.memory_rss_bytes)
    _fill_number(memory.page_faults, usage.page_faults)
    _fill_number(memory.major_page_faults, usage.major_page_faults)
    _fill_pressure(memory, usage.memory_pressure)


def _fill_swap(stats: api_pb2.ContainerStats, usage: CgroupUsage) -> None:
    if usage.swap_usage_bytes is None:
        return
    swap = stats.swap
    swap.timestamp = usage.timestamp_ns
    _fill_number(swap.swap_available_bytes, _remainder(usage.swap_limit_bytes, usage.swap_usage_bytes))
    _fill_number(swap.swap_usage_bytes, usage.swap_usage_bytes)


def _fill_writable_layer(stats: api_pb2.ContainerStats, container: ContainerUsage) -> None:
    if container.disk is None:
        return
    layer = stats.writable_layer
    layer.timestamp = container.disk_timestamp_ns
    layer.fs_id.mountpoint = container.disk_mountpoint
    layer.used_bytes.value = container.disk.used_bytes
    layer.inodes_used.value = container.disk.inodes


def _fill_network(stats: api_pb2.NetworkUsage, network: NetworkUsage, default: InterfaceUsage) -> None:
    """The default interface, which a kubelet reads unasked, and all others beside it (api.proto, NetworkUsage)."""
    stats.timestamp = network.timestamp_ns
    _fill_interface(stats.default_interface, default)
    for interface in network.interfaces:
        if interface is not default:
            _fill_interface(stats.interfaces.add(), interface)


def _fill_interface(stats: api_pb2.NetworkInterfaceUsage, interface: InterfaceUsage) -> None:
    stats.name = interface.name
    _fill_number(stats.rx_bytes, interface.rx_bytes)
    _fill_number(stats.rx_errors, interface.rx_errors)
    _fill_number(stats.tx_bytes, interface.tx_bytes)
    _fill_number(stats.tx_errors, interface.tx_errors)


class _WithPressure(Protocol):
    """A message that tells of stalls."""

    @property
    def psi(self) -> api_pb2.PsiStats: ...


def _fill_pressure(stats: _WithPressure, pressure: PressureStats | None) -> None:
    if pressure is not None:
        _fill_pressure_line(stats.psi.Full, pressure.full)
        _fill_pressure_line(stats.psi.Some, pressure.some)


def _fill_pressure_line(stats: api_pb2.PsiData, line: Pressure) -> None:
    """The kernel counts stalls in microseconds, the CRI in nanoseconds."""
    stats.Total = line.total_us * _NS_PER_US
    stats.Avg10, stats.Avg60, stats.Avg300 = line.avg10, line.avg60, line.avg300


def _remainder(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(limit - used, 0)


def _fill_number(field: api_pb2.UInt64Value, number: int | None) -> None:
    """Set a field that is there only where there is a number."""
    if number is not None:
        field.value = min(max(number, 0), _MAX_UINT64)
