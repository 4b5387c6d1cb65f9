"""Whether an adjustment of a container makes sense: what the kernel asks of each that an extension returns.

An author may ask, too, and so does the contract. What depends on the container or the host is found later.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from crinoid.core.api import bounds
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.linux import cgroups
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, OciMount, Rlimit
from crinoid.core.api.values.container import DeviceMapping, VolumeMount
from crinoid.core.api.values.pod import LinuxResources

HOOK_STAGES = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
_NAMESPACES = frozenset({"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"})
_OBJECTS = ("process", "root", "linux", "hooks", "annotations")
_MOST = {
    **dict.fromkeys(("mounts", "oci_mounts", "removed_mounts"), bounds.MAX_MOUNTS),
    **dict.fromkeys(("devices", "oci_devices", "removed_devices", "cdi_devices"), bounds.MAX_DEVICES),
    "oci_device_rules": bounds.MAX_RULES,
    "oci_hooks": bounds.MAX_HOOKS,
    "rlimits": 2 * len(bounds.RLIMITS),
}
_MAX_ID = (1 << 32) - 2


def check_adjustment(adjustment: ContainerAdjustment) -> None:
    """Raise InvalidArgument that names the field and the first thing in it that is invalid.

    What a request could not hold (``bounds``), an adjustment can't either.
    """
    for field, most in _MOST.items():
        if len(getattr(adjustment, field)) > most:
            raise InvalidArgument(f"{field}: there are {len(getattr(adjustment, field))}, more than {most}")
    fields = _fields(adjustment)
    field = ""
    try:
        for field, problems in fields:
            for problem in problems:
                raise InvalidArgument(f"{field}: {problem}")
    except (TypeError, AttributeError, ValueError) as error:
        raise InvalidArgument(f"{field or 'an adjustment'}: it holds what is of the wrong type: {error}") from error


def check_resources(limits: LinuxResources) -> None:
    """Raise InvalidArgument for the first limit that no request could hold either."""
    try:
        for problem in _resources(limits):
            raise InvalidArgument(problem)
    except (TypeError, AttributeError, ValueError) as error:
        raise InvalidArgument(f"limits that are of the wrong type: {error}") from error


def _fields(wanted: ContainerAdjustment) -> Iterator[tuple[str, Iterable[str]]]:
    yield "envs", (problem for name, value in wanted.envs for problem in _variable(name, value))
    yield "envs", _strings([f"{name}={value}" for name, value in wanted.envs])
    yield "annotations", _annotations(wanted.annotations)
    for field in ("removed_envs", "removed_annotations"):
        yield field, (f"{name!r} is no name" for name in getattr(wanted, field) if not name)
    yield "mounts", (problem for mount in wanted.mounts for problem in _volume(mount))
    yield "devices", (problem for device in wanted.devices for problem in _mapping(device))
    yield "oci_mounts", (problem for mount in wanted.oci_mounts for problem in _mount(mount))
    for field in ("removed_mounts", "removed_devices"):
        yield field, _paths(getattr(wanted, field))
    yield "oci_devices", (problem for device in wanted.oci_devices for problem in _device(device))
    yield "oci_device_rules", (problem for rule in wanted.oci_device_rules for problem in _rule(rule))
    yield "oci_hooks", (problem for hook in wanted.oci_hooks for problem in _hook(hook))
    yield "cdi_devices", (problem for name in wanted.cdi_devices for problem in _word(name))
    yield "args", ["the program has no name"] if wanted.args and not wanted.args[0] else []
    yield "args", _strings(wanted.args)
    yield "rlimits", (problem for limit in wanted.rlimits for problem in _rlimit(limit))
    yield "resources", _resources(wanted.resources) if wanted.resources is not None else ()
    yield "cgroup", _cgroup(wanted.cgroup)
    yield "spec_patch", _json(wanted.spec_patch)
    yield "spec_patch", _patch(wanted.spec_patch)


def _variable(name: str, value: str) -> Iterator[str]:
    if not name or "=" in name or "\0" in name:
        yield f"{name!r} is no name of a variable"
    if "\0" in value:
        yield f"the value of {name} has a NUL in it"


def _strings(strings: Sequence[str]) -> Iterator[str]:
    """Arguments or variables, as execve(2) takes them."""
    if any("\0" in one for one in strings):
        yield "one has a NUL in it"
    if problem := bounds.strings_problem(strings):
        yield f"they {problem}"


def _annotations(annotations: Iterable[tuple[str, str]]) -> Iterator[str]:
    size = 0
    for key, value in annotations:
        if not key:
            yield f"{key!r} is no key"
        size += len(bounds.encoded(key)) + len(bounds.encoded(value))
    if size > bounds.MAX_ANNOTATIONS_BYTES:
        yield f"they have {size} bytes, more than {bounds.MAX_ANNOTATIONS_BYTES}"


def _paths(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if "\0" in path or posixpath.normpath("/" + path.lstrip("/")) == "/":
            yield f"{path!r:.300} is no path below /"
        if problem := bounds.path_problem(path):
            yield f"{path!r:.100} {problem}"


def _word(word: str) -> Iterator[str]:
    if not word or "\0" in word or len(bounds.encoded(word)) > bounds.MAX_WORD_BYTES:
        yield f"{word!r:.100} is no word of at most {bounds.MAX_WORD_BYTES} bytes"


def _source(path: str) -> Iterator[str]:
    if "\0" in path or not posixpath.isabs(path):
        yield f"{path!r:.300} is no absolute path"
    if problem := bounds.path_problem(path):
        yield f"{path!r:.100} {problem}"


def _volume(mount: VolumeMount) -> Iterator[str]:
    yield from _paths([mount.container_path])
    if mount.image:
        yield f"{mount.container_path} is of an image"
    else:
        yield from _source(mount.host_path)
    yield from (problem for option in mount.mount_options for problem in _word(option))


def _mapping(device: DeviceMapping) -> Iterator[str]:
    yield from _paths([device.container_path])
    yield from _source(device.host_path)
    yield from _access(device.permissions)


def _mount(mount: OciMount) -> Iterator[str]:
    """The source may be anything, such as ``tmpfs``; the options go to the kernel in one page."""
    yield from _paths([mount.destination])
    if problem := "has a NUL in it" if "\0" in mount.source else bounds.path_problem(mount.source):
        yield f"the source of {mount.destination} {problem}"
    if mount.type:
        yield from _word(mount.type)
    options = ",".join(mount.options)
    if "\0" in options or len(bounds.encoded(options)) > bounds.MAX_SETTING_BYTES:
        yield f"the options of {mount.destination} have a NUL, or more than {bounds.MAX_SETTING_BYTES} bytes"


def _access(permissions: str) -> Iterator[str]:
    if not permissions or not set(permissions) <= set("rwm"):
        yield f"permissions {permissions!r} are not of r, w, m"


def _device(device: OciDevice) -> Iterator[str]:
    yield from _paths([device.path])
    yield from _access(device.permissions)
    if device.type not in ("b", "c", "u", "p"):
        yield f"{device.path} is of type {device.type!r}, which is none of b, c, u, p"
    if not (0 <= device.major <= _MAX_ID and 0 <= device.minor <= _MAX_ID):
        yield f"{device.path} has the numbers {device.major}:{device.minor}"
    if device.file_mode is not None and not 0 <= device.file_mode <= 0o177777:
        yield f"{device.path} has the mode {device.file_mode:#o}"
    if any(one is not None and not 0 <= one <= _MAX_ID for one in (device.uid, device.gid)):
        yield f"{device.path} has the owner {device.uid}:{device.gid}"


def _rule(rule: OciDeviceRule) -> Iterator[str]:
    yield from _access(rule.access)
    if rule.type not in ("a", "b", "c"):
        yield f"type {rule.type!r} is none of a, b, c"


def _hook(hook: OciHook) -> Iterator[str]:
    if hook.stage not in HOOK_STAGES:
        yield f"stage {hook.stage!r} of {hook.path} is none of {', '.join(sorted(HOOK_STAGES))}"
    yield from _source(hook.path)
    yield from _strings([*hook.args, *hook.env])
    if hook.timeout_s < 0:
        yield f"the time limit of {hook.path} is {hook.timeout_s} s"


def _rlimit(limit: Rlimit) -> Iterator[str]:
    if limit.type not in bounds.RLIMITS:
        yield f"{limit.type!r} is none of {', '.join(sorted(bounds.RLIMITS))}"
    if not 0 <= limit.soft <= limit.hard < 1 << 64:
        yield f"{limit.type}: soft {limit.soft} and hard {limit.hard} are no limits"


def _resources(limits: LinuxResources) -> Iterator[str]:
    amounts = ("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_bytes", "memory_swap_limit_bytes")
    for field in amounts:
        least = 0 if field in ("cpu_period", "cpu_shares") else -1
        if not least <= getattr(limits, field) < 1 << 63:
            yield f"{field} is {getattr(limits, field)}"
    for field in ("cpuset_cpus", "cpuset_mems"):
        if problem := bounds.cpuset_problem(getattr(limits, field)):
            yield f"{field} {problem}"
    for size, limit in limits.hugepage_limits.items():
        if not bounds.HUGEPAGE.fullmatch(size) or not 0 <= limit < 1 << 64:
            yield f"hugepage_limits has {size!r:.100}: {limit}"
    yield from (f"unified {problem}" for pair in limits.unified.items() if (problem := bounds.unified_problem(*pair)))


def _cgroup(path: str) -> Iterator[str]:
    """Its form alone; that nobody has it is found when it is made."""
    if path and not cgroups.is_path(path) and not (path.count(":") == 2 and cgroups.is_path("/" + path)):
        yield f"{path!r:.300} is neither an absolute path below the root, without '..', nor slice:prefix:name"


def _json(patch: object) -> Iterator[str]:
    try:
        text = json.dumps(patch, default=dict)  # of any kind of mapping
    except (TypeError, ValueError, RecursionError) as error:
        yield f"it is no JSON: {error}"
    else:
        if len(text) > bounds.MAX_PATCH_BYTES:
            yield f"it has {len(text)} bytes, more than {bounds.MAX_PATCH_BYTES}"


def _patch(patch: Mapping[str, Any]) -> Iterator[str]:
    """The parts that everything else relies on keep their kind, and what has a field of its own is said by that."""
    for name in _OBJECTS:
        if name in patch and not isinstance(patch[name], Mapping):
            yield f"{name} is no object"
    linux = patch.get("linux") or {}
    if "cgroupsPath" in linux:
        yield "linux.cgroupsPath is what the field cgroup is for"
    lists = ((patch, "mounts"), (patch.get("process") or {}, "args"), (patch.get("process") or {}, "env"))
    for holder, name in (*lists, (linux, "devices"), (linux, "namespaces")):
        if name in holder and not isinstance(holder[name], list | tuple):
            yield f"{name} is no list"
    for one in linux.get("namespaces") or ():
        if one.get("type") not in _NAMESPACES or (one.get("path") and not posixpath.isabs(one["path"])):
            yield f"linux.namespaces has {dict(one)!r:.300}"
    for name, value in (linux.get("sysctl") or {}).items():
        if not bounds.SYSCTL.fullmatch(name) or len(value or "") > bounds.MAX_SYSCTL_BYTES:
            yield f"linux.sysctl has {name!r:.100}: {value!r:.100}"
    for holder in (linux.get("seccomp") or {}, *((linux.get("seccomp") or {}).get("syscalls") or ())):
        action = holder.get("defaultAction", holder.get("action", "SCMP_ACT_"))
        if not isinstance(action, str) or not action.startswith("SCMP_ACT_"):
            yield f"linux.seccomp has the action {action!r:.100}"
