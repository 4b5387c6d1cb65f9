"""New limits in the form that ``update --resources`` reads (OCI runtime-spec, config-linux.md, "Control groups")."""

from dataclasses import replace
from typing import Any

from crinoid.core.api.values.pod import LinuxResources

Json = dict[str, Any]


def oci_resources(resources: LinuxResources) -> Json:
    """Return the OCI object for memory and CPU; what is zero or empty is left out, and so stays as it is."""
    memory = {"limit": resources.memory_limit_bytes, "swap": resources.memory_swap_limit_bytes}
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    return _given(memory=_given(**memory), cpu=_given(**cpu))


def beyond_update(resources: LinuxResources) -> LinuxResources | None:
    """Return the part that no ``update`` command takes, to be written to the cgroup directly; ``None``: nothing."""
    if not resources.unified and not resources.hugepage_limits:
        return None
    return LinuxResources(unified=resources.unified, hugepage_limits=resources.hugepage_limits)


def split_lifted(resources: LinuxResources) -> tuple[LinuxResources, LinuxResources]:
    """Part the limits that are lifted (-1) from the others, for a binary whose ``update`` can't do it."""
    lifted = LinuxResources(
        cpu_quota=min(resources.cpu_quota, 0),
        memory_limit_bytes=min(resources.memory_limit_bytes, 0),
        memory_swap_limit_bytes=min(resources.memory_swap_limit_bytes, 0),
    )
    changed = replace(
        resources,
        cpu_quota=max(resources.cpu_quota, 0),
        memory_limit_bytes=max(resources.memory_limit_bytes, 0),
        memory_swap_limit_bytes=max(resources.memory_swap_limit_bytes, 0),
    )
    return changed, lifted


def _given(**values: object) -> Json:
    return {name: value for name, value in values.items() if value}
