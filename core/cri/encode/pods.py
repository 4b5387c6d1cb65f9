"""Pods as lists and statuses show them, and the parts that containers share with them."""

from collections.abc import Iterable, Mapping, Sequence

from crinoid.core.api.values.pod import (
    IdMapping,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodMetadata,
    UserNamespace,
)
from crinoid.core.cri.encode.texts import clean
from crinoid.core.cri.wire import api_pb2
from crinoid.core.state.records import PodRecord, PodState

_STATES: Mapping[PodState, api_pb2.PodSandboxState] = {
    PodState.READY: api_pb2.SANDBOX_READY,
    PodState.NOT_READY: api_pb2.SANDBOX_NOTREADY,
}
_MODES: Mapping[NamespaceMode, api_pb2.NamespaceMode] = {
    NamespaceMode.POD: api_pb2.POD,
    NamespaceMode.CONTAINER: api_pb2.CONTAINER,
    NamespaceMode.NODE: api_pb2.NODE,
    NamespaceMode.TARGET: api_pb2.TARGET,
}


def encode_pod(record: PodRecord) -> api_pb2.PodSandbox:
    """A pod as ListPodSandbox shows it."""
    return api_pb2.PodSandbox(
        id=record.id,
        metadata=encode_pod_metadata(record.config.metadata),
        state=_STATES[record.state],
        created_at=record.created_at_ns,
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.runtime_handler,
    )


def encode_pod_status(record: PodRecord) -> api_pb2.PodSandboxStatus:
    """A pod in full; labels and annotations are those it was asked for, untouched."""
    options = encode_namespaces(record.config.security.namespaces)
    return api_pb2.PodSandboxStatus(
        id=record.id,
        metadata=encode_pod_metadata(record.config.metadata),
        state=_STATES[record.state],
        created_at=record.created_at_ns,
        network=_encode_network(record.attachment.addresses if record.attachment else ()),
        linux=api_pb2.LinuxPodSandboxStatus(namespaces=api_pb2.Namespace(options=options)),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.runtime_handler,
    )


def encode_pod_status_rest(timestamp_ns: int, info: Mapping[str, str]) -> api_pb2.PodSandboxStatusResponse:
    """What the answer to PodSandboxStatus has beyond the statuses; ``info`` is empty unless the client asked for it."""
    return api_pb2.PodSandboxStatusResponse(info=encode_info(info), timestamp=timestamp_ns)


def encode_pod_metadata(metadata: PodMetadata) -> api_pb2.PodSandboxMetadata:
    """What Kubernetes calls the pod."""
    return api_pb2.PodSandboxMetadata(
        name=metadata.name, uid=metadata.uid, namespace=metadata.namespace, attempt=metadata.attempt
    )


def encode_namespaces(options: NamespaceOptions) -> api_pb2.NamespaceOption:
    """The namespaces as they were asked for."""
    return api_pb2.NamespaceOption(
        network=_MODES[options.network],
        pid=_MODES[options.pid],
        ipc=_MODES[options.ipc],
        target_id=options.target_id,
        userns_options=_encode_user_namespace(options.user) if options.user else None,
    )


def encode_id_mappings(mappings: Iterable[IdMapping]) -> list[api_pb2.IDMapping]:
    """The id maps of a user namespace or an idmapped mount."""
    return [
        api_pb2.IDMapping(host_id=one.host_id, container_id=one.container_id, length=one.length) for one in mappings
    ]


def encode_resources(resources: LinuxResources) -> api_pb2.LinuxContainerResources:
    """Limits in force."""
    return api_pb2.LinuxContainerResources(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory_limit_in_bytes=resources.memory_limit_bytes,
        oom_score_adj=resources.oom_score_adj,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepage_limits=[
            api_pb2.HugepageLimit(page_size=size, limit=limit) for size, limit in resources.hugepage_limits.items()
        ],
        unified=resources.unified,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_bytes,
    )


def encode_info(info: Mapping[str, str]) -> dict[str, str]:
    """Verbose information: JSON texts by topic."""
    return {topic: clean(text) for topic, text in info.items()}


def _encode_network(addresses: Sequence[str]) -> api_pb2.PodSandboxNetworkStatus:
    """The pod's addresses. The message is there without any too: the kubelet logs an error where it is not."""
    return api_pb2.PodSandboxNetworkStatus(
        ip=addresses[0] if addresses else "",
        additional_ips=[api_pb2.PodIP(ip=address) for address in addresses[1:]],
    )


def _encode_user_namespace(user: UserNamespace) -> api_pb2.UserNamespace:
    return api_pb2.UserNamespace(
        mode=_MODES[user.mode], uids=encode_id_mappings(user.uids), gids=encode_id_mappings(user.gids)
    )


def encode_restored(pod_id: str, containers: Mapping[str, str]) -> api_pb2.RestorePodResponse:
    """The answer to RestorePod; ``containers`` are ids by name."""
    restored = [api_pb2.RestoredContainer(name=name, container_id=one) for name, one in containers.items()]
    return api_pb2.RestorePodResponse(pod_sandbox_id=pod_id, restored_containers=restored)
