"""CheckpointContainer and CheckpointPod: freezes, has the runtime write down the processes, compares files, packs.

All containers of one request are frozen before the first is captured, and go on before anything is packed. Whatever
outlives a call is in the ledger first, frozen containers too: a start after ``kill -9`` lets them go on and removes
what was half written. Sources: api.proto, CheckpointContainer, CheckpointPod.
"""

import asyncio
import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crinoid.core.api.errors import (
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.bulkheads import on_behalf_of, touching
from crinoid.core.api.linux.files import sync_directory
from crinoid.core.api.linux.probes import PathProbes
from crinoid.core.api.linux.threads import call_in_thread, call_within
from crinoid.core.api.values.checkpoint import CheckpointRequest
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.checkpoints import archive
from crinoid.core.lifecycle.checkpoints.root_diff import write_diff
from crinoid.core.lifecycle.concurrency.locks import Locks
from crinoid.core.lifecycle.events.exit_monitor import ExitMonitor
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.ownership import checkpoint_key
from crinoid.core.lifecycle.resources.resources import CONTENTS, Resources, directory_at
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState
from crinoid.core.state.store import Store

_ROOTFS = "rootfs"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OPTIONS = "options"


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """The other parts of the lifecycle that checkpoints need."""

    images: ImageService
    resources: Resources
    locks: Locks
    paths: PathProbes
    exit_monitor: ExitMonitor


@dataclass(frozen=True, slots=True)
class _Subject:
    """A container to be captured: into ``directory``, its files compared with those below ``base``."""

    record: ContainerRecord
    slot: RuntimeSlot
    directory: Path
    base: Path


class CheckpointService:
    """Writes checkpoints; the containers run on."""

    def __init__(self, config: Config, store: Store, slots: Slots, parts: CheckpointParts) -> None:
        self._config = config
        self._store = store
        self._slots = slots
        self._images = parts.images
        self._resources = parts.resources
        self._locks = parts.locks
        self._path_s = config.pods.path_timeout_s
        self._paths = parts.paths
        self._exit_monitor = parts.exit_monitor

    async def container(self, container_id: str, location: str, timeout_s: float) -> None:
        """Write the archive of a running container to ``location``, which it replaces when it is whole.

        ``timeout_s`` 0: as configured. Raises NotFound, FailedPrecondition unless it runs, InvalidArgument for the
        location, Unsupported where it can't be done here, DeadlineExceeded; then nothing is left, and it runs on.
        """
        record = self._store.containers.find(container_id)
        await self._paths.require([location], "location")
        limit_s = timeout_s or self._config.pods.checkpoint_timeout_s
        with _on_its_own(f"checkpoint of container {record.id}") as owner:
            target = await call_within(self._path_s, f"location {location}", lambda: _check_location(location))
            place = _work_place(target.parent, owner)
            async with (
                _within(limit_s, f"checkpoint of container {record.id}"),
                self._unless_written(owner, place),
            ):
                # Beside the target, so on its file system: what is whole gets its name by one rename.
                await self._resources.make(owner, directory_at(place))
                async with self._locks.hold(record.id, f"CheckpointContainer of {record.id}"):
                    subject = await self._subject(owner, self._running(record.id), place, 0)
                    await self._capture(owner, [subject], limit_s)
                    await self._in_thread(archive.pack, subject.directory, place / "archive")
                    await asyncio.to_thread(_publish, place / "archive", target)

    async def pod(self, pod_id: str, output: str, containers: Sequence[str], options: Mapping[str, str]) -> None:
        """Write a checkpoint of these containers, all that run in the pod, into the empty directory ``output``.

        Raises as ``container``, and Unsupported for any option; then the directory is empty again.
        """
        pod = self._store.pods.find(pod_id)
        refuse_options(options)
        await self._paths.require([output], "output_path")
        limit_s = self._config.pods.checkpoint_timeout_s
        act = f"checkpoint of pod {pod.id}"
        with _on_its_own(act) as owner:
            directory = await call_within(self._path_s, f"output_path {output}", lambda: _check_directory(output))
            async with _within(limit_s, act), self._unless_written(owner, directory), self._locks.hold(pod.id, act):
                records, work = self._chosen(pod.id, containers), _work_place(directory, owner)
                await self._resources.make(owner, directory_at(work))
                self._resources.own_contents(owner, directory)
                await self._write_pod(owner, self._store.pods.find(pod.id), records, work, limit_s)
                self._resources.keep(owner, CONTENTS)

    async def _write_pod(
        self, owner: str, pod: PodRecord, records: Sequence[ContainerRecord], work: Path, limit_s: float
    ) -> None:
        directory = work.parent
        subjects = [await self._subject(owner, record, work, number) for number, record in enumerate(records)]
        await self._capture(owner, subjects, limit_s)
        names = {}
        for number, subject in enumerate(subjects):
            name = subject.record.config.metadata.name
            names[name] = f"{name}-{number}" if _FILE_NAME.fullmatch(name) else f"container-{number}"
            await self._in_thread(archive.pack, subject.directory, directory / f"{names[name]}.tar")
        options = {"version": archive.POD_VERSION, "containers": names, "annotations": {}}
        documents = {archive.POD_DUMP: self._describe_pod(pod), archive.POD_OPTIONS: options}
        await call_in_thread(lambda: _write_documents(directory, documents))
        await asyncio.to_thread(sync_directory, directory)

    @asynccontextmanager
    async def _unless_written(self, owner: str, place: Path) -> AsyncIterator[None]:
        """Undo what the owner still has at the end. What hangs is undone later: nobody is to wait for it."""
        try:
            yield
        except OSError as error:
            raise _unwritten(place, error) from error
        finally:
            await self._resources.give_up_within(self._path_s, owner, f"a checkpoint at {place}")

    def _chosen(self, pod_id: str, wanted: Sequence[str]) -> list[ContainerRecord]:
        """Return the records of the containers asked for: exactly those of the pod that run."""
        if self._store.pods.find(pod_id).state is not PodState.READY:
            raise FailedPrecondition(f"pod {pod_id} is not ready, so it can't be checkpointed")
        if not wanted:
            raise InvalidArgument("container_ids is empty")
        found = [self._running(container_id) for container_id in wanted]
        if len({record.id for record in found}) != len(found):
            raise InvalidArgument("container_ids names a container twice")
        foreign = [record.id for record in found if record.pod_id != pod_id]
        if foreign:
            raise InvalidArgument(f"container_ids: container {foreign[0]} is not one of pod {pod_id}")
        if len({record.config.metadata.name for record in found}) != len(found):
            raise FailedPrecondition(f"two containers of pod {pod_id} have the same name")
        return found

    def _running(self, container_id: str) -> ContainerRecord:
        record = self._store.containers.find(container_id)
        if record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {record.id} is {record.state.value}, so it can't be checkpointed")
        return record

    async def _subject(self, owner: str, record: ContainerRecord, directory: Path, number: int) -> _Subject:
        """Make ready what needs no frozen container: the directory, and the image's files to compare with."""
        pod = self._store.pods.find(record.pod_id)
        if pod.runtime not in self._slots.runtimes or pod.snapshotter not in self._slots.snapshotters:
            raise FailedPrecondition(f"a slot that container {record.id} was made with is no longer configured")
        if user_namespaces.wanted_by(pod.config) is not None:
            raise Unsupported(f"container {record.id} is in a user namespace: such can't be checkpointed")
        slot = self._slots.runtimes[pod.runtime]
        await slot.check_checkpoint()
        own, base = directory / str(number), self._config.run / "checkpoints" / f"{directory.name}-{number}"
        await asyncio.to_thread(rights.make_directories, own / archive.IMAGES)
        await self._resources.make_directory(owner, base)
        if (image := self._images.find(record.image_id)) is None:
            raise NotFound(f"image {record.image_ref} of container {record.id} is not on this node any more: pull it")
        snapshotter = self._slots.snapshotters[pod.snapshotter]
        chain_id = await self._images.ensure_unpacked(image, pod.snapshotter)
        key = checkpoint_key(record.id)
        mounts = await self._resources.create_snapshot(owner, key, snapshotter, chain_id, readonly=True)
        await self._resources.mount(owner, mounts, base)
        return _Subject(record, slot, own, base)

    async def _capture(self, owner: str, subjects: Sequence[_Subject], limit_s: float) -> None:
        """Freeze all, capture each, let all go on."""
        try:
            # All before the first: containers of a pod talk to each other, and their states must fit together.
            for subject in subjects:
                async with self._exit_monitor.acting_on(subject.record, "checkpoint"):
                    await self._resources.pause(owner, subject.slot, subject.record.handle)
            for subject in subjects:
                async with self._exit_monitor.acting_on(subject.record, "checkpoint"):
                    await self._capture_one(subject, limit_s)
        finally:
            await asyncio.shield(self._resources.resume(owner))  # whoever gives up, none of them stays frozen

    async def _capture_one(self, subject: _Subject, limit_s: float) -> None:
        record, directory = subject.record, subject.directory
        spec = await asyncio.to_thread(_read_spec, record)
        documents = {archive.CONFIG: self._describe(subject), archive.SPEC: spec}
        binds = await asyncio.to_thread(archive.bind_mounts, spec)
        await call_in_thread(lambda: _write_documents(directory, documents, {archive.BIND_MOUNTS: binds}))
        request = CheckpointRequest(
            handle=record.handle, images=directory / archive.IMAGES, work=directory, timeout_s=limit_s
        )
        await subject.slot.checkpoint(request)
        # After the processes, which the runtime leaves frozen: nothing is written while files are compared.
        root = record.handle.bundle / _ROOTFS
        deleted = await self._in_thread(write_diff, subject.base, root, directory / archive.ROOT_DIFF)
        await call_in_thread(lambda: _write_documents(directory, {}, {archive.DELETED: list(deleted)}))

    async def _in_thread(self, function: Any, *arguments: object) -> Any:  # Any: they have little in common
        """Run a function that writes much; its last arguments are an event, which is set when nobody wants it any more,
        and what to leave free of the disk."""
        given_up, keep_free_percent = threading.Event(), self._config.images.keep_free_percent
        return await call_in_thread(lambda: function(*arguments, given_up, keep_free_percent), given_up.set)

    def _describe(self, subject: _Subject) -> dict[str, object]:
        record = subject.record
        image = self._images.find(record.image_id)
        name = next(iter((*image.tags, *image.digests)), "") if image is not None else ""
        return {
            "id": record.id,
            "name": record.config.metadata.name,
            "rootfsImage": record.config.user_specified_image or record.config.image,
            "rootfsImageRef": record.image_id,
            "rootfsImageName": name or record.image_ref,
            "runtime": subject.slot.driver,
            "createdTime": _time(record.created_at_ns),
            "checkpointedTime": _time(time.time_ns()),
            "restoredTime": _time(0),
            "restored": False,
        }

    def _describe_pod(self, pod: PodRecord) -> dict[str, object]:
        metadata = pod.config.metadata
        return {
            "id": pod.id,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "runtimeHandler": pod.runtime_handler,
            "runtimeDriver": self._slots.runtimes[pod.runtime].driver,
            "checkpointedTime": _time(time.time_ns()),
        }


def refuse_options(options: Collection[str]) -> None:
    """Raise Unsupported for any option of CheckpointPod or RestorePod: none is known here."""
    if options:
        raise Unsupported(f"{_OPTIONS}: {', '.join(sorted(options))}: crinoid's runtimes have no such option")


@contextmanager
def _on_its_own(what: str) -> Iterator[str]:
    """Have threads of its own work on a checkpoint, as its place and the container's volumes may hang; gives its owner
    in the ledger."""
    owner = f"checkpoint/{secrets.token_hex(16)}"
    with on_behalf_of(what, owner):
        yield owner


@asynccontextmanager
async def _within(limit_s: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s) as timeout:
            yield
    except TimeoutError as error:
        if timeout.expired():
            raise DeadlineExceeded(f"{what} was given up after {limit_s:g} s, and everything runs on") from error
        raise


def _work_place(directory: Path, owner: str) -> Path:
    """A directory's name has the owner's token: the ledger's row is believed by it."""
    return directory / f".crinoid-{owner.rpartition('/')[2]}"


def _check_location(location: str) -> Path:
    target = Path(location)
    touching(location)
    if not target.is_absolute() or not target.name or "\0" in location:
        raise InvalidArgument(f"location {location!r} is not the absolute path of a file")
    try:
        if not target.parent.is_dir():
            raise InvalidArgument(f"location: {target.parent} is no directory")
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise InvalidArgument(f"location {location} is there already, and is no plain file")
    except (OSError, ValueError) as error:  # a name that is too long, a NUL in it
        raise InvalidArgument(f"location {location!r}: {error}") from error
    return target


def _check_directory(output: str) -> Path:
    directory = Path(output)
    touching(output)
    if not directory.is_absolute():
        raise InvalidArgument(f"output_path {output!r} is not absolute")
    try:
        if directory.is_symlink() or not directory.is_dir():
            raise InvalidArgument(f"output_path {output} is no directory")
        with os.scandir(directory) as entries:
            if next(entries, None) is not None:
                raise InvalidArgument(f"output_path {output} is not empty")
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"output_path {output!r}: {error}") from error
    return directory


def _unwritten(place: Path, error: OSError) -> CrinoidError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    kind = ResourceExhausted if full else FailedPrecondition  # a file system that can't be written, or a path in /proc
    return kind(f"the checkpoint can't be written to {place}: {error}")


def _write_documents(
    directory: Path, documents: Mapping[str, object], if_any: Mapping[str, Sequence[object]] = MappingProxyType({})
) -> None:
    """Write documents, of ``if_any`` those that hold something."""
    for name, document in {**documents, **{name: found for name, found in if_any.items() if found}}.items():
        archive.write_json(directory / name, document)


def _publish(made: Path, target: Path) -> None:
    made.replace(target)
    sync_directory(target.parent)


def _read_spec(record: ContainerRecord) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = json.loads((record.handle.bundle / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"container {record.id}: its specification can't be read: {error}") from error
    return spec


def _time(at_ns: int) -> str:
    """RFC 3339, as Go writes times; its zero is the year 1."""
    if at_ns == 0:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")
