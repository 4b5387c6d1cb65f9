"""The mounts of a container: what every container has, the pod's files, and the volumes it was given.

Sources: OCI runtime-spec, config-linux.md, "Default Filesystems"; api.proto, Mount (readonly, recursive_read_only,
propagation). Mounts closer to the root come first, so that none hides another that was asked for.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from crinoid.core.api import bounds
from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, Unsupported
from crinoid.core.api.linux import mount, rights
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.values.container import MountPropagation, VolumeMount

JsonObject = dict[str, Any]
_OPTIONS = frozenset({"noexec", "nosuid", "nodev", "exec", "suid", "dev"}) | frozenset(
    {"noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime"}
)
"""What ``mount_options`` may say: the rest has fields of its own, or means nothing on a bind mount."""
_LOCKED = {"ro": os.ST_RDONLY, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}
_SCRATCH = ("/run", "/tmp", "/var/tmp")  # noqa: S108  # in the container


@dataclass(frozen=True, slots=True)
class PodFiles:
    """The pod's files on the host; ``shm`` is its shared memory directory."""

    hostname: Path
    hosts: Path
    resolv_conf: Path
    shm: Path


@dataclass(frozen=True, slots=True)
class MountTraits:
    """What bends the mounts: a privileged container, a read-only root, the runtime's recursive read-only mounts, a user
    namespace of the pod's own, in which the kernel allows less, above all beside the host's network.
    ``dry``: none is made."""

    privileged: bool
    readonly_rootfs: bool
    recursive_read_only: bool
    read_only_tmpfs: bool = False
    user_namespace: bool = False
    host_network: bool = False
    dry: bool = False


def build_mounts(volumes: Iterable[VolumeMount], files: PodFiles, traits: MountTraits) -> list[JsonObject]:
    """Return all mounts in the order in which the runtime makes them. Raises InvalidArgument for too many."""
    wanted = list(volumes)
    check_count(wanted, bounds.MAX_MOUNTS, "mounts")
    chosen = [_volume(volume, traits) for volume in wanted]
    taken = {entry["destination"] for entry in chosen}
    access = "ro" if traits.readonly_rootfs else "rw"
    own = [
        *_system(traits),
        _entry("/etc/hostname", "bind", str(files.hostname), "rbind", "rprivate", access),
        _entry("/etc/hosts", "bind", str(files.hosts), "rbind", "rprivate", access),
        _entry("/etc/resolv.conf", "bind", str(files.resolv_conf), "rbind", "rprivate", access),
        _entry("/dev/shm", "bind", str(files.shm), "rbind", "rprivate", "rw"),  # noqa: S108  # in the container
    ]
    if traits.readonly_rootfs and traits.read_only_tmpfs:
        own += [_entry(path, "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777") for path in _SCRATCH]
    if traits.user_namespace and not traits.dry:  # else what it looks at is not there
        for entry in (*own, *chosen):
            keep_flags(entry)
    together = [entry for entry in own if entry["destination"] not in taken] + chosen
    return sorted(together, key=lambda entry: len(PurePosixPath(entry["destination"]).parts))


def rootfs_propagation(volumes: Iterable[VolumeMount]) -> str | None:
    """Return what the root's propagation must be for the volumes' own to have effect."""
    wanted = {volume.propagation for volume in volumes}
    if MountPropagation.BIDIRECTIONAL in wanted:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in wanted else None


