"""Puts the OCI specification together; the runtime driver adds what its slot says (seccomp, annotations)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crinoid.core.api import bounds
from crinoid.core.api.linux import lsm
from crinoid.core.api.linux.oom import clamp_oom_score_adj
from crinoid.core.api.values.container import Capabilities, ContainerConfig
from crinoid.core.api.values.pod import NamespaceMode, PodConfig, ProfileType, SecurityProfile
from crinoid.core.config.models import PodsConfig
from crinoid.core.lifecycle.images.image_config import ContainerDefaults
from crinoid.core.lifecycle.spec import isolation, mounts, process
from crinoid.core.lifecycle.spec.labels import apparmor_profile, relabel_volumes, selinux_labels
from crinoid.core.lifecycle.spec.users import Identity

OCI_VERSION = "1.0.2"
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecInput:
    """All that a container's specification depends on.

    ``config`` has the extensions' adjustments in it already. ``target_pid`` is the first process of the container
    whose PID namespace is joined, 0 for none. ``cgroup`` is as in ContainerHandle. ``site`` holds the node's defaults.
    ``mappings`` are the runtime-spec's of the pod's user namespace, if it has one. ``shares_processes`` is as in
    RuntimeTraits. ``dry``: nothing of the host may
    change: absent sources of mounts are not made, and no file is relabelled.
    """

    container_id: str
    config: ContainerConfig
    pod_id: str
    pod: PodConfig
    image: ContainerDefaults
    rootfs: Path
    identity: Identity
    hostname: str
    namespaces: Mapping[str, Path]
    target_pid: int
    pod_files: mounts.PodFiles
    cgroup: str
    site: PodsConfig
    recursive_read_only: bool
    mappings: Mapping[str, Any] = field(default_factory=dict)
    shares_processes: bool = False
    dry: bool = False


def build_spec(given: SpecInput) -> JsonObject:
    """Return a container's ``config.json`` as an object. Raises InvalidArgument, Unsupported, FailedPrecondition."""
    security = given.config.security
    traits = mounts.MountTraits(
        security.privileged,
        security.readonly_rootfs,
        given.recursive_read_only,
        given.site.read_only_tmpfs,
        user_namespace=bool(given.mappings),
        host_network="network" not in given.namespaces,
        dry=given.dry,
    )
    labels = selinux_labels(given.pod_id, given.pod, given.config)
    made = mounts.build_mounts(given.config.mounts, given.pod_files, traits)
    spec: JsonObject = {
        "ociVersion": OCI_VERSION,
        "hostname": given.hostname,
        "root": {"path": str(given.rootfs), "readonly": security.readonly_rootfs},
        "process": build_process(given),
        "mounts": made,
        "linux": _linux(given, mounts.shared_sysfs(made, traits)),
        # The container's place in Kubernetes, by the annotations that OCI hooks and sandboxed runtimes look for.
        "annotations": {
            **given.config.annotations,
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": given.config.metadata.name,
            "io.kubernetes.cri.image-name": given.config.image,
            "io.kubernetes.cri.sandbox-id": given.pod_id,
            "io.kubernetes.cri.sandbox-name": given.pod.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": given.pod.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": given.pod.metadata.uid,
        },
    }
    if "uts" not in given.namespaces:  # a runtime would rename the host
        del spec["hostname"]
    if labels is not None:  # into the specification, and onto the files that the container gets from the host
        spec["process"]["selinuxLabel"] = labels.process
        spec["linux"]["mountLabel"] = labels.files
        if not given.dry:
            relabel_volumes(given.config, labels)
            for path in (given.pod_files.hostname, given.pod_files.hosts, given.pod_files.resolv_conf):
                lsm.relabel(path, labels.files)
    return spec


def build_process(given: SpecInput) -> JsonObject:
    """Return the ``process`` object; an exec uses it again with other ``args``."""
    config, security, user = given.config, given.config.security, given.identity.user
    sets = process.capability_sets(security.capabilities, security.privileged, given.site.default_capabilities)
    profile = apparmor_profile(given.config, given.site.apparmor_profile)
    return {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.supplemental_groups)},
        "args": process.arguments(config, given.image),
        "env": process.environment(config, given.image, given.site.default_env, given.identity.home, given.hostname),
        "cwd": process.working_directory(config, given.image),
        "capabilities": sets,
        "rlimits": process.rlimits(given.site.default_ulimits),
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": clamp_oom_score_adj(config.resources.oom_score_adj),
        **({"apparmorProfile": profile} if profile else {}),
    }


def build_init_spec(given: "InitInput") -> JsonObject:
    """Return the specification of a pod's init process, which holds the PID namespace that its containers share."""
    sets = process.capability_sets(Capabilities(drop=("ALL",)), False, ())
    pins = {kind: path for kind, path in given.namespaces.items() if kind != "pid"}
    return {
        "ociVersion": OCI_VERSION,
        "root": {"path": str(given.rootfs), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(given.command),
            "env": [f"PATH={process.DEFAULT_PATH}"],
            "cwd": "/",
            "capabilities": sets,
            "noNewPrivileges": True,
            # What a kubelet gives pause containers: the others go first, as the kernel ends all of them with this one.
            "oomScoreAdj": clamp_oom_score_adj(-998),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            *given.binds,
        ],
        "linux": {
            "namespaces": isolation.build_namespaces(pins, NamespaceMode.CONTAINER, 0, False),
            "cgroupsPath": given.cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},  # it opens none
            **given.mappings,
        },
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": given.pod_id,
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class InitInput:
    """A pod's init process: its command, root and what is bound into it."""

    pod_id: str
    command: tuple[str, ...]
    rootfs: Path
    binds: tuple[JsonObject, ...]
    namespaces: Mapping[str, Path]
    cgroup: str
    mappings: Mapping[str, Any] = field(default_factory=dict)


def seccomp_choice(config: ContainerConfig, site: PodsConfig) -> SecurityProfile | None:
    """Return the profile for the driver, ``None`` for unconfined: as a privileged container is, and one for which
    nothing is said unless the site says otherwise (so do peers, and cri-tools checks it)."""
    security = config.security
    if security.privileged:
        return None
    if security.seccomp is None:
        default = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
        return default if site.unset_seccomp == "runtime-default" else None
    return None if security.seccomp.type is ProfileType.UNCONFINED else security.seccomp


def _linux(given: SpecInput, readable: tuple[str, ...]) -> JsonObject:
    """The ``linux`` object; ``readable`` are paths of the pod's that this container may only read."""
    security = given.config.security
    nodes, rules = isolation.build_devices(given.config.devices, security.privileged)
    limits = isolation.build_resources(given.config.resources, given.site.pids_limit, given.cgroup)
    pid = security.namespaces.pid
    if pid is NamespaceMode.POD and given.shares_processes:
        pid = NamespaceMode.NODE  # which is the guest
    linux: JsonObject = {
        "namespaces": isolation.build_namespaces(given.namespaces, pid, given.target_pid, security.privileged),
        "cgroupsPath": given.cgroup,
        "resources": limits | {"devices": rules},
        "devices": nodes,
        **given.mappings,
    }
    if not security.privileged:
        mounts.check_count(security.masked_paths, bounds.MAX_MOUNTS, "masked_paths")
        mounts.check_count(security.readonly_paths, bounds.MAX_MOUNTS, "readonly_paths")
        linux |= {"maskedPaths": list(security.masked_paths), "readonlyPaths": [*security.readonly_paths, *readable]}
    if (propagation := mounts.rootfs_propagation(given.config.mounts)) is not None:
        linux["rootfsPropagation"] = propagation
    return linux
