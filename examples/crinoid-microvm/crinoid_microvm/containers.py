"""What the agent is told of a container: read out of its OCI specification, and what the host shows the guest of it.

Below a pod's ``shared`` directory, which the guest mounts by 9p, each container has a directory: its root as
``rootfs``, and each bind of its specification as ``m0``, ``m1`` … These are mounts of the host, made when the container
is: read-only ones are read-only there already, whatever the guest's kernel thinks.
"""

import os
import resource
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import InvalidArgument, NotFound, RuntimeRefused, Unsupported
from crinoid.core.api.linux import capabilities, files, mount, rights
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import ContainerRequest
from crinoid.core.api.values.snapshot import Mount
from crinoid_microvm.protocol import Field

_FILE_SYSTEMS = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
_OWN_DEVICES = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"}
_SHM = ("bind", "/podshm", "/dev/shm")  # noqa: S108  # the guest's own; by 9p memory could not be shared
_SEPARATOR = "\x1f"
_INFINITE = (1 << 64) - 1
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Binds:
    """What is shown to the guest: mounts of the host, by the name that each has in the container's directory."""

    root: tuple[Mount, ...]
    volumes: Mapping[str, Mount]


def translate(request: ContainerRequest) -> tuple[dict[str, Field], Binds]:
    """Return the fields of the agent's ``create``, but for the log, and what is to be shown to the guest.

    Looks at the sources of binds, so it blocks. Raises Unsupported for what a guest can't have, InvalidArgument for
    what is malformed, RuntimeRefused for a source that is not there.
    """
    spec, container_id = request.spec, request.handle.container_id
    linux = spec.get("linux") or {}
    _refuse_what_is_not_there(spec)
    mounts, volumes = [], dict[str, Mount]()
    for given in spec.get("mounts") or ():
        if given["destination"] == _SHM[2]:
            mounts.append(_SEPARATOR.join((*_SHM, "0", "")))
            continue
        options = mount.parse_options(given.get("options") or ())
        if given.get("type") in (None, "bind", "rbind", "none"):
            name = f"m{len(volumes)}"
            _check_source(given["source"])
            volumes[name] = Mount("bind", given["source"], _for_host(given.get("options") or ()))
            fields = ("bind", f"/shared/{container_id}/{name}", given["destination"], str(options.flags), "")
        elif given["type"] in _FILE_SYSTEMS:
            kind = "cgroup2" if given["type"] == "cgroup" else given["type"]
            data = "" if kind == "cgroup2" else ",".join(options.data)
            fields = (kind, given.get("source") or kind, given["destination"], str(options.flags), data)
        else:
            raise Unsupported(f"mount {given['destination']}: a guest can't have one of type {given['type']!r}")
        mounts.append(_SEPARATOR.join(fields))
    kinds = {entry["type"] for entry in linux.get("namespaces") or ()}
    resources = linux.get("resources") or {}
    fields_of_container: dict[str, Field] = {
        "id": container_id,
        "mount": mounts,
        "pidns": "pid" in kinds,
        "cgroupns": "cgroup" in kinds,
        "readonly_root": bool(spec["root"].get("readonly")),
        "masked": linux.get("maskedPaths") or (),
        "readonly": linux.get("readonlyPaths") or (),
        "sysctl": [f"{key.replace('.', '/')}={value}" for key, value in (linux.get("sysctl") or {}).items()],
        "limit": limits(resources_of(resources)),
        "stdin": request.stdin,
        "stdin_once": request.stdin_once,
        "stdout": True,
        "stderr": True,
    }
    return fields_of_container | process_fields(spec["process"]), Binds(request.root_mounts, volumes)


