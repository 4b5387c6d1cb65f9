"""Containers: create, start, stop, remove, exec, update, and what is told of them.

Reached from ``cri`` with values, and from ``pods`` when a pod ends. Everything that outlives a call is made through
``resources``; ``builder`` puts a container together, ``exit_monitor`` watches for its end.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeRefused,
    Unavailable,
)
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.timeline import stage
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode, PodConfig
from crinoid.core.api.values.runtime import ExecOutput, ExecRequest, ExitStatus
from crinoid.core.config.models import PodsConfig
from crinoid.core.lifecycle.checkpoints.source import Checkpoint, restore
from crinoid.core.lifecycle.concurrency.locks import Locks
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.containers.builder import ContainerBuilder, exec_process, foreign_paths
from crinoid.core.lifecycle.containers.stop_signals import signal_number
from crinoid.core.lifecycle.events.events import EventBus, EventType
from crinoid.core.lifecycle.events.exit_monitor import ExitMonitor
from crinoid.core.lifecycle.events.views import ContainerViews
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.queries import ContainerFilter
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.sandbox.pod_init import PodInit
from crinoid.core.lifecycle.spec.isolation import settle_swap
from crinoid.core.lifecycle.strays.stand_ins import LOST_FILES
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
SIGKILL = 9
END_PATIENCE_S = 30.0
"""How long a stop or removal waits for other acts on the same pod or container, before it says what it waits for."""
_ENDED = frozenset({ContainerState.EXITED})
_Name = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class ContainerParts:
    """The other parts of the lifecycle that containers need."""

    builder: ContainerBuilder
    images: ImageService
    init: PodInit
    exit_monitor: ExitMonitor
    resources: Resources
    locks: Locks
    events: EventBus


class ContainerService:
    """CreateContainer to RemoveContainer, ExecSync, UpdateContainerResources and what is asked about containers."""

    def __init__(self, config: PodsConfig, store: Store, slots: Slots, parts: ContainerParts) -> None:
        self._config = config
        self._store = store
        self._slots = slots
        self._builder = parts.builder
        self.paths = parts.builder.paths
        self._images = parts.images
        self._init = parts.init
        self._exit_monitor = parts.exit_monitor
        self._resources = parts.resources
        self._locks = parts.locks
        self._events = parts.events
        self._views = ContainerViews(store, slots)
        self._creating = SharedTasks("CreateContainer of")
        self._wanted: dict[_Name, ContainerConfig] = {}
        """What is being made, by name: a request that joins must want the same."""

    async def create(
        self, pod_id: str, config: ContainerConfig, pod_config: PodConfig | None, checkpoint: Checkpoint | None = None
    ) -> str:
        """Make a container in a ready pod and return its id; its process waits.

        Retries join or claim as those of RunPodSandbox do. ``pod_config`` is what the kubelet sends along; the pod's
        own record counts. Raises NotFound for pod or image, FailedPrecondition for a pod that is not ready,
        AlreadyExists for a name that is taken, and what snapshotter and runtime raise, but for RuntimeRefused, which is
        told when the container is started; then nothing is left.
        """
        pod = self._store.pods.find(pod_id)
        name = (pod.id, config.metadata.name, config.metadata.attempt)
        if not config.metadata.name:
            raise InvalidArgument("metadata.name of the container is empty")
        if (claimed := self._claimed(name, config)) is not None:
            return claimed
        if self._wanted.setdefault(name, config) != config:
            raise AlreadyExists(f"container {name[1]!r} of pod {pod.id} is being made by a request that differs")
        return await self._creating.join(name, lambda: self._create(name, config, checkpoint))

    def acknowledge(self, container_id: str) -> None:
        """Note that the client was told of the container, so that no retry claims it."""
        if (record := self._store.containers.get(container_id)) is not None and not record.answered:
            self._store.containers.put_fact(dataclasses.replace(record, answered=True))

    async def start(self, container_id: str) -> None:
        """Let a created container run.

        Raises FailedPrecondition in any other state. When its entry point can't be executed, or the runtime has
        refused to make it, the container has ended with reason StartError and exit code 128, and the runtime's words
        are raised.
        """
        record = self._store.containers.find(container_id)
        with on_behalf_of(record.pod_id, record.id):
            async with self._locks.hold(record.id, f"StartContainer of {record.id}"):
                record = self._store.containers.find(record.id)
                if record.state is not ContainerState.CREATED:
                    raise FailedPrecondition(f"container {record.id} is {record.state.value}, so it can't be started")
                self._ready_pod(record.pod_id)
                # Events follow in order for the kubelet's evented PLEG: a short process ends before its start is on
                # record, and its end is held back until then.
                with self._events.starting(record.id):
                    await self._start(record)
                view = await self._views.of(self.get(record.id))
            await self._slots.extensions.container_started(view)

    async def stop(self, container_id: str, timeout_s: float) -> None:
        """Send the stop signal, and SIGKILL after the grace period. Idempotent; an unknown container is stopped.

        Several stops may be under way: the shortest grace decides. Raises DeadlineExceeded when the container outlives
        SIGKILL, saying what it waits for.
        """
        if (record := self._find(container_id)) is None or record.state in _ENDED:
            return
        # No lock is held while it ends: a kubelet that loses patience stops again with less grace, and both count.
        with on_behalf_of(end_of(record.pod_id), record.id):
            if record.state is ContainerState.CREATED:
                timeout_s = 0  # nothing of the container's runs yet that could heed a signal
                if record.waits_without_process and await self._ended_unborn(record.id):
                    return
            slot = self.slot_of(record)
            if record.reason == LOST_FILES and record.state is ContainerState.UNKNOWN:  # which its runtime would go by
                await call_in_thread(lambda: self._end_by_cgroup(record))
            self._exit_monitor.watch(record)
            if timeout_s > 0:
                await slot.kill(record.handle, signal_number(record.stop_signal), False)
                with stage(f"wait for its end, {timeout_s:g} s at most") as step:
                    if await self._exit_monitor.happened(record.id, timeout_s):
                        return
                    step.note("it did not end within its grace period and is killed")
            await self._kill(slot, record)

    async def _ended_unborn(self, container_id: str) -> bool:
        """A container without a process has none to kill: note its end, unless it has one meanwhile."""
        async with self._locks.hold(container_id, f"StopContainer of {container_id}", END_PATIENCE_S):
            record = self._store.containers.get(container_id)
            if record is not None and record.waits_without_process:
                self._exit_monitor.note(record.id, ExitStatus(128 + SIGKILL, time.time_ns()))
            return record is None or record.state is not ContainerState.RUNNING

    async def end_all(self, pod_id: str) -> None:
        """Kill every container of a pod that has not ended. Idempotent."""
        records = [record for record in self._store.containers_of(pod_id) if record.state not in _ENDED]
        await asyncio.gather(*(self.stop(record.id, 0) for record in records))

    async def remove(self, container_id: str) -> None:
        """Remove a container, ending it first; its log stays. Idempotent; an unknown container is removed."""
        if (record := self._find(container_id)) is None:
            return
        with on_behalf_of(end_of(record.pod_id), record.id):
            await self.stop(record.id, 0)
            await self._exit_monitor.notified(record.id)
            async with self._locks.hold(record.id, f"RemoveContainer of {record.id}", END_PATIENCE_S):
                if (current := self._store.containers.get(record.id)) is None:
                    return
                self._exit_monitor.forget(current.id)
                view = await self._views.of(current)
                # The record goes after what it stands for: a daemon that is killed in between finds an owner with less,
                # and the kubelet asks for the removal again.
                await self._resources.undo(current.id)
                self._store.containers.drop(current.id)
                self._events.notify_container(EventType.DELETED, current)
            await self._slots.extensions.container_removed(view)
            if any(image not in self._store.images for image in (record.image_id, *record.volume_images.values())):
                await self._images.collect_garbage()  # it was removed while the container used its layers

    def get(self, container_id: str) -> ContainerRecord:
        """Return the container with this id or unique beginning of one. Raises NotFound, InvalidArgument."""
        return self._store.containers.find(container_id)

    @property
    def version(self) -> int:
        """Another number after each change of any container's record."""
        return self._store.containers.version

    def list(self, wanted: ContainerFilter) -> "list[ContainerRecord]":
        """Return the containers that fit, the newest first."""
        found = [record for record in self._store.containers if _fits(record, wanted)]
        return sorted(found, key=lambda record: record.created_at_ns, reverse=True)

    def info(self, container_id: str) -> dict[str, object]:
        """Return what verbose status adds, by containerd's names where it has one: pod, process, bundle, cgroup, and
        the OCI specification in force."""
        record = self.get(container_id)
        pod = self._store.pods.get(record.pod_id)
        try:
            spec = json.loads((record.handle.bundle / "config.json").read_text())
        except (OSError, ValueError):
            spec = None
        return {
            "sandboxID": record.pod_id,
            "pid": record.pid,
            "snapshotKey": record.id,
            "snapshotter": None if pod is None else pod.snapshotter,
            "runtimeSlot": None if pod is None else pod.runtime,
            "bundle": str(record.handle.bundle),
            "cgroup": record.handle.cgroup,
            "adjustments": [{"by": author, "field": name} for author, name in record.adjustments],
            "runtimeSpec": spec,
        }

    async def update(self, container_id: str, resources: LinuxResources, annotations: Mapping[str, str]) -> None:
        """Change limits of a created or running container as extensions agree; what is 0 or empty stays.
        ``annotations`` are ignored, as by peers.

        Extensions are asked before the container is locked: what they change meanwhile may lock others.
        """
        record = self._changeable(container_id)
        extensions = self._slots.extensions
        wanted = await extensions.container_updating(await self._views.of(record), resources)
        await self.change_limits(record.id, wanted)
        if (changed := self._store.containers.get(record.id)) is not None:
            await extensions.container_updated(await self._views.of(changed))

    async def change_limits(self, container_id: str, resources: LinuxResources) -> None:
        """Change limits of a created or running container; what is 0 or empty stays. No extension is asked."""
        record = self._store.containers.find(container_id)
        act = f"UpdateContainerResources of {record.id}"
        with on_behalf_of(record.pod_id, record.id):
            async with self._locks.hold(record.id, act):
                record = self._changeable(record.id)
                settled = settle_swap(resources, record.resources)
                async with self._exit_monitor.acting_on(record, act):
                    await self.slot_of(record).update(record.handle, settled)
                merged = merge_resources(record.resources, settled)
                self._store.containers.put_fact(dataclasses.replace(self.get(record.id), resources=merged))

    async def reopen_log(self, container_id: str) -> None:
        """Have the log path opened anew after it was rotated away. Raises FailedPrecondition unless it runs."""
        record = self.running(container_id, "its log can't be reopened")
        with on_behalf_of(record.pod_id, record.id):
            await self.paths.require([record.log_path], f"log of container {record.id}")
            async with self.acting_on(record, "ReopenContainerLog"):
                await self.slot_of(record).reopen_log(record.handle)

    async def exec_sync(self, container_id: str, command: tuple[str, ...], timeout_s: float | None) -> ExecOutput:
        """Run a command in a running container to its end, at most ``timeout_s`` (``None``: no limit).

        Output beyond what fits into the answer is cut.
        """
        if not command or not command[0]:
            raise InvalidArgument("the command to execute is empty")
        record = self.running(container_id, "nothing can be executed in it")
        with on_behalf_of(record.pod_id, record.id):
            process = await asyncio.to_thread(exec_process, record, command)
            request = ExecRequest(
                process=process | {"terminal": False},
                timeout_s=timeout_s,
                max_output_bytes=self._config.exec_output_max_bytes,
            )
            async with self.acting_on(record, "ExecSync"):
                output = await self.slot_of(record).exec_sync(record.handle, request)
        return cut_output(output, self._config.exec_output_max_bytes)

    def acting_on(self, record: ContainerRecord, act: str) -> contextlib.AbstractAsyncContextManager[None]:
        """See ``ExitMonitor.acting_on``."""
        return self._exit_monitor.acting_on(record, act)

    def _changeable(self, container_id: str) -> ContainerRecord:
        record = self._store.containers.find(container_id)
        if record.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            raise FailedPrecondition(f"container {record.id} is {record.state.value}, so its limits can't be changed")
        return record

    def running(self, container_id: str, so: str) -> ContainerRecord:
        """Return a container that runs. Raises NotFound, and FailedPrecondition that ends with ``so``."""
        record = self._store.containers.find(container_id)
        if record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {record.id} is {record.state.value}, so {so}")
        return record

    def slot_of(self, record: ContainerRecord) -> RuntimeSlot:
        """Return the runtime slot that made the container. Raises FailedPrecondition when it is gone."""
        pod = self._store.pods.get(record.pod_id)
        name = pod.runtime if pod is not None else ""
        if name not in self._slots.runtimes:
            raise FailedPrecondition(
                f"container {record.id} was made by runtime slot {name!r}, which is no longer configured: put it back"
            )
        return self._slots.runtimes[name]

    async def close(self) -> None:
        """Give up what is under way; the next start undoes it."""
        await self._creating.close()
        await self.paths.close()

    def give_up_creating(self, pod_id: str) -> None:
        """Cancel what is being created in a pod that is to end."""
        self._creating.give_up(lambda key: isinstance(key, tuple) and key[0] == pod_id, f"pod {pod_id} is being ended")

    def _claimed(self, name: _Name, config: ContainerConfig) -> str | None:
        holder = next((one for one in self._store.containers_of(name[0]) if _name(one) == name), None)
        if holder is None:
            return None
        if holder.answered or holder.config != config:
            raise AlreadyExists(
                f"the name of container {name[1]!r} (attempt {name[2]}) in pod {name[0]} is taken by {holder.id}"
            )
        return holder.id

    async def _create(self, name: _Name, config: ContainerConfig, checkpoint: Checkpoint | None) -> str:
        what = f"container {name[1]!r}"
        try:
            with on_behalf_of(name[0]):
                # Before the lock is taken: a volume that hangs, as when its NFS server has gone, is no reason for the
                # pod's end to wait.
                with stage("look at volumes, devices and log"):
                    await self.paths.require(foreign_paths(self._ready_pod(name[0]), config), what)
                async with self._locks.hold(name[0], f"CreateContainer of {what} in pod {name[0]}"):
                    pod = self._ready_pod(name[0])
                    if config.security.namespaces.pid is NamespaceMode.POD:
                        pod = await self._init.ensure(pod)
                    record = await self._builder.make(pod, config, checkpoint)
            self._events.notify_container(EventType.CREATED, record)
            # From now on, as a process that waits can be killed too: by the kernel for want of memory, or by hand.
            if not record.waits_without_process:
                self._exit_monitor.watch(record)
            return record.id
        finally:
            del self._wanted[name]

    def _ready_pod(self, pod_id: str) -> PodRecord:
        pod = self._store.pods.find(pod_id)
        if pod.state is not PodState.READY:
            raise FailedPrecondition(f"pod {pod.id} is not ready: it was stopped, or has lost its namespaces")
        return pod

    async def _start(self, record: ContainerRecord) -> None:
        """StartContainer under the container's lock: ask extensions, let the process go on, put it on record."""
        slot, started = self.slot_of(record), time.time_ns()
        try:
            if record.start_error:  # the runtime refused to make it: see ``builder``
                raise RuntimeRefused(record.start_error)
            await self._slots.extensions.container_starting(await self._views.of(record))
            async with self._exit_monitor.acting_on(record, "StartContainer", is_start=True):
                if record.checkpoint is None:
                    await slot.start(record.handle)
                else:  # only now are the processes of a checkpoint made, and they go on at once
                    process = await restore(record, slot, self._resources, self._config.checkpoint_timeout_s)
                    current = dataclasses.replace(self.get(record.id), pid=process.pid, checkpoint=None)
                    self._exit_monitor.watch(self._store.containers.put_fact(current))
        except CrinoidError as error:
            if not self._exit_monitor.is_expected(record.id):  # else its end is noted as what it is
                await self._note_start_error(slot, record, error)
            raise
        # The process runs, whatever the disk says: a fact is kept in memory where it can't be written (``put_fact``).
        current = self.get(record.id)
        state = ContainerState.RUNNING if current.state is ContainerState.CREATED else current.state
        current = self._store.containers.put_fact(dataclasses.replace(current, state=state, started_at_ns=started))
        self._events.notify_container(EventType.STARTED, current)

    async def _note_start_error(self, slot: RuntimeSlot, record: ContainerRecord, error: CrinoidError) -> None:
        """A container that did not start has ended, as the kubelet expects, with what the runtime said."""
        self._exit_monitor.forget(record.id)
        now = time.time_ns()
        ended = self._store.containers.put_fact(
            dataclasses.replace(
                self.get(record.id),
                state=ContainerState.EXITED,
                started_at_ns=now,
                finished_at_ns=now,
                exit_code=128,
                reason="StartError",
                message=error.message,
                pid=0,
            )
        )
        self._events.notify_container(EventType.STOPPED, ended)
        await slot.kill(record.handle, SIGKILL, True)
        await self._slots.extensions.container_exited(await self._views.of(ended), ExitStatus(128, now))

    async def _kill(self, slot: RuntimeSlot, record: ContainerRecord) -> None:
        """Kill the container; a shared PID namespace does not end the other processes by itself."""
        # In a PID namespace of its own the kernel kills all others when the first process ends (pid_namespaces(7)).
        everyone = record.config.security.namespaces.pid is not NamespaceMode.CONTAINER
        self._exit_monitor.expect(record.id)
        await slot.kill(record.handle, SIGKILL, everyone)
        timeout_s, since_s = self._config.kill_timeout_s, time.monotonic()
        if not await self._exit_monitor.happened(record.id, timeout_s):
            if time.monotonic() - since_s < timeout_s:
                why = self.get(record.id).message or "see crinoid's log"
                raise Unavailable(f"container {record.id} was sent SIGKILL, and its end can't be seen: {why}")
            volumes = [mount.host_path for mount in record.config.mounts if not mount.image]
            hung = await self.paths.describe_hung([*volumes, record.log_path])
            raise DeadlineExceeded(
                f"container {record.id} has not ended {timeout_s:g} s after SIGKILL: "
                f"its process {record.pid} may hang in the kernel, see /proc/{record.pid}/stack"
                + (f"; {hung}" if hung else "")
            )

    def _end_by_cgroup(self, record: ContainerRecord) -> None:
        """Kill what runs in a container's cgroup, if that was made for it. Blocks. Raises DeadlineExceeded."""
        path, host_calls = below_mount(record.handle.cgroup), self._resources.host_calls
        if host_calls.owns_cgroup(path, record.id):
            host_calls.kill_cgroup(path)

    def _find(self, container_id: str) -> ContainerRecord | None:
        if not container_id:
            raise InvalidArgument("container_id is empty")
        try:
            return self._store.containers.find(container_id)
        except NotFound:
            return None


