"""RuntimeService: each method decodes, asks one service, encodes; ``calls`` does the rest.

The method of an RPC has its name in snake case; one that answers with a stream is an async generator, or returns one.
An RPC without one here answers UNIMPLEMENTED.
"""

import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Protocol

from crinoid.core.cri.calls import RELAYED_UNTIL_S, once_delivered
from crinoid.core.cri.decode.checks import check_least, check_path, require_field, require_text
from crinoid.core.cri.decode.containers import (
    decode_command,
    decode_container_config,
    decode_exec_timeout,
    decode_grace,
)
from crinoid.core.cri.decode.pods import decode_pod_config, decode_resources
from crinoid.core.cri.decode.queries import (
    decode_container_filter,
    decode_container_stats_filter,
    decode_pod_cidrs,
    decode_pod_filter,
    decode_pod_stats_filter,
)
from crinoid.core.cri.decode.streams import decode_ports, decode_streams
from crinoid.core.cri.encode.configs import describe_container_config, describe_pod_config
from crinoid.core.cri.encode.containers import encode_container, encode_container_status
from crinoid.core.cri.encode.events import encode_event
from crinoid.core.cri.encode.metrics import encode_descriptor, encode_pod_metrics
from crinoid.core.cri.encode.node import encode_runtime_config, encode_status, encode_version
from crinoid.core.cri.encode.pods import (
    encode_info,
    encode_pod,
    encode_pod_status,
    encode_pod_status_rest,
    encode_restored,
)
from crinoid.core.cri.encode.stats import (
    encode_container_stats,
    encode_container_stats_list,
    encode_pod_stats,
    encode_pod_stats_list,
)
from crinoid.core.cri.lists import EncodedList, frame, frame_item, join_batches
from crinoid.core.cri.services import Services
from crinoid.core.cri.statuses import EncodedStatuses
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.events.events import EventReader
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.state.records import ContainerRecord, PodRecord

_STATUS = api_pb2.PodSandboxStatusResponse.STATUS_FIELD_NUMBER
"""Of a container's status, too."""

_CONTAINERS_STATUSES = api_pb2.PodSandboxStatusResponse.CONTAINERS_STATUSES_FIELD_NUMBER


