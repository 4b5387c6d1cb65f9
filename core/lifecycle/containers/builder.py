"""Puts a container together: image, snapshot, root file system, identity, specification, runtime; then its record.

Called by ``containers`` under the pod's lock. Each step that outlives the call goes through ``resources``, so an error
undoes all of them in reverse.
"""

import asyncio
import dataclasses
import itertools
import json
import logging
import secrets
import time
from pathlib import Path
from typing import Any

from crinoid.core.api.bounds import MAX_MOUNTS
from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refused,
    RuntimeRefused,
    Unsupported,
)
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView
from crinoid.core.api.linux import cgroups, rights
from crinoid.core.api.linux.bulkheads import on_behalf_of
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from crinoid.core.api.linux.probes import PathProbes
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.timeline import note, stage
from crinoid.core.api.values.container import ContainerConfig, VolumeMount
from crinoid.core.api.values.pod import NamespaceMode, ProfileType
from crinoid.core.api.values.runtime import ContainerHandle, ContainerProcess, ContainerRequest
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.cdi import CdiDevices, requested_devices
from crinoid.core.lifecycle.checkpoints.source import (
    Checkpoint,
    CheckpointSources,
    OpenedCheckpoint,
    check_same,
    write_request,
)
from crinoid.core.lifecycle.concurrency.rollback import Rollback
from crinoid.core.lifecycle.containers.adjustment import adjust_config, adjust_spec, name_changes
from crinoid.core.lifecycle.containers.log_files import prepare_log
from crinoid.core.lifecycle.containers.stop_signals import signal_number
from crinoid.core.lifecycle.events.views import ContainerViews, view_pod
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths, holder_of
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.core.lifecycle.sandbox.pod_files import PodDirectory
from crinoid.core.lifecycle.spec.build import SpecInput, build_spec, seccomp_choice
from crinoid.core.lifecycle.spec.device_binds import bind_devices
from crinoid.core.lifecycle.spec.exec_limits import check_process
from crinoid.core.lifecycle.spec.isolation import settle_swap
from crinoid.core.lifecycle.spec.labels import label_mounts, selinux_labels
from crinoid.core.lifecycle.spec.users import identify
from crinoid.core.lifecycle.volumes.declared_volumes import fill_volume, select_paths
from crinoid.core.lifecycle.volumes.image_volumes import ImageVolumes
from crinoid.core.lifecycle.volumes.staged_volumes import stage_volumes
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.records import ContainerRecord, ContainerState, ImageRecord, PodRecord
from crinoid.core.state.store import Store

LOG = logging.getLogger(__name__)
PROCESS_FILE = "process.json"
JsonObject = dict[str, Any]


@dataclasses.dataclass(slots=True)
class _Asked:
    """What extensions were asked about a container that is being made, and who has changed it, for messages."""

    view: ContainerView | None = None
    authors: str = ""
    adjustments: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Order:
    """One container to be made: what was asked for, what it is made from, and where."""

    container_id: str
    pod: PodRecord
    config: ContainerConfig
    image: ImageRecord
    opened: OpenedCheckpoint | None
    bundle: Path
    stop_signal: str
    asked: _Asked


