"""What a pod sandbox was asked to be: the CRI's PodSandboxConfig as values (api.proto, PodSandboxConfig)."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class NamespaceMode(enum.Enum):
    """Whose namespace a container uses; ``TARGET`` names another container's (PID only)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class Protocol(enum.Enum):
    """Transport protocol of a port mapping."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class ProfileType(enum.Enum):
    """How a seccomp or AppArmor profile is chosen."""

    RUNTIME_DEFAULT = "runtime-default"
    UNCONFINED = "unconfined"
    LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class PodMetadata:
    """The pod's name, unique as a whole: a new ``attempt`` is a new sandbox of the same pod."""

    name: str
    namespace: str
    uid: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """The lines of resolv.conf: name servers, search domains, options."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the pod offered on the host. ``host_port`` 0: none is offered; ``host_ip`` empty: all addresses."""

    container_port: int
    host_port: int = 0
    protocol: Protocol = Protocol.TCP
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class IdMapping:
    """``length`` ids from ``container_id`` on are ``host_id`` and following outside the user namespace."""

    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """The user namespace asked for: ``NODE`` is the host's, ``POD`` one of the pod's own with these maps."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """The namespaces of a pod or container. ``target_id``: the container whose PID namespace ``TARGET`` means."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    """A seccomp or AppArmor profile; ``localhost_ref`` is a path (seccomp) or a loaded name (AppArmor)."""

    type: ProfileType
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class SelinuxOptions:
    """The SELinux label asked for; empty parts are the policy's defaults."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxResources:
    """Limits of a container or pod (api.proto, LinuxContainerResources); 0 and empty mean not given.

    ``cpu_period`` and ``cpu_quota`` in microseconds; memory in bytes; ``hugepage_limits`` maps a page size such
    as ``2MB`` to bytes; ``unified`` maps cgroup v2 file names to what is written to them.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_bytes: int = 0
    memory_swap_limit_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: Mapping[str, int] = field(default_factory=dict)
    unified: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSecurity:
    """The sandbox's security context (api.proto, LinuxSandboxSecurityContext)."""

    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodConfig:
    """What RunPodSandbox was given. ``cgroup_parent`` is a cgroup path, or a slice name with systemd."""

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    security: PodSecurity = PodSecurity()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: LinuxResources | None = None
    resources: LinuxResources | None = None
