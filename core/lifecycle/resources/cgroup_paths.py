"""Where the cgroups of pods and containers lie, with the cgroupfs and the systemd cgroup driver.

With cgroupfs a cgroup is a path below the mount point; with systemd a parent is a slice (``kubepods-pod1.slice``) and a
container ``slice:prefix:name``, as the OCI runtimes take it. Source: runc, docs/systemd.md; the kubelet's two forms.
"""

from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount, is_slice
from crinoid.core.config.models import PodsConfig
from crinoid.core.state.store import Store

PREFIX = "crinoid"


@dataclass(frozen=True, slots=True)
class CgroupPaths:
    """The cgroup driver (``systemd`` or cgroupfs), and ``root``, the parent of pods that come without one."""

    systemd: bool
    root: str

    @classmethod
    def of(cls, config: PodsConfig) -> "CgroupPaths":
        """Decide for ``auto``: systemd where it runs and the host has cgroup v2, else cgroupfs."""
        systemd = config.cgroup_driver == "systemd"
        if config.cgroup_driver == "auto":
            systemd = cgroups.version() == 2 and Path("/run/systemd/system").is_dir()
        return cls(systemd, config.cgroup_root.rstrip("/"))

    @property
    def driver(self) -> str:
        """The driver's name, as RuntimeConfig tells it."""
        return "systemd" if self.systemd else "cgroupfs"

    def pod_parent(self, given: str, pod_id: str) -> str:
        """Return the cgroup that a pod's containers lie in: the kubelet's, else one of our own.

        Raises InvalidArgument for a path where a slice is due, or the reverse.
        """
        if self.systemd:
            name = given.rpartition("/")[2] or (given and "-.slice")  # whose path is the mount point's
            if given and not is_slice(name):
                why = f"is no slice, and crinoid's cgroup driver is {self.driver}"
                raise InvalidArgument(f"cgroup_parent {given!r:.300} {why}")
            return name or f"{PREFIX}-{pod_id}.slice"
        if given.endswith(".slice") and "/" not in given.strip("/"):
            raise InvalidArgument(f"cgroup_parent {given!r} is a slice, and crinoid's cgroup driver is cgroupfs")
        path = "/" + "/".join(filter(None, (given or f"{self.root}/{pod_id}").split("/")))
        if path != "/" and not cgroups.is_path(f"{path}/{pod_id}/exec"):  # what is going to lie below
            raise InvalidArgument(
                f"cgroup_parent {given!r:.300} is not the path of a cgroup: it has to be without '.', '..' and "
                "newlines, and not too long or too deep"
            )
        return path

    def of_container(self, parent: str, container_id: str) -> str:
        """Return a container's cgroup as ContainerHandle has it."""
        return f"{parent}:{PREFIX}:{container_id}" if self.systemd else f"{parent}/{container_id}"

    @property
    def monitors(self) -> str:
        """Where containers' monitors run, outside of every pod; with systemd they stay where they are started."""
        return "" if self.systemd else f"{self.root}/monitors"


def holder_of(path: str, store: Store, besides: str) -> str | None:
    """Name the pod or container, other than the pod ``besides``, in whose own cgroup a path lies, if there is one.

    What lies there ends with it. A pod's own is named by its id; a parent that was given is nobody's.
    """
    inner = f"{path.rstrip('/')}/"
    for pod in store.pods:
        own = below_mount(pod.cgroup_parent)
        if pod.id != besides and cgroups.owner_in_name(own) == pod.id and inner.startswith(f"{own}/"):
            return f"pod {pod.id}"
    for container in store.containers:
        own = below_mount(container.handle.cgroup)
        if cgroups.is_path(own) and inner.startswith(f"{own}/"):
            return f"container {container.id}"
    return None
