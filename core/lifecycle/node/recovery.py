"""What happens at the daemon's start: the ledger and the records are brought together with what is on the host.

First everything without an owner is undone, then each pod and container gets its true state. Pods and containers that
live on are not touched.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups, rights
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus
from crinoid.core.lifecycle.checkpoints.source import REQUEST_FILE
from crinoid.core.lifecycle.events.exit_monitor import ExitMonitor
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.ownership import owner_of
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.sandbox.pod_init import PodInit, init_owner
from crinoid.core.lifecycle.strays.stand_ins import LOST_FILES, StandIns
from crinoid.core.lifecycle.strays.strays import Stray, describe, find, ids_in
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
_NAMED = 5
_TOGETHER = 16
"""How many owners are undone at the same time: what hangs of one is not to keep the daemon from the next."""


class Recovery:
    """Brings records and host together, once, before the first request."""

    def __init__(
        self,
        tops: tuple[Path, Path],
        stand_ins: StandIns,
        store: Store,
        slots: Slots,
        resources: Resources,
        exit_monitor: ExitMonitor,
        init: PodInit,
    ) -> None:
        self._stand_ins = stand_ins
        self._tops = tops
        self._strays: set[str] = set()
        self._store = store
        self._slots = slots
        self._resources = resources
        self._exit_monitor = exit_monitor
        self._init = init

    def prepare(self) -> None:
        """Have records that can't be read stood in for, before anybody asks who owns what."""
        self._stand_ins.make()

    async def find_strays(self) -> list[Stray]:
        """Look for pods and containers on the host that are on no record, and spare what is theirs from now on."""
        entries = self._store.ledger.entries()  # also those that wait to be undone
        named = {one for entry in entries for text in (entry.owner, entry.key) for one in ids_in(text)}
        found = await call_in_thread(lambda: find(*self._tops, lambda one: one in named or self._is_known(one)))
        self._strays = {stray.id for stray in found}
        return found

    async def run(self) -> None:
        """Undo what nobody owns, then look at every pod and container. What is on no record is told, and left alone."""
        self._resources.quarantine_invalid_entries()
        if strays := await self.find_strays():
            LOG.error("%d pods and containers on this host are on no record: 'crinoid doctor' lists them", len(strays))
            for line in describe(strays):
                LOG.error("found without a record: %s", line)
        self._report_lost_slots()
        await self._undo_orphans()
        for pod in self._store.pods:
            await self._recover_pod(pod)
        await asyncio.gather(*(self._recover_container(one) for one in self._store.containers))
        await self._collect_network_garbage()
        await self._remove_orphaned_snapshots()
        await self._resources.undo_deferred()

    def _report_lost_slots(self) -> None:
        """Tell of slots that pods use and the configuration no longer has: such a pod can't be stopped or removed."""
        lost: dict[str, list[str]] = {}
        for pod in self._store.pods:
            for role, name, known in (
                ("runtime", pod.runtime, self._slots.runtimes),
                ("network", pod.network, self._slots.networks),
                ("snapshotter", pod.snapshotter, self._slots.snapshotters),
            ):
                if name and name not in known:
                    lost.setdefault(f'{role} "{name}"', []).append(pod.id)
        for slot, pods in lost.items():
            LOG.error(
                "%s is not in the configuration, and %d pods use it (%s): put it back until they are removed",
                slot,
                len(pods),
                ", ".join(pods[:_NAMED]) + (", …" if len(pods) > _NAMED else ""),
            )

    async def _undo_orphans(self) -> None:
        """Who has no record never came to be, as that is made last. For one that can't be read another stands in."""
        orphans = [owner for owner in self._resources.owners() if not self._is_known(owner)]
        places = asyncio.Semaphore(_TOGETHER)
        await asyncio.gather(*(self._undo_orphan(owner, places) for owner in orphans))

    async def _undo_orphan(self, owner: str, places: asyncio.Semaphore) -> None:
        async with places:
            LOG.info("undoing what an earlier run left of %s", owner)
            try:
                await self._resources.undo(owner)
            except CrinoidError as error:
                LOG.error("something of %s is left, to be tried again: %s", owner, error.message)
                self._resources.undo_later(owner)

    def _is_known(self, owner: str) -> bool:
        """An init belongs to its pod once the pod's record says so."""
        pod = self._store.pods.get(owner.partition("/")[0])
        if pod is not None and owner == init_owner(pod.id):
            return pod.init is not None
        known = owner in self._store.pods or owner in self._store.containers or owner in self._strays
        return known or self._is_damaged(owner)

    def _is_damaged(self, owner: str) -> bool:
        return owner in self._store.pods.damaged or owner in self._store.containers.damaged

    async def _recover_pod(self, pod: PodRecord) -> None:
        if pod.state is not PodState.READY:
            return
        lost = [kind for kind, path in pod.namespaces.items() if not self._resources.host_calls.is_pinned(path)]
        if lost:
            self._init.note_not_ready(pod.id, f"its {', '.join(lost)} namespace is gone, as after a reboot")
            return
        if (group := user_namespaces.root_group_of(pod.config)) is not None:
            # Made by an earlier version, and closed by ``daemon.directories``: containers to come pass through it.
            await asyncio.to_thread(rights.let_in, pod.namespaces[user_namespaces.USER].parent.parent, group)
        self._init.watch(pod)

    async def _recover_container(self, record: ContainerRecord) -> None:
        if record.state is ContainerState.EXITED:
            return
        pod = self._store.pods.get(record.pod_id)
        slot = self._slots.runtimes.get(pod.runtime if pod else "")
        if slot is None:
            self._store.containers.put_fact(dataclasses.replace(record, state=ContainerState.UNKNOWN))
            return
        try:
            state = await slot.state(record.handle)
        except CrinoidError as error:
            LOG.error("container %s: its state can't be read: %s", record.id, error.message)
            state = None
        if state is not None and state.status is ContainerStatus.ABSENT:
            if record.start_error or _waits_for_restore(record):
                return
            if left := await asyncio.to_thread(self._processes_of, record):
                why = f"its files below run are gone, and {len(left)} of its processes live: {left[0]} and others"
                LOG.error("container %s: %s; it can be stopped", record.id, why)
                unknown = dataclasses.replace(record, state=ContainerState.UNKNOWN, reason=LOST_FILES, message=why)
                self._store.containers.put(unknown)
                return
            self._exit_monitor.note(record.id, ExitStatus(255, time.time_ns(), known=False))
            return
        alive = state is not None and state.status in (ContainerStatus.RUNNING, ContainerStatus.PAUSED)
        if state is not None and alive and record.id not in self._store.containers.damaged:
            record = self._note_running(record, state.pid)
        self._exit_monitor.watch(record)

    def _processes_of(self, record: ContainerRecord) -> tuple[int, ...]:
        """Return what runs in the container's own cgroup. Blocks."""
        path = below_mount(record.handle.cgroup)
        return cgroups.processes(path) if self._resources.host_calls.owns_cgroup(path, record.id) else ()

    def _note_running(self, record: ContainerRecord, pid: int) -> ContainerRecord:
        """The daemon died between the start of the container and its record."""
        if record.state is ContainerState.RUNNING and record.checkpoint is None:
            return record
        started = record.started_at_ns or time.time_ns()
        return self._store.containers.put_fact(
            dataclasses.replace(
                record, state=ContainerState.RUNNING, started_at_ns=started, pid=record.pid or pid, checkpoint=None
            )
        )

    async def _collect_network_garbage(self) -> None:
        try:
            attachments = self._resources.attachments()
        except CrinoidError as error:
            LOG.error("attachments that nobody owns are not collected: %s", error.message)
            return
        attached = {request.pod_id for _, request, _ in attachments}
        unsure = [pod.id for pod in self._store.pods if pod.id not in attached and self._should_be_attached(pod)]
        if self._strays or unsure:
            LOG.warning("what is attached to networks is not known in full: no address or link is collected")
            return
        await asyncio.gather(*(self._collect_garbage_of(slot, attachments) for slot in self._slots.networks.values()))

    def _should_be_attached(self, pod: PodRecord) -> bool:
        """A pod that lives, and has no row of its network in the ledger, has lost it."""
        return pod.id in self._store.pods.damaged or (pod.state is PodState.READY and pod.attachment is not None)

    async def _collect_garbage_of(
        self, slot: NetworkSlot, attachments: Sequence[tuple[str, NetworkRequest, Mapping[str, object]]]
    ) -> None:
        valid = tuple((request, data) for owner, request, data in attachments if owner == slot.name)
        try:
            await slot.collect_garbage(valid)
        except CrinoidError as error:
            LOG.warning("attachments that nobody owns could not be collected: %s", error.message)

    async def _remove_orphaned_snapshots(self) -> None:
        """A snapshot whose ledger entry went with a broken database has no other owner."""
        for slot in self._slots.snapshotters.values():
            try:
                keys = await slot.list_snapshots()
            except CrinoidError as error:
                LOG.warning("snapshots that nobody owns can't be looked for: %s", error.message)
                continue
            for key in keys:
                if not self._is_known(owner_of(key)):
                    LOG.info("removing snapshot %s, which nobody owns", key)
                    try:
                        await slot.remove_snapshot(key)
                    except CrinoidError as error:
                        LOG.warning("snapshot %s, which nobody owns, can't be removed: %s", key, error.message)


def _waits_for_restore(record: ContainerRecord) -> bool:
    """Return whether a container is to be restored when it is started, and can be: its bundle outlived no reboot."""
    waits = record.state is ContainerState.CREATED and record.checkpoint is not None
    return waits and (record.handle.bundle / REQUEST_FILE).exists()
