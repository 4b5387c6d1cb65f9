"""Whether an adjustment of a container makes sense: what the kernel asks of each that an extension returns.

An author may ask, too, and so does the contract. What depends on the container or the host is found later.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.hooks.extension import ContainerAdjustment
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, Rlimit

HOOK_STAGES = frozenset({"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"})
_RLIMITS = frozenset(
    f"RLIMIT_{name}"
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE"),
        *("NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)


def check_adjustment(adjustment: ContainerAdjustment) -> None:
    """Raise InvalidArgument that names the field and the first thing in it that makes no sense."""
    for field, problems in _fields(adjustment):
        for problem in problems:
            raise InvalidArgument(f"{field}: {problem}")


def _fields(wanted: ContainerAdjustment) -> Iterator[tuple[str, Iterable[str]]]:
    yield "envs", (problem for name, value in wanted.envs for problem in _variable(name, value))
    yield "annotations", (f"{key!r} is no key" for key, _value in wanted.annotations if not key)
    for field in ("removed_envs", "removed_annotations"):
        yield field, (f"{name!r} is no name" for name in getattr(wanted, field) if not name)
    yield "mounts", _paths(mount.container_path for mount in wanted.mounts)
    yield "mounts", (f"{one.container_path} is of an image" for one in wanted.mounts if one.image)
    yield "devices", _paths(device.container_path for device in wanted.devices)
    yield "devices", (p for one in wanted.devices for p in _access(one.permissions))
    yield "oci_mounts", _paths(mount.destination for mount in wanted.oci_mounts)
    for field in ("removed_mounts", "removed_devices"):
        yield field, _paths(getattr(wanted, field))
    yield "oci_devices", (problem for device in wanted.oci_devices for problem in _device(device))
    yield "oci_device_rules", (problem for rule in wanted.oci_device_rules for problem in _rule(rule))
    yield "oci_hooks", (problem for hook in wanted.oci_hooks for problem in _hook(hook))
    yield "args", ["the program has no name"] if wanted.args and not wanted.args[0] else []
    yield "rlimits", (problem for limit in wanted.rlimits for problem in _rlimit(limit))
    yield "cgroup", _cgroup(wanted.cgroup)
    yield "spec_patch", _json(wanted.spec_patch)


def _variable(name: str, value: str) -> Iterator[str]:
    if not name or "=" in name or "\0" in name:
        yield f"{name!r} is no name of a variable"
    if "\0" in value:
        yield f"the value of {name} has a NUL in it"


def _paths(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if "\0" in path or posixpath.normpath("/" + path.lstrip("/")) == "/":
            yield f"{path!r} is no path below /"


def _access(permissions: str) -> Iterator[str]:
    if not permissions or not set(permissions) <= set("rwm"):
        yield f"permissions {permissions!r} are not of r, w, m"


def _device(device: OciDevice) -> Iterator[str]:
    yield from _paths([device.path])
    yield from _access(device.permissions)
    if device.type not in ("b", "c", "u", "p"):
        yield f"{device.path} is of type {device.type!r}, which is none of b, c, u, p"
    if device.major < 0 or device.minor < 0:
        yield f"{device.path} has the numbers {device.major}:{device.minor}"


def _rule(rule: OciDeviceRule) -> Iterator[str]:
    yield from _access(rule.access)
    if rule.type not in ("a", "b", "c"):
        yield f"type {rule.type!r} is none of a, b, c"


def _hook(hook: OciHook) -> Iterator[str]:
    if hook.stage not in HOOK_STAGES:
        yield f"stage {hook.stage!r} of {hook.path} is none of {', '.join(sorted(HOOK_STAGES))}"
    if not posixpath.isabs(hook.path):
        yield f"{hook.path!r} is no absolute path"
    if hook.timeout_s < 0:
        yield f"the time limit of {hook.path} is {hook.timeout_s} s"


def _rlimit(limit: Rlimit) -> Iterator[str]:
    if limit.type not in _RLIMITS:
        yield f"{limit.type!r} is none of {', '.join(sorted(_RLIMITS))}"
    if not 0 <= limit.soft <= limit.hard < 1 << 64:
        yield f"{limit.type}: soft {limit.soft} and hard {limit.hard} are no limits"


def _cgroup(path: str) -> Iterator[str]:
    if path and ("\0" in path or ".." in path.split("/") or not (path.startswith("/") or path.count(":") == 2)):
        yield f"{path!r} is neither an absolute path without '..' nor slice:prefix:name"


def _json(patch: object) -> Iterator[str]:
    try:
        json.dumps(patch, default=dict)  # of any kind of mapping
    except (TypeError, ValueError) as error:
        yield f"it is no JSON: {error}"
