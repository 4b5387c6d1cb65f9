"""Mandatory access control of a container: its AppArmor profile, and its SELinux labels.

AppArmor: a profile that is asked for by name must be loaded, so it is refused on a kernel without AppArmor;
``RuntimeDefault``, and nothing, mean the site's ``pods.apparmor_profile``, and confine nothing where there is none.
SELinux: on a kernel without it the options are dropped, as every peer does: pods carry them to nodes of all kinds. Else
each pod has a pair of categories of its own, so that pods can't reach each other's files.
Sources: api.proto, LinuxContainerSecurityContext; OCI runtime-spec, config.md, ``apparmorProfile``, ``selinuxLabel``.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from crinoid.core.api.errors import FailedPrecondition, Unsupported
from crinoid.core.api.linux import lsm
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.pod import PodConfig, ProfileType, SecurityProfile, SelinuxOptions
from crinoid.core.api.values.snapshot import Mount

UNCONFINED = "unconfined"
_PREFIX = "localhost/"
_CATEGORIES = 1024
_DEFAULT = SelinuxOptions("system_u", "system_r", "container_t", "s0")
_FILE_ROLE, _FILE_TYPE = "object_r", "container_file_t"
_UNLABELLED = frozenset({"proc", "sysfs", "mqueue", "cgroup", "cgroup2", "bind"})


@dataclass(frozen=True, slots=True)
class Labels:
    """SELinux labels: of the container's processes (empty: the daemon's own), and of its files."""

    process: str
    files: str


def apparmor_profile(config: ContainerConfig, site_default: str) -> str:
    """Return the loaded profile to confine the container with; empty for none.

    Raises Unsupported for a named profile on a kernel without AppArmor, FailedPrecondition for one that is not loaded.
    """
    wanted = config.security.apparmor or SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    name = f"container {config.metadata.name!r}"
    if wanted.type is ProfileType.LOCALHOST:
        return _loaded(wanted.localhost_ref.removeprefix(_PREFIX), f"{name}: AppArmor profile")
    unconfined = wanted.type is ProfileType.UNCONFINED or config.security.privileged
    if unconfined or not site_default or not lsm.has_apparmor():
        return ""
    return _loaded(site_default, f"{name}: AppArmor profile of the configuration (pods.apparmor_profile)")


def selinux_labels(pod_id: str, pod: PodConfig, config: ContainerConfig | None) -> Labels | None:
    """Return the labels of a container, or with no container those of its pod's files; ``None`` without SELinux.

    The container's options go before the pod's. A privileged container is not confined, and its files are the pod's.
    """
    if not lsm.has_selinux():
        return None
    own = config.security.selinux if config is not None else None
    options = _filled(own or SelinuxOptions(), pod.security.selinux or SelinuxOptions())
    level = options.level or f"{_DEFAULT.level}:{categories_of(pod_id)}"
    label = _filled(replace(options, level=level), _DEFAULT)
    privileged = config is not None and config.security.privileged
    process = "" if privileged else ":".join((label.user, label.role, label.type, label.level))
    return Labels(process, ":".join((label.user, _FILE_ROLE, _FILE_TYPE, label.level)))


def categories_of(pod_id: str) -> str:
    """Return two different categories, the same ones for the same pod."""
    number = int.from_bytes(hashlib.sha256(pod_id.encode()).digest()[:8], "big")
    first = number % _CATEGORIES
    second = (first + 1 + number // _CATEGORIES % (_CATEGORIES - 1)) % _CATEGORIES
    low, high = sorted((first, second))
    return f"c{low},c{high}"


def label_mounts(mounts: "tuple[Mount, ...]", labels: Labels | None) -> "tuple[Mount, ...]":
    """Return the mounts with the context that makes all files in them the container's; layers are everybody's."""
    if labels is None:
        return mounts
    context = f"context={labels.files}"
    return tuple(
        one if one.type in _UNLABELLED or one.target else replace(one, options=(*one.options, context))
        for one in mounts
    )


def relabel_volumes(config: ContainerConfig, labels: Labels | None) -> None:
    """Give host directories that the container mounts its label, where the pod asks for that. Raises
    FailedPrecondition."""
    for volume in config.mounts if labels is not None else ():
        if volume.selinux_relabel and volume.host_path:
            assert labels is not None
            touching(volume.host_path)
            try:
                lsm.relabel(Path(volume.host_path).resolve(), labels.files)
            except OSError as error:
                raise FailedPrecondition(
                    f"mount {volume.container_path}: {volume.host_path} can't get the label {labels.files}: {error}"
                ) from error


def _loaded(profile: str, what: str) -> str:
    if profile == UNCONFINED:
        return ""
    if not lsm.has_apparmor():
        raise Unsupported(f"{what} {profile!r} was asked for, and this kernel has no AppArmor, or has it switched off")
    if profile not in lsm.apparmor_profiles():
        raise FailedPrecondition(f"{what} {profile!r} is not loaded: load it with apparmor_parser")
    return profile


def _filled(options: SelinuxOptions, default: SelinuxOptions) -> SelinuxOptions:
    return SelinuxOptions(
        options.user or default.user,
        options.role or default.role,
        options.type or default.type,
        options.level or default.level,
    )