class ContainerBuilder:
    """Makes containers."""

    def __init__(
        self,
        config: Config,
        store: Store,
        slots: Slots,
        images: ImageService,
        resources: Resources,
        cgroup_paths: CgroupPaths,
    ) -> None:
        self._config = config
        self._store = store
        self._slots = slots
        self._images = images
        self._resources = resources
        self._cgroups = cgroup_paths
        self._image_volumes = ImageVolumes(images, resources)
        self._checkpoints = CheckpointSources(config, images, resources)
        self._cdi = CdiDevices(config.pods.cdi_spec_dirs)
        self._views = ContainerViews(store, slots)
        self._features: dict[str, bool] = {}
        self._warmup = CgroupWarmup(resources.host_calls.warm_up_cgroups)
        self._path_s = config.pods.path_timeout_s
        self.paths = PathProbes(self._path_s)

    async def make(
        self, pod: PodRecord, config: ContainerConfig, checkpoint: Checkpoint | None = None
    ) -> ContainerRecord:
        """Make a container whose process waits, and its record. On an error nothing is left.

        With a checkpoint, or an image that is one, its processes go on as they were when it is started.
        """
        user_namespaces.check_container(pod.config, config)
        container_id, asked = secrets.token_hex(32), _Asked()

        async def take_back() -> None:
            """Everything is in the ledger under the container's id; for what hangs no pod is to wait."""
            self._store.containers.drop(container_id)
            volumes = ", ".join(mount.host_path for mount in config.mounts if not mount.image) or "none"
            about = f"container {config.metadata.name!r} (volumes: {volumes})"
            await self._resources.give_up(pod.id, container_id, about)
            if asked.view is not None:
                await self._slots.extensions.container_removed(asked.view)

        with on_behalf_of(pod.id, container_id):  # threads that hang at what it named count against the pod
            async with Rollback(f"CreateContainer of {container_id}") as rollback:
                rollback.add("taking away process, mounts, volumes, snapshot, files and record", take_back)
                with self._warmup.lasting():
                    record = await self._build(await self._order(container_id, pod, config, checkpoint, asked))
                # The record keeps what was asked for, not what extensions made of it: a retry is compared with it.
                record = self._store.containers.put(dataclasses.replace(record, config=config))
                await self._slots.extensions.container_created(await self._views.of(record))
        return record

    async def _order(
        self,
        container_id: str,
        pod: PodRecord,
        config: ContainerConfig,
        checkpoint: Checkpoint | None,
        asked: _Asked,
    ) -> _Order:
        """Find what the container is made from, and refuse what can be refused before anything is made of it."""
        opened = None
        if (found := checkpoint or self._checkpoints.find(config)) is not None:
            slot = self._slots.runtimes[pod.runtime]
            opened = await self._checkpoints.open(found, container_id, pod, slot, self._snapshotter(pod))
        image = self._image(pod, config) if opened is None or opened.exact else opened.base
        if opened is not None:
            config = self._checkpoints.annotate(opened, config)
        if config.stop_signal:
            signal_number(config.stop_signal)
            stop_signal = config.stop_signal
        else:
            stop_signal = self._images.config_of(image).config.stop_signal or "SIGTERM"
            try:
                signal_number(stop_signal)
            except InvalidArgument as error:  # nobody who starts the image can help it, and peers run it, too
                LOG.warning("image %s: config.StopSignal: %s; SIGTERM is sent instead", config.image, error.message)
                stop_signal = "SIGTERM"
        bundle = self._config.run / "containers" / container_id
        return _Order(container_id, pod, config, image, opened, bundle, stop_signal, asked)

    async def _build(self, order: _Order) -> ContainerRecord:
        """Make everything, each step in the ledger first; return the record to be."""
        owner, pod, config = order.container_id, order.pod, order.config
        maps, snapshotter = user_namespaces.maps_of(pod), self._snapshotter(pod)
        await self._resources.make_directory(owner, order.bundle, user_namespaces.root_group_of(pod.config))

        # The root file system: a writable part on the image. A read-only root is writable until the runtime has made
        # the mount points in it, as with every peer.
        with stage("look for the image's layers"):
            chain_id = await self._images.ensure_unpacked(order.image, snapshotter.name)
        root_mounts = await self._resources.create_snapshot(owner, owner, snapshotter, chain_id)
        rootfs = order.bundle / "rootfs"
        rights.make_directory(rootfs, rights.PASSAGE)  # what is mounted there has a mode of its own
        root_mounts = label_mounts(root_mounts, selinux_labels(pod.id, pod.config, config))
        await self._resources.mount(owner, root_mounts, rootfs, maps)
        if order.opened is not None:
            with stage("files of the checkpoint"):
                await self._checkpoints.apply(order.opened, rootfs)

        # Volumes: what the image declares, images as volumes, and what has to be mounted with a pod's ids beforehand.
        with stage("volumes"):
            declared = await self._make_declared_volumes(order, rootfs)
            of_images = await self._image_volumes.prepare(owner, config.mounts, snapshotter, order.bundle, maps)
            mounts = (*declared, *of_images.mounts)
            staged = await stage_volumes(owner, mounts, order.bundle, maps, self._resources, self._path_s)
        order = dataclasses.replace(order, config=dataclasses.replace(config, mounts=staged))

        # The specification looks into the root (passwd) and at the volumes, so it comes after them.
        with stage("OCI specification"):
            given, spec = await self._specify(order, rootfs)
        if self._slots.runtimes[pod.runtime].traits().mounts_root:
            await self._resources.unmount(owner, rootfs)
        handle = ContainerHandle(owner, pod.id, order.bundle, given.cgroup)
        process, start_error = ContainerProcess(0), ""
        try:
            process = await self._create(order, given, handle, spec, root_mounts)
        except RuntimeRefused as error:
            # A kubelet repeats a CreateContainer that fails without end. A container that can never run is made, and
            # its StartContainer fails: that counts against the pod's restart policy, with a status for people to read.
            start_error = error.message
        return ContainerRecord(
            id=owner,
            pod_id=pod.id,
            config=order.config,
            handle=handle,
            image_id=order.image.id,
            image_ref=_reference(order.image),
            state=ContainerState.CREATED,
            created_at_ns=time.time_ns(),
            pid=process.pid,
            log_path=str(log_path(pod, order.config) or ""),
            stop_signal=order.stop_signal,
            checkpoint=None if order.opened is None else order.opened.directory,
            user=given.identity.user,
            start_error=start_error,
            resources=settle_swap(given.config.resources),
            volume_images=of_images.images,
            adjustments=order.asked.adjustments,
        )

    def _snapshotter(self, pod: PodRecord) -> SnapshotterSlot:
        if pod.snapshotter not in self._slots.snapshotters:
            raise FailedPrecondition(f"snapshotter slot {pod.snapshotter!r} of pod {pod.id} is no longer configured")
        return self._slots.snapshotters[pod.snapshotter]

    async def _make_declared_volumes(self, order: _Order, rootfs: Path) -> tuple[VolumeMount, ...]:
        """Make the volumes that the image declares, where the container has no mount of its own.

        Each begins with what the image has at its place (OCI image-spec, config.md, "Volumes"). They lie on the disk,
        not in the bundle: they outlive a reboot with the container's record.
        """
        paths = select_paths(self._images.config_of(order.image).config.volumes, order.config.mounts)
        if not paths:
            return ()
        directory = self._config.root / "containers" / order.container_id
        await self._resources.make_directory(order.container_id, directory)
        rights.make_directory(directory / "volumes")
        rights.spread(directory / "volumes")
        places = ((path, directory / "volumes" / str(number)) for number, path in enumerate(paths))
        made = [VolumeMount(container_path=path, host_path=str(place)) for path, place in places]
        for volume in made:
            await fill_volume(rootfs, volume.container_path, Path(volume.host_path))
        return tuple(made)

    async def _specify(self, order: _Order, rootfs: Path) -> tuple[SpecInput, JsonObject]:
        """Build the specification, with what extensions want and with devices; return what it was built from, too."""
        pod, config = order.pod, order.config
        what = f"container {config.metadata.name!r}"
        image_config = self._images.defaults_of(order.image)
        target_pid, recursive = self._target_pid(pod, config), await self._has_recursive_read_only(pod.runtime)

        def build() -> tuple[SpecInput, JsonObject]:
            identity = identify(config.security, image_config.user, rootfs)
            user_namespaces.check_user(pod.config, identity.user)
            given = SpecInput(
                container_id=order.container_id,
                config=config,
                pod_id=pod.id,
                pod=pod.config,
                image=image_config,
                rootfs=rootfs,
                identity=identity,
                hostname=pod_files.hostname_of(pod.config, "uts" not in pod.namespaces),
                namespaces=pod.namespaces,
                target_pid=target_pid,
                pod_files=PodDirectory(self._config.run / "pods" / pod.id).files(pod.config),
                cgroup=self._cgroups.of_container(pod.cgroup_parent, order.container_id),
                site=self._config.pods,
                recursive_read_only=recursive,
                shares_processes=self._slots.runtimes[pod.runtime].traits().shares_processes,
                mappings=user_namespaces.oci_mappings(pod.config),
            )
            return given, build_spec(given)

        # In a thread that may be left behind: it looks at the image's files and at volumes, which may hang.
        given, spec = await call_within(self._path_s, what, build)
        changes = await self._ask_extensions(order, given, spec) if self._slots.extensions else ()
        if changes:
            given = changed = await self._changed(given, changes, pod)
            await self.paths.require(foreign_paths(pod, given.config), what)
            spec = await call_within(self._path_s, what, lambda: build_spec(changed))
        if requested_devices(given.config):  # those of extensions, too
            asking = given.config
            await call_within(self._path_s, what, lambda: self._cdi.add(spec, asking))
        if changes:  # what no configuration can say is edited into the specification, after CDI has added its own
            await asyncio.to_thread(adjust_spec, spec, changes)
            if len(spec["mounts"]) > MAX_MOUNTS:
                raise Refused(
                    f"{order.asked.authors} want {what} to have {len(spec['mounts'])} mounts, more than {MAX_MOUNTS}"
                )
        if given.mappings:  # last, as nobody may make device nodes in a user namespace: all of them are bound
            await call_within(self._path_s, what, lambda: bind_devices(spec))
        await asyncio.to_thread(check_process, spec["process"], what)
        return given, spec

    async def _create(
        self,
        order: _Order,
        given: SpecInput,
        handle: ContainerHandle,
        spec: JsonObject,
        root_mounts: tuple[Mount, ...],
    ) -> ContainerProcess:
        """Have the runtime make the process, which waits; of a checkpoint only the request for a later one is kept."""
        config, opened, pod = given.config, order.opened, order.pod
        what = f"container {config.metadata.name!r}"
        if opened is not None and opened.exact:
            check_same(opened, self._image(pod, config), spec["process"])
        # An exec runs with the same environment, user and capabilities, whatever becomes of the specification.
        await asyncio.to_thread(rights.write_file, handle.bundle / PROCESS_FILE, json.dumps(spec["process"]))
        path = log_path(pod, config)
        if path is not None:  # late, as it may be replaced at any time: what a monitor then waits for is bounded
            directory = Path(pod.config.log_directory)
            with stage("log file"):
                await call_within(self._path_s, what, lambda: prepare_log(directory, config.log_path))
        request = ContainerRequest(
            handle=handle,
            spec=spec,
            seccomp=None if "seccomp" in spec["linux"] else seccomp_choice(config, self._config.pods),
            log_path=path,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
            monitor_cgroup=self._config.pods.monitor_cgroup or self._cgroups.monitors,
            root_mounts=root_mounts,
        )
        if opened is not None:
            return write_request(handle.bundle, request)
        slot = self._slots.runtimes[pod.runtime]
        try:
            return await self._resources.create_container(handle.container_id, slot, request)
        except CrinoidError as error:  # runtimes don't always say what it was that they could not run, or hung at
            if isinstance(error, DeadlineExceeded) and (
                hung := await self.paths.describe_hung(foreign_paths(pod, config))
            ):
                error.add_note(hung)
            error.add_note(f"{what} was to run {spec['process']['args'][0]!r:.300}")
            if order.asked.authors:
                error.add_note(f"it was adjusted by {order.asked.authors}")
            raise

    def _image(self, pod: PodRecord, config: ContainerConfig) -> ImageRecord:
        if not config.image:
            raise InvalidArgument(f"container {config.metadata.name!r} names no image")
        if (image := self._images.find(config.image, pod.runtime)) is None:
            raise NotFound(f"image {config.image!r} of container {config.metadata.name!r} is not on this node: pull it")
        self._images.check_platform(image, pod.runtime)
        return image

    async def _ask_extensions(
        self, order: _Order, given: SpecInput, spec: JsonObject
    ) -> tuple[ContainerAdjustment, ...]:
        """Ask what to change. From now on extensions know the container, and must learn when nothing comes of it."""
        view = order.asked.view = ContainerView(
            container_id=given.container_id,
            pod=view_pod(order.pod),
            config=given.config,
            image_id=order.image.id,
            image_reference=_reference(order.image),
            spec=spec,
            resources=given.config.resources,
        )
        found = await self._slots.extensions.adjust_container(view)
        changes = tuple(
            dataclasses.replace(change, author=change.author or f'extension "{slot}"') for slot, change in found
        )
        order.asked.authors = ", ".join(dict.fromkeys(change.author for change in changes))
        order.asked.adjustments = tuple(named for change in changes for named in name_changes(change))
        for author, names in itertools.groupby(order.asked.adjustments, key=lambda named: named[0]):
            note(f"{author} changes {', '.join(name for _, name in names)}")
        return changes

    async def _changed(self, given: SpecInput, changes: tuple[ContainerAdjustment, ...], pod: PodRecord) -> SpecInput:
        """Take changes into what the specification is built from; their volumes are staged in their own directory."""
        if any(mount.image for change in changes for mount in change.mounts):
            raise InvalidArgument(f"container {given.config.metadata.name!r}: extensions can't add image volumes")
        owner, maps = given.container_id, user_namespaces.maps_of(pod)
        directory = self._config.run / "containers" / owner / "extensions"
        staged = []
        for number, change in enumerate(changes):
            here = directory / str(number)
            rights.make_directories(here, rights.PASSAGE)
            await self.paths.require([one.host_path for one in change.mounts], f"container {owner}")
            mounts = await stage_volumes(owner, change.mounts, here, maps, self._resources, self._path_s)
            staged.append(dataclasses.replace(change, mounts=mounts))
        # Of two that choose a cgroup the later one in the configuration's order has the last word.
        cgroup = next((change for change in reversed(changes) if change.cgroup), None)
        if cgroup is not None and cgroup.cgroup != given.cgroup:
            await self._make_cgroup(given.container_id, pod.id, cgroup)
        return dataclasses.replace(
            given, config=adjust_config(given.config, staged), cgroup=given.cgroup if cgroup is None else cgroup.cgroup
        )

    async def _make_cgroup(self, container_id: str, pod_id: str, wanted: ContainerAdjustment) -> None:
        """Make the cgroup that an extension chose, new or not at all: a runtime would take over one that is there, and
        kill all that is in it at the container's end. With systemd the unit's name makes it new.

        Raises Refused, naming who wants what.
        """
        cgroup, who = wanted.cgroup, f"{wanted.author} wants cgroup {wanted.cgroup!r:.300}"
        path = below_mount(cgroup)
        if self._cgroups.systemd != (cgroup.count(":") == 2) or not cgroups.is_path(path):
            form = f"slice:prefix:{container_id}" if self._cgroups.systemd else "an absolute path below the root"
            raise Refused(f"{who}, which is not {form}, as crinoid's cgroup driver is {self._cgroups.driver}")
        if (holder := holder_of(path, self._store, besides=pod_id)) is not None:
            raise Refused(f"{who}, which lies in that of {holder}, and would end with it")
        named = self._cgroups.systemd or cgroups.is_named_by_owner(path)
        if named and not cgroup.endswith((f":{container_id}", f"/{container_id}")):
            raise Refused(f"{who}: the last part has to be the container's own id, {container_id}")
        if self._cgroups.systemd:
            return
        try:
            await self._resources.make_cgroup(container_id, cgroup)
        except AlreadyExists as error:
            raise Refused(f"{who}, which may be somebody else's: {error.message}") from error

    def _target_pid(self, pod: PodRecord, config: ContainerConfig) -> int:
        options = config.security.namespaces
        if options.pid is not NamespaceMode.TARGET:
            return 0
        target = self._store.containers.find(options.target_id)
        if target.pod_id != pod.id or target.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"target container {target.id} is not a running container of pod {pod.id}")
        return target.pid

    async def _has_recursive_read_only(self, runtime: str) -> bool:
        """Ask the runtime once what it can."""
        if runtime not in self._features:
            try:
                features = await self._slots.runtimes[runtime].probe()
            except Unsupported:
                return False
            self._features[runtime] = features.recursive_read_only_mounts
        return self._features[runtime]


