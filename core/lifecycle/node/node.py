"""The node as a whole: Status, RuntimeConfig, UpdateRuntimeConfig."""

import asyncio
import contextlib
import dataclasses
import datetime
import json
import logging
from dataclasses import asdict

from crinoid.core.api.errors import CrinoidError
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.queries import Condition, HandlerReport, NodeStatus
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.resources.resources import Deferred, Resources
from crinoid.core.lifecycle.resources.user_namespaces import UserNamespaces
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
POD_CIDRS = "pod_cidrs"


class NodeService:
    """What is asked and told about the node."""

    def __init__(
        self, store: Store, slots: Slots, images: ImageService, resources: Resources, cgroups: CgroupPaths, version: str
    ) -> None:
        """``version`` is crinoid's own."""
        self.version = version
        self._store = store
        self._slots = slots
        self._images = images
        self._resources = resources
        self._cgroups = cgroups
        self._user_namespaces = UserNamespaces(slots)
        self._handlers: dict[str, HandlerReport] = {}
        self._unfit: dict[str, str] = {}

    async def status(self, verbose: bool) -> NodeStatus:
        """Ask the default handler's runtime and network whether they are ready, and report every handler.

        RuntimeReady is false with what stands against the default handler's runtime, against its snapshotter since the
        start, or now if its process is down, or against the file of the state; other handlers that don't work are left
        out.
        """
        info = await self._info() if verbose else {}  # which may be what finds the file damaged
        runtime, network = await asyncio.gather(self._runtime_ready(), self._network_ready())
        default = self._slots.runtime("").name
        known = [self._handlers[name] for name in self._slots.runtimes if name in self._handlers]
        unnamed = [dataclasses.replace(handler, name="") for handler in known if handler.name == default]
        return NodeStatus((runtime, network), tuple(unnamed + known), info)

    def cgroup_driver(self) -> str:
        """Return ``systemd`` or ``cgroupfs``."""
        return self._cgroups.driver

    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        """Tell every network of the node's address ranges, and keep them once all have taken them.

        Raises what a network raises that can't use them; then the others have those of before again.
        """
        told: list[NetworkSlot] = []
        try:
            for slot in self._slots.networks.values():
                told.append(slot)
                await slot.set_pod_cidrs(cidrs)
        except CrinoidError:
            for slot in told[:-1]:
                with contextlib.suppress(CrinoidError):
                    await slot.set_pod_cidrs(self._pod_cidrs())
            raise
        self._store.set(POD_CIDRS, ",".join(cidrs))

    def _pod_cidrs(self) -> tuple[str, ...]:
        text = self._store.setting(POD_CIDRS)
        return tuple(text.split(",")) if text else ()

    async def recover(self) -> None:
        """Examine the snapshotters, and tell the networks what UpdateRuntimeConfig set last."""
        for slot in self._slots.snapshotters.values():
            try:
                await slot.probe()
            except CrinoidError as error:
                LOG.error("%s", error.message)
                self._unfit[slot.name] = error.message
        if cidrs := self._pod_cidrs():
            for network in self._slots.networks.values():
                try:
                    await network.set_pod_cidrs(cidrs)
                except CrinoidError as error:
                    LOG.error("the address ranges of the last UpdateRuntimeConfig can't be used: %s", error.message)

    async def _runtime_ready(self) -> Condition:
        slots = list(self._slots.runtimes.values())
        problems = dict(zip(slots, await asyncio.gather(*map(self._probe, slots)), strict=True))
        if (problem := problems[self._slots.runtime("")]) is not None:
            return Condition("RuntimeReady", False, "RuntimeNotReady", problem)
        snapshotter = self._slots.snapshotter_of("")
        if problem := self._unfit.get(snapshotter.name) or snapshotter.problem:
            return Condition("RuntimeReady", False, "SnapshotterNotReady", problem)
        if self._store.damage:
            return Condition("RuntimeReady", False, "StateDamaged", self._store.damage)
        return Condition("RuntimeReady", True)

    async def _probe(self, slot: RuntimeSlot) -> str | None:
        """Note what the runtime can; return what stands against it."""
        try:
            features = await slot.probe()
        except CrinoidError as error:
            self._handlers.pop(slot.name, None)
            return error.message
        supported = await self._user_namespaces.supported(slot, features.user_namespaces)
        self._handlers[slot.name] = HandlerReport(slot.name, features.recursive_read_only_mounts, supported)
        return None

    async def _network_ready(self) -> Condition:
        try:
            status = await self._slots.network_of("").status()
        except CrinoidError as error:
            return Condition("NetworkReady", False, error.reason, error.message)
        if status.ready:
            return Condition("NetworkReady", True)
        return Condition("NetworkReady", False, status.reason or "NetworkNotReady", status.message)

    async def _info(self) -> dict[str, str]:
        """Return what operators look for: slots with their state, pulls under way, what waits to be undone."""
        slots = [
            {
                "role": slot.role,
                "slot": slot.name,
                "driver": slot.driver,
                "distribution": f"{slot.installed.distribution} {slot.installed.version}",
                "lastError": None if slot.last_error is None else asdict(slot.last_error),
                "process": _describe_process(slot),
            }
            for slot in self._slots.all()
        ]
        try:
            deferred = [_describe_deferred(one) for one in self._resources.deferred()]
            quarantined = [{"table": name, "id": key, "error": error} for name, key, error in self._store.quarantined()]
        except CrinoidError as error:  # the conditions tell it
            LOG.warning("what is deferred and in quarantine can't be read: %s", error.message)
            deferred, quarantined = [], []
        registries = self._slots.registries
        statuses = await asyncio.gather(*map(_source_status, registries.values()))
        sources = dict(zip(registries, statuses, strict=True))
        return {
            "slots": json.dumps(slots),
            "deferred": json.dumps(deferred),
            "sources": json.dumps(sources),
            "quarantine": json.dumps(quarantined),
            "unremoved": json.dumps(
                [
                    {"role": slot.role, "slot": slot.name, "what": what, "reason": reason}
                    for slot in self._slots.all()
                    for what, reason in slot.unremoved.items()
                ]
            ),
            "pulls": json.dumps([asdict(progress) for progress in self._images.progress()]),
        }


def _describe_process(slot: Slot) -> dict[str, object] | None:
    """Describe the process that a slot's driver is in, if it has one of its own."""
    if (process := slot.process) is None:
        return None
    told = {"pid": process.pid, "restarts": process.restarts, "problem": process.problem}
    return told | {"memoryBytes": process.memory_bytes}


def _describe_deferred(deferred: Deferred) -> dict[str, object]:
    since = deferred.since_ns and datetime.datetime.fromtimestamp(deferred.since_ns / 1e9, datetime.UTC)
    told = asdict(deferred) | {"since": since.isoformat(timespec="seconds") if since else None}
    return {name: told[name] for name in ("kind", "whose", "since", "reason", "owner", "key")}


async def _source_status(slot: RegistrySlot) -> dict[str, object]:
    try:
        return asdict(await slot.status())
    except CrinoidError as error:
        return {"ready": False, "message": error.message}