def end_of(pod_id: str) -> str:
    """Name the owner of the threads that end a pod and its containers: those of the pod itself may all hang."""
    return f"the end of {pod_id}"


def cut_output(output: ExecOutput, most: int) -> ExecOutput:
    """Return what an exec has written, cut to so many bytes in sum: each stream has half of them, or what is left."""
    errors = output.stderr[: max(most // 2, most - len(output.stdout))]
    return dataclasses.replace(output, stdout=output.stdout[: most - len(errors)], stderr=errors)


def merge_resources(old: LinuxResources, new: LinuxResources) -> LinuxResources:
    """Return the limits in force after an update in which 0 and empty mean unchanged; tables are joined."""
    given = {field.name: getattr(new, field.name) for field in dataclasses.fields(LinuxResources)}
    tables = {name: {**getattr(old, name), **given[name]} for name in ("hugepage_limits", "unified")}
    return dataclasses.replace(old, **{name: value for name, value in (given | tables).items() if value})


def _name(record: ContainerRecord) -> _Name:
    return record.pod_id, record.config.metadata.name, record.config.metadata.attempt


def _fits(record: ContainerRecord, wanted: ContainerFilter) -> bool:
    return (
        record.id.startswith(wanted.id)
        and record.pod_id.startswith(wanted.pod_id)
        and (wanted.state is None or record.state is wanted.state)
        and wanted.labels.items() <= record.config.labels.items()
    )
