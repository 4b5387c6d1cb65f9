"""Runtimes whose pods are guests, with a bug each. A process that all containers end with stands in for the guest."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.namespaces import call_in
from crinoid.core.api.linux.process import spawn_in_cgroup
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import ContainerHandle, ContainerProcess, ContainerRequest, PodSandbox
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.runc import RuncOptions, RuncRuntime

from . import caught_by


class Good(RuncRuntime):
    """The runtime ``runc``, whose pods have a process each: the first of a PID namespace, which containers join."""

    def __init__(self, host: Host) -> None:
        super().__init__(RuncOptions(), host)
        self.directory = host.run_dir

    @hookimpl
    async def start_pod(self, pod: PodSandbox) -> None:
        self.record(pod.pod_id).parent.mkdir()
        made = await spawn_in_cgroup(
            ["unshare", "--pid", "--fork", "--kill-child", "sleep", "1000"],
            env={"PATH": os.environ["PATH"]},
            fds={},
            cwd=Path("/"),
            cgroup=pod.cgroup_parent,
        )
        first: tuple[int, ...] = ()
        while not first:  # it waits once in any case: a start can be cancelled here
            await asyncio.sleep(0.002)
            first = pidfds.children(made.pid)
        self.record(pod.pod_id).write_text(json.dumps([first[0], pidfds.start_time(first[0])]))
        made.close()

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        await asyncio.to_thread(cgroups.kill, pod.cgroup_parent)
        await asyncio.to_thread(cgroups.remove, pod.cgroup_parent)
        shutil.rmtree(self.record(pod.pod_id).parent, ignore_errors=True)

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        with pidfds.opened(*self.process(pod.pod_id)) as fd:
            if fd is not None:
                await pidfds.wait(fd)
        return "its first process has ended"

    @hookimpl
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        if resources is not None:  # those of the test are in cgroups beside it
            await asyncio.to_thread(cgroups.write_resources, str(Path(pod.cgroup_parent).parent), resources)

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        if not self.is_up(pod.pod_id):
            raise NotFound("it has ended")
        return await asyncio.to_thread(cgroups.read_usage, str(Path(pod.cgroup_parent).parent))

    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        namespace = Path(f"/proc/{(self.record(pod.pod_id).parent / 'container').read_text()}/ns/net")
        made = await asyncio.to_thread(call_in, namespace, socket.socket)
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        except OSError as error:
            made.close()
            raise Unavailable(f"port {port}: {error.strerror}") from error
        return made

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        pod_id = request.handle.pod_id
        if not self.is_up(pod_id):
            raise FailedPrecondition("its guest is not up")
        namespaces = [one for one in request.spec["linux"]["namespaces"] if one["type"] != "pid"]
        namespaces.append({"type": "pid", "path": f"/proc/{self.process(pod_id)[0]}/ns/pid"})
        linux = {**request.spec["linux"], "namespaces": namespaces}
        made = await super().create(replace(request, spec={**request.spec, "linux": linux}))
        (self.record(pod_id).parent / "container").write_text(str(made.pid))
        return made

    def record(self, pod_id: str) -> Path:
        """Where the process of a pod is written down."""
        return self.directory / pod_id / "process"

    def process(self, pod_id: str) -> tuple[int, int]:
        """The process of a pod and its start time; 0 for none."""
        with suppress(FileNotFoundError):
            pid, started = json.loads(self.record(pod_id).read_text())
            return pid, started
        return 0, 0

    def is_up(self, pod_id: str) -> bool:
        """Whether the process of a pod runs."""
        pid, started = self.process(pod_id)
        return bool(pid) and pidfds.start_time(pid) == started


def end(host: Host, pod: PodSandbox) -> None:
    """Kill the process of a pod."""
    os.kill(json.loads((host.run_dir / pod.pod_id / "process").read_text())[0], signal.SIGKILL)


@caught_by("test_a_guest_is_up_until_it_is_stopped", "says that a guest has ended which is up")
class EndsAtOnce(Good):
    """``wait_pod`` answers while the guest is up."""

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        return "ended"


@caught_by("test_a_guest_is_up_until_it_is_stopped", "says that a guest has ended which is up: it is not known")
class InMemoryOnly(Good):
    """What is known of guests is in memory only."""

    known: Any = None

    @hookimpl
    async def start_pod(self, pod: PodSandbox) -> None:
        await super().start_pod(pod)
        self.known = pod.pod_id

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        return await super().wait_pod(pod) if self.known else "it is not known"


@caught_by("test_a_guest_is_up_until_it_is_stopped", "AlreadyExists|there is no guest")
class StopsOnce(Good):
    """A second ``stop_pod`` is an error."""

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        if getattr(self, "stopped", None) == pod.pod_id:
            raise AlreadyExists("there is no guest")
        await super().stop_pod(pod)
        self.stopped = pod.pod_id


@caught_by("test_a_guest_is_up_until_it_is_stopped", "stop_pod leaves processes")
class LivesOn(Good):
    """``stop_pod`` leaves the guest to itself."""

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        shutil.rmtree(self.record(pod.pod_id).parent, ignore_errors=True)


@caught_by("test_a_guest_is_up_until_it_is_stopped", "stop_pod leaves files")
class LeavesFiles(Good):
    """``stop_pod`` leaves the guest's files."""

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        await asyncio.to_thread(cgroups.kill, pod.cgroup_parent)
        await asyncio.to_thread(cgroups.remove, pod.cgroup_parent)


