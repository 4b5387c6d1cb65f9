"""The hooks of the runtime role, answered for any OCI runtime binary: what runc and crun do alike.

One container, one bundle directory, one conmon. Ends, states and signals go by process id, start time and cgroup,
without the binary; so a container can be stopped, watched and removed also when the binary is gone or its state is
corrupt.
"""

import abc
import asyncio
import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from crinoid.core.api.errors import (
    AlreadyExists,
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups, rights
from crinoid.core.api.linux.files import remove_tree
from crinoid.core.api.linux.oom import clamp_oom_score_adj
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
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
    OciSpec,
    RuntimeFeatures,
    RuntimeState,
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.plugins.runtimes.binaries.binary import Binary, ProgramIdentity, ask, find_program, identify
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes, read_pid
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error, last_error, runtime_message
from crinoid.plugins.runtimes.binaries.scratch import Scratch
from crinoid.plugins.runtimes.binaries.sealing import SealedPrograms
from crinoid.plugins.runtimes.binaries.stdio import open_streams
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.attach_sessions import attach
from crinoid.plugins.runtimes.monitor.exec_processes import ExecSetup
from crinoid.plugins.runtimes.monitor.exec_streams import StreamedExecs
from crinoid.plugins.runtimes.monitor.exit_files import wait_for_end
from crinoid.plugins.runtimes.monitor.log_reopening import reopen_log
from crinoid.plugins.runtimes.monitor.sync_execs import exec_sync
from crinoid.plugins.runtimes.oci import adoption
from crinoid.plugins.runtimes.oci.criu import Criu, explain
from crinoid.plugins.runtimes.oci.limits import beyond_update, oci_resources
from crinoid.plugins.runtimes.oci.seccomp import Filter, SeccompFilters
from crinoid.plugins.runtimes.oci.starting import FIFO
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.cgroup_places import below_mount, is_frozen, oom_kills
from crinoid.plugins.runtimes.processes.drain import drained
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup
from crinoid.plugins.runtimes.processes.freezing import freeze, thaw

_MONITOR_END_S = 5.0  # it may have a flood of output to write


class OciRuntime(abc.ABC):
    """Base of the drivers: a subclass names its binary and what the binary does in its own way."""

    api_version: ClassVar[str] = "1.0"
    Config: ClassVar[type[OciOptions]] = OciOptions
    package: ClassVar[str]
    log_option: ClassVar[str] = "--log={}"
    command_annotations: ClassVar[tuple[str, ...]] = ("org.systemd.property.", "org.criu.")
    """Prefixes of annotations that make the binary do something: a request's are dropped, a slot's own are not."""
    gives_streams_away: ClassVar[bool] = False
    """Whether the binary makes its standard streams belong to the container's user, devices of the host too."""
    execs_inherit_oom_score: ClassVar[bool] = False
    """Whether the binary gives ``oomScoreAdj`` to a container's first process only, not to what is executed in it."""
    leaves_other_cgroups: ClassVar[bool]
    """Whether ``exec --cgroup=NAME`` takes the process out of the hierarchies of cgroup v1 that have no such cgroup."""

    def __init__(self, config: OciOptions, host: Host) -> None:
        self._config = config
        self._host = host
        self._deadlines = config.deadlines
        self._seccomp = SeccompFilters(config.seccomp_profile)
        scratch = Scratch(host.run_dir / "scratch")
        scratch.sweep()
        self._root = config.state_root or host.run_dir / "state"
        self._binary = Binary(
            config.binary or self.package,
            self.package,
            self._root,
            scratch,
            log_option=self.log_option,
            gives_streams_away=self.gives_streams_away,
            execs_inherit_oom_score=self.execs_inherit_oom_score,
            copies=SealedPrograms() if config.shortcuts else None,
        )
        self._reopening: dict[str, asyncio.Lock] = {}
        self._exec_setup = ExecSetup(config, self._binary)
        self._streamed_execs = StreamedExecs(self._exec_setup)
        self._criu = Criu(self._deadlines.probe_s)
        self._probed: tuple[tuple[ProgramIdentity, ...], RuntimeFeatures] | None = None

    @abc.abstractmethod
    async def features(self) -> RuntimeFeatures:
        """Tell what the binary can; raises Unsupported, or what asking it raised."""

    def added_annotations(self, seccomp: Filter | None) -> Mapping[str, str]:
        """Return annotations that speed the binary up for this filter; a subclass may know some."""
        return {}

    def learn(self, state: Path, seccomp: Filter | None) -> None:  # noqa: B027  # optional
        """Take from the state directory of a container just created what speeds up the next one. Optional."""

    @abc.abstractmethod
    async def start_by_fifo(self, fifo: Path, processes: Processes) -> bool:
        """Let a container run that the binary made wait at this fifo; tell whether it was done."""

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        """See the hook. The programs are asked once, and again after one of them was replaced."""
        monitor = find_program(self._config.monitor.binary, "conmon")
        programs = (identify(self._binary.path), identify(monitor))
        if self._probed is None or self._probed[0] != programs:
            self._probed = (programs, await self._ask_programs(monitor))
        return self._probed[1]

    async def _ask_programs(self, monitor: Path) -> RuntimeFeatures:
        try:
            features = await self.features()
            said = await ask(monitor, "--version", self._deadlines.probe_s)
        except Unsupported:
            raise
        except CrinoidError as error:
            raise Unsupported(f"{self.package} does not work here: {error.message}; is its package whole?") from error
        await asyncio.to_thread(self._seccomp.check)
        version = said.removeprefix("conmon version ").split("\n")[0].strip()
        return replace(features, annotations={**features.annotations, "conmon": version})

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """See the hook."""
        bundle = Bundle(request.handle.bundle)
        self._require_own_cgroup(request.handle, "create")
        process, spec = await self._make(request, self._create_command(bundle, request), self._deadlines.create_s)
        self.learn(self._binary.state_directory(request.handle.container_id), spec["linux"].get("seccomp"))
        return process

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        """See the hook."""
        processes = Bundle(handle.bundle).read_processes()
        if processes is not None and processes.plain:
            fifo = self._binary.state_directory(handle.container_id) / FIFO
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._deadlines.start_s):
                    if await self.start_by_fifo(fifo, processes):
                        return
        await self._binary.run(("start", handle.container_id), timeout_s=self._deadlines.start_s)

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """See the hook."""
        bundle = Bundle(handle.bundle)
        processes = self._processes(bundle, handle)
        if processes is None:
            raise NotFound(f"container {handle.container_id}: {self.package} has nothing of it")
        return await wait_for_end(bundle, processes, lambda: oom_kills(self._cgroup(handle)) > 0)

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        """See the hook."""
        processes = self._processes(Bundle(handle.bundle), handle)
        if processes is None:
            there = self._binary.state_directory(handle.container_id).exists()
            return RuntimeState(ContainerStatus.STOPPED if there else ContainerStatus.ABSENT)
        if pidfds.start_time(processes.pid) != processes.pid_start or not processes.pid_start:
            return RuntimeState(ContainerStatus.STOPPED)
        return RuntimeState(self._living_status(handle), processes.pid)

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        """See the hook. Without the binary: by pidfd, or for everyone by cgroup."""
        processes = self._processes(Bundle(handle.bundle), handle)
        if processes is None:
            return
        with pidfds.opened(processes.pid, processes.pid_start) as first:
            if everyone and self._owns_cgroup(handle):
                await asyncio.to_thread(_signal_cgroup, self._cgroup(handle), signal)
            if first is not None:
                pidfds.send(first, signal)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._remove(handle)

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        """See the hook."""
        await self._require(handle, "exec", ContainerStatus.RUNNING)
        return await exec_sync(self._exec_setup, handle, request, self._exec_cgroup(handle))

    @hookimpl
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        """See the hook."""
        await self._require(handle, "exec", ContainerStatus.RUNNING)
        return await self._streamed_execs.start(handle, request, self._exec_cgroup(handle))

    @hookimpl
    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        """See the hook."""
        states = (ContainerStatus.CREATED, ContainerStatus.RUNNING, ContainerStatus.PAUSED)
        await self._require(handle, "attach", *states)
        return await attach(Bundle(handle.bundle), request, self._config.attach_buffer_bytes, self._host.buffers)

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        """See the hook."""
        states = (ContainerStatus.CREATED, ContainerStatus.RUNNING, ContainerStatus.PAUSED)
        pid = await self._require(handle, "update", *states)
        self._require_own_cgroup(handle, "update")
        if resources.unified:  # before anything is changed
            await asyncio.to_thread(cgroups.check_settings, self._cgroup(handle), resources.unified)
        limits = oci_resources(resources)
        if limits:
            command = ("update", "--resources", "-", handle.container_id)
            text = json.dumps(limits).encode()
            await self._binary.run(command, timeout_s=self._deadlines.update_s, stdin=text)
        rest = beyond_update(resources)
        if rest is not None:
            await asyncio.to_thread(cgroups.write_resources, self._cgroup(handle), rest)
        if resources.oom_score_adj:
            _set_oom_score_adj(pid, resources.oom_score_adj)

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """See the hook."""
        bundle = Bundle(handle.bundle)
        # Two commands at once would make conmon replace its new log by a newer one.
        async with self._reopening.setdefault(handle.container_id, asyncio.Lock()):
            await reopen_log(bundle, self._deadlines.reopen_log_s)

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
        found = await asyncio.to_thread(cgroups.read_usages, [self._cgroup(handle) for handle in handles])
        for place, (handle, usage) in enumerate(zip(handles, found, strict=True)):
            # processes in its cgroup say that a container runs; only where none are counted a closer look is due
            if usage is not None and not usage.pids and (await self.state(handle)).pid == 0:
                found[place] = None
        return found

    @hookimpl
    async def check_checkpoint(self) -> None:
        """See the hook."""
        await self.check_binary_checkpoints()
        await self._criu.check()

    async def check_binary_checkpoints(self) -> None:  # noqa: B027  # optional
        """Raise Unsupported where the binary was built without checkpoints. Optional."""

    @hookimpl
    async def pause(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._require(handle, "pause", ContainerStatus.RUNNING, ContainerStatus.PAUSED)
        self._require_own_cgroup(handle, "pause")
        await freeze(self._cgroup(handle), self._deadlines.pause_s)

    @hookimpl
    async def resume(self, handle: ContainerHandle) -> None:
        """See the hook."""
        if self._owns_cgroup(handle):
            thaw(self._cgroup(handle))

    @hookimpl
    async def checkpoint(self, request: CheckpointRequest) -> None:
        """See the hook. criu leaves a cgroup that is frozen as it is."""
        await self.check_checkpoint()
        await self._require(request.handle, "checkpoint", ContainerStatus.PAUSED)
        paths = ("--image-path", str(request.images), "--work-path", str(request.work))
        command = ("checkpoint", *paths, "--leave-running", "--file-locks", request.handle.container_id)
        try:
            await self._binary.run(command, timeout_s=request.timeout_s)
        except CrinoidError as error:
            raise explain(error, request.work / "dump.log") from error

    @hookimpl
    async def restore(self, request: RestoreRequest) -> ContainerProcess:
        """See the hook. conmon has the binary write criu's log into the bundle."""
        self._require_own_cgroup(request.container.handle, "restore")
        await self.check_checkpoint()
        container = request.container
        bundle = Bundle(container.handle.bundle)
        restoring = ("--restore", str(request.images), "--runtime-opt=--file-locks")
        command = [*self._create_command(bundle, container), *restoring]
        before = await asyncio.to_thread(adoption.Before.look, request.former_cgroup)
        process, _ = await self._make(container, command, request.timeout_s, "restore")
        try:
            await asyncio.to_thread(adoption.adopt, process.pid, self._cgroup(container.handle), before)
        except BaseException:
            await finish(self._remove(container.handle))
            raise
        return process

    # create, from here on

    async def _make(
        self,
        request: ContainerRequest,
        command: list[str],
        timeout_s: float,
        act: str = "create",
    ) -> tuple[ContainerProcess, OciSpec]:
        """Make a container by conmon; return its process and its spec in full. On an error nothing is left of it."""
        handle, bundle = request.handle, Bundle(request.handle.bundle)
        if (await self.state(handle)).status is not ContainerStatus.ABSENT:
            raise AlreadyExists(f"container {handle.container_id} has been created before; delete it first")
        try:
            # in a thread: a profile is the request's to name, and a specification may have megabytes
            spec = await call_within(timeout_s, act, lambda: self._complete(request))
            await asyncio.to_thread(bundle.write_spec, spec)
            async with asyncio.timeout(timeout_s):
                process = await self._create(bundle, request, command)
            if spec["linux"].get("uidMappings"):
                open_streams(process.pid)
            return process, spec
        except BaseException as error:
            why = self._overdue(act, handle, timeout_s) if isinstance(error, TimeoutError) else error
            try:
                await finish(self._remove(handle))
            except CrinoidError as left:  # such as a process that hangs: ``delete`` is going to try again
                why.add_note(f"what was made of it is left for now: {left.message}")
            if why is not error:
                raise why from None
            raise

    def _create_command(self, bundle: Bundle, request: ContainerRequest) -> list[str]:
        return conmon.create_command(self._config.monitor, self._binary, bundle, request, self._config.systemd_cgroup)

    def _complete(self, request: ContainerRequest) -> OciSpec:
        """The spec with what the slot adds: seccomp and annotations."""
        spec: dict[str, Any] = dict(request.spec)
        process = spec.get("process") or {}
        capabilities = frozenset((process.get("capabilities") or {}).get("bounding") or ())
        # The binary kills and removes what this names, so it is the handle's, whatever the spec says.
        linux = dict(spec.get("linux") or {}) | {"cgroupsPath": request.handle.cgroup}
        own_seccomp = linux.pop("seccomp", None)  # of an extension, which knows what it does
        seccomp = self._seccomp.resolve(request.seccomp, capabilities) or own_seccomp
        asked = {
            name: value
            for name, value in (spec.get("annotations") or {}).items()
            if not name.startswith(self.command_annotations)
        }
        annotations = {**asked, **self.added_annotations(seccomp), **self._config.annotations}
        spec["linux"] = {**linux, "seccomp": seccomp} if seccomp else linux
        return {**spec, "annotations": annotations}

    async def _create(self, bundle: Bundle, request: ContainerRequest, command: list[str]) -> ContainerProcess:
        async with _started(bundle, request.monitor_cgroup, command) as monitor:
            monitor.release()
            await finish(self._detached(monitor, request))
            async with drained(lambda: read_pid(bundle.monitor_pid_file)):
                report = await monitor.sync.read()
            if report is None or report.number <= 0:
                raise self._create_failure(bundle, report)
        return self._note(bundle, report.number, request)

    async def _detached(self, monitor: conmon.Started, request: ContainerRequest) -> None:
        """Wait until conmon's first process has opened the log, noted the second one's id and ended."""
        timeout_s = self._deadlines.monitor_start_s
        try:
            async with asyncio.timeout(timeout_s):
                await monitor.process.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the monitor of {request.handle.container_id} has not come to run {self._binary.name} within "
                f"{timeout_s:g} s: does its log {request.log_path} hang?"
            ) from None

    def _create_failure(self, bundle: Bundle, report: conmon.Report | None) -> CrinoidError:
        said = last_error(bundle.runtime_log) or (report.message if report else "")
        said = (
            said
            or runtime_message(bundle.runtime_log)
            or runtime_message(bundle.monitor_log, _read(bundle.monitor_log))
        )
        command = (str(self._binary.path), "create", "--bundle", str(bundle.directory))
        silent = "it gave neither a process nor a reason; was it killed, or is it no OCI runtime? Try its --version"
        return explain(as_error(command, 1, said or silent), bundle.restore_log)

    def _note(self, bundle: Bundle, pid: int, request: ContainerRequest) -> ContainerProcess:
        monitor = read_pid(bundle.monitor_pid_file)
        starts = pidfds.start_time(pid), pidfds.start_time(monitor)
        plain, log_path = self._is_plain(request), str(request.log_path or "")
        bundle.write_processes(Processes(pid, starts[0], monitor, starts[1], log_path, plain))
        return ContainerProcess(pid, monitor)

    def _is_plain(self, request: ContainerRequest) -> bool:
        """Return whether the binary has no part in a container's start and end but for its cgroup and its state
        directory.

        The fifo shows that it keeps its state as runc and crun do.
        """
        fifo = self._binary.state_directory(request.handle.container_id) / FIFO
        others = request.spec.get("hooks") or (request.spec.get("linux") or {}).get("intelRdt")
        return self._config.shortcuts and not self._config.systemd_cgroup and not others and fifo.exists()

    # delete, from here on

    async def _remove(self, handle: ContainerHandle) -> None:
        """Kill what runs, let the binary remove its state, then remove what is left by hand."""
        bundle = Bundle(handle.bundle)
        noted = bundle.read_processes()
        if noted is not None and noted.plain and _has_ended(noted):
            await asyncio.to_thread(self._remove_ended, bundle, handle)
        else:
            await self._end_all(bundle, handle, noted)
            if noted is None or not noted.plain:
                await self._delete_state(handle)
            await self._end_monitor(noted)
            await asyncio.to_thread(self._remove_traces, bundle, handle)
        self._reopening.pop(handle.container_id, None)

    def _remove_ended(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """Remove a plain container that has ended with its monitor: only what it left running is to be killed."""
        cgroup = self._cgroup(handle)
        if self._owns_cgroup(handle) and not cgroups.remove_unused(cgroup):
            cgroups.kill(cgroup, self._deadlines.kill_s)
            cgroups.remove(cgroup)
        self._remove_notes(bundle, handle)

    def _remove_traces(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """What ``delete`` of the binary does besides killing, where that was left out or failed; then all notes."""
        if self._owns_cgroup(handle):
            cgroups.remove(self._cgroup(handle))
        self._remove_notes(bundle, handle)

    def _remove_notes(self, bundle: Bundle, handle: ContainerHandle) -> None:
        """The binary's and our own; ours last, as they say what there is to remove."""
        remove_tree(self._binary.state_directory(handle.container_id))
        bundle.remove_files()

    async def _end_all(self, bundle: Bundle, handle: ContainerHandle, noted: Processes | None) -> None:
        processes = noted or self._processes(bundle, handle)
        if noted is None and bundle.config.exists():  # create did not come to its end
            await self._stop_creating(bundle)
        with pidfds.opened(*((processes.pid, processes.pid_start) if processes else (0, 0))) as first:
            if self._owns_cgroup(handle):
                await asyncio.to_thread(cgroups.kill, self._cgroup(handle), self._deadlines.kill_s)
            elif processes is not None:  # what came from its first process is all that is known to be its own
                await pidfds.kill_tree(processes.pid, processes.pid_start, self._deadlines.kill_s)
            if first is not None and pidfds.send(first, signal.SIGKILL):
                await pidfds.wait_for(first, self._deadlines.kill_s)

    async def _stop_creating(self, bundle: Bundle) -> None:
        """conmon may not have noted itself yet, and goes on when its daemon is killed: find it, and what it runs.

        Raises DeadlineExceeded for what SIGKILL does not end: a binary that hangs in a bind mount of a dead volume.
        """
        until_s = time.monotonic() + self._deadlines.kill_s
        while creators := await asyncio.to_thread(_creators, bundle):
            if (left_s := until_s - time.monotonic()) <= 0:
                left = ", ".join(pidfds.describe(pid) for pid, _ in creators)
                raise DeadlineExceeded(
                    f"what was creating the container has not ended {self._deadlines.kill_s:g} s after SIGKILL, "
                    f"it hangs in the kernel: {left}"
                )
            for pid, started in creators:
                await pidfds.kill_tree(pid, started, left_s)

    async def _delete_state(self, handle: ContainerHandle) -> None:
        """Let the binary delete its state; a plain container can do without, and any other where this fails.

        It kills all that is in the cgroup, whoever has put it there: so it is not asked where that may be another's.
        """
        if not (self._binary.state_directory(handle.container_id).exists() and self._owns_cgroup(handle)):
            return
        command = ("delete", "--force", handle.container_id)
        try:
            await self._binary.run(command, timeout_s=self._deadlines.delete_s)
        except (CrinoidError, OSError) as error:
            self._host.log.warning(
                "container %s: %s could not delete it, removing its state by hand: %s",
                handle.container_id,
                self._binary.name,
                error,
            )

    async def _end_monitor(self, processes: Processes | None) -> None:
        """conmon ends by itself once its container has; one that does not is killed."""
        if processes is None:
            return
        with pidfds.opened(processes.monitor_pid, processes.monitor_start) as monitor:
            if monitor is not None and not await pidfds.wait_for(monitor, _MONITOR_END_S):
                pidfds.send(monitor, signal.SIGKILL)
                await pidfds.wait_for(monitor, self._deadlines.kill_s)

    # what all of them need, from here on

    def _cgroup(self, handle: ContainerHandle) -> str:
        return below_mount(handle.cgroup, self._config.systemd_cgroup)

    def _owns_cgroup(self, handle: ContainerHandle) -> bool:
        """Return whether what is in the container's cgroup may be killed, frozen and removed with it.

        A handle may come from an old record, or one that is damaged: the cgroup itself tells.
        """
        try:
            return cgroups.belongs_to(self._cgroup(handle), handle.container_id)
        except InvalidArgument:  # a name that is not of this slot's form
            return False

    def _require_own_cgroup(self, handle: ContainerHandle, act: str) -> None:
        if not self._owns_cgroup(handle):
            raise FailedPrecondition(
                f"{act}: cgroup {handle.cgroup!r:.300} is not container {handle.container_id}'s own: it does not "
                "have its id for a name, and was not made for it"
            )

    def _exec_cgroup(self, handle: ContainerHandle) -> ExecCgroup:
        name = f"exec-{uuid.uuid4().hex[:16]}"
        return ExecCgroup(self._cgroup(handle), name, everywhere=self.leaves_other_cgroups)

    def _processes(self, bundle: Bundle, handle: ContainerHandle) -> Processes | None:
        """What was started for the container: as noted, else (the daemon was killed meanwhile) from the pid files."""
        noted = bundle.read_processes()
        if noted is not None:
            return noted
        pid, monitor = read_pid(bundle.pid_file), read_pid(bundle.monitor_pid_file)
        if not pid and not monitor:
            return None
        started = pidfds.start_time(pid) if pid in cgroups.processes(self._cgroup(handle)) else 0
        return Processes(pid, started, monitor, _start_of_monitor(monitor, bundle))

    def _living_status(self, handle: ContainerHandle) -> ContainerStatus:
        if (self._binary.state_directory(handle.container_id) / FIFO).exists():
            return ContainerStatus.CREATED
        return ContainerStatus.PAUSED if is_frozen(self._cgroup(handle)) else ContainerStatus.RUNNING

    async def _require(self, handle: ContainerHandle, act: str, *wanted: ContainerStatus) -> int:
        """Return the first process's id. Raises NotFound, and FailedPrecondition for another state."""
        state = await self.state(handle)
        if state.status is ContainerStatus.ABSENT:
            raise NotFound(f"{act}: container {handle.container_id}: {self.package} has nothing of it")
        if state.status not in wanted:
            raise FailedPrecondition(f"{act}: container {handle.container_id} is {state.status.value}")
        return state.pid

    def _overdue(self, act: str, handle: ContainerHandle, after_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._binary.name} {act} of {handle.container_id} was given up after {after_s:g} s")


@contextlib.asynccontextmanager
async def _started(bundle: Bundle, cgroup: str, command: list[str]) -> AsyncIterator[conmon.Started]:
    with _opened_log(bundle.monitor_log) as log:
        async with conmon.started_in_cgroup(command, {2: log}, bundle.directory, cgroup) as monitor:
            yield monitor


def _has_ended(noted: Processes) -> bool:
    """Return whether neither the container's first process nor its monitor lives."""
    processes = ((noted.pid, noted.pid_start), (noted.monitor_pid, noted.monitor_start))
    return not any(started and pidfds.start_time(pid) == started for pid, started in processes)


def _signal_cgroup(cgroup: str, number: int) -> None:
    if number == signal.SIGKILL:
        cgroups.kill(cgroup)
        return
    for pid in cgroups.processes(cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _start_of_monitor(pid: int, bundle: Bundle) -> int:
    """The start time of a process that was given this bundle; 0 when it has gone, or its id is another's."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return 0
    return pidfds.start_time(pid) if b"--bundle\0%b\0" % os.fsencode(bundle.directory) in command else 0


def _creators(bundle: Bundle) -> list[tuple[int, int]]:
    """Every conmon and runtime at work on this bundle, with their start times."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    found = [(pid, _start_of_monitor(pid, bundle)) for pid in pids]
    return [(pid, started) for pid, started in found if started]


def _set_oom_score_adj(pid: int, value: int) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(clamp_oom_score_adj(value)))


@contextlib.contextmanager
def _opened_log(path: Path) -> Iterator[int]:
    fd = rights.open_file(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
