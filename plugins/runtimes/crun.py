"""The driver ``crun``: a runtime in C, three times as fast as runc; it refuses hosts that mix cgroup v1 and v2."""

from typing import ClassVar

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.values.runtime import RuntimeFeatures
from crinoid.plugins.runtimes.cgroup_paths import is_hybrid
from crinoid.plugins.runtimes.oci import OciRuntime
from crinoid.plugins.runtimes.options import OciOptions
from crinoid.plugins.runtimes.versions import host_has_user_namespaces, numbers, read_version

_RECURSIVE_READ_ONLY_SINCE = (1, 4)
_HYBRID = (
    "crun can't work on this host: it has cgroup v1 with v2 beside it (hybrid, /sys/fs/cgroup/unified). "
    "Start the kernel with systemd.unified_cgroup_hierarchy=1, or use the driver runc, or start crinoid where that "
    "folder can't be seen: unshare -m --propagation unchanged sh -c 'mount --make-rprivate /sys/fs/cgroup && "
    "umount /sys/fs/cgroup/unified && mount -t tmpfs tmpfs /sys/fs/cgroup/unified && exec crinoid serve'"
)


class CrunOptions(OciOptions):
    """Options of the driver ``crun``."""


class CrunRuntime(OciRuntime):
    """Containers by crun and conmon."""

    Config: ClassVar[type[OciOptions]] = CrunOptions
    package = "crun"
    log_option = "--log=file:{}"
    leaves_other_cgroups = True

    async def features(self) -> RuntimeFeatures:
        """Ask crun for its version; 1.8 has no ``features`` yet, so what it can is known by version."""
        version = read_version("crun", await self._binary.ask("--version", self._deadlines.probe_s))
        if is_hybrid():
            raise Unsupported(_HYBRID)
        return RuntimeFeatures(
            name="crun",
            version=version,
            recursive_read_only_mounts=numbers(version) >= _RECURSIVE_READ_ONLY_SINCE,
            user_namespaces=host_has_user_namespaces(),
        )
