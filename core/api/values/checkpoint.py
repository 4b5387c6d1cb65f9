"""What crosses the runtime's hooks to write down what a container's processes do, and to let them go on elsewhere."""

from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRequest:
    """A paused container whose processes are to be written down.

    ``images`` is an empty directory for their state, in a form that only the driver's own ``restore`` has to know
    (criu's image files); ``work`` is a directory for what is said meanwhile: ``dump.log``, ``stats-dump``.
    ``timeout_s`` bounds the act.
    """

    handle: ContainerHandle
    images: Path
    work: Path
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """A container to be made whose processes go on as ``images`` tells, a directory that ``checkpoint`` has filled.

    ``former_cgroup`` is the cgroup that they were in then, in the form of ``ContainerHandle.cgroup``, maybe of another
    node: nothing of it may be left. Empty: nobody knows.
    """

    container: ContainerRequest
    images: Path
    timeout_s: float
    former_cgroup: str = ""
