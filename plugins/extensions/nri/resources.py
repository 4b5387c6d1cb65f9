"""Limits in NRI's form and in the CRI's: what both can say, and what only NRI and the OCI specification can."""

from collections.abc import Mapping
from typing import Any

from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.extensions.nri.wire import nri_pb2

JsonObject = dict[str, Any]
_CPU = {"shares": "cpu_shares", "quota": "cpu_quota", "period": "cpu_period"}
_OCI_MEMORY = {
    "limit": "limit",
    "reservation": "reservation",
    "swap": "swap",
    "kernel": "kernel",
    "kernel_tcp": "kernelTCP",
    "swappiness": "swappiness",
    "disable_oom_killer": "disableOOMKiller",
    "use_hierarchy": "useHierarchy",
}
_OCI_CPU = {
    "shares": "shares",
    "quota": "quota",
    "period": "period",
    "realtime_runtime": "realtimeRuntime",
    "realtime_period": "realtimePeriod",
}
_ONLY_OCI_MEMORY = {name: key for name, key in _OCI_MEMORY.items() if name not in ("limit", "swap")}
_ONLY_OCI_CPU = {name: key for name, key in _OCI_CPU.items() if name not in _CPU}


def encode_resources(resources: LinuxResources | None) -> nri_pb2.LinuxResources | None:
    """Write limits as a request has them; what it does not give is absent."""
    if resources is None:
        return None
    made = nri_pb2.LinuxResources(unified=dict(resources.unified))
    overlay(made, resources)
    return made


def overlay(made: nri_pb2.LinuxResources, resources: LinuxResources) -> None:
    """Write limits that are given over those that stand there."""
    if resources.memory_limit_bytes:
        made.memory.limit.value = resources.memory_limit_bytes
    if resources.memory_swap_limit_bytes:
        made.memory.swap.value = resources.memory_swap_limit_bytes
    for name, attribute in _CPU.items():
        if value := getattr(resources, attribute):
            getattr(made.cpu, name).value = value
    made.cpu.cpus = resources.cpuset_cpus or made.cpu.cpus
    made.cpu.mems = resources.cpuset_mems or made.cpu.mems
    if resources.hugepage_limits:
        del made.hugepage_limits[:]
        for size, limit in resources.hugepage_limits.items():
            made.hugepage_limits.add(page_size=size, limit=limit)
    made.unified.update(resources.unified)


def encode_oci_resources(resources: Mapping[str, Any]) -> nri_pb2.LinuxResources:
    """Write the limits of an OCI specification."""
    made = nri_pb2.LinuxResources(unified=resources.get("unified") or {})
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    for part, given, names in ((made.memory, memory, _OCI_MEMORY), (made.cpu, cpu, _OCI_CPU)):
        for name, key in names.items():
            if given.get(key) is not None:
                getattr(part, name).value = given[key]
    made.cpu.cpus, made.cpu.mems = cpu.get("cpus", ""), cpu.get("mems", "")
    for page in resources.get("hugepageLimits") or ():
        made.hugepage_limits.add(page_size=page["pageSize"], limit=page["limit"])
    if "pids" in resources:
        made.pids.limit = resources["pids"].get("limit", 0)
    for rule in resources.get("devices") or ():
        made.devices.add(**encode_rule(rule))
    return made


def encode_rule(rule: Mapping[str, Any]) -> JsonObject:
    """Return the fields of a device rule."""
    numbers = {name: {"value": rule[name]} for name in ("major", "minor") if rule.get(name) is not None}
    return {"allow": rule["allow"], "type": rule.get("type", ""), "access": rule.get("access", ""), **numbers}


def decode_resources(resources: nri_pb2.LinuxResources) -> LinuxResources:
    """Read the limits that the CRI can say."""
    memory, cpu = resources.memory, resources.cpu
    return LinuxResources(
        cpu_period=cpu.period.value,
        cpu_quota=cpu.quota.value,
        cpu_shares=cpu.shares.value,
        memory_limit_bytes=memory.limit.value,
        memory_swap_limit_bytes=memory.swap.value,
        cpuset_cpus=cpu.cpus,
        cpuset_mems=cpu.mems,
        hugepage_limits={page.page_size: page.limit for page in resources.hugepage_limits},
        unified=dict(resources.unified),
    )


def patch_resources(resources: nri_pb2.LinuxResources) -> JsonObject:
    """Return what only an OCI specification can say, as a merge patch of its ``linux.resources``."""
    patch: JsonObject = {}
    for section, names in (("memory", _ONLY_OCI_MEMORY), ("cpu", _ONLY_OCI_CPU)):
        part = getattr(resources, section)
        if given := {key: getattr(part, name).value for name, key in names.items() if part.HasField(name)}:
            patch[section] = given
    if resources.HasField("pids") and resources.pids.limit:
        patch["pids"] = {"limit": resources.pids.limit}
    return patch
