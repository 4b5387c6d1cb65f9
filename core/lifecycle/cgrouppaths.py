"""Where the cgroups of pods and containers lie, with the cgroupfs and the systemd cgroup driver.

With cgroupfs a cgroup is a path below the mount point; with systemd a parent is a slice (``kubepods-pod1.slice``) and a
container ``slice:prefix:name``, as the OCI runtimes take it. Source: runc, docs/systemd.md; the kubelet's two forms.
"""

from pathlib import Path

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import cgroups

PREFIX = "crinoid"


def uses_systemd(wanted: str) -> bool:
    """Decide for ``auto``, ``cgroupfs`` or ``systemd``: systemd where it runs and the host has cgroup v2."""
    if wanted == "auto":
        return cgroups.version() == 2 and Path("/run/systemd/system").is_dir()
    return wanted == "systemd"


def pod_parent(given: str, pod_id: str, root: str, systemd: bool) -> str:
    """Return the cgroup that a pod's containers lie in: the kubelet's, else one of our own below ``root``.

    Raises InvalidArgument for a path where a slice is due, or the reverse.
    """
    if systemd:
        if given and not given.endswith(".slice"):
            raise InvalidArgument(f"cgroup_parent {given!r} is no slice, and crinoid's cgroup driver is systemd")
        return given.rpartition("/")[2] or f"{PREFIX}.slice"
    if given.endswith(".slice") and "/" not in given.strip("/"):
        raise InvalidArgument(f"cgroup_parent {given!r} is a slice, and crinoid's cgroup driver is cgroupfs")
    path = "/" + (given or f"{root}/{pod_id}").strip("/")
    if ".." in path.split("/"):
        raise InvalidArgument(f"cgroup_parent {given!r} has '..' in it")
    return path


def container_cgroup(parent: str, container_id: str, systemd: bool) -> str:
    """Return a container's cgroup as ContainerHandle has it."""
    return f"{parent}:{PREFIX}:{container_id}" if systemd else f"{parent}/{container_id}"


def slice_path(name: str) -> str:
    """Return a slice's path below the mount point: ``a-b.slice`` is ``/a.slice/a-b.slice``."""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))