def foreign_paths(pod: PodRecord, config: ContainerConfig) -> list[str]:
    """Return the host's paths that a container asks for: volumes, devices, log, seccomp profile, checkpoint (as image).

    Whoever serves them may hang; nobody but the pod is to wait for that.
    """
    paths = [config.image, *(mount.host_path for mount in config.mounts if not mount.image)]
    paths += [device.host_path for device in config.devices]
    if (path := log_path(pod, config)) is not None:
        paths += [str(path.parent), str(path)]
    if (seccomp := config.security.seccomp) is not None and seccomp.type is ProfileType.LOCALHOST:
        paths.append(seccomp.localhost_ref)
    return paths


def log_path(pod: PodRecord, config: ContainerConfig) -> Path | None:
    """Return where the container's output goes, ``None`` for nowhere."""
    if not config.log_path or not pod.config.log_directory:
        return None
    return Path(pod.config.log_directory) / config.log_path


def exec_process(record: ContainerRecord, command: tuple[str, ...]) -> JsonObject:
    """Return the OCI ``process`` object of a command in a container, which is the container's own but for that. Blocks.

    Raises FailedPrecondition where the container's can't be read, InvalidArgument for what the kernel can't execute.
    """
    try:
        process: JsonObject = json.loads((record.handle.bundle / PROCESS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"container {record.id}: its process description can't be read: {error}") from error
    process["args"] = list(command)
    check_process(process, f"exec in container {record.id}")
    return process


def _reference(image: ImageRecord) -> str:
    """Return a name with digest where the image has one, else its id."""
    return image.digests[0] if image.digests else image.id