class RuntimeService:
    """Pods, containers, their stats, and the node."""

    def __init__(self, services: Services) -> None:
        self._pods = services.pods
        self._containers = services.containers
        self._images = services.images
        self._stats = services.stats
        self._node = services.node
        self._events = services.events
        self._metrics = services.metrics
        self._streams = services.streams
        self._checkpoints = services.checkpoints
        self._restorer = services.restorer
        self._pod_list = EncodedList(encode_pod)
        self._container_list = EncodedList(encode_container)
        self._pod_statuses = EncodedStatuses(encode_pod_status)
        self._container_statuses = EncodedStatuses(self._encode_status)

    async def version(self, request: api_pb2.VersionRequest) -> api_pb2.VersionResponse:
        return encode_version(self._node.version)

    async def status(self, request: api_pb2.StatusRequest) -> api_pb2.StatusResponse:
        return encode_status(await self._node.status(request.verbose), request.verbose)

    async def runtime_config(self, request: api_pb2.RuntimeConfigRequest) -> api_pb2.RuntimeConfigResponse:
        return encode_runtime_config(self._node.cgroup_driver())

    async def update_runtime_config(
        self, request: api_pb2.UpdateRuntimeConfigRequest
    ) -> api_pb2.UpdateRuntimeConfigResponse:
        cidrs = decode_pod_cidrs(request)
        if cidrs:  # none are told before the node has been given any
            await self._node.set_pod_cidrs(cidrs)
        return api_pb2.UpdateRuntimeConfigResponse()

    async def run_pod_sandbox(self, request: api_pb2.RunPodSandboxRequest) -> api_pb2.RunPodSandboxResponse:
        require_field(request, "config", "config")
        pod_id = await self._pods.run(decode_pod_config(request.config), request.runtime_handler)
        once_delivered(lambda: self._pods.acknowledge(pod_id))
        return api_pb2.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    async def stop_pod_sandbox(self, request: api_pb2.StopPodSandboxRequest) -> api_pb2.StopPodSandboxResponse:
        await self._pods.stop(_pod_id(request))
        return api_pb2.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: api_pb2.RemovePodSandboxRequest) -> api_pb2.RemovePodSandboxResponse:
        await self._pods.remove(_pod_id(request))
        return api_pb2.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: api_pb2.PodSandboxStatusRequest) -> bytes:
        record = self._pods.get(_pod_id(request))
        containers = self._containers.list(ContainerFilter(pod_id=record.id))
        info = _info(self._pods.info(record.id), describe_pod_config(record.config)) if request.verbose else {}
        rest = encode_pod_status_rest(time.time_ns(), info).SerializeToString()
        statuses = (frame(_CONTAINERS_STATUSES, self._status(one)) for one in containers)
        return b"".join((frame(_STATUS, self._pod_statuses.encode(record)), *statuses, rest))

    async def list_pod_sandbox(self, request: api_pb2.ListPodSandboxRequest) -> bytes:
        def make() -> bytes:
            query = decode_pod_filter(request.filter)
            records = sorted(self._pods.list(query), key=_age)
            return self._pod_list.join(records, full=query == PodFilter())

        return self._pod_list.answer(request.SerializeToString(), self._pods.version, make)

    async def stream_pod_sandboxes(self, request: api_pb2.StreamPodSandboxesRequest) -> AsyncGenerator[bytes, None]:
        query = decode_pod_filter(request.filter)
        records = sorted(self._pods.list(query), key=_age)
        for batch in self._pod_list.batches(records, full=query == PodFilter()):
            yield batch

    async def update_pod_sandbox_resources(
        self, request: api_pb2.UpdatePodSandboxResourcesRequest
    ) -> api_pb2.UpdatePodSandboxResourcesResponse:
        resources = decode_resources(request.resources, "resources") if request.HasField("resources") else None
        overhead = decode_resources(request.overhead, "overhead") if request.HasField("overhead") else None
        await self._pods.update(_pod_id(request), resources, overhead)
        return api_pb2.UpdatePodSandboxResourcesResponse()

    async def create_container(self, request: api_pb2.CreateContainerRequest) -> api_pb2.CreateContainerResponse:
        pod_id = _pod_id(request)
        require_field(request, "config", "config")
        known = request.HasField("sandbox_config")
        pod_config = decode_pod_config(request.sandbox_config, "sandbox_config") if known else None
        container_id = await self._containers.create(pod_id, decode_container_config(request.config), pod_config)
        once_delivered(lambda: self._containers.acknowledge(container_id))
        return api_pb2.CreateContainerResponse(container_id=container_id)

    async def start_container(self, request: api_pb2.StartContainerRequest) -> api_pb2.StartContainerResponse:
        await self._containers.start(_container_id(request))
        return api_pb2.StartContainerResponse()

    async def stop_container(self, request: api_pb2.StopContainerRequest) -> api_pb2.StopContainerResponse:
        await self._containers.stop(_container_id(request), decode_grace(request))
        return api_pb2.StopContainerResponse()

    async def remove_container(self, request: api_pb2.RemoveContainerRequest) -> api_pb2.RemoveContainerResponse:
        await self._containers.remove(_container_id(request))
        return api_pb2.RemoveContainerResponse()

    async def container_status(self, request: api_pb2.ContainerStatusRequest) -> bytes:
        record = self._containers.get(_container_id(request))
        status = frame(_STATUS, self._status(record))
        if not request.verbose:
            return status
        info = encode_info(_info(self._containers.info(record.id), describe_container_config(record.config)))
        return status + api_pb2.ContainerStatusResponse(info=info).SerializeToString()

    async def list_containers(self, request: api_pb2.ListContainersRequest) -> bytes:
        def make() -> bytes:
            query = decode_container_filter(request.filter)
            records = sorted(self._containers.list(query), key=_age)
            return self._container_list.join(records, full=query == ContainerFilter())

        return self._container_list.answer(request.SerializeToString(), self._containers.version, make)

    async def stream_containers(self, request: api_pb2.StreamContainersRequest) -> AsyncGenerator[bytes, None]:
        query = decode_container_filter(request.filter)
        records = sorted(self._containers.list(query), key=_age)
        for batch in self._container_list.batches(records, full=query == ContainerFilter()):
            yield batch

    def get_container_events(
        self, request: api_pb2.GetEventsRequest
    ) -> AsyncGenerator[api_pb2.ContainerEventResponse, None]:
        subscribed = self._events.subscribe(RELAYED_UNTIL_S.get())  # before the client gets its headers
        return self._follow(subscribed)

    async def _follow(self, events: EventReader) -> AsyncGenerator[api_pb2.ContainerEventResponse, None]:
        async for event in events:
            yield encode_event(event, map(self._encode_status, event.containers))

    async def update_container_resources(
        self, request: api_pb2.UpdateContainerResourcesRequest
    ) -> api_pb2.UpdateContainerResourcesResponse:
        container_id = _container_id(request)
        require_field(request, "linux", "linux")
        resources = decode_resources(request.linux, "linux")
        await self._containers.update(container_id, resources, dict(request.annotations))
        return api_pb2.UpdateContainerResourcesResponse()

    async def reopen_container_log(
        self, request: api_pb2.ReopenContainerLogRequest
    ) -> api_pb2.ReopenContainerLogResponse:
        await self._containers.reopen_log(_container_id(request))
        return api_pb2.ReopenContainerLogResponse()

    async def exec_sync(self, request: api_pb2.ExecSyncRequest) -> api_pb2.ExecSyncResponse:
        command, timeout_s = decode_command(request.cmd, "cmd"), decode_exec_timeout(request)
        output = await self._containers.exec_sync(_container_id(request), command, timeout_s)
        return api_pb2.ExecSyncResponse(stdout=output.stdout, stderr=output.stderr, exit_code=output.exit_code)

    async def checkpoint_container(
        self, request: api_pb2.CheckpointContainerRequest
    ) -> api_pb2.CheckpointContainerResponse:
        location = check_path(require_text(request.location, "location"), "location")
        timeout_s = float(check_least(request.timeout, 0, "timeout"))
        await self._checkpoints.container(_container_id(request), location, timeout_s)
        return api_pb2.CheckpointContainerResponse()

    async def checkpoint_pod(self, request: api_pb2.CheckpointPodRequest) -> api_pb2.CheckpointPodResponse:
        output = check_path(require_text(request.output_path, "output_path"), "output_path")
        pod_id, containers = _pod_id(request), tuple(request.container_ids)
        await self._checkpoints.pod(pod_id, output, containers, dict(request.options))
        return api_pb2.CheckpointPodResponse()

    async def restore_pod(self, request: api_pb2.RestorePodRequest) -> api_pb2.RestorePodResponse:
        checkpoint = check_path(require_text(request.checkpoint_path, "checkpoint_path"), "checkpoint_path")
        require_field(request, "config", "config")
        containers = tuple(
            decode_container_config(one, f"container_configs[{index}]")
            for index, one in enumerate(request.container_configs)
        )
        pod_id, made = await self._restorer.restore(
            checkpoint, decode_pod_config(request.config), request.runtime_handler, dict(request.options), containers
        )
        once_delivered(lambda: self._acknowledge(pod_id, made.values()))
        return encode_restored(pod_id, made)

    def _acknowledge(self, pod_id: str, container_ids: Iterable[str]) -> None:
        self._pods.acknowledge(pod_id)
        for container_id in container_ids:
            self._containers.acknowledge(container_id)

    async def exec(self, request: api_pb2.ExecRequest) -> api_pb2.ExecResponse:
        container_id, command = _container_id(request), decode_command(request.cmd, "cmd")
        url = self._streams.exec_url(container_id, command, decode_streams(request))
        return api_pb2.ExecResponse(url=url)

    async def attach(self, request: api_pb2.AttachRequest) -> api_pb2.AttachResponse:
        url = self._streams.attach_url(_container_id(request), decode_streams(request))
        return api_pb2.AttachResponse(url=url)

    async def port_forward(self, request: api_pb2.PortForwardRequest) -> api_pb2.PortForwardResponse:
        url = self._streams.port_forward_url(_pod_id(request), decode_ports(request))
        return api_pb2.PortForwardResponse(url=url)

    async def container_stats(self, request: api_pb2.ContainerStatsRequest) -> api_pb2.ContainerStatsResponse:
        usage = await self._stats.container(_container_id(request))
        return api_pb2.ContainerStatsResponse(stats=encode_container_stats(usage))

    async def list_container_stats(
        self, request: api_pb2.ListContainerStatsRequest
    ) -> api_pb2.ListContainerStatsResponse:
        usages = await self._stats.containers(decode_container_stats_filter(request.filter))
        return encode_container_stats_list(usages)

    async def stream_container_stats(self, request: api_pb2.StreamContainerStatsRequest) -> AsyncGenerator[bytes, None]:
        async for usages in self._stats.container_batches(decode_container_stats_filter(request.filter)):
            for batch in join_batches(frame_item(encode_container_stats(one)) for one in usages):
                yield batch

    async def pod_sandbox_stats(self, request: api_pb2.PodSandboxStatsRequest) -> api_pb2.PodSandboxStatsResponse:
        usage = await self._stats.pod(_pod_id(request))
        return api_pb2.PodSandboxStatsResponse(stats=encode_pod_stats(usage))

    async def list_pod_sandbox_stats(
        self, request: api_pb2.ListPodSandboxStatsRequest
    ) -> api_pb2.ListPodSandboxStatsResponse:
        usages = await self._stats.pods(decode_pod_stats_filter(request.filter))
        return encode_pod_stats_list(usages)

    async def stream_pod_sandbox_stats(
        self, request: api_pb2.StreamPodSandboxStatsRequest
    ) -> AsyncGenerator[bytes, None]:
        async for usages in self._stats.pod_batches(decode_pod_stats_filter(request.filter)):
            for batch in join_batches(frame_item(encode_pod_stats(one)) for one in usages):
                yield batch

    async def list_metric_descriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest
    ) -> api_pb2.ListMetricDescriptorsResponse:
        return api_pb2.ListMetricDescriptorsResponse(descriptors=map(encode_descriptor, self._metrics.descriptors()))

    async def list_pod_sandbox_metrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest
    ) -> api_pb2.ListPodSandboxMetricsResponse:
        return api_pb2.ListPodSandboxMetricsResponse(pod_metrics=map(encode_pod_metrics, await self._metrics.pods()))

    async def stream_pod_sandbox_metrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest
    ) -> AsyncGenerator[bytes, None]:
        async for pods in self._metrics.batches():
            for batch in join_batches(frame_item(encode_pod_metrics(one)) for one in pods):
                yield batch

    def _status(self, record: ContainerRecord) -> bytes:
        """A container's status, encoded; it names the container's image as that is called now."""
        return self._container_statuses.encode(record, self._images.version)

    def _encode_status(self, record: ContainerRecord) -> api_pb2.ContainerStatus:
        return encode_container_status(record, self._images.get(record.image_id))


class _PodRequest(Protocol):
    """Any request that is about one pod."""

    @property
    def pod_sandbox_id(self) -> str: ...


class _ContainerRequest(Protocol):
    """Any request that is about one container."""

    @property
    def container_id(self) -> str: ...


def _info(known: Mapping[str, object], config: Mapping[str, object]) -> dict[str, str]:
    """Verbose status: one JSON document under the name ``info``, as containerd has it."""
    return {"info": json.dumps({**known, "config": config})}


def _pod_id(request: _PodRequest) -> str:
    return require_text(request.pod_sandbox_id, "pod_sandbox_id")


def _container_id(request: _ContainerRequest) -> str:
    return require_text(request.container_id, "container_id")


def _age(record: PodRecord | ContainerRecord) -> int:
    """Sort by this to have the newest first."""
    return -record.created_at_ns
