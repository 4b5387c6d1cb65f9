"""Host resources of pods and containers: each is in the ledger before it is made, and deleted once it is undone.

``pods`` and ``containers`` make resources here one after the other, for an owner (a pod's or container's id);
undoing an owner walks its entries backwards. Nothing else makes or removes what outlives a call, so a start after
``kill -9`` only has to undo the owners that have no record. Undoing goes by the entry alone, never by today's
configuration. An entry that names what is not its owner's, as a damaged row does, is put in quarantine instead
(``ownership``).

What can't be undone now and harms nobody (an address, a directory, a snapshot) passes to the owner ``DEFERRED``, with
whose it was, since when and why, and is tried again in the background: a broken plugin never holds up a pod's end. A
process that can't be ended, or a mount that can't be undone, is an error. So is a call in a thread that hangs and was
left behind (``bulkheads``): what it is about to make is not undone under its feet. The ledger keeps such an owner's
entries; they are undone in the background once that can be, and by RemovePodSandbox, which says what it waits for.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar, cast

from crinoid.core.api.backoff import Backoff
from crinoid.core.api.errors import CorruptContent, CrinoidError, DriverError, FailedPrecondition, Unavailable
from crinoid.core.api.linux import cgroups, files, rights
from crinoid.core.api.linux.bulkheads import OwnerThreads, on_behalf_of, touching
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.linux.threads import call_in_thread, call_within
from crinoid.core.api.timeline import stage
from crinoid.core.api.values.checkpoint import RestoreRequest
from crinoid.core.api.values.network import Attachment, NetworkRequest
from crinoid.core.api.values.pod import UserNamespace
from crinoid.core.api.values.runtime import ContainerHandle, ContainerProcess, ContainerRequest, PodSandbox
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.resources import layer_mounts, ownership
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.lifecycle.resources.layer_mounts import LayerMounts
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state import bodies
from crinoid.core.state.store import Ledger, LedgerEntry

LOG = logging.getLogger(__name__)
DEFERRED = "deferred"
_QUIET_S = 2.0
"""How long an undo waits for threads that were left behind: they may only have been slow."""
_UNDO_S = 60.0
"""How long a thread may take to undo what one owner has; a tree of millions of files takes longer, in several goes."""
_START_WAITS_S = 10.0
"""How long a start waits for what was deferred: addresses that are given back can be had by the first pod."""

DIRECTORY, NAMESPACES, MOUNT, CGROUP = "directory", "namespaces", "mount", "cgroup"
NETWORK, SNAPSHOT, CONTAINER = "network", "snapshot", "container"
PAUSE, CONTENTS, SANDBOX = "pause", "contents", "sandbox"
LAYERS = layer_mounts.KIND
KINDS = frozenset(
    {DIRECTORY, NAMESPACES, MOUNT, CGROUP, NETWORK, SNAPSHOT, CONTAINER, PAUSE, CONTENTS, SANDBOX, LAYERS}
)
_DEFERRABLE = frozenset({DIRECTORY, CONTENTS, CGROUP, NETWORK, SNAPSHOT})

S = TypeVar("S")
_UNDOABLE = (CrinoidError, OSError, ValueError, KeyError, TypeError)
"""What undoing may raise: the last three for a row that is damaged."""


class Resources:
    """Makes and undoes host resources by way of the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        slots: Slots,
        cgroup_root: str,
        threads: OwnerThreads,
        describe: Callable[[str], str],
        host_calls: HostCalls,
    ) -> None:
        """``cgroup_root``: the cgroup under which all of crinoid's own lie; removed whenever it is empty.

        ``describe`` returns an owner's name for people; it is asked while there is a record of the owner.
        """
        self.host_calls = host_calls
        self._ledger = ledger
        self._describe = describe
        self._backoff = Backoff()
        self._slots = slots
        self._cgroup_root = cgroup_root
        self._threads = threads
        self._layer_mounts = LayerMounts(
            ledger.entries(), lambda: {slot.run_dir.parent for slot in slots.snapshotters.values()}, host_calls
        )
        self._given_up: dict[str, _GivenUp] = {}
        self._retry: asyncio.Task[None] | None = None
        self._undoing: set[asyncio.Task[None]] = set()
        # How each kind is undone: by its driver, or by the kernel, where a call may block, in a thread.
        self._undo_of: Mapping[str, Callable[[LedgerEntry], Awaitable[None]]] = {
            NETWORK: lambda entry: self._slot(slots.networks, "network", entry).detach(
                bodies.parse_value(NetworkRequest, entry.data["request"]), _mapping(entry.data["data"])
            ),
            SNAPSHOT: lambda entry: self._slot(slots.snapshotters, "snapshotter", entry).remove_snapshot(entry.key),
            CONTAINER: lambda entry: self._slot(slots.runtimes, "runtime", entry).delete(
                bodies.parse_value(ContainerHandle, entry.data["handle"])
            ),
            PAUSE: lambda entry: self._slot(slots.runtimes, "runtime", entry).resume(
                bodies.parse_value(ContainerHandle, entry.data["handle"])
            ),
            SANDBOX: lambda entry: self._slot(slots.runtimes, "runtime", entry).stop_pod(
                bodies.parse_value(PodSandbox, entry.data["pod"])
            ),
        }
        self._undo_in_thread_of: Mapping[str, Callable[[LedgerEntry], None]] = {
            DIRECTORY: lambda entry: files.remove_tree(Path(entry.key)),
            NAMESPACES: self._undo_namespaces,
            MOUNT: lambda entry: host_calls.unmount(Path(entry.key)),
            CGROUP: self._undo_cgroup,
            CONTENTS: _undo_contents,
            LAYERS: self._layer_mounts.undo,
        }
        self._check_of: Mapping[str, Callable[[LedgerEntry, str], None]] = {
            DIRECTORY: lambda entry, owner: ownership.require_path(entry.key, owner),
            MOUNT: lambda entry, owner: ownership.require_path(entry.key, owner),
            NAMESPACES: lambda entry, owner: ownership.require_paths(entry.data.get("paths"), owner),
            CONTENTS: _check_contents,
            LAYERS: lambda entry, _: self._layer_mounts.check_entry(entry),
            NETWORK: _check_network,
            SNAPSHOT: lambda entry, owner: ownership.require_snapshot(entry.key, owner),
            CONTAINER: _check_container,
            SANDBOX: lambda entry, owner: ownership.require_id(entry.key, owner),
        }

    async def make(self, owner: str, *steps: "Step") -> None:
        """Make several resources, one after the other in one thread; all are in the ledger before the first is made."""
        self._ledger.record_all(owner, [(step.kind, step.key, step.data) for step in steps])
        with stage("make " + ", ".join(dict.fromkeys(step.kind for step in steps))):
            await call_in_thread(lambda: [step.make(self.host_calls) for step in steps])

    async def make_directory(self, owner: str, path: Path, group: int | None = None) -> None:
        """Make a private directory of the owner's own, with a way through it for a group; undone with all that is in
        it.

        In crinoid's own directories only: it is made at once. One that is somewhere else is made by ``directory_at``.

        ``group``: that of a pod's mapped root, which opens its root file system below by its path.
        """
        self._ledger.record(owner, DIRECTORY, str(path), {})
        _make_private(path, group)

    async def pin_existing(self, owner: str, source: Path, pin: Path) -> None:
        """Pin the namespace of a running process, such as ``/proc/PID/ns/pid``."""
        self._ledger.record(owner, NAMESPACES, str(pin), {"paths": [str(pin)]})

        def bind() -> None:
            rights.write_file(pin, b"")
            self.host_calls.bind(source, pin)

        await call_in_thread(bind)

    async def mount(self, owner: str, mounts: Iterable[Mount], target: Path, maps: IdMaps | None = None) -> None:
        """Make a snapshot's mounts at ``target``, which exists; with ``maps``, files show other owners.

        Those with a target of their own are layers, which others may use as well, and come first.
        """
        mounts = tuple(mounts)
        layers = [one for one in mounts if one.target]
        self._layer_mounts.require(layers)
        steps = [mounts_at([one for one in mounts if not one.target], target, maps)]
        if layers:
            token = self._layer_mounts.new_token()
            data = {"targets": [one.target for one in layers]}
            steps.insert(0, Step(LAYERS, token, data, lambda _: self._layer_mounts.make(layers, token)))
        await self.make(owner, *steps)

    async def unmount(self, owner: str, target: Path) -> None:
        """Undo the mount at a target before the owner's end; layers below it stay for who mounts it elsewhere."""
        await self._undo_entries(
            one for one in self._ledger.entries(owner) if one.kind == MOUNT and one.key == str(target)
        )

    async def start_sandbox(self, owner: str, slot: RuntimeSlot, pod: PodSandbox) -> None:
        """Have the runtime start what its pods need, if they need anything; undone by ``stop_pod``."""
        if slot.implements("start_pod"):
            self._ledger.record(owner, SANDBOX, pod.pod_id, {"slot": slot.name, "pod": bodies.dump_value(pod)})
            await slot.start_pod(pod)

    async def make_cgroup(self, owner: str, path: str) -> None:
        """Make a cgroup for a container outside its pod's, which must be new: then it is the owner's to end.

        Raises AlreadyExists, Unsupported.
        """
        above = [one for parent in PurePosixPath(path).parents for one in _ours(str(parent), self.host_calls)]
        self._ledger.record(owner, CGROUP, path, {"made": [path], "above": above})
        await call_in_thread(lambda: self.host_calls.make_new_cgroup(path, owner))

    async def attach(self, owner: str, slot: NetworkSlot, request: NetworkRequest) -> Attachment:
        """Attach a pod to its network."""
        # The plan has all that undoing needs, the names of links above all, and goes to the ledger before anything is
        # made of it; the result, which CNI wants back at DEL, takes its place.
        plan = await slot.plan(request)
        data = {"slot": slot.name, "request": bodies.dump_value(request), "data": dict(plan)}
        entry = self._ledger.record(owner, NETWORK, slot.name, data)
        attachment = await slot.attach(request, plan)
        self._ledger.update(entry, data | {"data": dict(attachment.data)})
        return attachment

    async def create_snapshot(
        self, owner: str, key: str, slot: SnapshotterSlot, parent: str | None, readonly: bool = False
    ) -> tuple[Mount, ...]:
        """Make a snapshot on a chain id; ``key`` is the pod's or container's id."""
        self._ledger.record(owner, SNAPSHOT, key, {"slot": slot.name})
        return await slot.create_snapshot(key, parent, readonly)

    async def create_container(self, owner: str, slot: RuntimeSlot, request: ContainerRequest) -> ContainerProcess:
        """Have the runtime make a container."""
        handle = bodies.dump_value(request.handle)
        self._ledger.record(owner, CONTAINER, request.handle.container_id, {"slot": slot.name, "handle": handle})
        return await slot.create(request)

    async def restore_container(self, owner: str, slot: RuntimeSlot, request: RestoreRequest) -> ContainerProcess:
        """Have the runtime make a container whose processes go on where a checkpoint has left them."""
        handle = bodies.dump_value(request.container.handle)
        self._ledger.record(
            owner, CONTAINER, request.container.handle.container_id, {"slot": slot.name, "handle": handle}
        )
        return await slot.restore(request)

    async def pause(self, owner: str, slot: RuntimeSlot, handle: ContainerHandle) -> None:
        """Freeze a container for a while; undoing lets it go on."""
        data = {"slot": slot.name, "handle": bodies.dump_value(handle)}
        self._ledger.record(owner, PAUSE, handle.container_id, data)
        await slot.pause(handle)

    async def resume(self, owner: str) -> None:
        """Let the containers go on that are frozen for an owner, even if what froze them hangs."""
        with on_behalf_of(f"cleanup of {owner}", owner):
            await self._undo_entries([entry for entry in self._ledger.entries(owner) if entry.kind == PAUSE])

    def own_contents(self, owner: str, directory: Path) -> None:
        """Take over a directory of somebody else's, empty but for a directory that the owner has there by its own name:
        undoing removes all beside that one. Where there is none, the directory is not the owner's (any more)."""
        self._ledger.record(owner, CONTENTS, str(directory), {})

    def keep(self, owner: str, kind: str) -> None:
        """Delete the owner's entries of a kind: what they stand for is to stay."""
        for entry in self._ledger.entries(owner):
            if entry.kind == kind:
                self._ledger.delete(entry)

    def quarantine_invalid_entries(self) -> None:
        """Put every entry in quarantine that names what is not its owner's. Once, before any is read."""
        for entry in self._ledger.entries():
            self._is_true(entry)

    async def undo(self, owner: str, kinds: Collection[str] | None = None) -> None:
        """Undo what the owner has (of these kinds), the latest first. Idempotent.

        What fails and may wait is deferred. Raises the first other failure, after everything else was tried, and
        Unavailable when a thread that works for the owner hangs.
        """
        await self._require_quiet(owner)
        entries = [entry for entry in self._ledger.entries(owner) if kinds is None or entry.kind in kinds]
        with on_behalf_of(f"cleanup of {owner}", owner):  # threads of its own: those of the pod may all hang
            await self._undo_entries(entry for entry in entries if self._is_true(entry))

    async def _undo_entries(self, entries: Iterable[LedgerEntry]) -> None:
        """Undo entries in this order; delete the rows of those that are gone. Raises the first failure that counts."""
        failures: list[CrinoidError] = []
        gone: list[LedgerEntry] = []
        try:
            # What drivers undo goes one by one, as each may be deferred; mounts, directories and the like that follow
            # each other go together in one thread. One that hangs is left behind, and all of it is undone again, then.
            for in_thread, group in itertools.groupby(entries, lambda entry: entry.kind in self._undo_in_thread_of):
                for batch in [list(group)] if in_thread else [[entry] for entry in group]:
                    LOG.debug("undoing %s", ", ".join(f"{one.kind} {one.key} of {one.owner}" for one in batch))
                    if in_thread:
                        what = f"{batch[0].kind} {batch[0].key} of {batch[0].owner} could not be undone"
                        with stage("undo " + ", ".join(dict.fromkeys(one.kind for one in batch))):
                            errors = await call_within(_UNDO_S, what, functools.partial(self._try_in_thread, batch))
                    else:
                        errors = [await self._try(batch[0])]
                    for entry, error in zip(batch, errors, strict=True):
                        if error is not None:
                            failures += [failure] if (failure := self._failed(entry, error)) is not None else []
                        elif entry.kind == NETWORK or entry.owner == DEFERRED:
                            # At once: the address may soon be another's, and what follows may be slow.
                            self._ledger.delete(entry)
                        else:
                            gone.append(entry)
        finally:  # a kill before this lets the next start undo them again
            self._ledger.delete(*gone)
        if failures:
            raise failures[0]

    async def _try(self, entry: LedgerEntry) -> Exception | None:
        try:
            await self._undo_of[entry.kind](entry)
        except _UNDOABLE as error:
            return error
        return None

    def _try_in_thread(self, entries: Iterable[LedgerEntry]) -> list[Exception | None]:
        errors: list[Exception | None] = []
        for entry in entries:
            touching(entry.key)
            try:
                self._undo_in_thread_of[entry.kind](entry)
            except _UNDOABLE as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    async def give_up(self, pod_id: str, owner: str, about: str) -> None:
        """Undo what was made for a container that came to nothing; what can't be undone now waits for ``settle``.

        ``about`` names the container and its volumes, for messages; without a ``pod_id`` no pod waits for it.
        """
        try:
            await self.undo(owner)
        except CrinoidError as error:
            where = f"{about} in pod {pod_id}" if pod_id else about
            LOG.error("something of %s is left, to be undone later: %s", where, error.message)
            self._undo_later(_GivenUp(pod_id, about, time.monotonic()), owner)

    async def give_up_within(self, patience_s: float, owner: str, about: str) -> None:
        """As ``give_up`` for no pod; what takes longer goes on in the background, as it may hang."""
        undoing = asyncio.create_task(self.give_up("", owner, about), name=f"undoing {about}")
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        await asyncio.wait({undoing}, timeout=patience_s)

    def undo_later(self, owner: str) -> None:
        """See to it that an owner that an earlier run left is undone from time to time until nothing is left."""
        made = [entry.data.get("handle") for entry in self._ledger.entries(owner) if entry.kind == CONTAINER]
        pod_id = next((str(handle.get("pod_id", "")) for handle in made if isinstance(handle, dict)), "")
        self._undo_later(_GivenUp(pod_id, f"container {owner} of an earlier run", time.monotonic()), owner)

    def _undo_later(self, given_up: "_GivenUp", owner: str) -> None:
        self._given_up[owner] = given_up
        self._backoff.note_failure(owner)
        self.retry_deferred()

    async def settle(self, pod_id: str) -> None:
        """Undo what ``give_up`` has left of a pod's containers. Raises as ``undo``, naming what stands against it."""
        for owner, given_up in [(owner, one) for owner, one in self._given_up.items() if one.pod_id == pod_id]:
            try:
                await self.undo(owner)
            except CrinoidError as error:
                since_s = time.monotonic() - given_up.at_s
                error.add_note(f"the pod waits for {given_up.about}, which was given up {since_s:.0f} s ago")
                raise
            self._given_up.pop(owner, None)

    async def _require_quiet(self, owner: str) -> None:
        """See to it that no thread that was left behind still makes something for the owner."""
        left = self._threads.left_behind(owner)
        if left:
            await asyncio.wait([asyncio.wrap_future(call) for call in left], timeout=_QUIET_S)
            left = [call for call in left if not call.done()]
        if left:
            raise Unavailable(f"{owner} can't be undone now: a thread that was left behind hangs: {left[0]}")

    def owners(self) -> set[str]:
        """Return everyone who has an entry of a kind that is made here, but for the deferred."""
        kinds = self._undo_of.keys() | self._undo_in_thread_of.keys()
        return {entry.owner for entry in self._ledger.entries() if entry.kind in kinds} - {DEFERRED}

    def attachments(self) -> list[tuple[str, NetworkRequest, Mapping[str, object]]]:
        """Return slot, request and data of each attachment that has an owner. Raises CorruptContent for a row that is
        damaged: with a part of them alone, those of others would count as nobody's."""
        found = []
        for entry in self._ledger.entries():
            if entry.kind == NETWORK:
                try:
                    request = bodies.parse_value(NetworkRequest, entry.data["request"])
                    found.append((str(entry.data["slot"]), request, _mapping(entry.data["data"])))
                except (ValueError, KeyError) as error:
                    raise CorruptContent(f"ledger row {entry.id}, {entry.key} of {entry.owner}: {error}") from error
        return found

    def deferred(self) -> list["Deferred"]:
        """Return what waits to be undone in the background, the latest first."""
        return [Deferred.of(entry) for entry in self._ledger.entries(DEFERRED)]

    def count_deferred(self) -> int:
        """Return how many entries wait to be undone in the background. May be called in any thread."""
        return self._ledger.count(DEFERRED)

    async def close(self) -> None:
        """Stop trying in the background; the entries stay for the next start."""
        tasks = [*self._undoing, *([] if self._retry is None else [self._retry])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The kernel may not have let go of them when the last pod went, right after its processes. In use, they stay.
        await call_in_thread(self._remove_shared_cgroups)

    def retry_deferred(self) -> None:
        """See to it that deferred entries are tried again from time to time until none is left.

        Not before the start's ``undo_deferred``: what is detached while a network collects its garbage, for which the
        attachment is valid still, would be attached again by that.
        """
        if (self.count_deferred() or self._given_up) and self._retry is not None and self._retry.done():
            self._retry = asyncio.create_task(self._keep_trying(), name="deferred removals")

    async def undo_deferred(self) -> None:
        """Try to undo what an earlier run has deferred; go on in the background with what takes longer, or fails.

        Raises nothing.
        """
        first = asyncio.create_task(self._try_deferred(), name="deferred removals of earlier runs")
        await asyncio.wait({first}, timeout=_START_WAITS_S)
        self._retry = asyncio.create_task(self._keep_trying(first), name="deferred removals")

    async def _keep_trying(self, first: "asyncio.Task[None] | None" = None) -> None:
        if first is not None:
            await first
        while waiting := [*self._given_up, *(entry.id for entry in self._ledger.entries(DEFERRED))]:
            await asyncio.sleep(self._backoff.wait_s(waiting))
            for owner in [one for one in self._given_up if self._backoff.is_due(one)]:
                self._backoff.note_failure(owner)
                with contextlib.suppress(CrinoidError):  # the first time has told it
                    await self.undo(owner)
                    self._given_up.pop(owner, None)
            await self._try_deferred()

    async def _try_deferred(self) -> None:
        """Undo what is due one by one: what hangs or fails is no reason to leave the others."""
        for entry in self._ledger.entries(DEFERRED):
            if self._backoff.is_due(entry.id):
                subject = f"{entry.kind} {entry.key}"
                try:
                    await self._require_quiet(subject)
                    with on_behalf_of(f"cleanup of {subject}", subject):
                        await self._undo_entries([entry])
                except CrinoidError as error:  # it hangs, or what came of it can't be recorded
                    self._put_off(entry, error)

    def _is_true(self, entry: LedgerEntry) -> bool:
        """Return whether what an entry names is its owner's; put it aside where not: nobody knows what it stood for."""
        try:
            if entry.kind in self._check_of:
                self._check_of[entry.kind](entry, _owner(entry))
        except (CrinoidError, ValueError, KeyError, TypeError) as error:
            self._ledger.quarantine(entry, error)
            return False
        return True

    def _failed(self, entry: LedgerEntry, error: Exception) -> CrinoidError | None:
        if entry.damaged or entry.kind not in KINDS:
            self._ledger.quarantine(entry, error)
            return None
        if entry.owner == DEFERRED:
            self._put_off(entry, error)
            return None
        whose = self._describe(entry.owner)
        if entry.kind not in _DEFERRABLE:
            LOG.warning("%s %s of %s could not be undone: %s", entry.kind, entry.key, whose, error)
            if isinstance(error, CrinoidError):
                return error
            return DriverError(f"{entry.kind} {entry.key} of {entry.owner} could not be undone: {error}")
        LOG.warning("%s %s of %s can't be removed now, and is deferred: %s", entry.kind, entry.key, whose, error)
        about = {"owner": entry.owner, "whose": whose, "since_ns": time.time_ns(), "reason": _text_of(error)}
        changed = self._ledger.hand_over(entry, DEFERRED, {**entry.data, **about})
        self._backoff.note_failure(changed.id)
        self.retry_deferred()
        return None

    def _put_off(self, entry: LedgerEntry, error: Exception) -> None:
        """Note why a deferred entry could not be undone this time either."""
        deferred, reason = Deferred.of(entry), _text_of(error)
        LOG.warning("%s still can't be removed: %s", deferred, reason)
        self._backoff.note_failure(entry.id)
        if reason != deferred.reason:
            with contextlib.suppress(CrinoidError):  # the log has it
                self._ledger.update(entry, {**entry.data, "reason": reason})

    def _undo_cgroup(self, entry: LedgerEntry) -> None:
        """End what the owner has made: told by the cgroup itself, since a row may be old, or damaged.

        A pod's own cgroup and one made for a container alone are ended with all that runs in them. Those above, and the
        parent that a pod was given, may be others' as well: they go with the last, if crinoid has made them.
        """
        owner = _owner(entry)
        made, above = _texts(entry.data.get("made")), _texts(entry.data.get("above"))
        for path in made:
            if self.host_calls.owns_cgroup(path, owner):
                self.host_calls.kill_cgroup(path)
                self.host_calls.remove_cgroup(path)
            elif cgroups.is_path(path) and self.host_calls.has_cgroup(path):
                LOG.info("cgroup %s is left as it is: it was not made for %s", path, owner)
        for path in above:
            self.host_calls.remove_marked_cgroup(path)
        self._remove_shared_cgroups()

    def _remove_shared_cgroups(self) -> None:
        for path in (f"{self._cgroup_root}/monitors", self._cgroup_root):
            self.host_calls.remove_marked_cgroup(path)

    def _undo_namespaces(self, entry: LedgerEntry) -> None:
        for path in cast(list[str], entry.data["paths"]):
            self.host_calls.unpin(Path(path))

    def _slot(self, slots: Mapping[str, S], role: str, entry: LedgerEntry) -> S:
        name = str(entry.data["slot"])
        if name not in slots:
            raise FailedPrecondition(
                f"{entry.key} was made by {role} slot {name!r}, which is no longer configured: put it back to undo it"
            )
        return slots[name]


@dataclass(frozen=True, slots=True)
class Deferred:
    """What waits to be undone: whose it was, by id and by name, since when, and what stood against it last."""

    kind: str
    key: str
    owner: str
    whose: str
    since_ns: int
    reason: str

    @classmethod
    def of(cls, entry: LedgerEntry) -> "Deferred":
        """Read what a ledger entry says; one of an earlier version says less."""
        owner, since = str(entry.data.get("owner", "")), entry.data.get("since_ns")
        whose, reason = str(entry.data.get("whose", owner)), str(entry.data.get("reason", ""))
        return cls(entry.kind, entry.key, owner, whose, since if isinstance(since, int) else 0, reason)

    def __str__(self) -> str:
        age = f", deferred {(time.time_ns() - self.since_ns) / 1e9:.0f} s ago," if self.since_ns else ""
        return f"{self.kind} {self.key} of {self.whose}{age}"


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """What an owner without a record is, that could not be undone."""

    pod_id: str
    about: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """A resource to be made: what the ledger says of it, and what makes it, in a thread."""

    kind: str
    key: str
    data: Mapping[str, object]
    make: Callable[[HostCalls], object]


def directory_at(path: Path, group: int | None = None, fill: Callable[[], object] = lambda: None) -> Step:
    """As ``Resources.make_directory``, but in a thread, and what comes into the directory at once."""

    def make(_: HostCalls) -> None:
        _make_private(path, group)
        fill()

    return Step(DIRECTORY, str(path), {}, make)


def namespaces_at(
    owner: str, pins: Mapping[str, Path], hostname: str, user: UserNamespace | None, inside: Callable[[], object]
) -> Step:
    """Namespaces (``user`` with its maps, ``network``, ``ipc``, ``uts``), pinned by bind mounts.

    ``inside`` is called in those without ``user`` before they are pinned.
    """
    maps = user or UserNamespace()

    def make(host_calls: HostCalls) -> None:
        host_calls.pin(pins, uids=maps.uids, gids=maps.gids, hostname=hostname, inside=inside)

    return Step(NAMESPACES, owner, {"paths": [str(path) for path in pins.values()]}, make)


def mounts_at(mounts: Iterable[Mount], target: Path, maps: IdMaps | None = None) -> Step:
    """Mounts one on top of the other at ``target``, which exists; with ``maps``, files show other owners."""

    def make(host_calls: HostCalls) -> None:
        for one in mounts:
            host_calls.mount(one, target) if maps is None else host_calls.mount_mapped(one, target, maps)

    return Step(MOUNT, str(target), {}, make)


def cgroup_at(path: str, host_calls: HostCalls) -> Step:
    """A pod's cgroup, and those above it, where they are missing. One with the pod's id for a name is its own."""
    own = [path] if cgroups.is_named_by_owner(path) else []
    shared = [] if own else _ours(path, host_calls)
    above = [one for parent in PurePosixPath(path).parents for one in _ours(str(parent), host_calls)]
    return Step(CGROUP, path, {"made": own, "above": shared + above}, lambda calls: calls.make_cgroup(path))


def slice_at(path: str) -> Step:
    """A pod's own slice, which systemd makes with the first scope in it."""
    return Step(CGROUP, path, {"made": [path], "above": []}, lambda _: None)


def _ours(path: str, host_calls: HostCalls) -> list[str]:
    """A cgroup that crinoid has made, or is about to, and that no pod or container has for its own."""
    if path == "/" or cgroups.is_named_by_owner(path):
        return []
    return [path] if not host_calls.has_cgroup(path) or host_calls.has_marked_cgroup(path) else []


def _texts(value: object) -> list[str]:
    """The texts of a list that was read from a row: of anything else nothing."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _owner(entry: LedgerEntry) -> str:
    """Return for whom something was made, also while it waits to be undone in the background."""
    return str(entry.data.get("owner", "")) if entry.owner == DEFERRED else entry.owner


def _check_container(entry: LedgerEntry, owner: str) -> None:
    handle = bodies.parse_value(ContainerHandle, entry.data["handle"])
    if handle.container_id != entry.key:
        raise ValueError(f"the row names container {entry.key}, and its handle {handle.container_id}")
    ownership.require_id(handle.container_id, owner)
    ownership.require_path(str(handle.bundle), owner)


def _check_network(entry: LedgerEntry, owner: str) -> None:
    request = bodies.parse_value(NetworkRequest, entry.data["request"])
    ownership.require_id(request.pod_id, owner)
    if request.netns is not None:
        ownership.require_path(str(request.netns), owner)


def _check_contents(entry: LedgerEntry, owner: str) -> None:
    """More is known only once the directory is looked at."""
    ownership.require_absolute(entry.key)
    ownership.drawn_part(owner)


def _make_private(path: Path, group: int | None) -> None:
    rights.make_directories(path.parent)
    rights.make_directory(path)
    if group is not None:
        rights.let_in(path, group)


def _undo_contents(entry: LedgerEntry) -> None:
    """The directory is somebody else's, whatever it is called: the owner's directory in it says it was taken over."""
    directory, owner = Path(entry.key), _owner(entry)
    if ownership.own_directory(directory, owner):
        for path in directory.iterdir():
            if not ownership.is_own(path.name, owner):
                files.remove_tree(path)


def _text_of(error: Exception) -> str:
    return error.message if isinstance(error, CrinoidError) else f"{type(error).__name__}: {error}"


def _mapping(value: object) -> Mapping[str, object]:
    return cast(Mapping[str, object], value)
