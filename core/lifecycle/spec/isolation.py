"""What a container is fenced in with: namespaces, devices, cgroup limits.

Sources: OCI runtime-spec, config-linux.md; api.proto, NamespaceOption, Device, LinuxContainerResources.
"""

import contextlib
import dataclasses
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from crinoid.core.api import bounds
from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound
from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.values.container import DeviceMapping
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode
from crinoid.core.lifecycle.spec.mounts import check_count

JsonObject = dict[str, Any]
_ALL_DEVICES = {"allow": True, "access": "rwm"}
_NO_DEVICES = {"allow": False, "access": "rwm"}
_MAX_SHARES = 262144
_NO_LIMITS = LinuxResources()
MAX_ENTRIES = 1 << 16
"""Of all kinds in a directory of devices: a large host's ``/dev`` has some thousands."""
_OTHER_DIRECTORIES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
_OWN_DEVICES = frozenset({"console", "ptmx", "full", "null", "random", "tty", "urandom", "zero"})
"""What every container has of its own, so that a privileged one does not get the host's."""


def build_namespaces(
    pins: Mapping[str, Path], pid: NamespaceMode, target_pid: int, privileged: bool
) -> list[JsonObject]:
    """Join the pod's pinned namespaces, and make or join a PID namespace as ``pid`` says.

    A kind that the pod has not pinned is the host's. ``target_pid`` is the process to join for ``TARGET``.
    """
    joined = [_joined(kind, str(path)) for kind, path in pins.items() if kind != "pid"]
    made = [{"type": "mount"}]
    # As peers: with cgroup v1 a container sees its place in the host's tree, and a privileged one the tree itself.
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
    """Return the device nodes to make and the cgroup rules that allow them; a directory means all devices in it."""
    mappings = list(wanted)
    check_count(mappings, bounds.MAX_DEVICES, "devices")
    if privileged:
        mappings += [DeviceMapping(str(path), str(path)) for path in find_devices(Path("/dev"), _OWN_DEVICES)]
    nodes: dict[str, JsonObject] = {}
    rules: list[JsonObject] = []
    for mapping in mappings:
        for node, access in _expanded(mapping):
            nodes.setdefault(node["path"], node)
            rule = {name: node[name] for name in ("type", "major", "minor")}
            rules.append({"allow": True, **rule, "access": access})
        check_count(nodes, bounds.MAX_DEVICES, "devices")
    return list(nodes.values()), [_ALL_DEVICES] if privileged else [_NO_DEVICES, *rules]


def build_resources(resources: LinuxResources, pids_limit: int, cgroup: str) -> JsonObject:
    """Write limits as the runtime-spec has them; what is 0 or empty is left out.

    Raises InvalidArgument and Unsupported for what the cgroup to be made will not have.
    """
    resources = settle_swap(resources)
    has_unified, sizes = cgroups.version() == 2, cgroups.hugepage_sizes()
    if has_unified and resources.unified:  # runtimes say of some unknown settings that permission is denied
        cgroups.check_settings(below_mount(cgroup), resources.unified)
    for size, limit in resources.hugepage_limits.items():
        if size not in sizes and limit:  # a kubelet sends 0 for each size that it knows of
            known = f"has {', '.join(sorted(sizes))}" if sizes else "is not in use on this host"
            raise InvalidArgument(f"hugepage_limits: no limit for {size!r}: the hugetlb cgroup controller {known}")
    pages = [{"pageSize": size, "limit": limit} for size, limit in resources.hugepage_limits.items() if size in sizes]
    memory = {"limit": resources.memory_limit_bytes, "swap": resources.memory_swap_limit_bytes}
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
        "hugepageLimits": pages,
        "unified": dict(resources.unified) if has_unified else {},
    }
    return {name: value for name, value in parts.items() if value}


def settle_swap(wanted: LinuxResources, now: LinuxResources = _NO_LIMITS) -> LinuxResources:
    """Return limits with what they say of swap, as containerd does; ``now`` are those in force.

    A limit of memory alone is one of memory and swap together: a container does not swap unless it was asked for. So
    it may also be raised above an older limit of both. One of both alone goes with the limit of memory in force, as
    cgroup v2 has one of swap alone. Where the kernel doesn't account for swap, there is none.
    """
    if not cgroups.accounts_swap():
        return dataclasses.replace(wanted, memory_swap_limit_bytes=0)
    memory, both = wanted.memory_limit_bytes, wanted.memory_swap_limit_bytes
    if both and not memory:
        memory = now.memory_limit_bytes
    return dataclasses.replace(wanted, memory_limit_bytes=memory, memory_swap_limit_bytes=both or memory)


def _joined(kind: str, path: str) -> JsonObject:
    return {"type": kind, "path": path}


def find_devices(top: Path, skipped: Collection[str] = ()) -> list[Path]:
    """Return the devices in a directory and those below, by path; ``skipped`` are names in ``top`` itself.

    Follows no link, and stays on its file system but for devices that are mounted one by one. Left out is what belongs
    to each container alone, as peers do. Raises InvalidArgument for a directory in which there is much else than
    devices: somebody named the host's root, or a home.
    """
    found: list[Path] = []
    seen, pending = 0, [top]
    device = top.stat().st_dev
    while pending:
        directory = pending.pop()
        for entry in _entries(directory):
            seen += 1
            if seen > MAX_ENTRIES:
                raise InvalidArgument(
                    f"device {top}: it has more than {MAX_ENTRIES} files, so it is no directory of devices"
                )
            if (directory == top and entry.name in skipped) or entry.name in _OTHER_DIRECTORIES:
                continue
            with contextlib.suppress(FileNotFoundError):
                mode, number = entry.stat(follow_symlinks=False).st_mode, entry.stat(follow_symlinks=False).st_dev
                if stat.S_ISDIR(mode) and number == device:
                    pending.append(Path(entry.path))
                elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                    found.append(Path(entry.path))
    return sorted(found)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """List a directory, up to one entry more than may be there; one that has just gone is empty."""
    try:
        with os.scandir(directory) as entries:
            return list(itertools.islice(entries, MAX_ENTRIES + 1))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FailedPrecondition(f"device directory {directory} can't be listed: {error.strerror}") from error


def _expanded(mapping: DeviceMapping) -> list[tuple[JsonObject, str]]:
    if not set(mapping.permissions) <= set("rwm"):
        raise InvalidArgument(f"device {mapping.host_path}: permissions {mapping.permissions!r} are not of r, w, m")
    source, target = Path(mapping.host_path), Path(mapping.container_path or mapping.host_path)
    if not target.is_absolute():
        raise InvalidArgument(f"device {mapping.host_path}: container_path {str(target)!r} is not absolute")
    access = mapping.permissions or "rwm"
    touching(source)
    if source.is_dir():
        return [(_node(path, target / path.relative_to(source)), access) for path in find_devices(source)]
    return [(_node(source, target), access)]


def _node(source: Path, target: Path) -> JsonObject:
    try:
        found = source.stat()
    except OSError as error:
        raise NotFound(f"device {source} can't be looked at: {error.strerror}") from error
    if not (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        raise InvalidArgument(f"{source} is neither a device nor a directory with devices")
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    numbers = {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
    mode = {"fileMode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    return {"path": str(target), "type": kind, **numbers, **mode}
