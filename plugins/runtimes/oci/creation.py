"""The making of a container: the spec is completed with what the slot adds, and the binary runs under a monitor.

``oci_runtime`` comes here for ``create``, ``checkpoints`` for ``restore``.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import AlreadyExists, CrinoidError, DeadlineExceeded, FailedPrecondition, RuntimeRefused
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.cgroup_names import below_mount, is_scope
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.values.runtime import ContainerProcess, ContainerRequest, ContainerStatus, OciSpec
from crinoid.plugins.runtimes.binaries.bundle import Bundle
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.stdio import open_streams
from crinoid.plugins.runtimes.monitor.monitor import Monitor
from crinoid.plugins.runtimes.oci.criu import explain
from crinoid.plugins.runtimes.oci.deletion import Deletion
from crinoid.plugins.runtimes.oci.known_containers import KnownContainers
from crinoid.plugins.runtimes.oci.scopes import ends_as_a_whole, set_unit_limits
from crinoid.plugins.runtimes.oci.seccomp import SeccompFilters, require_execve
from crinoid.plugins.runtimes.oci.starting import FIFO
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes.cgroup_places import is_frozen, is_unified


class Creation:
    """Makes containers of one slot."""

    def __init__(
        self,
        options: OciOptions,
        traits: BinaryTraits,
        monitor: Monitor,
        known: KnownContainers,
        deletion: Deletion,
    ) -> None:
        self._options = options
        self._traits = traits
        self._binary = traits.binary
        self._monitor = monitor
        self._known = known
        self._deletion = deletion
        self._seccomp = SeccompFilters(options.seccomp_profile, by_name=not traits.answers_new_calls)

    def check(self) -> None:
        """Raise ConfigurationError or Unsupported where the slot's seccomp profile can't be used. Blocks."""
        self._seccomp.check()

    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """Make a container whose process waits before its entry point. On an error nothing is left of it."""
        self._known.require_own_cgroup(request.handle, "create")
        _require_thawed(request.handle.cgroup)
        return await self.make(request, self._options.deadlines.create_s)

    async def make(
        self, request: ContainerRequest, timeout_s: float, checkpoint: Path | None = None
    ) -> ContainerProcess:
        """Make a container under a monitor; return its process. On an error nothing is left.

        ``checkpoint``: criu's images that it is restored from.
        """
        handle, bundle = request.handle, Bundle(request.handle.bundle)
        act, has_scope = "create" if checkpoint is None else "restore", is_scope(handle.cgroup)
        if (await self._known.state(handle)).status is not ContainerStatus.ABSENT:
            raise AlreadyExists(f"container {handle.container_id} has been created before; delete it first")
        try:
            # in a thread: a profile is the request's to name, and a specification may have megabytes
            spec = await call_within(timeout_s, act, lambda: self._complete(request))
            await asyncio.to_thread(bundle.write_spec, spec)
            async with asyncio.timeout(timeout_s):
                try:
                    started = await self._monitor.create(bundle, request, checkpoint)
                except CrinoidError as error:
                    if (explained := explain(error, bundle.restore_log)) is not error:
                        raise explained from error
                    raise
                if has_scope and is_unified() and not self._traits.sets_scope_properties:
                    kills_all = await ends_as_a_whole(handle.cgroup)
                    await set_unit_limits(handle.cgroup, timeout_s, kills_all=kills_all)
            # A plain container needs the binary for neither its start nor its end: it has made nothing but the cgroup
            # and its state directory. The fifo shows that it keeps its state there as runc and crun do.
            state = self._binary.state_directory(handle.container_id)
            others = request.spec.get("hooks") or (request.spec.get("linux") or {}).get("intelRdt")
            is_plain = self._options.shortcuts and not has_scope and not others and (state / FIFO).exists()
            # Only once this is written does ``delete`` know what to look for without asking the monitor's files.
            bundle.write_processes(replace(started, log_path=str(request.log_path or ""), plain=is_plain))
            if spec["linux"].get("uidMappings"):
                open_streams(started.pid)
            if checkpoint is None:  # else what was restored runs by now
                await self._traits.learn(state, started, spec["linux"].get("seccomp"))
            return ContainerProcess(started.pid, started.monitor_pid)
        except BaseException as error:
            why = error
            if isinstance(error, TimeoutError):
                why = DeadlineExceeded(
                    f"{self._binary.name} {act} of {handle.container_id} was given up after {timeout_s:g} s"
                )
            try:
                await finish(self._deletion.remove(handle))
            except CrinoidError as left:  # such as a process that hangs: ``delete`` is going to try again
                why.add_note(f"what was made of it is left for now: {left.message}")
            if why is not error:
                raise why from None
            raise

    def _complete(self, request: ContainerRequest) -> OciSpec:
        """The spec with what the slot adds: seccomp and annotations."""
        spec: dict[str, Any] = dict(request.spec)
        process = spec.get("process") or {}
        capabilities = frozenset((process.get("capabilities") or {}).get("bounding") or ())
        # The binary kills and removes what this names, so it is the handle's, whatever the spec says.
        linux = dict(spec.get("linux") or {}) | {"cgroupsPath": request.handle.cgroup}
        if any(mount.get("destination") == "/" for mount in spec.get("mounts") or ()):
            raise RuntimeRefused("a mount at / would hide the container's own files")
        own_seccomp = linux.pop("seccomp", None)  # of an extension, which knows what it does
        seccomp = self._seccomp.resolve(request.seccomp, capabilities)
        if seccomp is not None:
            require_execve(seccomp, request.seccomp)
        seccomp = seccomp or own_seccomp
        asked = {
            name: value
            for name, value in (spec.get("annotations") or {}).items()
            if not name.startswith(self._traits.command_annotations)
        }
        annotations = {**asked, **self._traits.added_annotations(seccomp), **self._options.annotations}
        spec["linux"] = {**linux, "seccomp": seccomp} if seccomp else linux
        return {**spec, "annotations": annotations}


def _require_thawed(cgroup: str) -> None:
    """The binary itself would stand still there, until the request's deadline. Raises FailedPrecondition."""
    above = below_mount(cgroup).rpartition("/")[0]
    if above and is_frozen(above):
        raise FailedPrecondition(f"cgroup {above} is frozen: nothing starts in it until somebody thaws it")
