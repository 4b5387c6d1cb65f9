"""What a container was asked to be: the CRI's ContainerConfig as values (api.proto, ContainerConfig)."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from crinoid.core.api.values.pod import (
    IdMapping,
    LinuxResources,
    NamespaceOptions,
    SecurityProfile,
    SelinuxOptions,
)


class MountPropagation(enum.Enum):
    """How mounts made on one side show on the other: rprivate, rslave, rshared."""

    PRIVATE = "rprivate"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """The container's name in its pod; a new ``attempt`` is a restart."""

    name: str
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """One mount of a container: a host path, or an image's file tree (``image``), at ``container_path``."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_read_only: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    image: str = ""
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceMapping:
    """A device of the host; ``permissions`` of ``r``, ``w``, ``m`` (mknod)."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capability names with or without ``CAP_``; ``ALL`` stands for every one."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSecurity:
    """The container's security context (api.proto, LinuxContainerSecurityContext)."""

    capabilities: Capabilities = Capabilities()
    privileged: bool = False
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """What CreateContainer was given.

    ``image`` is the reference or id asked for, ``user_specified_image`` what stands in the pod's manifest.
    ``log_path`` is relative to the pod's log directory. ``stop_signal``: a name such as ``SIGUSR1``, empty for
    the image's own, else SIGTERM. ``envs``: name and value, both as bytes' text (surrogateescape).
    """

    metadata: ContainerMetadata
    image: str = ""
    user_specified_image: str = ""
    image_annotations: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    devices: tuple[DeviceMapping, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: LinuxResources = LinuxResources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: str = ""
