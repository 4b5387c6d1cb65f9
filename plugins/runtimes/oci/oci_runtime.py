"""The hooks of the runtime role, answered for any OCI runtime binary: what runc and crun do alike.

One container, one bundle directory, one monitor. ``creation`` makes a container and ``deletion`` ends it; between the
two, what is asked of it goes by ``known_containers`` (processes, cgroup, state), which need no binary, and by the
monitor. ``checkpoints`` has the hooks for criu. A driver names its ``Traits``.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from crinoid.core.api.errors import CrinoidError, NotFound, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import is_scope
from crinoid.core.api.linux.oom import clamp_oom_score_adj
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ContainerStatus,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
    RuntimeFeatures,
    RuntimeState,
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.plugins.runtimes.binaries.binary import Binary, ProgramIdentity, identify
from crinoid.plugins.runtimes.binaries.bundle import Bundle
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.scratch import Scratch
from crinoid.plugins.runtimes.binaries.sealing import SealedPrograms
from crinoid.plugins.runtimes.joining.joined_execs import CantJoinError, JoinedExecs
from crinoid.plugins.runtimes.monitor.conmon_monitor import ConmonMonitor
from crinoid.plugins.runtimes.monitor.monitor import Monitor as MonitorPort
from crinoid.plugins.runtimes.oci.checkpoints import CheckpointHooks
from crinoid.plugins.runtimes.oci.creation import Creation
from crinoid.plugins.runtimes.oci.criu import Criu
from crinoid.plugins.runtimes.oci.deletion import Deletion
from crinoid.plugins.runtimes.oci.known_containers import KnownContainers
from crinoid.plugins.runtimes.oci.limits import beyond_update, oci_resources
from crinoid.plugins.runtimes.oci.scopes import KILLS_ALL, ends_as_a_whole, set_unit_limits
from crinoid.plugins.runtimes.oci.starting import FIFO
from crinoid.plugins.runtimes.oci.traits import BinaryTraits
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.cgroup_places import is_unified
from crinoid.plugins.runtimes.processes.oom_kills import OomKills

_KILL = signal.SIGKILL
_ALIVE = (ContainerStatus.CREATED, ContainerStatus.RUNNING, ContainerStatus.PAUSED)


class OciRuntime(CheckpointHooks):
    """Base of the drivers. A subclass names its options, the ways of its binary, and maybe another monitor."""

    api_version: ClassVar[str] = "1.0"
    Config: ClassVar[type[OciOptions]] = OciOptions
    Traits: ClassVar[type[BinaryTraits]]
    Monitor: ClassVar[type[MonitorPort]] = ConmonMonitor

    def __init__(self, config: OciOptions, host: Host) -> None:
        self._config = config
        self._host = host
        self._deadlines = config.deadlines
        scratch = Scratch(host.run_dir / "scratch")
        scratch.sweep()
        traits = self.Traits
        binary = Binary(
            config.binary or traits.package,
            traits.package,
            config.state_root or host.run_dir / "state",
            scratch,
            log_option=traits.log_option,
            gives_streams_away=traits.gives_streams_away,
            execs_inherit_oom_score=traits.execs_inherit_oom_score,
            copies=SealedPrograms() if config.shortcuts else None,
        )
        self._binary = binary
        self._traits = traits(binary, config)
        self._monitor: MonitorPort = self.Monitor(config, binary)
        self._known = KnownContainers(self._traits, self._monitor)
        self._oom_kills = OomKills()
        self._deletion = Deletion(binary, self._known, self._monitor, self._deadlines, host.log)
        self._joined = JoinedExecs(self._traits)
        self._creation = Creation(config, self._traits, self._monitor, self._known, self._deletion)
        self._criu = Criu(self._deadlines.probe_s)
        self._probed: tuple[tuple[ProgramIdentity, ...], RuntimeFeatures] | None = None

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        """See the hook. The programs are asked once, and again after one of them was replaced."""
        programs = (identify(self._binary.path), identify(self._monitor.program))
        if self._probed is not None and self._probed[0] == programs:
            return self._probed[1]
        try:
            features = await self._traits.features()
            version = await self._monitor.version()
        except Unsupported:
            raise
        except CrinoidError as error:
            what = f"{self._binary.name} does not work here"
            raise Unsupported(f"{what}: {error.message}; is its package whole?") from error
        await asyncio.to_thread(self._creation.check)
        features = replace(features, annotations={**features.annotations, self._monitor.name: version})
        self._probed = (programs, features)
        return features

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """See the hook."""
        return await self._creation.create(request)

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        """See the hook: the monitor's command, and the binary's, which that runs."""
        bundle = Bundle(request.handle.bundle)

        def lines() -> tuple[str, ...]:
            runs = shlex.join(self._binary.create_command(bundle, request.handle.container_id))
            return (*self._monitor.preview(bundle, request), f"which runs: {runs}")

        return await asyncio.to_thread(lines)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        """See the hook. A plain container's first process waits at a fifo, and the binary need not run again."""
        processes = Bundle(handle.bundle).read_processes()
        if processes is not None and processes.plain:
            fifo = self._binary.state_directory(handle.container_id) / FIFO
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._deadlines.start_s):
                    if await self._traits.start_by_fifo(fifo, processes):
                        return
        await self._binary.run(("start", handle.container_id), timeout_s=self._deadlines.start_s)

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """See the hook."""
        processes = self._known.processes(handle)
        if processes is None:
            raise NotFound(f"container {handle.container_id}: {self._binary.name} has nothing of it")
        with self._oom_kills.watched(self._known.cgroup(handle)) as watch:
            return await self._monitor.wait(Bundle(handle.bundle), processes, watch.has_killed)

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        """See the hook."""
        return await self._known.state(handle)

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        """See the hook. Without the binary: by pidfd, or for everyone by cgroup.

        What is frozen, by whomever, is thawed to be killed: the first process ends only after those of its PID
        namespace.
        """
        processes = self._known.processes(handle)
        if processes is None:
            return
        with pidfds.opened(processes.pid, processes.pid_start) as first:
            if first is not None:
                pidfds.send(first, signal)
            if (everyone or signal == _KILL) and self._known.owns_cgroup(handle):
                cgroup = self._known.cgroup(handle)
                if not everyone:
                    await asyncio.to_thread(cgroups.thaw, cgroup)
                elif signal == _KILL:
                    await asyncio.to_thread(cgroups.kill, cgroup)
                else:
                    for pid in await asyncio.to_thread(cgroups.processes, cgroup):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._deletion.remove(handle)

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        """See the hook."""
        await self._known.require(handle, "exec", ContainerStatus.RUNNING)
        try:
            return await self._joined.run(handle, request, self._known.exec_cgroup(handle, joined=True))
        except CantJoinError as error:
            self._host.log.debug("exec in %s goes by %s: %s", handle.container_id, self._binary.name, error)
        return await self._monitor.exec_sync(handle, request, self._known.exec_cgroup(handle))

    @hookimpl
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        """See the hook."""
        await self._known.require(handle, "exec", ContainerStatus.RUNNING)
        return await self._monitor.exec_stream(handle, request, self._known.exec_cgroup(handle))

    @hookimpl
    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        """See the hook."""
        await self._known.require(handle, "attach", *_ALIVE)
        return await self._monitor.attach(Bundle(handle.bundle), request, self._host.buffers)

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        """See the hook. What the binary's ``update`` can't write goes to the cgroup directly, after it. In the end
        systemd is told of a scope's limits, as it would undo them else."""
        pid = await self._known.require(handle, "update", *_ALIVE)
        self._known.require_own_cgroup(handle, "update")
        cgroup = self._known.cgroup(handle)
        if resources.unified:  # before anything is changed
            await asyncio.to_thread(cgroups.check_settings, cgroup, resources.unified)
        told = is_scope(handle.cgroup) and is_unified()
        kills_all = told and resources.unified.get(KILLS_ALL, str(int(await ends_as_a_whole(handle.cgroup)))) == "1"
        changed, lifted = self._traits.split_update(resources)
        if limits := oci_resources(changed):
            command = ("update", "--resources", "-", handle.container_id)
            text = json.dumps(limits).encode()
            await self._binary.run(command, timeout_s=self._deadlines.update_s, stdin=text)
        for rest in (beyond_update(changed), lifted if lifted != LinuxResources() else None):
            if rest is not None:
                await asyncio.to_thread(cgroups.write_resources, cgroup, rest)
        if told:
            await set_unit_limits(handle.cgroup, self._deadlines.update_s, kills_all=kills_all)
        if changed.oom_score_adj:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                Path(f"/proc/{pid}/oom_score_adj").write_text(str(clamp_oom_score_adj(changed.oom_score_adj)))  # noqa: ASYNC240

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._monitor.reopen_log(Bundle(handle.bundle))

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        """See the hook."""
        (usage,) = await self._read_usages((handle,))
        if usage is None:
            raise NotFound(f"container {handle.container_id} has no usage: it does not run")
        return usage

    @hookimpl
    async def stats_many(self, handles: tuple[ContainerHandle, ...]) -> tuple[CgroupUsage | None, ...]:
        """See the hook. One thread reads for all."""
        return tuple(await self._read_usages(handles))

    async def _read_usages(self, handles: Sequence[ContainerHandle]) -> list[CgroupUsage | None]:
        found = await asyncio.to_thread(cgroups.read_usages, [self._known.cgroup(handle) for handle in handles])
        for place, (handle, usage) in enumerate(zip(handles, found, strict=True)):
            # processes in its cgroup say that a container runs; only where none are counted a closer look is due
            if usage is not None and not usage.pids and (await self._known.state(handle)).pid == 0:
                found[place] = None
        return found
