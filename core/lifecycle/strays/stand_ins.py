"""Stands in for pods, containers and images whose records can't be read, so that nothing of theirs is undone or lost.

Made by ``recovery`` before anything else, from what can be read of the record and from what the ledger and the bundle
say. They are shown like all others (a container UNKNOWN, a pod not ready, with the reason), keep their names, and are
stopped and removed as the ledger says; they are never written, so that a record that is repaired comes back whole.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.core.lifecycle.resources.resources import (
    CGROUP,
    CONTAINER,
    DEFERRED,
    DIRECTORY,
    MOUNT,
    NAMESPACES,
    NETWORK,
    SNAPSHOT,
)
from crinoid.core.lifecycle.sandbox.pod_init import init_owner
from crinoid.core.slots.binding import Slots
from crinoid.core.state import bodies
from crinoid.core.state.records import ContainerRecord, ContainerState, ImageRecord, PodRecord, PodState
from crinoid.core.state.store import Damaged, LedgerEntry, Store

LOG = logging.getLogger(__name__)
REASON = "RecordUnreadable"
LOST_FILES = "FilesLost"
"""Reason of a container whose processes live and whose bundle does not."""
ANNOTATION = "crinoid/record-unreadable"
"""On a pod that stands in for a record: which one, and why; a pod's status has no other place for it."""
_ID_DIGITS = 64
_PREFIX = "io.kubernetes.cri."
_LOST = Damaged("", "", "it is missing, or has another's id")


