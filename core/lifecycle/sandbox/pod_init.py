"""The init process of a pod whose containers share one PID namespace; no other pod has a process of its own.

catatonit, which does nothing but reap, is bound into an empty root. Without it on the host, the configured pause image
would have to be there: that image is run instead.
"""

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, FailedPrecondition
from crinoid.core.api.linux import rights
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.concurrency.rollback import Rollback
from crinoid.core.lifecycle.events.events import EventBus, EventType
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.sandbox.pod_files import PodDirectory
from crinoid.core.lifecycle.spec.build import InitInput, build_init_spec
from crinoid.core.lifecycle.spec.process import entry_point
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.state.records import PodRecord, PodState
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
_INSIDE = "/init"


@dataclass(frozen=True, slots=True)
class InitParts:
    """The other parts of the lifecycle that init processes need."""

    images: ImageService
    resources: Resources
    events: EventBus


@dataclass(frozen=True, slots=True)
class InitProgram:
    """What runs as init: a command, and the binary to bind to ``/init`` (``None``: the root has it)."""

    command: tuple[str, ...]
    binary: Path | None


class PodInit:
    """Starts and watches pods' init processes."""

    def __init__(self, config: Config, store: Store, slots: Slots, parts: InitParts, cgroups: CgroupPaths) -> None:
        self._config = config
        self._store = store
        self._slots = slots
        self._images = parts.images
        self._resources = parts.resources
        self._events = parts.events
        self._cgroups = cgroups
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def ensure(self, pod: PodRecord) -> PodRecord:
        """Give a pod that has none an init: a container may want to share processes in a pod that did not say so.

        The pod's lock is held. On an error the init is undone, and the pod stays as it was.
        """
        if "pid" in pod.namespaces or self._slots.runtimes[pod.runtime].traits().shares_processes:
            return pod
        async with Rollback(f"the init of pod {pod.id}") as rollback:
            rollback.add("taking it away", lambda: self._resources.undo(init_owner(pod.id)))
            record = self._store.pods.put(await self.start(pod))
        self.watch(record)
        return record

    async def start(self, pod: PodRecord) -> PodRecord:
        """Make and start the init of a pod and pin its PID namespace; return the pod with it, not stored yet."""
        runtime, directory = self._slots.runtimes[pod.runtime], PodDirectory(self._config.run / "pods" / pod.id)
        program = await self._prepare_root(pod, directory)
        cgroup = self._cgroups.of_container(pod.cgroup_parent, pod.id)
        handle = ContainerHandle(pod.id, pod.id, directory.path / "bundle", cgroup)
        await self._resources.make_directory(
            init_owner(pod.id), handle.bundle, user_namespaces.root_group_of(pod.config)
        )
        binds: tuple[dict[str, object], ...] = ()
        if program.binary is not None:
            options = ["bind", "ro", "nosuid", "nodev"]
            binds = ({"destination": _INSIDE, "type": "bind", "source": str(program.binary), "options": options},)
        spec = build_init_spec(
            InitInput(
                pod_id=pod.id,
                command=program.command,
                rootfs=directory.init_root,
                binds=binds,
                namespaces=pod.namespaces,
                cgroup=cgroup,
                mappings=user_namespaces.oci_mappings(pod.config),
            )
        )
        request = ContainerRequest(handle=handle, spec=spec)
        process = await self._resources.create_container(init_owner(pod.id), runtime, request)
        await runtime.start(handle)
        # The pin keeps a name for the namespace, and not the namespace: a PID namespace ends with its first process.
        await self._resources.pin_existing(
            init_owner(pod.id), Path(f"/proc/{process.pid}/ns/pid"), directory.pin("pid")
        )
        return dataclasses.replace(pod, init=handle, namespaces={**pod.namespaces, "pid": directory.pin("pid")})

    def watch(self, pod: PodRecord) -> None:
        """Note when what the pod can't live without ends, its init process or what its runtime has started for it.

        The pod is not ready from then on.
        """
        if pod.init is not None:
            self._watchers[init_owner(pod.id)] = asyncio.create_task(self._watch(pod), name=f"init of {pod.id}")
        slot = self._slots.runtimes.get(pod.runtime)
        if slot is not None and slot.implements("wait_pod") and pod.id not in self._watchers:
            self._watchers[pod.id] = asyncio.create_task(self._watch_sandbox(pod, slot), name=f"sandbox of {pod.id}")

    async def undo(self, pod_id: str, kinds: Collection[str] | None = None) -> None:
        """End a pod's init, and with all ``kinds`` remove what there is of it; stop watching. Idempotent."""
        for key in (pod_id, init_owner(pod_id)):
            if (watcher := self._watchers.pop(key, None)) is not None:
                watcher.cancel()
        await self._resources.undo(init_owner(pod_id), kinds)

    def note_not_ready(self, pod_id: str, why: str) -> None:
        """Mark a pod as not ready that lost something it can't live without."""
        record = self._store.pods.get(pod_id)
        if record is not None and record.state is PodState.READY:
            LOG.warning("pod %s is not ready any more: %s", pod_id, why)
            changed = self._store.pods.put_fact(dataclasses.replace(record, state=PodState.NOT_READY))
            self._events.notify_pod(EventType.STOPPED, changed)

    async def close(self) -> None:
        """Stop watching; the processes live on."""
        tasks = list(self._watchers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, pod: PodRecord) -> None:
        assert pod.init is not None
        try:
            await self._slots.runtimes[pod.runtime].wait(pod.init)
        except (CrinoidError, KeyError) as error:
            LOG.warning("pod %s: its init can't be watched: %s", pod.id, error)
            return
        self.note_not_ready(pod.id, "its init process ended")

    async def _watch_sandbox(self, pod: PodRecord, slot: RuntimeSlot) -> None:
        try:
            why = await slot.wait_pod(pod.sandbox)
        except CrinoidError as error:
            LOG.warning("pod %s: its sandbox can't be watched: %s", pod.id, error.message)
            return
        self.note_not_ready(pod.id, why)

    async def _prepare_root(self, pod: PodRecord, directory: PodDirectory) -> InitProgram:
        """Make the root that the init runs in: empty but for catatonit, or that of the pause image.

        Raises FailedPrecondition when neither is there, or the configured binary is absent.
        """
        owner, configured = init_owner(pod.id), self._config.pods.init_binary
        await self._resources.make_directory(owner, directory.init_root)
        binary = configured or shutil.which("catatonit")
        if configured and not Path(configured).is_file():  # noqa: ASYNC240  # on the host's own disk
            raise FailedPrecondition(
                f"pods.init_binary {configured} is not there: install it or change the configuration"
            )
        if binary is not None:
            await asyncio.to_thread(_fill_root, directory.init_root, user_namespaces.maps_of(pod))
            return InitProgram((_INSIDE, "-P"), Path(binary))  # -P: be a pause process, which only reaps
        name = self._config.pods.pause_image
        if (image := self._images.find(name)) is None:
            raise FailedPrecondition(
                f"a pod with a shared PID namespace needs an init: install catatonit or pull {name}"
            )
        snapshotter = self._slots.snapshotters[pod.snapshotter]
        parent = await self._images.ensure_unpacked(image, snapshotter.name)
        mounts = await self._resources.create_snapshot(owner, pod.id, snapshotter, parent)
        await self._resources.mount(owner, mounts, directory.init_root, user_namespaces.maps_of(pod))
        config = self._images.config_of(image).config
        return InitProgram((*entry_point(config), *config.cmd), None)


def init_owner(pod_id: str) -> str:
    """Return the owner of an init's resources in the ledger."""
    return f"{pod_id}/init"


def _fill_root(root: Path, maps: IdMaps | None) -> None:
    """Make what mounts go over; in a user namespace its root must own it, as the runtime adds device nodes."""
    for name in ("proc", "dev", "sys"):
        rights.make_directory(root / name, rights.SHOWN_DIRECTORY)
    rights.write_file(root / _INSIDE[1:], b"")
    if maps is not None:
        for path in (root, *root.iterdir()):
            maps.chown(path)
