"""What crosses the OCI runtime's hooks: a container to be made, its process, its end, its usage."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api.values.image import Platform
from crinoid.core.api.values.pod import PodConfig, SecurityProfile
from crinoid.core.api.values.snapshot import Mount

OciSpec = Mapping[str, Any]
"""An OCI runtime-spec ``config.json`` as a JSON object; ``Any`` because its schema is the specification's."""


class ContainerStatus(enum.Enum):
    """The state of a container as its runtime sees it."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ContainerHandle:
    """Names a container in every hook; enough, together with the driver's own directories, to find it after a restart.

    ``cgroup`` is its cgroup path below the mount point (cgroupfs), or ``slice:prefix:name`` (systemd). It has the
    container's id for a name, or was made for the container: ``cgroups.belongs_to`` tells. A driver refuses any other,
    and never kills, freezes or removes what is in one.
    """

    container_id: str
    pod_id: str
    bundle: Path
    cgroup: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """A container to be made from ``spec``, whose ``root.path`` is mounted already, unless the driver's traits say that
    it mounts the root: then that is an empty directory, and ``root_mounts`` is what makes the root, in this order.

    The driver completes the spec by what its slot says (seccomp, extra annotations) and writes it to the bundle.
    ``seccomp`` ``None`` means unconfined, as in a privileged container, unless ``spec`` brings a filter of its own.
    ``log_path`` is absolute; ``None`` discards the output. The monitor runs in ``monitor_cgroup`` (a path below the
    mount point) where that is not empty.
    """

    handle: ContainerHandle
    spec: OciSpec
    seccomp: SecurityProfile | None = None
    log_path: Path | None = None
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    monitor_cgroup: str = ""
    root_mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerProcess:
    """The container's first process (``pid``, in the host's PID namespace; 0 in a guest) and its monitor (0: none)."""

    pid: int
    monitor_pid: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """What the runtime says of a container; ``pid`` is 0 once it has stopped."""

    status: ContainerStatus
    pid: int = 0


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a container ended: 0 to 255, 128 + signal for a signal. ``known`` is false when nobody saw the end (255)."""

    exit_code: int
    finished_at_ns: int
    oom_killed: bool = False
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """An exec process in a running container: ``process`` is an OCI ``process`` object.

    When ``timeout_s`` passes (``None``: no limit) its whole process tree is killed. Output beyond
    ``max_output_bytes`` of each stream is dropped.
    """

    process: Mapping[str, Any]
    timeout_s: float | None = None
    max_output_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """What a synchronous exec gave."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecStreamRequest:
    """An exec process in a running container, and which of its streams are wanted.

    ``process`` is an OCI ``process`` object; its ``terminal`` says whether it gets a terminal, whose output is
    ``stdout``. An unwanted input is at its end, an unwanted output is discarded.
    """

    process: Mapping[str, Any]
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """Which streams of a container's first process are wanted. ``stdin`` asks in vain where the container has none."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFeatures:
    """What the runtime binary is and can: name and version as it tells them itself."""

    name: str
    version: str
    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTraits:
    """In what a runtime differs from one that runs the node's own programs.

    ``platform`` is what its images are for, ``None`` for the node's own. ``artifact_types`` are those of OCI artifacts
    that it runs: their files are the root, and the first of them is the program of a container that names none.
    ``mounts_root``: it mounts the root itself (see ``ContainerRequest``), as one does that gives it to a guest.
    ``shares_processes``: containers that share one PID namespace do so inside of its pods. The kernel makes no such
    namespace and no init process then, and the specification of these containers names no PID namespace.
    """

    platform: Platform | None = None
    artifact_types: frozenset[str] = frozenset()
    mounts_root: bool = False
    shares_processes: bool = False


@dataclass(frozen=True, slots=True)
class PodSandbox:
    """A pod as the pod hooks of a runtime see it; ``namespaces`` maps ``network``, ``ipc``, ``uts``, … to pins."""

    pod_id: str
    config: PodConfig
    namespaces: Mapping[str, Path]
    cgroup_parent: str
