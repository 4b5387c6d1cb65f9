"""Namespaces and mounts, tried for real: each is made, looked at and undone."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import idmaps, mount, namespaces
from crinoid.core.api.values.pod import IdMapping
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.cli.check.disk import existing
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("isolation")
_IDS = (IdMapping(host_id=0, container_id=0, length=1),)


def examine_isolation(config: Config) -> Iterator[Finding]:
    """Examine what separates pods from each other and from the host."""
    with tempfile.TemporaryDirectory(prefix=".crinoid-check-", dir=existing(config.run)) as name:
        yield from (_try_namespace(kind, Path(name) / kind) for kind in ("network", "ipc", "uts"))
        yield _try_user_namespace(Path(name) / "user")
    yield _try_mapped_mounts(existing(config.root))
    yield _try_overlay(existing(config.root), config.snapshotter.driver == "overlay")
    yield judge_propagation(*mount.propagation(Path("/")))


def judge_propagation(shared: bool, slave: bool) -> Finding:
    """Judge the root mount: what the kubelet mounts must reach containers that ask for it."""
    if shared:
        return _AREA.ok("mount propagation", "/ is shared")
    form = "a slave" if slave else "private"
    advice = 'run "mount --make-rshared /": volumes with HostToContainer or Bidirectional propagation need it'
    return _AREA.warning("mount propagation", f"/ is {form}", advice)


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
