"""NodeExplain, crinoid's own service beside the CRI: what was done to a pod, and what would be done for one.

Each method decodes, asks a service, encodes; ``calls`` does the rest. Who may speak here is who may speak CRI.
"""

from crinoid.core.cri.services import Services
from crinoid.core.cri.wire import node_explain_pb2 as wire


class NodeExplain:
    """What ``node_explain.proto`` says."""

    def __init__(self, services: Services, max_message_bytes: int) -> None:
        self._timelines = services.timelines
        self._max_bytes = max_message_bytes // 2

    async def read_timeline(self, request: wire.ReadTimelineRequest) -> wire.ReadTimelineResponse:
        acts, left = [], self._max_bytes
        for act in reversed(await self._timelines.read(request.about, request.since_ns)):  # the latest tell the most
            left -= len(act)
            if left < 0:
                break
            acts.append(act)
        return wire.ReadTimelineResponse(acts=reversed(acts), off=self._timelines.is_off)
