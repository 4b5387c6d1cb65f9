"""Runtimes with a bug each, on top of the built-in one for runc."""

import asyncio
import contextlib
import signal as signals
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError, DriverError, FailedPrecondition, NotFound
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import (
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ContainerStatus,
    ExecOutput,
    ExecRequest,
    ExitStatus,
    RuntimeFeatures,
    RuntimeState,
    RuntimeTraits,
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.plugins.runtimes.runc import RuncOptions, RuncRuntime
from support.patience import patient

from . import caught_by


class Good(RuncRuntime):
    """The runtime ``runc``."""

    def __init__(self, host: Host) -> None:
        super().__init__(RuncOptions(), host)


@caught_by("test_its_hooks_are_as_specified", "kill has the name of a hook but no @hookimpl")
class MarkForgotten(Good):
    """``kill`` has no ``@hookimpl``."""

    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        await super().kill(handle, signal, everyone)


@caught_by("test_its_hooks_are_as_specified", 'reopen_logs is all but "reopen_log"')
class NameMisspelt(Good):
    """A hook is misspelt, and has no mark."""

    reopen_log = None  # type: ignore[assignment]

    async def reopen_logs(self, handle: ContainerHandle) -> None: ...


@caught_by("test_tells_its_name_and_version", "version='unknown'")
class NoVersion(Good):
    """It does not know its version."""

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        return replace(await super().probe(), version="unknown")


@caught_by("test_tells_its_name_and_version", "probe has held the event loop for")
class Blocks(Good):
    """``probe`` holds up the loop for a second."""

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        time.sleep(patient(0.6))
        return await super().probe()


@caught_by("test_tells_its_name_and_version", "probe has had no answer for 0.3 s", hook_s=0.3)
class Hangs(Good):
    """``probe`` never answers."""

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        await asyncio.Event().wait()
        raise AssertionError


@caught_by("test_a_whole_life", "RuntimeState")
class RunsAtOnce(Good):
    """A container runs once it is created."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        process = await super().create(request)
        await super().start(request.handle)
        return process

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        """It runs."""


@caught_by("test_a_whole_life", "create returned .* where ContainerProcess is due")
class WrongType(Good):
    """``create`` returns a number."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> Any:
        return (await super().create(request)).pid


@caught_by("test_a_whole_life", "finished_at_ns")
class EndsAtTheEpoch(Good):
    """The time of the end is in seconds."""

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        status = await super().wait(handle)
        return replace(status, finished_at_ns=status.finished_at_ns // 1_000_000_000)


@caught_by("test_a_whole_life", "delete took the log|No such file")
class DeletesTheLog(Good):
    """``delete`` takes the log with it."""

    logs: dict[str, Path] = {}  # noqa: RUF012

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        if request.log_path:
            self.logs[request.handle.container_id] = request.log_path
        return await super().create(request)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await super().delete(handle)
        if handle.container_id in self.logs:
            self.logs[handle.container_id].unlink(missing_ok=True)


@caught_by("test_exit_codes", "== 255", script="exit 255", code=255)
class CodesOfSevenBits(Good):
    """Exit codes above 127 are cut."""

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        status = await super().wait(handle)
        return replace(status, exit_code=status.exit_code & 127)


@caught_by("test_many_may_wait_and_the_answer_stays", "assert not True")
class OneMayWait(Good):
    """Two can't wait for a container."""

    waiting = False

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        if self.waiting:
            raise FailedPrecondition("somebody waits")
        self.waiting = True
        return await super().wait(handle)


@caught_by("test_a_wait_can_be_given_up", "CancelledError")
class WaitsOnWhenCancelled(Good):
    """A wait that is given up seems to be the container's end."""

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        try:
            return await super().wait(handle)
        except asyncio.CancelledError:
            return ExitStatus(255, 0, known=False)


@caught_by("test_waiting_for_a_stranger", "DID NOT RAISE")
class KnowsStrangers(Good):
    """A container that never was has ended."""

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        try:
            return await super().wait(handle)
        except NotFound:
            return ExitStatus(255, 0, known=False)


@caught_by("test_out_of_memory", "True")
class OomUntold(Good):
    """That memory ran out is not told."""

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        return replace(await super().wait(handle), oom_killed=False)


@caught_by("test_a_signal_reaches_the_first_process", "== 5")
class AlwaysKills(Good):
    """Whatever signal is sent, it is SIGKILL."""

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        await super().kill(handle, signals.SIGKILL, everyone)


@caught_by("test_a_signal_reaches_the_first_process", "it has ended")
class KillsTheLiving(Good):
    """A signal to a container that has ended is an error."""

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        if (await super().state(handle)).status is ContainerStatus.STOPPED:
            raise FailedPrecondition("it has ended")
        await super().kill(handle, signal, everyone)


@caught_by("test_a_signal_to_everyone", "sleep 7001")
class KillsTheFirst(Good):
    """Only the first process gets a signal that is for everyone."""

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        await super().kill(handle, signal, False)


@caught_by("test_everyone_gets_the_signal_that_was_sent", "== 6")
class KillsEveryone(Good):
    """Whatever signal is for everyone, it is SIGKILL."""

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        await super().kill(handle, signals.SIGKILL if everyone else signal, everyone)


@caught_by("test_deleting_at_any_time_and_twice", "is not here")
class DeletesOnce(Good):
    """A second ``delete`` is an error."""

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        if (await super().state(handle)).status is ContainerStatus.ABSENT:
            raise NotFound("it is not here")
        await super().delete(handle)


@caught_by("test_deleting_at_any_time_and_twice", "left.json")
class LeavesAFile(Good):
    """``delete`` leaves something in the bundle."""

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await super().delete(handle)
        (handle.bundle / "left.json").touch()


@caught_by("test_deleting_at_the_same_time", "somebody deletes")
class DeletesOneAtATime(Good):
    """Two can't delete a container at the same time."""

    busy = False

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        if self.busy:
            raise FailedPrecondition("somebody deletes")
        self.busy = True
        await super().delete(handle)
        self.busy = False


@caught_by("test_a_new_daemon_goes_on", "never heard of it")
class Remembers(Good):
    """Containers of an earlier daemon are unknown."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.known: set[str] = set()

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        self.known.add(request.handle.container_id)
        return await super().create(request)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        if handle.container_id not in self.known:
            raise NotFound("never heard of it")
        await super().start(handle)


@caught_by("test_a_missing_entry_point", "it failed", program="nowhere")
class SaysNotWhy(Good):
    """The runtime's own words are lost."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        try:
            return await super().create(request)
        except CrinoidError:
            raise DriverError("it failed") from None


@caught_by("test_a_create_that_is_cancelled", "bundle.*create was cancelled|create was cancelled")
class LeavesAFileWhenCancelled(Good):
    """What ``create`` has begun stays when it is cancelled, and ``delete`` knows nothing of it."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        begun = request.handle.bundle / "begun"
        begun.mkdir()
        process = await super().create(request)
        begun.rmdir()
        return process

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await super().delete(handle)
        if not any(handle.bundle.iterdir()):
            return
        (handle.bundle / "begun").mkdir(exist_ok=True)


@caught_by("test_a_delete_that_is_cancelled_can_be_done_again", "delete was cancelled")
class ForgetsTooEarly(Good):
    """``delete`` thinks that it is done when it was cancelled."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.gone: set[str] = set()

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        if handle.container_id in self.gone:
            return
        self.gone.add(handle.container_id)
        await asyncio.sleep(0)
        await super().delete(handle)


@caught_by("test_an_id_that_is_taken", "DID NOT RAISE")
class TakesAnyId(Good):
    """A container whose id is taken is made all the same."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        with contextlib.suppress(CrinoidError):
            return await super().create(request)
        return ContainerProcess((await super().state(request.handle)).pid)


@caught_by("test_a_user_namespace", "4294967295|==")
class NoUserNamespace(Good):
    """The user namespace of a specification is passed over."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        linux = request.spec["linux"]
        kept = {name: value for name, value in linux.items() if name not in ("uidMappings", "gidMappings")}
        kept["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "user"]
        return await super().create(replace(request, spec={**request.spec, "linux": kept}))


@caught_by("test_a_local_seccomp_profile", "!= 0")
class NoSeccomp(Good):
    """Seccomp profiles are passed over."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        return await super().create(replace(request, seccomp=None))


@caught_by("test_exec", "ExecOutput")
class StreamsSwapped(Good):
    """Output and errors of an exec are mixed up."""

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        output = await super().exec_sync(handle, request)
        return ExecOutput(output.exit_code, output.stderr, output.stdout)


@caught_by("test_the_exit_code_of_an_exec", "ExecOutput", script="exit 255", code=255)
class ExecSucceeds(Good):
    """The exit code of an exec is lost."""

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        return replace(await super().exec_sync(handle, request), exit_code=0)


@caught_by("test_exec_where_nothing_runs", "DID NOT RAISE")
class ExecAnywhere(Good):
    """An exec where nothing runs does nothing, with success."""

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        with contextlib.suppress(FailedPrecondition, NotFound):
            return await super().exec_sync(handle, request)
        return ExecOutput(0, b"", b"")


@caught_by("test_exec_drops_what_is_too_much", "ExecOutput")
class ExecWithoutBound(Good):
    """The output of an exec has no bound."""

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        return await super().exec_sync(handle, replace(request, max_output_bytes=1 << 20))


@caught_by("test_update", "a field that was not given was changed")
class UpdateForgets(Good):
    """An update resets what it does not give."""

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        if not resources.memory_limit_bytes:
            resources = replace(resources, memory_limit_bytes=1 << 30)
        await super().update(handle, resources)


@caught_by("test_stats", "cpu_ns")
class CpuInMicroseconds(Good):
    """Processor time is in microseconds."""

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        usage = await super().stats(handle)
        return replace(usage, cpu_ns=usage.cpu_ns // 1000)


@caught_by("test_stats", "memory_working_set_bytes")
class WorkingSetAboveUsage(Good):
    """The working set is more than all that is used."""

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        usage = await super().stats(handle)
        return replace(usage, memory_working_set_bytes=usage.memory_usage_bytes + 4096)


@caught_by("test_stats", "DID NOT RAISE")
class StatsOfTheDead(Good):
    """A container that has ended uses nothing, where it should have no statistics."""

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        with contextlib.suppress(NotFound):
            return await super().stats(handle)
        return CgroupUsage(timestamp_ns=time.time_ns())


@caught_by("test_stats_count_every_process", "== 3")
class OneProcess(Good):
    """A container has one process, always."""

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        return replace(await super().stats(handle), pids=1)


@caught_by("test_stats_of_many", "2 answers|have")
class StatsOfSome(Good):
    """Of many containers, those that have ended are left out."""

    @hookimpl
    async def stats_many(self, handles: tuple[ContainerHandle, ...]) -> tuple[CgroupUsage | None, ...]:
        return tuple(one for one in await super().stats_many(handles) if one is not None)


@caught_by("test_reopening_at_the_same_time", "No such file|==")
class LogNotReopened(Good):
    """A log that was rotated is not opened anew."""

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """The monitor writes on to the old file."""


@caught_by("test_an_exec_that_is_cancelled", "sleep 6010|exec_sync was (not )?cancelled")
class ExecOutlivesItsCaller(Good):
    """An exec that is cancelled goes on."""

    running: set[Any] = set()  # noqa: RUF012

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        task = asyncio.ensure_future(super().exec_sync(handle, request))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return await asyncio.shield(task)


@caught_by("test_an_entry_point_that_is_no_program", "!= 0")
class RubbishSucceeds(Good):
    """An entry point that can't run has run well."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        with contextlib.suppress(CrinoidError):
            return await super().create(request)
        return ContainerProcess(4)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        with contextlib.suppress(CrinoidError):
            await super().start(handle)

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        with contextlib.suppress(CrinoidError):
            return replace(await super().wait(handle), exit_code=0)
        return ExitStatus(0, 0)


@caught_by("test_a_cgroup_that_is_not_the_containers_is_refused_and_left", "DID NOT RAISE|did not raise|foreign")
class AnyCgroup(Good):
    """A cgroup of others is taken for the container's."""

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        handle = replace(request.handle, cgroup=f"{request.handle.cgroup}/{request.handle.container_id}")
        return await super().create(replace(request, handle=handle))

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        return await super().state(handle)


@caught_by("test_a_preview_does_nothing", "preview has made the bundle")
class PreviewActs(Good):
    """``preview`` makes what it would need."""

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        request.handle.bundle.mkdir()
        return await super().preview(request)


@caught_by("test_a_preview_does_nothing", "the preview is ()")
class PreviewSaysNothing(Good):
    """``preview`` says nothing."""

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        return ()


@caught_by("test_a_preview_does_nothing", "where tuple\\[str, ...\\] is due")
class PreviewIsAList(Good):
    """``preview`` answers a list."""

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        return list(await super().preview(request))  # type: ignore[return-value]  # the bug


@caught_by("test_a_preview_does_nothing", "nowhere")
class PreviewNeedsTheRoot(Good):
    """``preview`` looks into the root, which is not there."""

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        list(Path(request.spec["root"]["path"]).iterdir())
        return await super().preview(request)


@caught_by("test_its_traits_are_constant", "==")
class FickleTraits(Good):
    """Its traits change."""

    mounts_root = False

    @hookimpl
    def traits(self) -> RuntimeTraits:
        self.mounts_root = not self.mounts_root
        return RuntimeTraits(mounts_root=self.mounts_root)
