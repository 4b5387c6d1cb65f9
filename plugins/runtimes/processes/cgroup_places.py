"""Where a container's cgroup is: from the name that its runtime was given to the directories on this host."""

import functools
from pathlib import Path

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.core.api.linux.procfs import read_lines


def below_mount(cgroup: str, systemd: bool) -> str:
    """Return the path of a container's cgroup below the mount point.

    systemd's form ``slice:prefix:name`` names the unit ``prefix-name.scope`` in a slice whose dashes are directories
    (systemd.slice(5)). Raises InvalidArgument for a name that is not of the form the slot was configured for.
    """
    parts = cgroup.split(":")
    if systemd != (len(parts) == 3):
        form = "slice:prefix:name" if systemd else "a path"
        raise InvalidArgument(f"cgroup {cgroup!r} is not {form}; do the slot's systemd_cgroup and the kubelet agree?")
    if not systemd:
        return "/" + cgroup.strip("/")
    parent, prefix, name = parts
    unit = f"{prefix}-{name}.scope" if prefix else name
    stem = (parent or "system.slice").removesuffix(".slice")
    steps = [] if stem == "-" else stem.split("-")  # -.slice is the root
    above = "".join(f"/{'-'.join(steps[: count + 1])}.slice" for count in range(len(steps)))
    return f"{above}/{unit}"


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