def process_fields(process: Mapping[str, Any]) -> dict[str, Field]:
    """Read an OCI ``process`` object. Raises InvalidArgument for what the kernel can't execute."""
    user, caps = process.get("user") or {}, process.get("capabilities") or {}
    if not process.get("args"):
        raise InvalidArgument("process.args is empty: there is nothing to run")
    for name in ("uid", "gid"):
        if not 0 <= user.get(name, 0) < 1 << 32:
            raise InvalidArgument(f"process.user.{name} is {user[name]}, which is no number of a user")
    return {
        "arg": list(process["args"]),
        "env": list(process.get("env") or ()),
        "cwd": process.get("cwd") or "/",
        "uid": user.get("uid", 0),
        "gid": user.get("gid", 0),
        "group": [str(one) for one in user.get("additionalGids") or ()],
        "terminal": bool(process.get("terminal")),
        "umask": "" if user.get("umask") is None else user["umask"],
        "oom_score_adj": "" if process.get("oomScoreAdj") is None else process["oomScoreAdj"],
        "no_new_privileges": bool(process.get("noNewPrivileges")),
        "rlimit": [_rlimit(one) for one in process.get("rlimits") or ()],
        **{
            kind: f"{_capability_mask(caps.get(kind) or ()):x}"
            for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
    }


def limits(wanted: LinuxResources) -> list[str]:
    """Return limits as the files of cgroup v2 and their contents, ``NAME=VALUE``; what is not given stays as it is."""
    found = dict[str, str]()
    if wanted.memory_limit_bytes:
        found["memory.max"] = _limit(wanted.memory_limit_bytes)
    if wanted.memory_swap_limit_bytes and wanted.memory_limit_bytes > 0:  # the CRI counts memory and swap together
        both = wanted.memory_swap_limit_bytes
        found["memory.swap.max"] = "max" if both < 0 else str(max(both - wanted.memory_limit_bytes, 0))
    if wanted.cpu_shares:
        found["cpu.weight"] = str(_weight(wanted.cpu_shares))
    if wanted.cpu_quota:
        found["cpu.max"] = f"{_limit(wanted.cpu_quota)} {wanted.cpu_period or _PERIOD_US}"
    found.update(wanted.unified)
    return [f"{name}={value}" for name, value in found.items()]


def resources_of(resources: Mapping[str, Any]) -> LinuxResources:
    """Read the OCI specification's limits (config-linux.md, "Control groups") as far as a guest has them."""
    memory, cpu, unified = (resources.get(kind) or {} for kind in ("memory", "cpu", "unified"))
    pids = (resources.get("pids") or {}).get("limit") or 0
    return LinuxResources(
        memory_limit_bytes=memory.get("limit") or 0,
        memory_swap_limit_bytes=memory.get("swap") or 0,
        cpu_shares=cpu.get("shares") or 0,
        cpu_quota=cpu.get("quota") or 0,
        cpu_period=cpu.get("period") or 0,
        unified={**({"pids.max": _limit(pids)} if pids else {}), **unified},
    )


def show(binds: Binds, directory: Path) -> None:
    """Mount a container's root and volumes below its directory. Blocks; what was mounted stays when it raises."""
    rights.make_directory(directory, rights.PASSAGE)
    rights.make_directory(directory / "rootfs", rights.PASSAGE)
    for one in binds.root:
        mount.mount(one, directory / "rootfs")
    for name, one in binds.volumes.items():
        touching(one.source)
        if Path(one.source).is_dir():
            rights.make_directory(directory / name, rights.PASSAGE)
        else:
            rights.write_file(directory / name, b"")
        mount.mount(one, directory / name)


def hide(directory: Path) -> None:
    """Undo it, whole or in part. Blocks; idempotent. Nothing that is still mounted is ever removed."""
    for path in mount.mountpoints(directory):
        mount.unmount(path)
    if mount.mountpoints(directory):
        raise OSError(f"{directory}: something is mounted there again and again")
    files.remove_tree(directory)


def show_log(path: Path, target: Path) -> None:
    """Open a log for appending, made if need be, and show that one file to the guest at ``target``. Blocks.

    Raises NotFound where it has no directory, InvalidArgument for what is no file.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, rights.LOG_FILE)
    except OSError as error:
        raise NotFound(f"log {path} can't be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"log {path} is no regular file")
        rights.write_file(target, b"")
        mount.bind(Path(f"/proc/self/fd/{fd}"), target)
    finally:
        os.close(fd)


def _refuse_what_is_not_there(spec: Mapping[str, Any]) -> None:
    linux = spec.get("linux") or {}
    for entry in linux.get("namespaces") or ():
        if entry["type"] == "user":
            raise Unsupported("a guest makes no user namespaces: its own kernel is what keeps its root from the node")
        if entry["type"] == "pid" and entry.get("path"):
            raise Unsupported("a container of a guest can't join the PID namespace of another one")
    if spec.get("hooks"):
        raise Unsupported("hooks of the OCI specification would have to run on the node, and find nothing there")
    for device in linux.get("devices") or ():
        if device["path"] not in _OWN_DEVICES:
            raise Unsupported(f"device {device['path']} is one of the node's, which a guest does not get")


def _check_source(source: str) -> None:
    try:
        touching(source)
        mode = Path(source).stat().st_mode
    except OSError as error:
        raise RuntimeRefused(f"mount {source}: {(error.strerror or 'it is not there').lower()}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise Unsupported(f"mount {source}: sockets, pipes and devices of the node do not work in a guest")


def _for_host(options: Iterable[str]) -> tuple[str, ...]:
    """How it is spread to other places is the guest's own affair."""
    return tuple(one for one in options if one.removeprefix("r") not in ("private", "slave", "shared", "unbindable"))


def _capability_mask(names: list[str] | tuple[str, ...]) -> int:
    unknown = [name for name in names if name not in capabilities.NAMES]
    if unknown:
        raise InvalidArgument(f"process.capabilities has {unknown[0]!r}, which is none")
    return sum(1 << capabilities.NAMES.index(name) for name in set(names))


def _rlimit(limit: Mapping[str, Any]) -> str:
    number = getattr(resource, limit["type"], None)
    if number is None:
        raise InvalidArgument(f"process.rlimits has {limit['type']!r}, which is none")
    return f"{number} {limit['soft'] & _INFINITE} {limit['hard'] & _INFINITE}"


def _limit(value: int) -> str:
    return "max" if value < 0 else str(value)


def _weight(shares: int) -> int:
    """As runc and crun have it: 2 to 262144 of version 1 are 1 to 10000 of version 2."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142
