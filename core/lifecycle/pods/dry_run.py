"""``crinoid explain --dry-run``: what RunPodSandbox and CreateContainer would do for a pod, with nothing done.

It goes by the same parts as these do: ``PodService.preview`` (checks, slots, steps), the network's ``plan``, which
touches nothing, ``build_spec`` with ``dry``, and the runtime's ``preview``. What only a real root file system tells,
as the number of a user by its name, is said in ``notes``. Extensions may act on what they are asked, so they are asked
only where the caller wants that, and told at once that nothing came of it.
"""

import asyncio
import dataclasses
import functools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.values.container import ContainerConfig, VolumeMount
from crinoid.core.api.values.pod import PodConfig
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest
from crinoid.core.config.models import Config
from crinoid.core.lifecycle.cdi import CdiDevices, requested_devices
from crinoid.core.lifecycle.containers.adjustment import adjust_config, adjust_spec, name_changes
from crinoid.core.lifecycle.containers.builder import log_path
from crinoid.core.lifecycle.events.views import view_pod
from crinoid.core.lifecycle.images.image_config import ContainerDefaults
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.pods.pods import PodService, Preview
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.core.lifecycle.sandbox.pod_files import PodDirectory
from crinoid.core.lifecycle.spec.build import SpecInput, build_spec, seccomp_choice
from crinoid.core.lifecycle.spec.users import Identity, identify
from crinoid.core.lifecycle.volumes.declared_volumes import select_paths
from crinoid.core.slots.binding import Slots
from crinoid.core.state.records import ImageRecord, PodRecord, PodState, ProcessUser

JsonObject = dict[str, Any]
_UNKNOWN = ContainerDefaults.model_validate({"Cmd": ["(the image's own command)"]})