def _system(traits: MountTraits) -> list[JsonObject]:
    access = "rw" if traits.privileged else "ro"
    guarded = ["nosuid", "noexec", "nodev"]
    return [
        _entry("/proc", "proc", "proc", *guarded),
        _entry("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _entry(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _entry("/dev/mqueue", "mqueue", "mqueue", *guarded),
        _sys(traits),
        _entry("/sys/fs/cgroup", "cgroup", "cgroup", *guarded, "relatime", access),
    ]


def _sys(traits: MountTraits) -> JsonObject:
    """The host's network shows in its own sysfs alone, which no other user namespace may mount: it is bound then.

    A network namespace has one sysfs. Mounted read-only before anybody else has mounted it (runc 1.1 does), all of it
    is so, for a privileged container of the pod, too. So it is mounted writable, and ``shared_sysfs`` says what to
    protect.
    """
    guarded = ["nosuid", "noexec", "nodev"]
    if not traits.host_network:
        return _entry("/sys", "sysfs", "sysfs", *guarded, "rw")
    if not traits.user_namespace:  # the host has mounted its own
        return _entry("/sys", "sysfs", "sysfs", *guarded, "rw" if traits.privileged else "ro")
    return _entry("/sys", "bind", "/sys", "rbind", "rslave", *guarded, "rro" if traits.recursive_read_only else "ro")


def shared_sysfs(made: Iterable[JsonObject], traits: MountTraits) -> tuple[str, ...]:
    """Return the paths, among the mounts that were made, of the pod's sysfs that this container may only read."""
    if traits.privileged or traits.host_network:
        return ()
    return tuple(entry["destination"] for entry in made if entry["type"] == "sysfs")


def check_count(items: Collection[object], most: int, field: str) -> None:
    """Raise InvalidArgument where there is more of something than a container may have."""
    if len(items) > most:
        raise InvalidArgument(f"{field}: {len(items)} are too many: a container can have {most}")


def keep_flags(entry: JsonObject) -> None:
    """Repeat the flags of a bind mount's source: in a user namespace none may be taken away (mount(2), EPERM)."""
    if entry["type"] != "bind":
        return
    touching(entry["source"])
    flags = os.statvfs(entry["source"]).f_flag
    entry["options"] += [word for word, flag in _LOCKED.items() if flags & flag and word not in entry["options"]]


def _volume(volume: VolumeMount, traits: MountTraits) -> JsonObject:
    """Make a mount of a volume. Raises InvalidArgument, Unsupported, FailedPrecondition."""
    name = f"mount {volume.container_path}"
    if unknown := [option for option in volume.mount_options if option not in _OPTIONS]:
        raise InvalidArgument(f"{name}: mount_options: {unknown[0]!r} is none of {', '.join(sorted(_OPTIONS))}")
    if volume.recursive_read_only:
        if not volume.readonly or volume.propagation is not MountPropagation.PRIVATE:
            raise InvalidArgument(f"{name}: recursive_read_only needs readonly and private propagation")
        if not traits.recursive_read_only:
            raise Unsupported(f"{name}: this handler's runtime has no recursive read-only mounts")
    source = find_source(volume, make=not traits.dry)
    path = os.path.normpath("/" + volume.container_path.lstrip("/"))
    if not volume.container_path or "\0" in path:
        raise InvalidArgument(f"container_path {volume.container_path!r} of a mount is not a path")
    # ``ro`` is of the mount itself; what is mounted below it stays writable, as in Kubernetes, without ``rro``.
    options = ["rbind", volume.propagation.value, "ro" if volume.readonly else "rw", *volume.mount_options]
    if volume.recursive_read_only:
        options.append("rro")
    return _entry(path, "bind", str(source), *options)


def find_source(volume: VolumeMount, *, make: bool = True) -> Path:
    """Resolve links, ``make`` an absent directory as peers do, and see that the propagation asked for is possible."""
    if not volume.host_path.startswith("/"):
        raise InvalidArgument(f"mount {volume.container_path}: host_path {volume.host_path!r} is not absolute")
    touching(volume.host_path)
    source = Path(os.path.realpath(volume.host_path))
    try:
        if make and not source.exists():  # mkdir(2) would lock the directory above, which a call that hangs may hold
            rights.make_directories(source, rights.SHOWN_DIRECTORY)
    except FileExistsError:
        pass
    except OSError as error:
        raise FailedPrecondition(f"mount {volume.container_path}: host_path {source} can't be made: {error}") from error
    if volume.propagation is not MountPropagation.PRIVATE and (make or source.exists()):
        # A bind mount joins the peer group of its source, or is its slave: of a private mount there is none to join.
        shared, slave = mount.propagation(source)
        if not (shared or (slave and volume.propagation is not MountPropagation.BIDIRECTIONAL)):
            raise FailedPrecondition(
                f"mount {volume.container_path}: {source} is on a private mount, {volume.propagation.name} has no "
                "effect: make the mount shared on the host"
            )
    return source


def _entry(destination: str, kind: str, source: str, *options: str) -> JsonObject:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
