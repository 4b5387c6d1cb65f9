"""What containers and pods use. A reading that the host does not give is absent, which is not the same as 0."""

from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage, Pressure, PressureStats
from crinoid.core.cri.encode.containers import encode_container_metadata
from crinoid.core.cri.encode.images import encode_disk_usage
from crinoid.core.cri.encode.pods import encode_pod_metadata
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import ContainerUsage, PodUsage
from crinoid.core.state.records import ContainerRecord, PodRecord

_NS_PER_US = 1000


def encode_container_stats(container: ContainerUsage) -> api_pb2.ContainerStats:
    """A container's readings; of one that does not run only its writable layer is measured."""
    usage = container.usage
    return api_pb2.ContainerStats(
        attributes=_encode_container_attributes(container.record),
        cpu=_encode_cpu(usage, container.cpu_nano_cores) if usage else None,
        memory=_encode_memory(usage) if usage else None,
        writable_layer=_encode_writable_layer(container),
        swap=_encode_swap(usage) if usage else None,
        io=_encode_io(usage) if usage else None,
    )


def encode_pod_stats(pod: PodUsage) -> api_pb2.PodSandboxStats:
    """A pod's readings as a whole, and those of its containers."""
    usage = pod.usage
    return api_pb2.PodSandboxStats(
        attributes=_encode_pod_attributes(pod.record),
        linux=api_pb2.LinuxPodSandboxStats(
            cpu=_encode_cpu(usage, pod.cpu_nano_cores) if usage else None,
            memory=_encode_memory(usage) if usage else None,
            network=_encode_network(pod.network) if pod.network else None,
            process=_encode_processes(usage) if usage else None,
            containers=[encode_container_stats(container) for container in pod.containers],
            io=_encode_io(usage) if usage else None,
        ),
    )


def _encode_container_attributes(record: ContainerRecord) -> api_pb2.ContainerAttributes:
    return api_pb2.ContainerAttributes(
        id=record.id,
        metadata=encode_container_metadata(record.config.metadata),
        labels=record.config.labels,
        annotations=record.config.annotations,
    )


def _encode_pod_attributes(record: PodRecord) -> api_pb2.PodSandboxAttributes:
    return api_pb2.PodSandboxAttributes(
        id=record.id,
        metadata=encode_pod_metadata(record.config.metadata),
        labels=record.config.labels,
        annotations=record.config.annotations,
    )


def _encode_cpu(usage: CgroupUsage, nano_cores: int | None) -> api_pb2.CpuUsage:
    return api_pb2.CpuUsage(
        timestamp=usage.timestamp_ns,
        usage_core_nano_seconds=_wrap(usage.cpu_ns),
        usage_nano_cores=_wrap(nano_cores),
        psi=_encode_pressure(usage.cpu_pressure),
    )


def _encode_memory(usage: CgroupUsage) -> api_pb2.MemoryUsage:
    return api_pb2.MemoryUsage(
        timestamp=usage.timestamp_ns,
        working_set_bytes=_wrap(usage.memory_working_set_bytes),
        available_bytes=_wrap(_remainder(usage.memory_limit_bytes, usage.memory_working_set_bytes)),
        usage_bytes=_wrap(usage.memory_usage_bytes),
        rss_bytes=_wrap(usage.memory_rss_bytes),
        page_faults=_wrap(usage.page_faults),
        major_page_faults=_wrap(usage.major_page_faults),
        psi=_encode_pressure(usage.memory_pressure),
    )


def _encode_swap(usage: CgroupUsage) -> api_pb2.SwapUsage | None:
    if usage.swap_usage_bytes is None:
        return None
    return api_pb2.SwapUsage(
        timestamp=usage.timestamp_ns,
        swap_available_bytes=_wrap(_remainder(usage.swap_limit_bytes, usage.swap_usage_bytes)),
        swap_usage_bytes=_wrap(usage.swap_usage_bytes),
    )


def _encode_io(usage: CgroupUsage) -> api_pb2.IoUsage | None:
    if usage.io_pressure is None:
        return None
    return api_pb2.IoUsage(timestamp=usage.timestamp_ns, psi=_encode_pressure(usage.io_pressure))


def _encode_processes(usage: CgroupUsage) -> api_pb2.ProcessUsage:
    return api_pb2.ProcessUsage(timestamp=usage.timestamp_ns, process_count=_wrap(usage.pids))


def _encode_writable_layer(container: ContainerUsage) -> api_pb2.FilesystemUsage | None:
    if container.disk is None:
        return None
    return encode_disk_usage(container.disk_timestamp_ns, container.disk_mountpoint, container.disk)


def _encode_network(network: NetworkUsage) -> api_pb2.NetworkUsage:
    return api_pb2.NetworkUsage(
        timestamp=network.timestamp_ns,
        default_interface=_encode_interface(network.default) if network.default else None,
        interfaces=[_encode_interface(interface) for interface in network.interfaces],
    )


def _encode_interface(interface: InterfaceUsage) -> api_pb2.NetworkInterfaceUsage:
    return api_pb2.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=_wrap(interface.rx_bytes),
        rx_errors=_wrap(interface.rx_errors),
        tx_bytes=_wrap(interface.tx_bytes),
        tx_errors=_wrap(interface.tx_errors),
    )


def _encode_pressure(stats: PressureStats | None) -> api_pb2.PsiStats | None:
    if stats is None:
        return None
    return api_pb2.PsiStats(Full=_encode_pressure_line(stats.full), Some=_encode_pressure_line(stats.some))


def _encode_pressure_line(line: Pressure) -> api_pb2.PsiData:
    """The kernel counts stalls in microseconds, the CRI in nanoseconds."""
    return api_pb2.PsiData(Total=line.total_us * _NS_PER_US, Avg10=line.avg10, Avg60=line.avg60, Avg300=line.avg300)


def _remainder(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(limit - used, 0)


def _wrap(number: int | None) -> api_pb2.UInt64Value | None:
    return None if number is None else api_pb2.UInt64Value(value=max(number, 0))
