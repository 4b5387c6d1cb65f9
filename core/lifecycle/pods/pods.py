"""Pod sandboxes: run, stop, remove, and what is told of them.

Reached from ``cri`` with values; makes everything through ``resources``, so that an error at any step, or a kill of the
daemon, ends in the same undoing. A pod has no process of its own: its namespaces are pinned by bind mounts, and only a
pod that shares its PID namespace gets an init process (``pod_init``).
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass

from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from crinoid.core.api.timeline import stage
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode, PodConfig, PodMetadata
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.concurrency.locks import Locks
from crinoid.core.lifecycle.concurrency.rollback import Rollback
from crinoid.core.lifecycle.concurrency.single_flight import SharedTasks
from crinoid.core.lifecycle.containers.containers import END_PATIENCE_S, ContainerService, end_of
from crinoid.core.lifecycle.events.events import EventBus, EventType
from crinoid.core.lifecycle.events.views import view_pod
from crinoid.core.lifecycle.pods.pod_plan import PodPlan, PodPlanner
from crinoid.core.lifecycle.queries import PodFilter
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths, holder_of
from crinoid.core.lifecycle.resources.resources import (
    CGROUP,
    CONTAINER,
    KINDS,
    NETWORK,
    Resources,
    Step,
    cgroup_at,
    directory_at,
    mounts_at,
    namespaces_at,
    slice_at,
)
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.core.lifecycle.sandbox.pod_init import PodInit
from crinoid.core.lifecycle.sandbox.pod_sysctls import part_sysctls, write_sysctls, write_sysctls_in
from crinoid.core.lifecycle.spec.labels import label_mounts, selinux_labels
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.records import PodRecord, PodState
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
_CONTAINER_FOLLOWS_S = 0.1
"""How soon after a pod is begun its first container mostly is."""
_CREATES_END_S = 2.0
"""How long the end of a pod waits for containers that are being created, before these are cancelled."""


@dataclass(frozen=True, slots=True)
class PodParts:
    """The other parts of the lifecycle that pods need."""

    containers: ContainerService
    init: PodInit
    resources: Resources
    locks: Locks
    events: EventBus


@dataclass(frozen=True, slots=True)
class Preview:
    """What RunPodSandbox would make: its plan, what stands before the network, and what the network is asked for."""

    plan: PodPlan
    steps: Sequence[Step]
    network: NetworkRequest | None


class PodService:
    """RunPodSandbox, StopPodSandbox, RemovePodSandbox and what is asked about pods."""

    def __init__(self, config: Config, store: Store, slots: Slots, parts: PodParts, cgroups: CgroupPaths) -> None:
        self._config = config
        self._store = store
        self._slots = slots
        self._containers = parts.containers
        self._init = parts.init
        self._resources = parts.resources
        self._locks = parts.locks
        self._events = parts.events
        self._user_namespaces = user_namespaces.UserNamespaces(slots)
        self._cgroups = cgroups
        self._planner = PodPlanner(config, slots, cgroups)
        self._warmup = CgroupWarmup(parts.resources.host_calls.warm_up_cgroups)
        self._starting = SharedTasks("RunPodSandbox of")
        self._wanted: dict[PodMetadata, tuple[PodConfig, str]] = {}
        self._going_down: set[str] = set()

    async def run(self, config: PodConfig, runtime_handler: str) -> str:
        """Make a pod sandbox and return its id.

        A retry of a request that is under way joins it; one whose answer nobody saw gets the pod that was made. Raises
        AlreadyExists when the name (name, namespace, uid, attempt) is another's, InvalidArgument, Unsupported, and what
        the network and runtime raise; then nothing is left.
        """
        key = config.metadata
        if (claimed := self._claimed(config, runtime_handler)) is not None:
            return claimed
        if self._wanted.setdefault(key, (config, runtime_handler)) != (config, runtime_handler):
            raise AlreadyExists(f"pod {_name(config)} is being made by a request that differs from this one")
        return await self._starting.join(key, lambda: self._run(config, runtime_handler))

    def acknowledge(self, pod_id: str) -> None:
        """Note that the client was told of the pod, so that no retry claims it."""
        if (record := self._store.pods.get(pod_id)) is not None and not record.answered:
            self._store.pods.put_fact(dataclasses.replace(record, answered=True))

    async def stop(self, pod_id: str) -> None:
        """End the pod's containers and take away its network. Idempotent; an unknown pod is stopped."""
        if (record := self._find(pod_id)) is None:
            return
        async with self._ending(record.id, "StopPodSandbox"):
            await self._stop(record.id)

    async def remove(self, pod_id: str) -> None:
        """Stop the pod and remove it with all its containers. Idempotent; an unknown pod is removed."""
        if (record := self._find(pod_id)) is None:
            return
        async with self._ending(record.id, "RemovePodSandbox"):
            if (current := self._store.pods.get(record.id)) is None:
                return
            await self._stop(current.id)
            await self._resources.settle(current.id)
            await self._tear_down(current.id)
            last = self._store.pods.get(current.id) or current
            self._store.pods.drop(current.id)
            self._events.notify_pod(EventType.DELETED, last)
        await self._slots.extensions.pod_removed(view_pod(last))

    @contextlib.asynccontextmanager
    async def _ending(self, pod_id: str, act: str) -> AsyncIterator[None]:
        """Hold a pod's lock to end it. Containers that are still being created a moment later are given up."""
        loop = asyncio.get_running_loop()
        giving_up = loop.call_later(_CREATES_END_S, self._containers.give_up_creating, pod_id)
        try:
            with on_behalf_of(end_of(pod_id), pod_id):
                async with self._locks.hold(pod_id, f"{act} of {pod_id}", END_PATIENCE_S):
                    giving_up.cancel()
                    yield
        finally:
            giving_up.cancel()

    async def _tear_down(self, pod_id: str) -> None:
        """Remove the containers and, at the same time, what the pod itself has: nothing runs in it any more.

        A cgroup that the pod was given comes last, as it may be others' too: it is only removed once nothing is in it.
        """
        removals = [self._containers.remove(container.id) for container in self._store.containers_of(pod_id)]
        pod = self._store.pods.get(pod_id)
        own = self._undo(pod_id, KINDS - {CGROUP} if pod is not None and pod.config.cgroup_parent else KINDS)
        outcomes = await asyncio.gather(*removals, own, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await self._resources.undo(pod_id)

    async def update(self, pod_id: str, resources: LinuxResources | None, overhead: LinuxResources | None) -> None:
        """Keep the limits of the pod's containers together, and what the pod costs beside them; absent ones stay.

        The kubelet tells them after it has set the pod's cgroup, which is its own (api.proto,
        UpdatePodSandboxResources): nothing of the host changes but what the runtime makes of it. Raises NotFound,
        FailedPrecondition for a pod that is not ready, Refused by an extension, and what the runtime raises.
        """
        extensions = self._slots.extensions
        await extensions.pod_updating(view_pod(self._changeable(pod_id)), resources, overhead)
        pod_id = self.get(pod_id).id
        async with self._locks.hold(pod_id, f"UpdatePodSandboxResources of {pod_id}"):
            record = self._changeable(pod_id)
            record = dataclasses.replace(
                record,
                resources=resources or record.resources or record.config.resources,
                overhead=overhead or record.overhead or record.config.overhead,
            )
            if (slot := self.runtime_of(record)) is not None:
                await slot.update_pod(record.sandbox, record.resources, record.overhead)
            self._store.pods.put_fact(record)
        await extensions.pod_updated(view_pod(record))

    def _changeable(self, pod_id: str) -> PodRecord:
        record = self.get(pod_id)
        if record.state is not PodState.READY:
            raise FailedPrecondition(f"pod {record.id} is not ready, so its limits can't be changed")
        return record

    def get(self, pod_id: str) -> PodRecord:
        """Return the pod with this id or unique beginning of one. Raises NotFound, InvalidArgument."""
        return self._store.pods.find(pod_id)

    def handler_of(self, metadata: PodMetadata) -> str:
        """Return the runtime handler of the pod with this name, empty where there is none, or its slot is gone."""
        found = next((pod.runtime for pod in self._store.pods if pod.config.metadata == metadata), "")
        return found if found in self._slots.runtimes else ""

    def runtime_of(self, record: PodRecord) -> RuntimeSlot | None:
        """Return the runtime slot of a pod; ``None`` where it is no longer configured."""
        return self._slots.runtimes.get(record.runtime)

    def is_up(self, pod_id: str) -> bool:
        """Return whether the pod is ready and whole: no longer so once a stop begins to take away what the pod has.

        Its record says READY until the network is gone, which takes a CNI plugin a tenth of a second. Statistics that
        are read meanwhile would show a pod with half a network.
        """
        record = self._store.pods.get(pod_id)
        return record is not None and record.state is PodState.READY and pod_id not in self._going_down

    @property
    def version(self) -> int:
        """Another number after each change of any pod's record."""
        return self._store.pods.version

    def list(self, wanted: PodFilter) -> "list[PodRecord]":
        """Return the pods that fit, the newest first."""
        found = [record for record in self._store.pods if _fits(record, wanted)]
        return sorted(found, key=lambda record: record.created_at_ns, reverse=True)

    def info(self, pod_id: str) -> dict[str, object]:
        """Return what verbose status adds, by containerd's names where it has one: slots, cgroup, the network's own
        result, a process in the pod's namespaces, and these in the form of an OCI specification."""
        record = self.get(pod_id)
        return {
            "pid": next((one.pid for one in self._store.containers_of(record.id) if one.pid), 0),
            "runtimeHandler": record.runtime_handler,
            "runtimeSpec": {
                "hostname": record.config.hostname,
                "linux": {
                    "namespaces": [{"type": kind, "path": str(path)} for kind, path in record.namespaces.items()],
                    "cgroupsPath": record.cgroup_parent,
                    "sysctl": dict(record.config.sysctls),
                },
                "annotations": dict(record.config.annotations),
            },
            "runtimeSlot": record.runtime,
            "networkSlot": record.network,
            "snapshotterSlot": record.snapshotter,
            "namespaces": {kind: str(path) for kind, path in record.namespaces.items()},
            "cgroupParent": record.cgroup_parent,
            "resources": _shown(record.resources or record.config.resources),
            "overhead": _shown(record.overhead or record.config.overhead),
            "attachment": None if record.attachment is None else dict(record.attachment.data),
        }

    def preview(self, config: PodConfig, handler: str) -> "Preview":
        """Return what ``run`` would make, having checked the request as it does; nothing is done."""
        plan = self._planner.plan(config, handler)
        early, _late = part_sysctls(plan.sysctls)
        steps = self._steps_before_network(plan, early)
        has_network = config.security.namespaces.network is not NamespaceMode.NODE
        return Preview(plan, steps, self._network_request(plan) if has_network else None)

    async def close(self) -> None:
        """Give up what is under way; the next start undoes it."""
        await self._starting.close()

    def _claimed(self, config: PodConfig, handler: str) -> str | None:
        """Return the pod of an earlier request like this one whose answer nobody saw."""
        holder = next((pod for pod in self._store.pods if pod.config.metadata == config.metadata), None)
        if holder is None:
            return None
        same = holder.config == config and holder.runtime_handler == handler
        if holder.answered or not same or holder.state is not PodState.READY:
            raise AlreadyExists(f"the name of pod {_name(config)} is taken by pod {holder.id}: remove that one first")
        return holder.id

    async def _run(self, config: PodConfig, handler: str) -> str:
        """RunPodSandbox, for all who have asked for this pod: plan, make, tell."""
        try:
            # What needs nothing of the host is refused first, while there is nothing to take back.
            plan = self._planner.plan(config, handler)
            if config.cgroup_parent and (holder := holder_of(below_mount(plan.cgroup_parent), self._store, "")):
                raise InvalidArgument(
                    f"cgroup_parent {config.cgroup_parent!r} lies in the cgroup of {holder}: the pod would end with it"
                )
            if plan.user is not None:
                with stage("probe of user namespaces"):
                    await self._user_namespaces.require(handler)
            LOG.debug("pod %s: %s", plan.pod_id, _name(config))
            with on_behalf_of(plan.pod_id):  # threads that hang at what the pod named count against the pod
                record = await self._make(plan)
            self._init.watch(record)
            # The evented PLEG of the kubelet knows a sandbox as a container that is created and then started.
            self._events.notify_pod(EventType.CREATED, record)
            self._events.notify_pod(EventType.STARTED, record)
            return record.id
        finally:
            del self._wanted[config.metadata]

    async def _make(self, plan: PodPlan) -> PodRecord:
        """Make everything that a pod has, each step in the ledger first, and its record; on an error take all back."""
        pod_id, extensions = plan.pod_id, self._slots.extensions
        early, late = part_sysctls(plan.sysctls)
        async with Rollback(f"RunPodSandbox of {pod_id}") as rollback:
            # Everything below is in the ledger under the pod's id: one undo for all of it, in reverse.
            rollback.add("taking away init, network, cgroup, mounts, namespaces, files", lambda: self._undo(pod_id))
            await self._resources.make(pod_id, *self._steps_before_network(plan, early))
            self._warmup.linger(_CONTAINER_FOLLOWS_S)
            if plan.user is not None:
                # A child has made these namespaces, as no thread may change its user namespace: enter them now.
                sysctls = user_namespaces.host_sysctls(plan.user, early)
                await asyncio.to_thread(write_sysctls_in, plan.pins, sysctls)
            record = PodRecord(
                id=pod_id,
                config=plan.config,
                runtime_handler=plan.handler,
                runtime=plan.runtime.name,
                network=plan.network.name,
                snapshotter=plan.snapshotter.name,
                state=PodState.READY,
                created_at_ns=time.time_ns(),
                namespaces=plan.pins,
                cgroup_parent=plan.cgroup_parent,
            )
            if plan.config.security.namespaces.network is not NamespaceMode.NODE:
                record = dataclasses.replace(record, attachment=await self._attach(plan))
            if late:  # those of interfaces, which are there only now
                await asyncio.to_thread(write_sysctls_in, plan.pins, late)
            if plan.needs_init:
                with stage("init process of the shared PID namespace"):
                    record = await self._init.start(record)
            if (maps := user_namespaces.maps_of(record)) is not None:
                pod_files.give_files(plan.directory, maps)  # after the network, whose addresses /etc/hosts has
            await self._resources.start_sandbox(pod_id, plan.runtime, record.sandbox)
            # Extensions may refuse the pod before anybody else can see it; the record comes last but for them: a daemon
            # that is killed before leaves rows without an owner, which the next start undoes.
            view = view_pod(record)
            rollback.add("dropping the record", lambda: self._store.pods.drop(pod_id))
            rollback.add("telling extensions that it is gone", lambda: extensions.pod_removed(view))
            await extensions.pod_starting(view)
            self._store.pods.put(record)
            await extensions.pod_started(view)
        return record

    def _steps_before_network(self, plan: PodPlan, sysctls: Mapping[str, str]) -> Sequence[Step]:
        """What stands before the network: directory, namespaces with their sysctls, shared memory, cgroup.

        All of it is made in one thread, which saves a switch of threads for each.
        """

        def fill_directory() -> None:
            rights.make_directory(plan.directory.path / "ns")
            if "ipc" in plan.pins:
                rights.make_directory(plan.directory.shm, rights.PASSAGE)  # the mount on it has a mode of its own
            pod_files.write_files(plan.directory, plan.config, plan.hostname, plan.host_network)

        group = user_namespaces.root_group_of(plan.config)
        steps = [directory_at(plan.directory.path, group, fill_directory)]
        if plan.pins:
            # Sysctls are written by the thread that stands in the new namespaces: /proc/sys shows those of the opener.
            inside = functools.partial(write_sysctls, sysctls)
            steps.append(namespaces_at(plan.pod_id, plan.pins, plan.hostname, plan.user, inside))
        if "ipc" in plan.pins:
            # /dev/shm goes with the IPC namespace: all containers of the pod see the same one.
            options = ["nosuid", "nodev", "noexec", "mode=1777", f"size={self._config.pods.shm_size_bytes}"]
            if plan.user is not None:
                options += [f"uid={plan.user.uids[0].host_id}", f"gid={plan.user.gids[0].host_id}"]
            labels = selinux_labels(plan.pod_id, plan.config, None)
            steps.append(mounts_at(label_mounts((Mount("tmpfs", "shm", tuple(options)),), labels), plan.directory.shm))
        if not self._cgroups.systemd:
            steps.append(cgroup_at(plan.cgroup_parent, self._resources.host_calls))
        elif not plan.config.cgroup_parent:  # else the slice is the kubelet's; the runtime makes a scope in either
            steps.append(slice_at(below_mount(plan.cgroup_parent)))
        return steps

    async def _attach(self, plan: PodPlan) -> Attachment:
        """Attach the pod to its network, and write down for its containers what came of it."""
        config = plan.config
        attachment = await self._resources.attach(plan.pod_id, plan.network, self._network_request(plan))
        # A kubelet mounts an /etc/hosts of its own over this one; other clients don't. The request's DNS settings win
        # over the network's.
        if not plan.host_network:
            pod_files.write_hosts(plan.directory, plan.hostname, attachment.addresses)
        if config.dns is None and attachment.dns is not None and attachment.dns.servers:
            pod_files.write_small(plan.directory.path / "resolv.conf", pod_files.resolv_conf(attachment.dns))
        return attachment

    def _network_request(self, plan: PodPlan) -> NetworkRequest:
        config = plan.config
        return NetworkRequest(
            pod_id=plan.pod_id,
            metadata=config.metadata,
            netns=plan.pins.get("network"),
            port_mappings=() if plan.host_network else config.port_mappings,
            dns=config.dns,
            ingress_bits_per_s=plan.limits[0],
            egress_bits_per_s=plan.limits[1],
            pod_cidrs=self.pod_cidrs(),
            cgroup_parent=plan.cgroup_parent,
            annotations=config.annotations,
        )

    def pod_cidrs(self) -> tuple[str, ...]:
        """Return the node's address ranges as UpdateRuntimeConfig told them last."""
        text = self._store.setting("pod_cidrs")
        return tuple(text.split(",")) if text else ()

    async def _stop(self, pod_id: str) -> None:
        """End containers, init and network; each step is idempotent, so that a stop that broke off can go on."""
        record = self._store.pods.get(pod_id)
        if record is None:
            return
        # "Any running containers must be forcibly terminated" (api.proto): a kubelet has stopped them before, each with
        # its grace period, so what runs now is left over. The network goes after them, as they may hold connections.
        await self._containers.end_all(pod_id)
        self._going_down.add(pod_id)  # a stop that fails from here on leaves it down: nobody knows how far it got
        await self._init.undo(pod_id, {CONTAINER})
        if (slot := self.runtime_of(record)) is not None:
            await slot.stop_pod(record.sandbox)
        if record.state is PodState.READY:
            await self._slots.extensions.pod_stopping(view_pod(record))
        # The address is free from here on. Namespaces, files and cgroup stay until RemovePodSandbox.
        await self._resources.undo(pod_id, {NETWORK})
        if record.state is PodState.READY:
            record = self._store.pods.put_fact(dataclasses.replace(record, state=PodState.NOT_READY))
            self._events.notify_pod(EventType.STOPPED, record)
            await self._slots.extensions.pod_stopped(view_pod(record))
        self._going_down.discard(pod_id)

    async def _undo(self, pod_id: str, kinds: Collection[str] = KINDS) -> None:
        await self._init.undo(pod_id)
        await self._resources.undo(pod_id, kinds)

    def _find(self, pod_id: str) -> PodRecord | None:
        if not pod_id:
            raise InvalidArgument("pod_sandbox_id is empty")
        try:
            return self._store.pods.find(pod_id)
        except NotFound:
            return None


def _shown(resources: LinuxResources | None) -> dict[str, object] | None:
    return None if resources is None else dataclasses.asdict(resources)


def _name(config: PodConfig) -> str:
    metadata = config.metadata
    return f"{metadata.namespace}/{metadata.name} (uid {metadata.uid}, attempt {metadata.attempt})"


def _fits(record: PodRecord, wanted: PodFilter) -> bool:
    return (
        record.id.startswith(wanted.id)
        and (wanted.state is None or record.state is wanted.state)
        and wanted.labels.items() <= record.config.labels.items()
    )
