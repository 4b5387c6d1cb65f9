"""NodeExplain, crinoid's own service beside the CRI: what was done to a pod, and what would be done for one.

Each method decodes, asks a service, encodes; ``calls`` does the rest. Who may speak here is who may speak CRI.
"""

import json

from google.protobuf.message import DecodeError

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cri.decode.checks import check_message
from crinoid.core.cri.decode.containers import decode_container_config
from crinoid.core.cri.decode.pods import decode_pod_config
from crinoid.core.cri.services import Services
from crinoid.core.cri.wire import api_pb2
from crinoid.core.cri.wire import node_explain_pb2 as wire


class NodeExplain:
    """What ``node_explain.proto`` says."""

    def __init__(self, services: Services, max_message_bytes: int) -> None:
        self._timelines = services.timelines
        self._dry_run = services.dry_run
        self._max_bytes = max_message_bytes // 2

    async def read_timeline(self, request: wire.ReadTimelineRequest) -> wire.ReadTimelineResponse:
        acts, left = [], self._max_bytes
        for act in reversed(await self._timelines.read(request.about, request.since_ns)):  # the latest tell the most
            left -= len(act)
            if left < 0:
                break
            acts.append(act)
        return wire.ReadTimelineResponse(acts=reversed(acts), off=self._timelines.is_off)

    async def dry_run_pod(self, request: wire.DryRunPodRequest) -> wire.DryRunPodResponse:
        pod, containers = api_pb2.PodSandboxConfig(), [api_pb2.ContainerConfig() for _ in request.containers]
        try:
            pod.ParseFromString(request.pod)
            for container, text in zip(containers, request.containers, strict=True):
                container.ParseFromString(text)
        except DecodeError as error:
            raise InvalidArgument(f"pod and containers must be encoded messages of the CRI: {error}") from error
        for message in (pod, *containers):
            check_message(message)
        plan = await self._dry_run.explain(
            decode_pod_config(pod),
            request.runtime_handler,
            [decode_container_config(one) for one in containers],
            request.ask_extensions,
        )
        return wire.DryRunPodResponse(plan=json.dumps(plan, default=str))
