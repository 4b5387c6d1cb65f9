"""Filters of the lists, and the node's address ranges."""

import ipaddress
from collections.abc import Mapping

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.state.records import ContainerState, PodState

POD_STATES: Mapping[int, PodState] = {
    api_pb2.SANDBOX_READY: PodState.READY,
    api_pb2.SANDBOX_NOTREADY: PodState.NOT_READY,
}
CONTAINER_STATES: Mapping[int, ContainerState] = {
    api_pb2.CONTAINER_CREATED: ContainerState.CREATED,
    api_pb2.CONTAINER_RUNNING: ContainerState.RUNNING,
    api_pb2.CONTAINER_EXITED: ContainerState.EXITED,
    api_pb2.CONTAINER_UNKNOWN: ContainerState.UNKNOWN,
}


def decode_pod_filter(query: api_pb2.PodSandboxFilter) -> PodFilter:
    """Read the filter of ListPodSandbox."""
    state = POD_STATES[query.state.state] if query.HasField("state") else None
    return PodFilter(query.id, state, dict(query.label_selector))


def decode_container_filter(query: api_pb2.ContainerFilter) -> ContainerFilter:
    """Read the filter of ListContainers."""
    state = CONTAINER_STATES[query.state.state] if query.HasField("state") else None
    return ContainerFilter(query.id, state, query.pod_sandbox_id, dict(query.label_selector))


def decode_pod_stats_filter(query: api_pb2.PodSandboxStatsFilter) -> PodFilter:
    """Read the filter of ListPodSandboxStats."""
    return PodFilter(query.id, None, dict(query.label_selector))


def decode_container_stats_filter(query: api_pb2.ContainerStatsFilter) -> ContainerFilter:
    """Read the filter of ListContainerStats."""
    return ContainerFilter(query.id, None, query.pod_sandbox_id, dict(query.label_selector))


def decode_pod_cidrs(request: api_pb2.UpdateRuntimeConfigRequest) -> tuple[str, ...]:
    """Read the node's ranges, at most one of each family; none where the kubelet has none to tell."""
    path = "runtime_config.network_config.pod_cidr"
    text = request.runtime_config.network_config.pod_cidr
    networks = [_decode_network(part.strip(), path) for part in text.split(",")] if text else []
    if len({network.version for network in networks}) != len(networks):
        raise InvalidArgument(f"{path} {text[:100]!r} has two ranges of one family")
    return tuple(map(str, networks))


def _decode_network(text: str, path: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from None
