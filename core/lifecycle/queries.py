"""What ``cri`` asks of the services beyond single ids, and what they answer beyond records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.api.values.stats import CgroupUsage, NetworkUsage
from crinoid.core.state.records import ContainerRecord, ContainerState, PodRecord, PodState


@dataclass(frozen=True, slots=True)
class PodFilter:
    """Pods with all that is given: ``id`` may be a unique prefix, ``labels`` must all be equal."""

    id: str = ""
    state: PodState | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """Containers with all that is given; ids may be unique prefixes."""

    id: str = ""
    state: ContainerState | None = None
    pod_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A container with what it uses; ``cpu_nano_cores`` is the rate since an earlier look, ``None`` at the first.

    ``usage`` is ``None`` when it doesn't run; ``disk`` measures its writable part, mounted at ``disk_mountpoint``.
    """

    record: ContainerRecord
    usage: CgroupUsage | None
    cpu_nano_cores: int | None
    disk: DiskUsage | None
    disk_timestamp_ns: int
    disk_mountpoint: str


@dataclass(frozen=True, slots=True)
class PodUsage:
    """A pod with what it uses as a whole, and its containers."""

    record: PodRecord
    usage: CgroupUsage | None
    cpu_nano_cores: int | None
    network: NetworkUsage | None
    containers: tuple[ContainerUsage, ...]


@dataclass(frozen=True, slots=True)
class FilesystemReport:
    """What images, or writable layers, take on one file system."""

    timestamp_ns: int
    mountpoint: str
    usage: DiskUsage


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of Status: ``RuntimeReady`` or ``NetworkReady``."""

    type: str
    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class HandlerReport:
    """A runtime handler as Status reports it; the default handler is listed once more with an empty name."""

    name: str
    recursive_read_only_mounts: bool
    user_namespaces: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The answer to Status; ``info`` holds JSON texts for the verbose form."""

    conditions: tuple[Condition, ...]
    handlers: tuple[HandlerReport, ...]
    info: Mapping[str, str] = field(default_factory=dict)
