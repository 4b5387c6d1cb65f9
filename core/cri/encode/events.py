"""What happened to a pod or container, as GetContainerEvents tells it."""

from collections.abc import Iterable, Mapping

from crinoid.core.cri.encode.pods import encode_pod_status
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.events.events import Event, EventType

_TYPES: Mapping[EventType, api_pb2.ContainerEventType] = {
    EventType.CREATED: api_pb2.CONTAINER_CREATED_EVENT,
    EventType.STARTED: api_pb2.CONTAINER_STARTED_EVENT,
    EventType.STOPPED: api_pb2.CONTAINER_STOPPED_EVENT,
    EventType.DELETED: api_pb2.CONTAINER_DELETED_EVENT,
}


def encode_event(event: Event, statuses: Iterable[api_pb2.ContainerStatus]) -> api_pb2.ContainerEventResponse:
    """An event with the pod and, as ``statuses``, its containers as they were just after it."""
    return api_pb2.ContainerEventResponse(
        container_id=event.subject_id,
        container_event_type=_TYPES[event.type],
        created_at=event.created_at_ns,
        pod_sandbox_status=encode_pod_status(event.pod) if event.pod else None,
        containers_statuses=statuses,
    )
