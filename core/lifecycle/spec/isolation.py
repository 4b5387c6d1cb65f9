"""What a container is fenced in with: namespaces, devices, cgroup limits.

Sources: OCI runtime-spec, config-linux.md; api.proto, NamespaceOption, Device, LinuxContainerResources.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.api.linux import cgroups
from crinoid.core.api.values.container import DeviceMapping
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode
from crinoid.core.lifecycle.cgrouppaths import path_below_mount

JsonObject = dict[str, Any]
_ALL_DEVICES = {"allow": True, "access": "rwm"}
_NO_DEVICES = {"allow": False, "access": "rwm"}
_MAX_SHARES = 262144


def build_namespaces(
    pins: Mapping[str, Path], pid: NamespaceMode, target_pid: int, privileged: bool
) -> list[JsonObject]:
    """Join the pod's pinned namespaces, and make or join a PID namespace as ``pid`` says.

    A kind that the pod has not pinned is the host's. ``target_pid`` is the process to join for ``TARGET``.
    """
    joined = [_joined(kind, str(path)) for kind, path in pins.items() if kind != "pid"]
    made = [{"type": "mount"}]
    if cgroups.version() == 2 and not privileged:
        made.append({"type": "cgroup"})
    if pid is NamespaceMode.CONTAINER:
        made.append({"type": "pid"})
    elif pid is NamespaceMode.POD:
        joined.append(_joined("pid", str(pins["pid"])))
    elif pid is NamespaceMode.TARGET:
        joined.append(_joined("pid", f"/proc/{target_pid}/ns/pid"))
    return made + joined


def build_devices(wanted: Iterable[DeviceMapping], privileged: bool) -> tuple[list[JsonObject], list[JsonObject]]:
    """Return the device nodes to make and the cgroup rules that allow them; a folder stands for all devices in it."""
    mappings = list(wanted)
    if privileged:
        mappings += [DeviceMapping(str(path), str(path)) for path in _host_devices()]
    nodes: dict[str, JsonObject] = {}
    rules: list[JsonObject] = []
    for mapping in mappings:
        for node, access in _expanded(mapping):
            nodes.setdefault(node["path"], node)
            rules.append(_rule(node, access))
    return list(nodes.values()), [_ALL_DEVICES] if privileged else [_NO_DEVICES, *rules]


def build_resources(resources: LinuxResources, pids_limit: int, cgroup: str) -> JsonObject:
    """Write limits as the runtime-spec has them; what is 0 or empty is left out.

    Raises InvalidArgument and Unsupported for what the cgroup to be made will not have.
    """
    memory = {"limit": resources.memory_limit_bytes, "swap": _swap_limit(resources)}
    cpu = {
        "shares": min(resources.cpu_shares, _MAX_SHARES),
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    parts: JsonObject = {
        "memory": {name: value for name, value in memory.items() if value},
        "cpu": {name: value for name, value in cpu.items() if value},
        "pids": {"limit": pids_limit} if pids_limit else {},
        "hugepageLimits": _hugepages(resources.hugepage_limits),
        "unified": _unified(resources.unified, cgroup) if cgroups.version() == 2 else {},
    }
    return {name: value for name, value in parts.items() if value}


def _joined(kind: str, path: str) -> JsonObject:
    return {"type": kind, "path": path}


def _swap_limit(resources: LinuxResources) -> int:
    """Leave swap alone where the kernel doesn't account for it, as peers do: the limit could not be set."""
    return resources.memory_swap_limit_bytes if cgroups.accounts_swap() else 0


def _unified(settings: Mapping[str, str], cgroup: str) -> dict[str, str]:
    """Runtimes say of some unknown settings that permission is denied."""
    if settings:
        cgroups.check_settings(path_below_mount(cgroup), settings)
    return dict(settings)


def _hugepages(limits: Mapping[str, int]) -> list[JsonObject]:
    sizes = cgroups.hugepage_sizes()
    for size in limits:
        if size not in sizes and limits[size]:
            known = f"has {', '.join(sorted(sizes))}" if sizes else "is not in use on this host"
            raise InvalidArgument(f"hugepage_limits: no limit for {size!r}: the hugetlb cgroup controller {known}")
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items() if size in sizes]


def _host_devices() -> list[Path]:
    skipped = {"pts", "shm", "fd", "mqueue", "console", "ptmx", "full", "null", "random", "tty", "urandom", "zero"}
    found = []
    for folder, subfolders, files in os.walk("/dev"):
        top = Path(folder)
        if folder == "/dev":
            subfolders[:] = [name for name in subfolders if name not in skipped]
        found += [top / name for name in files if not (folder == "/dev" and name in skipped) and _is_device(top / name)]
    return found


def _expanded(mapping: DeviceMapping) -> list[tuple[JsonObject, str]]:
    if not set(mapping.permissions) <= set("rwm"):
        raise InvalidArgument(f"device {mapping.host_path}: permissions {mapping.permissions!r} are not of r, w, m")
    source, target = Path(mapping.host_path), Path(mapping.container_path or mapping.host_path)
    if not target.is_absolute():
        raise InvalidArgument(f"device {mapping.host_path}: container_path {str(target)!r} is not absolute")
    access = mapping.permissions or "rwm"
    if source.is_dir():
        inside = sorted(path for path in source.rglob("*") if _is_device(path))
        return [(_node(path, target / path.relative_to(source)), access) for path in inside]
    return [(_node(source, target), access)]


def _node(source: Path, target: Path) -> JsonObject:
    try:
        found = source.stat()
    except OSError as error:
        raise NotFound(f"device {source} can't be looked at: {error.strerror}") from error
    if not (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        raise InvalidArgument(f"{source} is neither a device nor a folder with devices")
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    numbers = {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
    mode = {"fileMode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    return {"path": str(target), "type": kind, **numbers, **mode}


def _rule(node: JsonObject, access: str) -> JsonObject:
    return {"allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access}


def _is_device(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode if path.is_symlink() else path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
