"""What the daemon remembers of each pod, container and image, and the steps their states may take.

A record is the truth that lists and statuses are answered from; it is written to disk before anybody is told.
``store`` keeps them, ``lifecycle`` makes them.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.image import Descriptor
from crinoid.core.api.values.network import Attachment
from crinoid.core.api.values.pod import LinuxResources, PodConfig
from crinoid.core.api.values.runtime import ContainerHandle, PodSandbox


class PodState(enum.Enum):
    """READY until stopped, or until its namespaces are found gone."""

    READY = "ready"
    NOT_READY = "not-ready"


class ContainerState(enum.Enum):
    """The CRI's container states; ``UNKNOWN`` when the runtime can't tell."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


POD_STEPS: Mapping[PodState, frozenset[PodState]] = {
    PodState.READY: frozenset({PodState.NOT_READY}),
    PodState.NOT_READY: frozenset(),
}

CONTAINER_STEPS: Mapping[ContainerState, frozenset[ContainerState]] = {
    ContainerState.CREATED: frozenset({ContainerState.RUNNING, ContainerState.EXITED, ContainerState.UNKNOWN}),
    ContainerState.RUNNING: frozenset({ContainerState.EXITED, ContainerState.UNKNOWN}),
    ContainerState.UNKNOWN: frozenset({ContainerState.RUNNING, ContainerState.EXITED}),
    ContainerState.EXITED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """A pod sandbox. ``namespaces`` maps ``network``, ``ipc``, ``uts``, ``pid``, ``user`` to pinned paths.

    ``runtime_handler`` is what the client asked for, maybe empty; ``runtime``, ``network``, ``snapshotter`` are the
    slots that were chosen. ``resources`` and ``overhead`` are what UpdatePodSandboxResources told last (``None``: as in
    ``config``). ``answered`` is false until the client was told the id: a retry may claim it, then.
    """

    id: str
    config: PodConfig
    runtime_handler: str
    runtime: str
    network: str
    snapshotter: str
    state: PodState
    created_at_ns: int
    namespaces: Mapping[str, Path] = field(default_factory=dict)
    cgroup_parent: str = ""
    attachment: Attachment | None = None
    init: ContainerHandle | None = None
    resources: LinuxResources | None = None
    overhead: LinuxResources | None = None
    answered: bool = False

    @property
    def sandbox(self) -> PodSandbox:
        """The pod as the pod hooks of its runtime see it."""
        return PodSandbox(self.id, self.config, self.namespaces, self.cgroup_parent)


@dataclass(frozen=True, slots=True)
class ProcessUser:
    """The identity a container's process runs with."""

    uid: int = 0
    gid: int = 0
    supplemental_groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """A container. ``image_id`` is the digest of the image's configuration, ``image_ref`` a name with digest.

    Times are 0 until they happen. ``reason`` is ``Completed``, ``Error``, ``OOMKilled`` or ``StartError`` at the end.
    ``resources`` is what is in force, which UpdateContainerResources changes. ``volume_images`` maps the name of each
    image volume's image, as asked for, to the image's id.
    ``checkpoint`` is the directory that its processes are restored from when it is started; ``None`` from then on, and
    for every other container. ``start_error`` is why the runtime refused to make it, which is told when it is started.
    ``adjustments`` are what extensions changed in it: who, and which field, without its value.
    """

    id: str
    pod_id: str
    config: ContainerConfig
    handle: ContainerHandle
    image_id: str
    image_ref: str
    state: ContainerState
    created_at_ns: int
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int = 0
    log_path: str = ""
    user: ProcessUser = ProcessUser()
    resources: LinuxResources = LinuxResources()
    stop_signal: str = "SIGTERM"
    volume_images: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None
    start_error: str = ""
    adjustments: tuple[tuple[str, str], ...] = ()
    answered: bool = False

    @property
    def waits_without_process(self) -> bool:
        """Whether it is created and has no process: one to be restored, or one that the runtime refused."""
        return self.state is ContainerState.CREATED and (self.checkpoint is not None or bool(self.start_error))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image by id, the digest of its configuration, with all its names.

    ``tags`` and ``digests`` are full references (``registry/name:tag``, ``registry/name@digest``). ``manifests`` are
    the digests of every index and manifest that led here; ``layers`` the blobs, ``chain_ids`` what they unpack to,
    bottom first. ``size_bytes`` counts the blobs as pulled. ``config`` is the image configuration (OCI image-spec,
    config.md) as JSON text. ``artifact`` is the type of what is no container image (manifest.md, "artifactType"): its
    id is the digest of its manifest, it has no configuration, and each layer is a file. ``annotations`` are those of
    the manifest. ``decisions`` are what extensions said of it when it was pulled, each with its slot's name.
    ``platform`` is what it is for where that is a runtime handler's own platform, and not the node's.
    """

    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    layers: tuple[Descriptor, ...] = ()
    chain_ids: tuple[str, ...] = ()
    size_bytes: int = 0
    pulled_at_ns: int = 0
    config: str = "{}"
    pinned: bool = False
    artifact: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    decisions: tuple[tuple[str, str], ...] = ()
    platform: str = ""
