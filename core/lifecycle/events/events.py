"""What happens to pods and containers, told to whoever follows: the kubelet's evented PLEG, by GetContainerEvents.

``pods``, ``pod_init``, ``containers`` and ``exit_monitor`` publish here once the record is written; every reader has a
bounded queue of its own. A reader that falls behind loses nothing silently: it gets what was queued, then an error, at
which the kubelet lists everything anew. Records are frozen, so an event holds the state as it was.

After a takeover (``daemon.takeover``) what happens is kept for a minute, so that a client of the earlier daemon, whose
stream had all events up to its end, misses none when it subscribes again.

A pod is told of as a container with the pod's id, as with every peer. Source: api.proto, ContainerEventResponse.
"""

import asyncio
import enum
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

from crinoid.core.api.errors import CrinoidError, ResourceExhausted, Unavailable
from crinoid.core.state.records import ContainerRecord, PodRecord
from crinoid.core.state.store import Store

QUEUE_LENGTH = 4096
"""Events that a reader may be behind: some minutes of a busy node."""


class EventType(enum.Enum):
    """The steps that are told."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a pod or container (``subject_id``), and how its pod and the pod's containers were just after it.

    After a deletion ``containers`` lacks the container; ``pod`` is the last that was known of it.
    """

    type: EventType
    subject_id: str
    created_at_ns: int
    pod: PodRecord | None
    containers: tuple[ContainerRecord, ...]


class EventReader:
    """One reader's events, in order, from its subscription on; an async iterator."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._queue: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._end: CrinoidError | None = None

    def __aiter__(self) -> "EventReader":
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Raises ResourceExhausted after events were lost, Unavailable after ``close``."""
        while not self._queue:
            if self._end is not None:
                raise self._end
            self._filled.clear()
            await self._filled.wait()
        return self._queue.popleft()

    @property
    def has_ended(self) -> bool:
        """Return whether an error comes after what is queued."""
        return self._end is not None

    def put(self, event: Event) -> None:
        """Queue an event; one that finds no room ends the reading."""
        if self._end is None and len(self._queue) < self._length:
            self._queue.append(event)
            self._filled.set()
        else:
            self.end(
                ResourceExhausted(
                    f"the reader is more than {self._length} events behind, and the next ones are lost to it: "
                    "list pods and containers, and subscribe again"
                )
            )

    def end(self, error: CrinoidError) -> None:
        """Let the reading end with an error, once what is queued was read; the first error holds."""
        self._end = self._end or error
        self._filled.set()


class EventBus:
    """Takes events in and hands each to all readers. Belongs to the event loop's thread; nothing here waits."""

    def __init__(self, store: Store, queue_length: int = QUEUE_LENGTH) -> None:
        self._store = store
        self._length = queue_length
        self._readers: WeakSet[EventReader] = WeakSet()
        self._held: dict[str, list[Event]] = {}
        self._kept: list[Event] = []
        self._keep_until_s = 0.0
        self._closed = False

    def keep(self, seconds: float) -> None:
        """For so long, keep what happens for everybody who subscribes: clients of an earlier daemon come back."""
        self._keep_until_s = time.monotonic() + seconds

    def subscribe(self) -> EventReader:
        """Return a reader of all that happens from now on; one that nobody holds any more is forgotten."""
        reader = EventReader(self._length)
        if self._closed:
            reader.end(_closed())
        if self._is_keeping():
            for event in self._kept:
                reader.put(event)
        self._readers.add(reader)
        return reader

    def notify_pod(self, kind: EventType, pod: PodRecord) -> None:
        """Publish a step of a pod; ``pod`` is its record after it, or the last one."""
        self._publish(kind, pod.id, pod)

    def notify_container(self, kind: EventType, container: ContainerRecord) -> None:
        """Publish a step of a container, whose pod is there still."""
        self._publish(kind, container.id, self._store.pods.get(container.pod_id))

    @contextmanager
    def starting(self, container_id: str) -> Iterator[None]:
        """Hold back the container's end while it is being started: it may end before its start is on record."""
        self._held[container_id] = []
        try:
            yield
        finally:
            for event in self._held.pop(container_id):
                self._hand_out(event)

    def close(self) -> None:
        """End every reading: the daemon stops. Idempotent."""
        self._closed = True
        for reader in tuple(self._readers):
            reader.end(_closed())

    def _publish(self, kind: EventType, subject_id: str, pod: PodRecord | None) -> None:
        if not self._readers and not self._is_keeping():
            return
        containers = () if pod is None else tuple(self._store.containers_of(pod.id))
        # The whole pod goes along: a kubelet takes its state from the event and asks nothing more.
        event = Event(kind, subject_id, time.time_ns(), pod, containers)
        if kind is EventType.STOPPED and subject_id in self._held:
            self._held[subject_id].append(event)
        else:
            self._hand_out(event)

    def _is_keeping(self) -> bool:
        keeps = time.monotonic() < self._keep_until_s
        if not keeps:
            self._kept.clear()
        return keeps

    def _hand_out(self, event: Event) -> None:
        if self._is_keeping() and len(self._kept) < self._length:
            self._kept.append(event)
        for reader in tuple(self._readers):
            reader.put(event)


def _closed() -> Unavailable:
    return Unavailable("the daemon stops: subscribe again once it is back")