@caught_by("test_the_end_of_a_guest_is_told", "wait_pod has had no answer for 2 s", hook_s=2.0)
class EndIsMissed(Good):
    """``wait_pod`` never hears of the guest's end."""

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        await asyncio.get_running_loop().create_future()
        return ""


@caught_by("test_the_end_of_a_guest_is_told", "does not say why the guest has ended")
class SaysNothing(Good):
    """``wait_pod`` does not say why."""

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        await super().wait_pod(pod)
        return ""


@caught_by("test_the_end_of_a_guest_is_told", "wait_pod has had no answer for 5 s", hook_s=5.0)
class EndIsToldOnce(Good):
    """``wait_pod`` does not answer when the guest has ended before it is asked."""

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        if not self.is_up(pod.pod_id):
            await asyncio.get_running_loop().create_future()
        return await super().wait_pod(pod)


@caught_by("test_the_end_of_a_guest_is_told", "DID NOT RAISE")
class StatsAfterTheEnd(Good):
    """A guest that has ended uses nothing, where it should have no statistics."""

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        return CgroupUsage(timestamp_ns=time.time_ns())


@caught_by("test_the_end_of_a_guest_is_told", "there is nobody to send a signal to")
class NoSignalAfterTheEnd(Good):
    """A signal to a container whose guest has ended is an error."""

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        if not self.is_up(handle.pod_id):
            raise FailedPrecondition("there is nobody to send a signal to")
        await super().kill(handle, signal, everyone)


@caught_by("test_no_container_is_made_without_its_guest", "DID NOT RAISE")
class NeedsNoGuest(Good):
    """A container whose guest is not there is made beside it."""

    create = RuncRuntime.create


@caught_by("test_stopping_a_guest_that_never_was", "No such file or directory|process")
class StopsOnlyItsOwn(Good):
    """A guest that never was can't be stopped."""

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        self.record(pod.pod_id).stat()
        await super().stop_pod(pod)


@caught_by("test_a_start_of_a_guest_that_is_cancelled_is_undone", "stop_pod leaves processes")
class StopsWhatIsWrittenDown(Good):
    """``stop_pod`` knows nothing of a guest that was not yet written down when its start was cancelled."""

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        if self.record(pod.pod_id).exists():
            await super().stop_pod(pod)
        shutil.rmtree(self.record(pod.pod_id).parent, ignore_errors=True)


@caught_by("test_limits_of_a_guest_hold_for_all_in_it", "assert 0 == 137")
class LimitsIgnored(Good):
    """Limits of the pod are passed over."""

    @hookimpl
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        pass


@caught_by("test_limits_of_a_guest_hold_for_all_in_it", "'NoneType' object has no attribute")
class LimitsExpected(Good):
    """A pod without limits is an error."""

    @hookimpl
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        assert resources.memory_limit_bytes >= 0  # type: ignore[union-attr]  # the bug


@caught_by("test_what_a_guest_uses", "cpu_ns")
class StatsInMicroseconds(Good):
    """Processor time of a guest is in microseconds."""

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        usage = await super().pod_stats(pod)
        return replace(usage, cpu_ns=usage.cpu_ns // 1000)


@caught_by("test_what_a_guest_uses", "memory_working_set_bytes")
class WorkingSetAboveUsage(Good):
    """A guest's working set is more than all that is used."""

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        usage = await super().pod_stats(pod)
        return replace(usage, memory_working_set_bytes=usage.memory_usage_bytes + 1)


@caught_by("test_a_port_in_a_guest", "DID NOT RAISE")
class PortsAlwaysOpen(Good):
    """A port that nobody listens on can be connected to."""

    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        return made


@caught_by("test_a_port_in_a_guest", "the socket blocks")
class PortsBlock(Good):
    """The socket to a port blocks the loop."""

    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        made = await super().forward_port(pod, port)
        made.setblocking(True)
        return made
