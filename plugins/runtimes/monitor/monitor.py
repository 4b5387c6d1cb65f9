"""What the hooks know of a monitor: the process that stays beside a container while the daemon comes and goes.

The story of one container: ``create`` runs the runtime's binary under a new monitor and returns what was started;
``wait``, ``attach``, ``reopen_log``, ``exec_sync`` and ``exec_stream`` follow, in the same daemon or a later one, by
what lies in the bundle; ``end`` waits for the monitor's own end. ``find`` and ``stop_creating`` are for a daemon that
was killed in the middle of ``create``.

What a monitor does itself: it runs ``Binary.create_command`` in ``request.monitor_cgroup`` (``spawn_in_cgroup`` of
``crinoid.core.api.linux.process``), as a process that outlives the daemon, so it forks and leads a session; it is the
child subreaper (prctl(2)) of the container's first process, writes its output to ``request.log_path`` in the CRI's form
(``TIME STREAM F|P TEXT``), and leaves the exit code in a file of its own in the bundle. It is found again, after a
restart too, by process id and start time (``processes.pidfds``). What it can't do, such as exec, raises Unsupported.
"""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from crinoid.core.api.buffers import BufferPool
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerRequest,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
)
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.processes.exec_cgroups import ExecCgroup


class Monitor(abc.ABC):
    """One kind of monitor, for the containers of one slot. Coroutines may be cancelled at any await.

    Options of its own come from the driver's ``Config``, a subclass of OciOptions, whose ``monitor`` is conmon's.
    """

    name: ClassVar[str]
    """Names its version in what the runtime reports of itself."""
    files: ClassVar[tuple[str, ...]]
    """Names of its files in a bundle, which are removed with the container."""

    @abc.abstractmethod
    def __init__(self, options: OciOptions, binary: Binary) -> None:
        """Keep what it takes to run the binary for the slot's containers; touch nothing."""

    @property
    @abc.abstractmethod
    def program(self) -> Path:
        """Its program. Raises Unsupported when there is none, saying what to install."""

    def preview(self, bundle: Bundle, request: ContainerRequest) -> tuple[str, ...]:
        """Return the commands that start the monitor, for people; run none. What it runs then is added. Blocks."""
        return ()

    @abc.abstractmethod
    async def version(self) -> str:
        """Ask the program for its version. Raises CommandFailed when it can't be run."""

    @abc.abstractmethod
    async def create(self, bundle: Bundle, request: ContainerRequest, checkpoint: Path | None = None) -> Processes:
        """Have the runtime make the container under a new monitor; the spec is written. Return what was started.

        The caller writes down what is returned; start times are ``pidfds.start_time``'s. ``checkpoint``: criu's images
        to restore instead, with file locks, criu's log being ``bundle.restore_log``. Raises CommandFailed in the
        runtime's own words (``runtime_errors.as_error``), DeadlineExceeded when the monitor itself does not come to run
        it. The caller has a deadline for all of it, and removes what is left then.
        """

    @abc.abstractmethod
    def find(self, bundle: Bundle, is_in_container: Callable[[int], bool]) -> Processes | None:
        """Return what a ``create`` that did not come to its end has started; ``None``: nothing.

        ``is_in_container(pid)`` guards against a process id from a file that is somebody else's by now.
        """

    @abc.abstractmethod
    async def stop_creating(self, bundle: Bundle) -> None:
        """Kill monitor and runtime that still work on a bundle. Raises DeadlineExceeded for what does not end."""

    @abc.abstractmethod
    async def wait(self, bundle: Bundle, processes: Processes, oom_killed: Callable[[], bool]) -> ExitStatus:
        """Wait, with no deadline, for the container's end, also when the monitor was killed before it.

        Any number may wait, and every answer is the same: an end that no monitor lived to write down is kept by
        ``bundle.write_unseen_exit``. ``oom_killed`` tells whether the kernel has killed in the container's cgroup.
        """

    @abc.abstractmethod
    async def end(self, processes: Processes) -> None:
        """Wait until the monitor has ended, as it does once its container has; kill it when that takes too long."""

    @abc.abstractmethod
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest, cgroup: ExecCgroup) -> ExecOutput:
        """Run an exec process to its end; see the hook."""

    @abc.abstractmethod
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest, cgroup: ExecCgroup) -> ExecSession:
        """Start an exec process and return its streams; see the hook."""

    @abc.abstractmethod
    async def attach(self, bundle: Bundle, request: AttachRequest, buffers: BufferPool) -> AttachSession:
        """Join the container's streams. Raises FailedPrecondition when nobody keeps them any more."""

    @abc.abstractmethod
    async def reopen_log(self, bundle: Bundle) -> None:
        """Open the log anew where it was rotated away; no line is lost or torn. See the hook."""
