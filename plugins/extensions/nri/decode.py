"""What plugins want of a container that is being made, turned into what the kernel's adjusters can say."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, OciMount, Rlimit
from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.extensions.nri.encode import HOOK_STAGES
from crinoid.plugins.extensions.nri.resources import decode_resources, patch_resources
from crinoid.plugins.extensions.nri.wire import nri_pb2

JsonObject = dict[str, Any]
_SCHEDULER = ("nice", "priority", "runtime", "deadline", "period")


def removed(key: str) -> str | None:
    """Return what a key removes, which a dash before it says; ``None`` for one that adds."""
    return key[1:] if key.startswith("-") else None


def decode_adjustment(adjust: nri_pb2.ContainerAdjustment, container: ContainerView) -> ContainerAdjustment:
    """Read an adjustment of this container.

    Raises InvalidArgument for what can't be done, ValueError for a word that NRI does not have.
    """
    linux = adjust.linux
    return ContainerAdjustment(
        envs=tuple((env.key, env.value) for env in adjust.env if removed(env.key) is None),
        removed_envs=_removals(env.key for env in adjust.env),
        annotations=tuple(pair for pair in adjust.annotations.items() if removed(pair[0]) is None),
        removed_annotations=_removals(adjust.annotations),
        oci_mounts=tuple(_decode_mount(mount) for mount in adjust.mounts if removed(mount.destination) is None),
        removed_mounts=_removals(mount.destination for mount in adjust.mounts),
        oci_devices=tuple(_decode_device(device) for device in linux.devices if removed(device.path) is None),
        removed_devices=_removals(device.path for device in linux.devices),
        oci_device_rules=tuple(_decode_rule(rule) for rule in linux.resources.devices),
        oci_hooks=_decode_hooks(adjust.hooks),
        cdi_devices=tuple(device.name for device in adjust.CDI_devices),
        args=tuple(adjust.args[1:] if adjust.args[:1] == [""] else adjust.args),  # it says: in place of another's
        rlimits=tuple(Rlimit(limit.type, limit.soft, limit.hard) for limit in adjust.rlimits),
        resources=_limits(linux.resources),
        oom_score_adj=linux.oom_score_adj.value if linux.HasField("oom_score_adj") else None,
        cgroup=linux.cgroups_path,
        spec_patch=_patch(linux, container),
    )


def _limits(resources: nri_pb2.LinuxResources) -> LinuxResources:
    """A new memory limit alone limits swap as well, as with peers: what was there may be less."""
    limits = decode_resources(resources)
    return replace(limits, memory_swap_limit_bytes=limits.memory_swap_limit_bytes or limits.memory_limit_bytes)


def _removals(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for key in keys if (name := removed(key)))


def _decode_mount(mount: nri_pb2.Mount) -> OciMount:
    return OciMount(mount.destination, mount.type, mount.source, tuple(mount.options))


def _decode_device(device: nri_pb2.LinuxDevice) -> OciDevice:
    return OciDevice(
        path=device.path,
        type=device.type,
        major=device.major,
        minor=device.minor,
        file_mode=device.file_mode.value if device.HasField("file_mode") else None,
        uid=device.uid.value if device.HasField("uid") else None,
        gid=device.gid.value if device.HasField("gid") else None,
    )


def _decode_rule(rule: nri_pb2.LinuxDeviceCgroup) -> OciDeviceRule:
    return OciDeviceRule(
        allow=rule.allow,
        type=rule.type or "a",
        major=rule.major.value if rule.HasField("major") else None,
        minor=rule.minor.value if rule.HasField("minor") else None,
        access=rule.access,
    )


def _decode_hooks(hooks: nri_pb2.Hooks) -> tuple[OciHook, ...]:
    return tuple(
        OciHook(stage, hook.path, tuple(hook.args), tuple(hook.env), hook.timeout.value)
        for name, stage in HOOK_STAGES.items()
        for hook in getattr(hooks, name)
    )


def _patch(linux: nri_pb2.LinuxContainerAdjustment, container: ContainerView) -> JsonObject:
    """Return what only the OCI specification can say, as a merge patch."""
    if linux.resources.blockio_class.value:
        raise InvalidArgument(
            f"block I/O class {linux.resources.blockio_class.value!r} is asked for, and no classes are defined here"
        )
    below: JsonObject = {
        "resources": patch_resources(linux.resources),
        "sysctl": {removed(key) or key: None if removed(key) else value for key, value in linux.sysctl.items()},
        "netDevices": {
            removed(key) or key: None if removed(key) else {"name": device.name}
            for key, device in linux.net_devices.items()
        },
        "intelRdt": _rdt(linux),
        "memoryPolicy": _memory_policy(linux.memory_policy) if linux.HasField("memory_policy") else {},
        "seccomp": _seccomp(linux.seccomp_policy) if linux.HasField("seccomp_policy") else {},
        "namespaces": _namespaces(linux, container),
    }
    process = _priorities(linux)
    patch: JsonObject = {"linux": {key: value for key, value in below.items() if value or value is None}}
    return patch | ({"process": process} if process else {})


def _priorities(linux: nri_pb2.LinuxContainerAdjustment) -> JsonObject:
    made: JsonObject = {}
    if linux.HasField("io_priority"):
        io_class = getattr(linux.io_priority, "class")  # a word of Python
        name = nri_pb2.IOPrioClass.Name(io_class)
        made["ioPriority"] = {"class": name, "priority": linux.io_priority.priority} if io_class else None
    if linux.HasField("scheduler"):
        scheduler = linux.scheduler
        numbers = {key: getattr(scheduler, key) for key in _SCHEDULER}
        flags = [nri_pb2.LinuxSchedulerFlag.Name(flag) for flag in scheduler.flags]
        given = {key: value for key, value in {**numbers, "flags": flags}.items() if value}
        policy = nri_pb2.LinuxSchedulerPolicy.Name(scheduler.policy)
        made["scheduler"] = {"policy": policy, **given} if scheduler.policy else None
    return made


def _rdt(linux: nri_pb2.LinuxContainerAdjustment) -> JsonObject | None:
    rdt, made = linux.rdt, JsonObject()
    if linux.resources.HasField("rdt_class"):
        if not linux.resources.rdt_class.value:
            return None
        made["closID"] = linux.resources.rdt_class.value
    if rdt.remove:
        return None
    if rdt.HasField("clos_id"):
        made["closID"] = rdt.clos_id.value
    if rdt.HasField("schemata"):
        made["schemata"] = list(rdt.schemata.value)
    if rdt.HasField("enable_monitoring"):
        made["enableMonitoring"] = rdt.enable_monitoring.value
    return made


def _memory_policy(policy: nri_pb2.LinuxMemoryPolicy) -> JsonObject:
    flags = [nri_pb2.MpolFlag.Name(flag) for flag in policy.flags]
    return {"mode": nri_pb2.MpolMode.Name(policy.mode), "nodes": policy.nodes} | ({"flags": flags} if flags else {})


def _seccomp(policy: nri_pb2.LinuxSeccomp) -> JsonObject:
    made: JsonObject = {
        "defaultAction": policy.default_action,
        "architectures": list(policy.architectures),
        "flags": list(policy.flags),
        "listenerPath": policy.listener_path,
        "listenerMetadata": policy.listener_metadata,
        "syscalls": [_syscall(syscall) for syscall in policy.syscalls],
    }
    if policy.HasField("default_errno"):
        made["defaultErrnoRet"] = policy.default_errno.value
    return {key: value for key, value in made.items() if value or key == "defaultErrnoRet"}


def _syscall(syscall: nri_pb2.LinuxSyscall) -> JsonObject:
    made: JsonObject = {"names": list(syscall.names), "action": syscall.action}
    if syscall.HasField("errno_ret"):
        made["errnoRet"] = syscall.errno_ret.value
    if syscall.args:
        made["args"] = [
            {"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op} for arg in syscall.args
        ]
    return made


def _namespaces(linux: nri_pb2.LinuxContainerAdjustment, container: ContainerView) -> list[JsonObject]:
    """Return the whole list, as a merge patch replaces lists; empty for no change."""
    if not linux.namespaces:
        return []
    kept = {one["type"]: dict(one) for one in (container.spec.get("linux") or {}).get("namespaces") or ()}
    for namespace in linux.namespaces:
        if (name := removed(namespace.type)) is not None:
            kept.pop(name, None)
        else:
            path = {"path": namespace.path} if namespace.path else {}
            kept[namespace.type] = {"type": namespace.type, **path}
    return list(kept.values())