class StandIns:
    """Makes the records that stand in, and mends rows of the ledger that records can mend."""

    def __init__(self, store: Store, slots: Slots, run: Path) -> None:
        """``run``: below which pods and containers lie."""
        self._store = store
        self._slots = slots
        self._run = run

    def make(self) -> None:
        """Make all; what has neither resources nor anything readable is only told of."""
        entries = self._store.ledger.entries()
        by_owner: dict[str, list[LedgerEntry]] = {}
        for entry in entries:
            by_owner.setdefault(entry.owner, []).append(entry)
        for key, image in self._store.images.damaged.items():
            if bodies.is_id(key):
                self._store.images.stand_in(_image(key, image))
        containers, pods = dict(self._store.containers.damaged), dict(self._store.pods.damaged)
        if any(key not in by_owner for key in (*containers, *pods)):  # whose id is damaged is some other's
            lost = [owner for owner in by_owner if not self._is_known(owner)]
            containers |= {one: _LOST for one in lost if any(e.key == one for e in _of(by_owner[one], CONTAINER))}
            pods |= {one: _LOST for one in lost if any(e.key.endswith(f"/pods/{one}") for e in by_owner[one])}
        for key, row in pods.items():
            if key in by_owner:
                self._store.pods.stand_in(self._pod(key, row, by_owner))
        for key, row in containers.items():
            if key in by_owner and (record := self._container(key, row, by_owner)) is not None:
                self._store.containers.stand_in(record)
        for pod_id in {one.pod_id for one in self._store.containers} - {pod.id for pod in self._store.pods}:
            if bodies.is_id(pod_id):
                LOG.error("pod %s has containers and no record: it is not ready, and can be removed", pod_id)
                self._store.pods.stand_in(self._pod(pod_id, _LOST, by_owner))
        for entry in entries:
            subject = "" if entry.owner == DEFERRED else _subject(entry)  # also while its pod's record is there
            if self._is_known(subject) and not self._is_known(entry.owner.partition("/")[0]):
                LOG.error("%s %s is %s's, and no %s's: its row in the ledger is mended", *_about(entry, subject))
                self._store.ledger.give(entry, subject)
            if entry.damaged and (data := self._mended(entry)) is not None:
                LOG.warning("%s %s of %s: its row in the ledger is mended", entry.kind, entry.key, entry.owner)
                self._store.ledger.mend(entry, data)
        for pod in self._store.pods:
            if pod.state is PodState.READY and pod.attachment and not _of(by_owner.get(pod.id, []), NETWORK):
                self._attach_again(pod)

    def _is_known(self, key: str) -> bool:
        return key in self._store.pods or key in self._store.containers

    def _pod(self, key: str, row: Damaged, by_owner: Mapping[str, list[LedgerEntry]]) -> PodRecord:
        own, init = by_owner.get(key, []), by_owner.get(init_owner(key), [])
        request = next((found for entry in _of(own, NETWORK) if (found := _request(entry)) is not None), None)
        pins = [str(path) for entry in _of([*own, *init], NAMESPACES) for path in _texts(entry.data.get("paths"))]
        handles = {owner: _handle(entries) for owner, entries in by_owner.items()}
        containers = [owner for owner, handle in handles.items() if handle is not None and handle.pod_id == key]
        inside = [by_owner[owner] for owner in containers]
        notes = (read_notes(self._run / "containers" / name) for name in containers)
        noted = None if request is not None else next((one for one in notes if one.container), None)
        instead: dict[str, object] = {
            "id": key,
            "config": {"metadata": _metadata(request, noted)},
            "runtime_handler": "",
            "runtime": _slot_of(CONTAINER, [init, *inside]) or self._slots.runtime("").name,
            "network": _slot_of(NETWORK, [own]) or self._slots.network_of("").name,
            "snapshotter": _slot_of(SNAPSHOT, [init, *inside]) or self._slots.snapshotter_of("").name,
            "state": PodState.NOT_READY.value,
            "created_at_ns": _made_at_ns(self._run / "pods" / key),
        }
        record: PodRecord = bodies.mend("pods", row.body, instead)
        why = f"the record pods/{key} can't be read: {row.why}"
        config = dataclasses.replace(
            record.config, annotations={**record.config.annotations, ANNOTATION: why.replace("\0", "")}
        )
        return dataclasses.replace(
            record,
            config=config,
            state=PodState.NOT_READY,
            namespaces=record.namespaces or {Path(pin).name: Path(pin) for pin in pins},
            cgroup_parent=record.cgroup_parent or next((entry.key for entry in _of(own, CGROUP)), ""),
            init=next((handle for entry in init if (handle := _handle([entry])) is not None), None) if init else None,
            answered=True,
        )

    def _container(self, key: str, row: Damaged, by_owner: Mapping[str, list[LedgerEntry]]) -> ContainerRecord | None:
        bundle = self._run / "containers" / key
        notes = read_notes(bundle)
        handle = _handle(by_owner[key])
        found = handle or ContainerHandle(key, notes.pod_id, bundle, notes.cgroup)
        instead: dict[str, object] = {
            "id": key,
            "pod_id": found.pod_id,
            "config": {"metadata": {"name": notes.container}, "image": notes.image},
            "handle": bodies.dump_value(found),
            "image_id": "",
            "image_ref": "",
            "state": ContainerState.UNKNOWN.value,
            "created_at_ns": _made_at_ns(bundle),
        }
        record: ContainerRecord = bodies.mend("containers", row.body, instead)
        if not (handle or record.handle).pod_id:
            return None  # nothing says where it belongs
        found = handle or record.handle
        return dataclasses.replace(
            record,
            pod_id=found.pod_id,
            handle=found,
            state=ContainerState.UNKNOWN,
            reason=REASON,
            message=f"the record containers/{key} can't be read: {row.why}",
            checkpoint=None,
            answered=True,
        )

    def _mended(self, entry: LedgerEntry) -> dict[str, object] | None:
        """What the row would say by the record of its owner; ``None``: the record does not know."""
        container = self._store.containers.get(entry.owner)
        pod = self._store.pods.get(container.pod_id if container else entry.owner.partition("/")[0])
        if pod is None:
            return None
        handle = container.handle if container else pod.init if entry.owner == init_owner(pod.id) else None
        if entry.kind == CONTAINER and handle is not None and handle.container_id == entry.key:
            return {"slot": pod.runtime, "handle": bodies.dump_value(handle)}
        if entry.kind == SNAPSHOT:
            return {"slot": pod.snapshotter}
        if entry.kind == NAMESPACES:
            return {"paths": [str(path) for path in pod.namespaces.values()]}
        if entry.kind == CGROUP:
            return {"made": [entry.key] if cgroups.is_named_by_owner(entry.key) else [], "above": []}
        if entry.kind == NETWORK:
            return _attachment_row(pod)
        return None

    def _attach_again(self, pod: PodRecord) -> None:
        """Have a pod that is ready own its attachment again.

        A stop deletes that row before it notes that the pod is not ready any more. If the daemon was killed between the
        two, or the row is lost, the network may have something of the pod still, which the next stop has to free.
        """
        if (data := _attachment_row(pod)) is not None:
            LOG.warning("pod %s is ready, and has no row of its network in the ledger: one is made", pod.id)
            try:
                self._store.ledger.record(pod.id, NETWORK, pod.network, data)
            except CrinoidError as error:  # a full disk: the next start does it
                LOG.warning("pod %s: that row can't be written: %s", pod.id, error.message)