@dataclass(frozen=True, slots=True)
class DryRun:
    """Says what would be done; see the module."""

    config: Config
    slots: Slots
    images: ImageService
    pods: PodService
    cgroups: CgroupPaths

    async def explain(
        self, config: PodConfig, handler: str, containers: Sequence[ContainerConfig], ask_extensions: bool
    ) -> JsonObject:
        """Return all of it as a JSON object. Raises what RunPodSandbox would raise of the request itself."""
        preview = self.pods.preview(config, handler)
        plan = preview.plan
        pod = PodRecord(
            id=plan.pod_id,
            config=config,
            runtime_handler=handler,
            runtime=plan.runtime.name,
            network=plan.network.name,
            snapshotter=plan.snapshotter.name,
            state=PodState.READY,
            created_at_ns=time.time_ns(),
            namespaces=plan.pins,
            cgroup_parent=plan.cgroup_parent,
        )
        network = {} if preview.network is None else dict(await plan.network.plan(preview.network))
        return {
            "pod": {
                "id": plan.pod_id,
                "runtime": plan.runtime.label,
                "network": plan.network.label,
                "snapshotter": plan.snapshotter.label,
                "hostname": plan.hostname,
                "cgroup": plan.cgroup_parent,
                "sysctls": plan.sysctls,
            },
            "steps": self._steps(preview),
            "network": network,
            "containers": [await self._container(pod, one, ask_extensions) for one in containers],
            "notes": ["ids are examples: a real pod gets others", *self._unasked(ask_extensions)],
        }

    def _steps(self, preview: Preview) -> list[str]:
        """Name what is made for the pod itself, in order."""
        plan = preview.plan
        steps = [f"make {step.kind} {step.key}" for step in preview.steps]
        steps += [f"make namespace {kind} at {path}" for kind, path in plan.pins.items()]
        if preview.network is None:
            steps.append("no network is attached: the pod has the host's")
        else:
            steps.append(f"{plan.network.label} attach")
        if plan.needs_init:
            steps.append("start an init process, whose PID namespace all containers share")
        if plan.runtime.implements("start_pod"):
            steps.append(f"{plan.runtime.label} start_pod")
        for hook in ("pod_starting", "pod_started"):
            steps += [f"{slot.label} {hook}" for slot in self.slots.extensions.slots if slot.implements(hook)]
        return steps

    def _unasked(self, asks: bool) -> list[str]:
        able = [slot.label for slot in self.slots.extensions.slots if slot.implements("adjust_container")]
        if not able or asks:
            return []
        return [f"not asked, as they may act on it: {', '.join(able)} (--ask-extensions asks them)"]

    async def _container(self, pod: PodRecord, config: ContainerConfig, ask_extensions: bool) -> JsonObject:
        container_id, notes = secrets.token_hex(32), list[str]()
        image = self.images.find(config.image, pod.runtime)
        if image is None:
            notes.append(f"image {config.image} is not on this node: it has to be pulled before")
        else:
            try:
                self.images.check_platform(image, pod.runtime)
            except CrinoidError as error:
                notes.append(error.message)
        chain = image.chain_ids[-1] if image is not None and image.chain_ids else "none"
        given = await self._input(pod, config, container_id, image, notes)
        spec = await call_within(self.config.pods.path_timeout_s, "dry run", lambda: build_spec(given))
        changes: tuple[ContainerAdjustment, ...] = ()
        if ask_extensions and image is not None:
            view = ContainerView(
                container_id=container_id,
                pod=view_pod(pod),
                config=given.config,
                image_id=image.id,
                image_reference=image.digests[0] if image.digests else image.id,
                spec=spec,
                resources=given.config.resources,
            )
            try:
                found = await self.slots.extensions.adjust_container(view)
            finally:
                await self.slots.extensions.container_removed(view)
            changes = tuple(dataclasses.replace(one, author=one.author or f'extension "{slot}"') for slot, one in found)
            changed = dataclasses.replace(given, config=adjust_config(given.config, changes))
            given = changed
            spec = await call_within(self.config.pods.path_timeout_s, "dry run", lambda: build_spec(changed))
        if requested_devices(given.config):
            try:
                devices = CdiDevices(self.config.pods.cdi_spec_dirs)
                await asyncio.to_thread(devices.add, spec, given.config)
            except CrinoidError as error:
                notes.append(error.message)
        adjust_spec(spec, changes)
        return {
            "name": config.metadata.name,
            "id": container_id,
            "image": config.image if image is None else image.id,
            "snapshot": f"{self.slots.snapshotters[pod.snapshotter].label} create_snapshot on {chain}",
            "adjustments": [{"by": by, "field": field} for one in changes for by, field in name_changes(one)],
            "spec": spec,
            "commands": await self._commands(pod, given, spec, notes),
            "notes": notes,
        }

    async def _input(
        self, pod: PodRecord, config: ContainerConfig, container_id: str, image: ImageRecord | None, notes: list[str]
    ) -> SpecInput:
        """Put together what the specification is built from, with places for what is only made by a real run."""
        defaults = _UNKNOWN if image is None else self.images.defaults_of(image)
        bundle = self.config.run / "containers" / container_id
        volumes = self.config.root / "containers" / container_id / "volumes"
        mounts = []
        for number, mount in enumerate(config.mounts):
            if mount.image:
                notes.append(f"mount {mount.container_path}: image {mount.image}, mounted below {bundle}")
                place = str(bundle / "images" / str(number))
                mount = dataclasses.replace(mount, image="", host_path=place)
            elif not await call_within(self.config.pods.path_timeout_s, "dry run", Path(mount.host_path).exists):
                notes.append(f"mount {mount.container_path}: {mount.host_path} is made, an empty directory")
            mounts.append(mount)
        for number, path in enumerate(select_paths(defaults.volumes, config.mounts)):
            notes.append(f"volume {path} of the image begins with what the image has there")
            mounts.append(VolumeMount(container_path=path, host_path=str(volumes / str(number))))
        identity = Identity(ProcessUser(), "/")
        try:
            look = functools.partial(identify, config.security, defaults.user, bundle / "rootfs")
            identity = await asyncio.to_thread(look)
        except CrinoidError as error:
            notes.append(f"the user is shown as 0, as only the image's own files name it: {error.message}")
        runtime = self.slots.runtimes[pod.runtime]
        try:
            recursive = (await runtime.probe()).recursive_read_only_mounts
        except CrinoidError as error:
            recursive = False
            notes.append(error.message)
        return SpecInput(
            container_id=container_id,
            config=dataclasses.replace(config, mounts=tuple(mounts)),
            pod_id=pod.id,
            pod=pod.config,
            image=defaults,
            rootfs=bundle / "rootfs",
            identity=identity,
            hostname=pod_files.hostname_of(pod.config, "uts" not in pod.namespaces),
            namespaces=pod.namespaces,
            target_pid=0,
            pod_files=PodDirectory(self.config.run / "pods" / pod.id).files(pod.config),
            cgroup=self.cgroups.of_container(pod.cgroup_parent, container_id),
            site=self.config.pods,
            recursive_read_only=recursive,
            shares_processes=runtime.traits().shares_processes,
            mappings=user_namespaces.oci_mappings(pod.config),
            dry=True,
        )

    async def _commands(self, pod: PodRecord, given: SpecInput, spec: JsonObject, notes: list[str]) -> list[str]:
        """Ask the runtime what it would run."""
        runtime, config = self.slots.runtimes[pod.runtime], given.config
        if not runtime.implements("preview"):
            return [f"{runtime.label} create"]
        bundle = self.config.run / "containers" / given.container_id
        request = ContainerRequest(
            handle=ContainerHandle(given.container_id, pod.id, bundle, given.cgroup),
            spec=spec,
            seccomp=None if "seccomp" in spec["linux"] else seccomp_choice(config, self.config.pods),
            log_path=log_path(pod, config),
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
            monitor_cgroup=self.config.pods.monitor_cgroup or self.cgroups.monitors,
        )
        try:
            return list(await runtime.preview(request))
        except CrinoidError as error:
            notes.append(error.message)
            return []
