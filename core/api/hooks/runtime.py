"""The runtime role: makes, starts, watches and ends the containers of a pod (entry points ``crinoid.runtimes``).

The story of a pod, for a driver whose pods are more than namespaces, such as virtual machines: ``start_pod``, then
``wait_pod`` for as long as it is up, ``update_pod``, ``pod_stats`` and ``forward_port`` at any time, ``stop_pod``. All
of these are optional.

The story of a container: ``create`` leaves its process waiting before its entry point, ``start`` lets it go, any
number of ``exec_sync``, ``exec_stream``, ``attach``, ``update``, ``kill`` and ``stats`` follow, ``wait`` tells of its
end, ``delete`` removes what is left. The daemon may be killed between any two of these and call on with the same
handle. Every hook but ``create``, ``start``, ``restore``, ``checkpoint``, ``exec_sync`` and ``exec_stream`` is
idempotent.

A driver that can write down what a container's processes do has all of ``check_checkpoint``, ``pause``, ``resume``,
``checkpoint`` and ``restore``, or none. A container that is restored has neither ``create`` nor ``start``.
"""

import socket

from crinoid.core.api.hooks import hookspec
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
    PodSandbox,
    RuntimeFeatures,
    RuntimeState,
    RuntimeTraits,
)
from crinoid.core.api.values.stats import CgroupUsage


class RuntimeHooks:
    """What a runtime driver implements."""

    @hookspec
    async def probe(self) -> RuntimeFeatures:  # type: ignore[empty-body]  # a specification
        """Tell what the runtime can; called at start and for Status.

        Raises Unsupported when the binary or its monitor is missing or doesn't work here, saying what to install.
        """

    @hookspec
    def traits(self) -> RuntimeTraits:  # type: ignore[empty-body]
        """Optional. Tell in what the driver differs from one that runs the node's own programs.

        The only hook that is no coroutine. Constant for the slot's life.
        """

    @hookspec
    async def start_pod(self, pod: PodSandbox) -> None:
        """Optional. Prepare for the pod's containers, after its namespaces and network are there (a VM starts here).

        On an error, and when cancelled, the kernel calls ``stop_pod``.
        """

    @hookspec
    async def stop_pod(self, pod: PodSandbox) -> None:
        """Optional. Undo ``start_pod``, whole or in part; idempotent. All containers of the pod have ended."""

    @hookspec
    async def wait_pod(self, pod: PodSandbox) -> str:  # type: ignore[empty-body]
        """Optional. Wait, with no deadline, until what ``start_pod`` has made ends by itself; say why in a few words.

        Answers at once when it has ended. The pod is not ready from then on; ``wait`` tells of its containers. Called
        again after a restart of the daemon, and cancelled before ``stop_pod``.
        """

    @hookspec
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        """Optional. Take what the pod's containers may use together, and what the pod may use beside them.

        Either is ``None`` where it was never told. The pod's cgroup, which is the kubelet's, has its limits already.
        """

    @hookspec
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:  # type: ignore[empty-body]
        """Optional. Read what the pod uses now, where its cgroup does not tell. Raises NotFound once it has ended."""

    @hookspec
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:  # type: ignore[empty-body]
        """Optional. Connect to a TCP port inside of the pod, where its programs listen in no namespace of the host's.

        Returns a stream socket of any family, connected and non-blocking, which the caller closes. Raises Unavailable
        when nobody listens.
        """

    @hookspec
    async def create(self, request: ContainerRequest) -> ContainerProcess:  # type: ignore[empty-body]
        """Make the container; return when its process waits before the entry point.

        On any error, and when cancelled, nothing of the container is left but what ``delete`` removes. Raises
        CommandFailed with the runtime's own words, RuntimeRefused when the spec names what does not exist.
        """

    @hookspec
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:  # type: ignore[empty-body]
        """Optional. Say what ``create`` would do, a line for each step, a command as a shell would take it; do nothing.

        For ``crinoid explain --dry-run``: nothing that the request names is there, its bundle neither.
        """

    @hookspec
    async def start(self, handle: ContainerHandle) -> None:
        """Let the created container run. Raises CommandFailed when its entry point can't be executed."""

    @hookspec
    async def wait(self, handle: ContainerHandle) -> ExitStatus:  # type: ignore[empty-body]
        """Wait, with no deadline, until the container has ended; answers at once when it has.

        Any number of callers may wait. When nobody saw the end (the monitor was killed), the answer is 255 with
        ``known`` false. Raises NotFound for a container this driver has nothing of.
        """

    @hookspec
    async def state(self, handle: ContainerHandle) -> RuntimeState:  # type: ignore[empty-body]
        """Tell the container's state; ``ABSENT`` when there is none."""

    @hookspec
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        """Send a signal to the first process, or to every process of the container; no error if it has ended."""

    @hookspec
    async def delete(self, handle: ContainerHandle) -> None:
        """Remove the container, killing what runs, its monitor, its cgroup and the driver's files; keep the log."""

    @hookspec
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:  # type: ignore[empty-body]
        """Optional. Run an exec process to its end. Raises DeadlineExceeded after killing its process tree."""

    @hookspec
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:  # type: ignore[empty-body]
        """Optional. Start an exec process, with a terminal if its description says so, and return its streams.

        Raises as ``exec_sync`` does when it can't be started. The caller closes the session; see :class:`ExecSession`
        for what that does to the process. When cancelled, nothing of the process is left.
        """

    @hookspec
    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:  # type: ignore[empty-body]
        """Optional. Join the streams of a running container. Raises FailedPrecondition unless it runs, or is created.

        Output from before is not repeated. The caller closes the session.
        """

    @hookspec
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        """Change limits of a created or running container; zero and empty fields stay as they are."""

    @hookspec
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """Make the monitor open the log path anew (it was rotated away); no line is lost or torn."""

    @hookspec
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:  # type: ignore[empty-body]
        """Read what the container uses now. Raises NotFound once it has ended."""

    @hookspec
    async def stats_many(self, handles: tuple[ContainerHandle, ...]) -> tuple[CgroupUsage | None, ...]:  # type: ignore[empty-body]
        """Optional. Do as ``stats`` does for many containers at one look; ``None`` in the place of one that has ended.

        A kubelet asks for all of a node each ten seconds. Of a driver that lacks this, ``stats`` is called for each.
        """

    @hookspec
    async def check_checkpoint(self) -> None:
        """Optional. Raise Unsupported, saying what is missing, where processes can't be checkpointed and restored."""

    @hookspec
    async def pause(self, handle: ContainerHandle) -> None:
        """Optional. Freeze every process of a running container; no error if it is frozen. Raises FailedPrecondition
        unless it runs. When cancelled, it may be frozen or not."""

    @hookspec
    async def resume(self, handle: ContainerHandle) -> None:
        """Optional. Undo ``pause``; no error if the container is not frozen, has ended or is not there."""

    @hookspec
    async def checkpoint(self, request: CheckpointRequest) -> None:
        """Optional. Write down what the processes of a paused container do, to its directories; it stays as it is,
        paused.

        Raises Unsupported where the host or the container can't be checkpointed, CommandFailed or DeadlineExceeded;
        what is in the directories then is the caller's to remove.
        """

    @hookspec
    async def restore(self, request: RestoreRequest) -> ContainerProcess:  # type: ignore[empty-body]
        """Optional. Make the container and let its processes go on where a checkpoint has left them.

        The root file system is as it was then. On any error, and when cancelled, nothing is left but what ``delete``
        removes. Raises as ``create`` and ``checkpoint`` do.
        """
