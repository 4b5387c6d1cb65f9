"""Where a container's cgroup is in this host's hierarchies, and what it tells."""

import functools
from pathlib import Path

from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.core.api.linux.procfs import read_lines


def cgroup_directory(controller: str, path: str) -> Path | None:
    """Return the directory of a cgroup in a controller's hierarchy (v2: in the only one); ``None`` without it."""
    hierarchies = _hierarchies()
    root = hierarchies.unified if hierarchies.version == 2 else hierarchies.by_controller.get(controller)
    return Path(root) / path.lstrip("/") if root else None


def is_unified() -> bool:
    """Return whether the host has cgroup v2 alone."""
    return _hierarchies().version == 2


def is_hybrid() -> bool:
    """Return whether the host has v2's hierarchy beside those of v1."""
    return _hierarchies().version == 1 and bool(_hierarchies().unified)


def memberships(pid: int | str) -> dict[str, str]:
    """Return the cgroup of a process (or ``self``) by the mount point of its hierarchy; cgroups(7), /proc/pid/cgroup.

    Hierarchies that are not mounted where we see them are left out. Raises OSError when there is no such process.
    """
    hierarchies, found = _hierarchies(), {}
    for line in read_lines(f"/proc/{pid}/cgroup"):
        _, names, path = line.split(":", 2)
        if not names:
            roots: tuple[str, ...] = (hierarchies.unified,) if hierarchies.unified else ()
        elif names.startswith("name="):
            roots = tuple(one for one in hierarchies.others if Path(one).name == names.removeprefix("name="))
        else:
            root = hierarchies.by_controller.get(names.split(",")[0])
            roots = (root,) if root else ()
        found.update(dict.fromkeys(roots, path))
    return found


def oom_kills(path: str) -> int:
    """Return how often the kernel has killed in a cgroup for want of memory; 0 when the cgroup is gone."""
    memory = cgroup_directory("memory", path)
    if memory is None:
        return 0
    return _counter(memory / ("memory.events" if is_unified() else "memory.oom_control"), "oom_kill")


def is_frozen(path: str) -> bool:
    """Return whether a cgroup was paused."""
    freezer = cgroup_directory("freezer", path)
    if freezer is None:
        return False
    if is_unified():
        return _counter(freezer / "cgroup.events", "frozen") == 1
    return _text(freezer / "freezer.state").startswith("FROZEN")


@functools.cache
def _hierarchies() -> Hierarchies:
    return Hierarchies.read(read_lines("/proc/self/mountinfo"))


def _counter(file: Path, name: str) -> int:
    words = _text(file).split()
    return int(words[words.index(name) + 1]) if name in words else 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
