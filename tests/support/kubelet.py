"""What a kubelet (1.36) takes for granted in a runtime's answers, as rules that any CRI message can be held to.

A rule says: wherever a message of this type is in an answer, this field of it is there. The kubelet's code that counts
on it is named with each. ``docs/conformance.md`` has the same list for people; a test compares the two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

PANIC, ERROR, WRONG = "panics", "fails", "goes wrong"
_SINGLE = (Message, int, float, str, bytes)


@dataclass(frozen=True)
class Rule:
    """``field`` may be a path; ``reader`` is a file of the kubelet with the function that reads it unasked.

    ``otherwise`` is what becomes of a kubelet: it panics, the call fails for it, or it goes wrong in another way.
    """

    message: str
    field: str
    otherwise: str
    reader: str


_STATS, _LINUX = "pkg/kubelet/stats/cri_stats_provider.go", "pkg/kubelet/stats/cri_stats_provider_linux.go"
_RUNTIME, _VERIFY = "pkg/kubelet/kuberuntime", "cri-client/pkg/utils.go"
_REMOTE, _IMAGE = "cri-client/pkg/remote_runtime.go", "cri-client/pkg/remote_image.go"

RULES = (
    Rule("PodSandboxStats", "attributes", PANIC, f"{_STATS}: ListPodCPUAndMemoryStats"),
    Rule("PodSandboxStats", "linux", PANIC, f"{_LINUX}: addCRIPodContainerStats"),
    Rule("NetworkUsage", "default_interface", PANIC, f"{_LINUX}: addCRIPodNetworkStats"),
    Rule("ContainerStats", "attributes", PANIC, f"{_LINUX}: addCRIPodContainerStats"),
    Rule("ContainerStats", "attributes.id", WRONG, f"{_STATS}: listPodStatsPartiallyFromCRI"),
    Rule("ContainerStats", "attributes.metadata", PANIC, f"{_STATS}: makeContainerStats"),
    Rule("ContainerStats", "attributes.metadata.name", WRONG, f"{_STATS}: PodCPUAndMemoryStats"),
    Rule("CpuUsage", "timestamp", WRONG, f"{_STATS}: getAndUpdateContainerUsageNanoCores"),
    Rule(
        "MemoryUsage", "timestamp", WRONG, "pkg/kubelet/metrics/collectors/resource_metrics.go: collectPodMemoryMetrics"
    ),
    Rule("SwapUsage", "timestamp", WRONG, "pkg/kubelet/metrics/collectors/resource_metrics.go: collectPodSwapMetrics"),
    Rule("FilesystemUsage", "timestamp", WRONG, f"{_STATS}: makeContainerStats"),
    Rule("FilesystemUsage", "used_bytes", PANIC, f"{_STATS}: ImageFsStats"),
    Rule("FilesystemUsage", "fs_id", WRONG, f"{_STATS}: ImageFsStats"),
    Rule("FilesystemUsage", "fs_id.mountpoint", ERROR, f"{_STATS}: getFsInfo"),
    Rule("ImageFsInfoResponse", "image_filesystems", ERROR, f"{_STATS}: ImageFsStats"),
    Rule(
        "ImageFsInfoResponse",
        "container_filesystems",
        ERROR,
        "pkg/kubelet/stats/cadvisor_stats_provider.go: ImageFsStats",
    ),
    Rule("Metric", "value", PANIC, "pkg/kubelet/metrics/collectors/cri_metrics.go: criMetricToProm"),
    Rule("Metric", "name", WRONG, "pkg/kubelet/metrics/collectors/cri_metrics.go: criMetricToProm"),
    Rule("MetricDescriptor", "name", WRONG, "pkg/kubelet/metrics/collectors/cri_metrics.go: NewCRIMetricsCollector"),
    Rule("PodSandbox", "id", WRONG, f"{_RUNTIME}/helpers.go: sandboxToKubeContainer"),
    Rule("PodSandbox", "metadata", PANIC, f"{_RUNTIME}/kuberuntime_gc.go: evictSandboxes"),
    Rule("Container", "id", WRONG, f"{_RUNTIME}/helpers.go: toKubeContainer"),
    Rule("Container", "metadata", PANIC, f"{_RUNTIME}/kuberuntime_gc.go: evictableContainers"),
    Rule("Container", "image", WRONG, f"{_RUNTIME}/helpers.go: toKubeContainer"),
    Rule("PodSandboxStatusResponse", "status", ERROR, f"{_RUNTIME}/kuberuntime_manager.go: GetPodStatus"),
    Rule("PodSandboxStatusResponse", "timestamp", WRONG, f"{_RUNTIME}/kuberuntime_manager.go: GetPodStatus"),
    Rule("PodSandboxStatus", "id", ERROR, f"{_VERIFY}: verifySandboxStatus"),
    Rule("PodSandboxStatus", "metadata", PANIC, f"{_RUNTIME}/util/util.go: PodSandboxChanged"),
    Rule("PodSandboxStatus", "metadata.name", ERROR, f"{_VERIFY}: verifySandboxStatus"),
    Rule("PodSandboxStatus", "metadata.namespace", ERROR, f"{_VERIFY}: verifySandboxStatus"),
    Rule("PodSandboxStatus", "metadata.uid", ERROR, f"{_VERIFY}: verifySandboxStatus"),
    Rule("PodSandboxStatus", "created_at", ERROR, f"{_VERIFY}: verifySandboxStatus"),
    Rule("PodSandboxStatus", "network", WRONG, f"{_RUNTIME}/kuberuntime_sandbox.go: determinePodSandboxIPs"),
    Rule("PodSandboxStatus", "linux.namespaces.options", WRONG, f"{_RUNTIME}/util/util.go: PodSandboxChanged"),
    Rule("ContainerStatusResponse", "status", ERROR, f"{_RUNTIME}/kuberuntime_manager.go: GetContainerStatus"),
    Rule("ContainerStatus", "id", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerStatus", "metadata", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerStatus", "metadata.name", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerStatus", "created_at", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerStatus", "image", PANIC, f"{_RUNTIME}/kuberuntime_container.go: toKubeContainerStatus"),
    Rule("ContainerStatus", "image.image", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerStatus", "image_ref", ERROR, f"{_VERIFY}: verifyContainerStatus"),
    Rule("ContainerEventResponse", "container_id", WRONG, "pkg/kubelet/pleg/evented.go: processCRIEvent"),
    Rule("ContainerEventResponse", "created_at", WRONG, "pkg/kubelet/pleg/evented.go: processCRIEvents"),
    Rule(
        "ContainerEventResponse", "pod_sandbox_status.metadata", WRONG, "pkg/kubelet/pleg/evented.go: processCRIEvents"
    ),
    Rule("StatusResponse", "status", ERROR, f"{_REMOTE}: Status"),
    Rule("StatusResponse", "status.conditions", ERROR, f"{_REMOTE}: Status"),
    Rule("RuntimeCondition", "type", WRONG, f"{_RUNTIME}/helpers.go: toKubeRuntimeStatus"),
    Rule("RuntimeHandler", "features", WRONG, f"{_RUNTIME}/helpers.go: toKubeRuntimeStatus"),
    Rule("RuntimeConfigResponse", "linux", WRONG, "cmd/kubelet/app/server.go: getCgroupDriverFromCRI"),
    Rule("VersionResponse", "version", ERROR, f"{_REMOTE}: Version"),
    Rule("VersionResponse", "runtime_name", ERROR, f"{_REMOTE}: Version"),
    Rule("VersionResponse", "runtime_version", ERROR, f"{_REMOTE}: Version"),
    Rule("VersionResponse", "runtime_api_version", ERROR, f"{_REMOTE}: Version"),
    Rule("Image", "id", ERROR, f"{_IMAGE}: ImageStatus"),
    Rule("Image", "size", ERROR, f"{_IMAGE}: ImageStatus"),
    Rule("PullImageResponse", "image_ref", ERROR, f"{_IMAGE}: PullImage"),
    Rule("RunPodSandboxResponse", "pod_sandbox_id", ERROR, f"{_REMOTE}: RunPodSandbox"),
    Rule("CreateContainerResponse", "container_id", ERROR, f"{_REMOTE}: CreateContainer"),
    Rule("ExecResponse", "url", ERROR, f"{_REMOTE}: Exec"),
    Rule("AttachResponse", "url", ERROR, f"{_REMOTE}: Attach"),
    Rule("PortForwardResponse", "url", ERROR, f"{_REMOTE}: PortForward"),
)


def breaches(answer: Message, within: str = "") -> Iterator[str]:
    """Name every place of an answer that a kubelet would come to grief at."""
    name = answer.DESCRIPTOR.name
    place = f"{within}{name}"
    for rule in RULES:
        if rule.message == name and not _is_there(answer, rule.field.split(".")):
            yield f"{place} lacks {rule.field}: a kubelet {rule.otherwise} ({rule.reader})"
    if name == "StatusResponse" and len(answer.status.conditions) < 2:  # type: ignore[attr-defined]
        yield f"{place} has fewer than two conditions"
    if name == "FilesystemIdentifier" and not Path(answer.mountpoint).exists():  # type: ignore[attr-defined]
        yield f"{place}.mountpoint is not there: a kubelet has no statistics of any pod (getFsInfo)"
    for field, value in answer.ListFields():
        several = (value,) if isinstance(value, _SINGLE) else value
        if field.type == FieldDescriptor.TYPE_DOUBLE and not all(map(math.isfinite, several)):
            yield f"{place}.{field.name} is {value}, which no JSON can hold: /stats/summary fails"
        if field.type == FieldDescriptor.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:  # type: ignore[union-attr]
            one: Any
            for one in several:
                yield from breaches(one, f"{place}.{field.name}: ")


def table() -> str:
    """Return the rules as a table for people."""
    lines = ["| message | field | without it a kubelet | where it is read |", "|---|---|---|---|"]
    lines += [f"| {one.message} | {one.field} | {one.otherwise} | `{one.reader}` |" for one in RULES]
    return "\n".join(lines) + "\n"


def _is_there(message: Message, path: list[str]) -> bool:
    head, *rest = path
    value = getattr(message, head)
    if not isinstance(value, Message):
        return bool(value)
    return message.HasField(head) and (not rest or _is_there(value, rest))
