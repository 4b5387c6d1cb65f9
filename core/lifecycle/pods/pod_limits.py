"""The limits of a pod as a whole: those of its containers and what the pod costs beside them (api.proto, overhead)."""

import dataclasses

from crinoid.core.api.values.pod import LinuxResources


def add_resources(resources: LinuxResources, overhead: LinuxResources) -> LinuxResources:
    """Return the limits of a pod's cgroup: memory, CPU and huge pages of both added up, the rest as in ``resources``.

    What ``resources`` doesn't limit, or leaves as it is, the overhead must not limit either. Quotas count in the period
    of ``resources``.
    """

    def total(limit: int, more: int) -> int:
        return limit + max(more, 0) if limit > 0 else limit

    period = resources.cpu_period or overhead.cpu_period
    more_quota = max(overhead.cpu_quota, 0) * (period or 1) // (overhead.cpu_period or period or 1)
    pages = {
        size: total(limit, overhead.hugepage_limits.get(size, 0)) for size, limit in resources.hugepage_limits.items()
    }
    return dataclasses.replace(
        resources,
        cpu_period=period if resources.cpu_quota else resources.cpu_period,
        cpu_quota=total(resources.cpu_quota, more_quota),
        cpu_shares=total(resources.cpu_shares, overhead.cpu_shares),
        memory_limit_bytes=total(resources.memory_limit_bytes, overhead.memory_limit_bytes),
        memory_swap_limit_bytes=total(
            resources.memory_swap_limit_bytes, overhead.memory_swap_limit_bytes or overhead.memory_limit_bytes
        ),
        hugepage_limits=pages,
    )
