"""What lifecycle asks of the kernel for pods and containers: one object, so that unit tests can give a fake host.

``daemon.composition`` hands it to ``Resources``, where ``recovery``, ``pods`` and ``containers`` find it. What a call
does and raises is said where it is defined.
"""

from crinoid.core.api.linux import cgroups, idmaps, namespaces
from crinoid.core.api.linux import mount as mounts
from crinoid.core.lifecycle.resources import slices


class HostCalls:
    """The calls of the real host; a fake overrides them all."""

    pin = staticmethod(namespaces.pin)
    unpin = staticmethod(namespaces.unpin)
    is_pinned = staticmethod(namespaces.is_pinned)

    mount = staticmethod(mounts.mount)
    mount_mapped = staticmethod(idmaps.mount_mapped)
    bind = staticmethod(mounts.bind)
    unmount = staticmethod(mounts.unmount)

    has_cgroup = staticmethod(cgroups.exists)
    make_cgroup = staticmethod(cgroups.make)
    make_new_cgroup = staticmethod(cgroups.make_new)
    owns_cgroup = staticmethod(cgroups.belongs_to)
    has_marked_cgroup = staticmethod(cgroups.is_marked)
    kill_cgroup = staticmethod(cgroups.kill)
    remove_cgroup = staticmethod(slices.remove)
    remove_marked_cgroup = staticmethod(cgroups.remove_marked)
    warm_up_cgroups = staticmethod(cgroups.warm_up)
