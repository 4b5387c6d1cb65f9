"""What happens to pods and containers, told to whoever follows: the kubelet's evented PLEG, by GetContainerEvents.

``pods``, ``pod_init``, ``containers`` and ``exit_monitor`` publish here once the record is written; every reader has a
bounded queue of its own. A reader that falls behind loses nothing silently: it gets what was queued, then an error, at
which the kubelet lists everything anew. Records are frozen, so an event holds the state as it was.

After a takeover (``daemon.takeover``) the earlier daemon goes on with its clients' streams by ours
(``cri.forwarding``), until it ends. So that none misses an event when its reading begins anew, what happens is kept for
a minute: from the takeover on, and from the moment on at which readings that came over an earlier daemon were ended.

A pod is told of as a container with the pod's id, as with every peer. Source: api.proto, ContainerEventResponse.
"""

import asyncio
import enum
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

from crinoid.core.api.errors import CrinoidError, ResourceExhausted, Unavailable
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord
from crinoid.core.state.store import Store

QUEUE_LENGTH = 4096
"""Events that a reader may be behind: some minutes of a busy node."""
KEPT_S = 60.0
"""How long events are kept for clients that subscribe again: a kubelet does within seconds."""
MOVE_WITHIN_S = 30.0
"""How much later than due readings are ended for the sake of containers that wait to be started."""
_LOOK_AGAIN_S = 0.25


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
        self._end: CrinoidError | StopAsyncIteration | None = None

    def __aiter__(self) -> "EventReader":
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event; there is none any more once another daemon goes on with them.

        Raises ResourceExhausted after events were lost, Unavailable after ``close``.
        """
        while not self._queue:
            if self._end is not None:
                raise self._end
            self._filled.clear()
            await self._filled.wait()
        return self._queue.popleft()

    @property
    def has_ended(self) -> bool:
        """Return whether the end comes after what is queued."""
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

    def end(self, error: CrinoidError | StopAsyncIteration) -> None:
        """Let the reading end, with an error or without, once what is queued was read; the first end holds."""
        self._end = self._end or error
        self._filled.set()


class EventBus:
    """Takes events in and hands each to all readers. Belongs to the event loop's thread; nothing here waits."""

    def __init__(self, store: Store, queue_length: int = QUEUE_LENGTH) -> None:
        self._store = store
        self._length = queue_length
        self._readers: WeakSet[EventReader] = WeakSet()
        self._relayed: WeakSet[EventReader] = WeakSet()
        self._move_at_s = math.inf
        self._moving: asyncio.TimerHandle | None = None
        self._held: dict[str, list[Event]] = {}
        self._kept: list[Event] = []
        self._keep_until_s = 0.0
        self._closed = False

    def keep(self, seconds: float = KEPT_S) -> None:
        """For so long, keep what happens for everybody who subscribes: clients of an earlier daemon come back."""
        self._keep_until_s = time.monotonic() + seconds

    def subscribe(self, relayed_until_s: float | None = None) -> EventReader:
        """Return a reader of all that happens from now on; one that nobody holds any more is forgotten.

        ``relayed_until_s`` (time.monotonic's) is of a client that comes over an earlier daemon: from then on it has to
        find its own way here, see ``_move``.
        """
        reader = EventReader(self._length)
        if self._closed:
            reader.end(_closed())
        if self._is_keeping():
            for event in self._kept:
                reader.put(event)
        self._readers.add(reader)
        if relayed_until_s is not None:
            self._relayed.add(reader)
            if relayed_until_s < self._move_at_s:
                self._move_at_s = relayed_until_s
                self._look_later(max(0.0, relayed_until_s - time.monotonic()))
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
        self._end_all(_closed())

    def hand_over(self) -> None:
        """End every reading without an error: another daemon goes on with it. Idempotent."""
        self._end_all(StopAsyncIteration())

    def _end_all(self, error: CrinoidError | StopAsyncIteration) -> None:
        self._closed = True
        if self._moving is not None:
            self._moving.cancel()
        for reader in tuple(self._readers):
            reader.end(error)

    def _move(self) -> None:
        """End the readings that come over earlier daemons, all at one moment; their clients subscribe again.

        Not while events are kept from another moment on: they would get some of them twice. And, within bounds, not
        between a container's creation and its start: a kubelet that looks at its cache before it has subscribed again
        would find the container created and never started, and make another in its place.
        """
        is_started = all(one.state is not ContainerState.CREATED for one in self._store.containers)
        if self._is_keeping() or not (is_started or time.monotonic() > self._move_at_s + MOVE_WITHIN_S):
            self._look_later(_LOOK_AGAIN_S)
            return
        self._move_at_s = math.inf
        if self._relayed:
            self.keep()
        for reader in tuple(self._relayed):
            reader.end(StopAsyncIteration())
        self._relayed.clear()

    def _look_later(self, seconds: float) -> None:
        if self._moving is not None:
            self._moving.cancel()
        self._moving = asyncio.get_running_loop().call_later(seconds, self._move)

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
        if self._is_keeping() and len(self._kept) <= self._length:  # one more tells a reader that there were too many
            self._kept.append(event)
        for reader in tuple(self._readers):
            reader.put(event)


def _closed() -> Unavailable:
    return Unavailable("the daemon stops: subscribe again once it is back")