def _attachment_row(pod: PodRecord) -> dict[str, object] | None:
    """What the ledger says of a pod's attachment, by the pod's record; ``None``: the record does not know."""
    if pod.attachment is None:
        return None
    request = NetworkRequest(
        pod_id=pod.id,
        metadata=pod.config.metadata,
        netns=pod.namespaces.get("network"),
        port_mappings=pod.config.port_mappings,
        cgroup_parent=pod.cgroup_parent,
        annotations=pod.config.annotations,
    )
    return {"slot": pod.network, "request": bodies.dump_value(request), "data": dict(pod.attachment.data)}


def _subject(entry: LedgerEntry) -> str:
    """Return the id of the pod or container that a row is about, by what it says besides its owner; empty: unknown."""
    if entry.kind == CONTAINER:
        return entry.key
    if entry.kind == NETWORK:
        return str(_mapping(entry.data.get("request")).get("pod_id", ""))
    if entry.kind in (DIRECTORY, NAMESPACES, MOUNT, CGROUP):
        parts = (cgroups.owner_in_name(part) for part in reversed(entry.key.split("/")))
        return next((part for part in parts if len(part) == _ID_DIGITS), "")
    return ""


def _about(entry: LedgerEntry, subject: str) -> tuple[str, str, str, str]:
    return entry.kind, entry.key, subject, entry.owner


@dataclass(frozen=True, slots=True)
class BundleNotes:
    """What the OCI specification in a bundle says of its container; empty where it can't be read."""

    pod_id: str
    container: str
    image: str
    cgroup: str
    pod: Mapping[str, str]


def read_notes(bundle: Path) -> BundleNotes:
    """Read them. Blocks."""
    try:
        spec = _mapping(json.loads((bundle / "config.json").read_bytes()))
    except (OSError, ValueError, RecursionError):
        spec = {}
    notes = {str(name).removeprefix(_PREFIX): str(note) for name, note in _mapping(spec.get("annotations")).items()}
    pod = {name: notes.get(f"sandbox-{name}", "") for name in ("name", "namespace", "uid")}
    cgroup = str(_mapping(spec.get("linux")).get("cgroupsPath", ""))
    return BundleNotes(
        notes.get("sandbox-id", ""), notes.get("container-name", ""), notes.get("image-name", ""), cgroup, pod
    )


def _image(key: str, row: Damaged) -> ImageRecord:
    record: ImageRecord = bodies.mend("images", row.body, {"id": key})
    return record


def _of(entries: Iterable[LedgerEntry], kind: str) -> list[LedgerEntry]:
    return [entry for entry in entries if entry.kind == kind]


def _handle(entries: Iterable[LedgerEntry]) -> ContainerHandle | None:
    for entry in _of(entries, CONTAINER):
        with contextlib.suppress(bodies.Unreadable):
            return bodies.parse_value(ContainerHandle, entry.data.get("handle"))
    return None


def _request(entry: LedgerEntry) -> NetworkRequest | None:
    with contextlib.suppress(bodies.Unreadable):
        return bodies.parse_value(NetworkRequest, entry.data.get("request"))
    return None


def _metadata(request: NetworkRequest | None, noted: BundleNotes | None) -> Mapping[str, object]:
    """The pod's name by its network's request, else by a container's bundle; an empty one keeps none from anybody."""
    if request is not None:
        return dataclasses.asdict(request.metadata)
    return {"name": "", "namespace": "", "uid": ""} if noted is None else noted.pod


def _slot_of(kind: str, owners: Iterable[list[LedgerEntry]]) -> str:
    return next((str(entry.data["slot"]) for own in owners for entry in _of(own, kind) if "slot" in entry.data), "")


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _made_at_ns(directory: Path) -> int:
    try:
        return directory.stat().st_ctime_ns
    except OSError:
        return 0
