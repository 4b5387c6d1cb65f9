"""Control groups: version, controllers, whether one can be made, and who is to make them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import cgroups
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("cgroups")
_NEEDED = {
    1: frozenset({"cpu", "cpuset", "devices", "freezer", "memory", "pids"}),
    2: frozenset({"cpu", "memory", "pids"}),
}
_MOUNTS = Path("/sys/fs/cgroup")
_USEFUL = {1: frozenset({"blkio", "hugetlb"}), 2: frozenset({"cpuset", "hugetlb", "io"})}


def examine_cgroups(config: Config) -> Iterator[Finding]:
    """Examine the host's cgroups."""
    if not (_MOUNTS.is_dir() and any(_MOUNTS.iterdir())):  # what is made there would be plain directories
        advice = "mount the cgroup file systems there; for a chroot: mount --rbind /sys CHROOT/sys, on the host"
        yield _AREA.failure("mounts", f"no cgroups are mounted at {_MOUNTS}: none can be seen or made", advice)
        return
    version = cgroups.version()
    unified = (_MOUNTS / "unified/cgroup.controllers").exists()
    uses_crun = any(slot.driver == "crun" for slot in config.enabled_runtimes.values())
    yield from judge_version(version, unified, uses_crun)
    yield from judge_controllers(version, cgroups.controllers())
    yield _try_one(config.pods.cgroup_root)
    yield judge_driver(config.pods.cgroup_driver, version, Path("/run/systemd/system").is_dir())


def judge_version(version: int, unified: bool, uses_crun: bool) -> Iterator[Finding]:
    """Judge the version of cgroups; ``unified`` with version 1 is systemd's hybrid form."""
    if version == 2:
        yield _AREA.ok("version", "2")
        return
    advice = "boot with systemd.unified_cgroup_hierarchy=1: Kubernetes keeps v1 alive for a while only (failCgroupV1)"
    yield _AREA.warning("version", "1, hybrid" if unified else "1", advice)
    if unified:
        detail = "crun refuses this form"
        advice = "start crinoid in a mount namespace without v2, as the crun driver's error tells, or use runc"
        yield _AREA.warning("hybrid", detail, advice) if uses_crun else _AREA.ok("hybrid", f"{detail}; nothing uses it")


def judge_controllers(version: int, found: frozenset[str]) -> Iterator[Finding]:
    """Judge which controllers there are."""
    missing = sorted(_NEEDED[version] - found)
    if missing:
        advice = (
            "enable them in the kernel (cgroup_enable=memory for memory) and in the parent's cgroup.subtree_control"
        )
        yield _AREA.failure("controllers", f"without {', '.join(missing)}", advice)
    else:
        yield _AREA.ok("controllers", ", ".join(sorted(found)))
    if absent := sorted(_USEFUL[version] - found):
        advice = "limits that need them are refused; enable them if pods use such limits"
        yield _AREA.warning("useful controllers", f"without {', '.join(absent)}", advice)


def judge_driver(wanted: str, version: int, systemd: bool) -> Finding:
    """Judge who makes cgroups; the kubelet's cgroupDriver has to be the same."""
    if wanted == "systemd" and not systemd:
        return _AREA.failure("driver", "systemd is configured, but does not run", 'set pods.cgroup_driver = "cgroupfs"')
    if wanted == "cgroupfs" and systemd and version == 2:
        advice = 'systemd owns the tree of cgroup v2: set pods.cgroup_driver = "auto", and systemd at the kubelet'
        return _AREA.warning("driver", "cgroupfs beside systemd", advice)
    chosen = wanted if wanted != "auto" else "systemd" if systemd and version == 2 else "cgroupfs"
    return _AREA.ok("driver", f"{chosen}; the kubelet learns it from RuntimeConfig")


def _try_one(root: str) -> Finding:
    path = f"{root.rstrip('/')}/check-{os.getpid()}"
    before = _places(root)
    try:
        cgroups.make(path)
        cgroups.remove(path)
        # Each hierarchy by itself: a daemon that sees only some of them has made its root in those alone.
        for made in _places(root) - before:
            with suppress(OSError):  # a daemon has put pods there in between
                made.rmdir()
    except (OSError, CrinoidError) as error:
        return _AREA.failure("making one", f"{path}: {error}", "mount the cgroup file systems writable; run as root")
    return _AREA.ok("making one", f"{path} was made and removed")


def _places(path: str) -> set[Path]:
    """Return where a cgroup is: in the one hierarchy of version 2, or in those of version 1."""
    mounts = (_MOUNTS, *_MOUNTS.iterdir())
    return {place for mount in mounts if (place := mount / path.strip("/")).is_dir()}
