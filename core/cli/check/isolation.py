"""Namespaces and mounts, tried for real: each is made, looked at and undone."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import idmaps, libc, mount, namespaces
from crinoid.core.api.linux.threads import call_in_fresh_thread
from crinoid.core.api.values.pod import IdMapping
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.cli.check.disk import existing
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("isolation")
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_IDS = (IdMapping(host_id=0, container_id=0, length=1),)


def examine_isolation(config: Config) -> Iterator[Finding]:
    """Examine what separates pods from each other and from the host."""
    with tempfile.TemporaryDirectory(prefix=".crinoid-check-", dir=existing(config.run)) as name:
        yield from (_try_namespace(kind, Path(name) / kind) for kind in ("network", "ipc", "uts"))
        yield _try_user_namespace(Path(name) / "user")
    yield _try_mapped_mounts(existing(config.root))
    yield _try_overlay(existing(config.root), config.snapshotter.driver == "overlay")
    yield judge_propagation(*mount.propagation(Path("/")))
    yield _look_at_root()


def judge_propagation(shared: bool, slave: bool) -> Finding:
    """Judge the root mount: what the kubelet mounts must reach containers that ask for it."""
    if shared:
        return _AREA.ok("mount propagation", "/ is shared")
    form = "a slave" if slave else "private"
    advice = 'run "mount --make-rshared /": volumes with HostToContainer or Bidirectional propagation need it'
    return _AREA.warning("mount propagation", f"/ is {form}", advice)


def _look_at_root() -> Finding:
    """See whether this process's root is that of its mount namespace, as it is after pivot_root and not after chroot.

    pivot_root(2) refuses another one (EINVAL), so runc moves a container's root on top of the host's and changes into
    it; whoever enters the container's mount namespace later, as exec does, gets that namespace's own root, which is the
    host's. The kernel tells by the same act: setns(2) to one's own mount namespace leads to its root.
    """
    try:
        given, own = call_in_fresh_thread(_roots)
    except OSError as error:
        return _AREA.warning("root directory", str(error), "run as root; whether it is a chroot can't be seen else")
    if given == own:
        return _AREA.ok("root directory", "is that of the mount namespace")
    return _AREA.failure(
        "root directory",
        "is a chroot's: an exec in a container of runc's would see the host's files",
        "start crinoid outside, or by pivot_root (unshare --mount, pivot_root); docs/troubleshooting.md#chroot",
    )


def _roots() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the root of this process and that of its mount namespace. In a thread of its own, whose root changes."""
    with ExitStack() as opened:

        def open_path(path: str) -> int:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            return descriptor

        def identity() -> tuple[int, ...]:
            """A bind mount of a directory is told from the directory by the number of the mount (proc(5), fdinfo)."""
            root = open_path("/")
            found = os.fstat(root)
            info = os.open(f"thread-self/fdinfo/{root}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            with open(info) as lines:
                number = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
            return found.st_dev, found.st_ino, int(number)

        proc = open_path("/proc")  # of now: the other root need not have one
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, namespace)
        given = identity()
        libc.call("unshare", _CLONE_FS)
        libc.call("setns", namespace, _CLONE_NEWNS)
        return given, identity()


def _try_namespace(kind: str, path: Path) -> Finding:
    try:
        namespaces.pin({kind: path})
    except (OSError, CrinoidError) as error:
        return _AREA.failure(f"{kind} namespace", str(error), "run as root, in a sandbox that allows unshare and mount")
    namespaces.unpin(path)
    return _AREA.ok(f"{kind} namespace", "was made, held and let go")


def _try_user_namespace(path: Path) -> Finding:
    try:
        namespaces.pin({"user": path}, uids=_IDS, gids=_IDS)
    except (OSError, CrinoidError) as error:
        advice = "pods with hostUsers: false can't run; raise user.max_user_namespaces"
        return _AREA.warning("user namespace", str(error), advice)
    namespaces.unpin(path)
    return _AREA.ok("user namespace", "was made, held and let go")


def _try_mapped_mounts(directory: Path) -> Finding:
    """Try them out where images are kept: the file system matters as much as the kernel."""
    try:
        with tempfile.TemporaryDirectory(prefix=".crinoid-check-", dir=directory) as name:
            idmaps.try_in(Path(name))
    except (OSError, CrinoidError) as error:
        advice = "pods with hostUsers: false can't run; use Linux 5.19 or newer, and ext4, xfs or btrfs for root"
        return _AREA.warning("id-mapped mounts", str(error), advice)
    return _AREA.ok("id-mapped mounts", f"work below {directory}")


def _try_overlay(directory: Path, needed: bool) -> Finding:
    """Mount one where snapshots will lie: an overlay on an overlay, as in a container, is refused."""
    with tempfile.TemporaryDirectory(prefix=".crinoid-check-", dir=directory) as name, ExitStack() as stack:
        parts = {part: Path(name) / part for part in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            part.mkdir()
        (parts["lower"] / "file").touch()
        options = (f"lowerdir+={parts['lower']}", f"upperdir={parts['upper']}", f"workdir={parts['work']}")
        try:
            mount.mount(Mount("overlay", "overlay", options), parts["merged"])
            stack.callback(mount.unmount, parts["merged"])
            (parts["merged"] / "file").unlink()
        except OSError as error:
            finding = _AREA.failure if needed else _AREA.warning
            advice = 'put root on another file system, or set [snapshotter] driver = "native"'
            return finding("overlay", f"below {directory}: {error}", advice)
    return _AREA.ok("overlay", f"works below {directory}")
