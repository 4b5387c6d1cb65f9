"""Watches for the end of containers: one task each, that waits for the runtime and writes the record.

The only place where a container gets to EXITED by itself; who needs the end waits on ``happened``.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator

from crinoid.core.api.errors import CrinoidError, DriverError, FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.timeline import stage
from crinoid.core.api.values.pod import NamespaceMode
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus
from crinoid.core.lifecycle.events.events import EventBus, EventType
from crinoid.core.lifecycle.events.views import ContainerViews
from crinoid.core.slots.binding import Slots
from crinoid.core.state.records import ContainerRecord, ContainerState
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
_MISTAKEN = (DriverError.grpc_status, InvalidArgument.grpc_status)
UNSEEN = ExitStatus(255, 0, known=False)


class ExitMonitor:
    """The tasks that wait for containers, and the events that others wait for."""

    def __init__(self, store: Store, slots: Slots, events: EventBus) -> None:
        self._store = store
        self._slots = slots
        self._events = events
        self._views = ContainerViews(store, slots)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._being_ended: set[str] = set()

    def expect(self, container_id: str) -> None:
        """Note that a container is being ended: what fails in it from now on fails for that reason."""
        self._being_ended.add(container_id)

    def is_expected(self, container_id: str) -> bool:
        """Return whether a container is being ended, or was."""
        return container_id in self._being_ended

    @contextlib.asynccontextmanager
    async def acting_on(self, record: ContainerRecord, act: str, *, is_start: bool = False) -> AsyncIterator[None]:
        """A failure inside of a container that ends meanwhile is none of the runtime's, which takes it for one.

        Raises NotFound or FailedPrecondition instead of what it raised. ``is_start``: the failure itself may have ended
        the container, so that only an end which was expected counts.
        """
        try:
            yield
        except (
            DriverError,
            InvalidArgument,
        ) as error:  # some say that a limit is wrong where there is no cgroup any more
            if error.grpc_status not in _MISTAKEN or not await self._has_ended(record, is_start):
                raise
            self._store.containers.find(record.id)
            raise FailedPrecondition(f"{act}: container {record.id} has ended meanwhile ({error.message})") from error

    async def _has_ended(self, record: ContainerRecord, is_start: bool) -> bool:
        current = self._store.containers.get(record.id)
        if is_start or self.is_expected(record.id):
            return self.is_expected(record.id)
        if current is None or current.state is ContainerState.EXITED:
            return True
        pod = self._store.pods.get(record.pod_id)
        slot = self._slots.runtimes.get(pod.runtime if pod else "")
        try:
            state = None if slot is None else await slot.state(record.handle)
        except CrinoidError:
            return False
        return state is not None and state.status in (ContainerStatus.STOPPED, ContainerStatus.ABSENT)

    def watch(self, record: ContainerRecord) -> None:
        """Begin to wait for a container that has not ended."""
        if record.id not in self._tasks:
            # The task outlives who begins it: what it does in threads is the container's, not the request's.
            with on_behalf_of(record.pod_id, record.id):
                task = self._tasks[record.id] = asyncio.create_task(self._wait(record), name=f"exit of {record.id}")
            task.add_done_callback(lambda done: self._drop(record.id, done))

    def forget(self, container_id: str) -> None:
        """Stop waiting: the container is removed, or its end is known otherwise. Idempotent."""
        self._being_ended.discard(container_id)
        if (task := self._tasks.pop(container_id, None)) is not None:
            task.cancel()

    async def happened(self, container_id: str, timeout_s: float) -> bool:
        """Wait until the container's end is on record, at most so long; tell whether it is."""
        if (task := self._tasks.get(container_id)) is not None:
            await asyncio.wait({task}, timeout=timeout_s)
        record = self._store.containers.get(container_id)
        return record is None or record.state is ContainerState.EXITED

    async def notified(self, container_id: str) -> None:
        """Wait until extensions have heard of an end that is on record; their hooks have deadlines. Not with the
        container's lock held, which what they do about it may want."""
        record, task = self._store.containers.get(container_id), self._tasks.get(container_id)
        if task is not None and record is not None and record.state is ContainerState.EXITED:
            await asyncio.wait({task})

    def note(self, container_id: str, status: ExitStatus) -> ContainerRecord | None:
        """Write the end of a container; return its record if this changed it."""
        record = self._store.containers.get(container_id)
        if record is None or record.state is ContainerState.EXITED:
            return None
        finished = status.finished_at_ns or time.time_ns()  # from the exit file: right also after a restart of ours
        # Words that people and alerts look for: containerd's and CRI-O's, and ContainerStatusUnknown the kubelet's.
        reason, message = ("Completed" if status.exit_code == 0 else "Error"), ""
        if not status.known:
            reason = "ContainerStatusUnknown"
            message = "nobody saw the end of the container: its monitor was gone"
        elif status.oom_killed:
            reason = "OOMKilled"
        changed = self._store.containers.put_fact(
            dataclasses.replace(
                record,
                state=ContainerState.EXITED,
                exit_code=status.exit_code,
                finished_at_ns=max(finished, record.started_at_ns),
                reason=reason,
                message=message,
                pid=0,
            )
        )
        self._events.notify_container(EventType.STOPPED, changed)
        return changed

    async def close(self) -> None:
        """Stop waiting for all; containers run on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, container_id: str, task: "asyncio.Task[None]") -> None:
        if self._tasks.get(container_id) is task:
            del self._tasks[container_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("container %s: waiting for its end failed", container_id, exc_info=error)

    async def _wait(self, record: ContainerRecord) -> None:
        """Wait for the end of a container, put it on record and tell of it: one task for each container."""
        pod = self._store.pods.get(record.pod_id)
        slot = self._slots.runtimes.get(pod.runtime if pod else "")
        if slot is None:
            LOG.error("container %s: its runtime slot is no longer configured, so its end can't be seen", record.id)
            return
        try:
            with stage("until the container's end") as ending:
                status = await slot.wait(record.handle)
                ending.note(f"exit code {status.exit_code}{', for want of memory' * status.oom_killed}")
        except NotFound:
            status = UNSEEN
        except CrinoidError as error:
            # A kubelet takes UNKNOWN for a container that it has to kill before it makes another one.
            LOG.error("container %s can't be waited for: %s", record.id, error.message)
            current = self._store.containers.get(record.id)  # it was started since the wait began
            if current is not None and current.state is not ContainerState.EXITED:
                unknown = dataclasses.replace(current, state=ContainerState.UNKNOWN, message=error.message)
                self._store.containers.put_fact(unknown)
            return
        changed = self.note(record.id, status)
        if record.config.security.namespaces.pid is not NamespaceMode.CONTAINER:
            # Where the PID namespace is shared, other processes of the container outlive its first one: end them.
            try:
                await slot.kill(record.handle, 9, True)
            except CrinoidError as error:
                what = "what its first process left running can't be ended"
                LOG.warning("container %s: %s: %s", record.id, what, error.message)
        if changed is not None:
            await self._slots.extensions.container_exited(await self._views.of(changed), status)
