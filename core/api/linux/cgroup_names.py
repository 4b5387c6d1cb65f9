"""The two ways to name a cgroup, and the path below the mount point that either means.

With the cgroupfs driver a name is the path itself. With the systemd driver a pod's parent is a slice, as
``kubepods-burstable-pod1.slice``, and a container ``slice:prefix:name``, which is the unit ``prefix-name.scope`` in it.
A name tells by its form which of them it is: whoever holds one needs no configuration to find the cgroup. Sources:
systemd.slice(5); runc, docs/systemd.md.
"""

import re

_SLICE = re.compile(r"(?:-|[A-Za-z0-9:_.\\@]+(?:-[A-Za-z0-9:_.\\@]+)*)\.slice")
_MAX_UNIT_NAME = 255


def is_slice(name: str) -> bool:
    """Return whether systemd takes this for a slice: parts between single dashes, or ``-.slice``, the root."""
    return len(name) <= _MAX_UNIT_NAME and _SLICE.fullmatch(name) is not None


def is_scope(name: str) -> bool:
    """Return whether a container's cgroup has systemd's form, ``slice:prefix:name``."""
    return name.count(":") == 2 and not name.startswith("/")


def below_mount(name: str) -> str:
    """Return the path of a pod's or container's cgroup below the mount point, such as ``/a.slice/a-b.slice``.

    The result is not checked: ask ``cgroups.is_path`` before a path that came from elsewhere is used.
    """
    if is_scope(name):
        slice_name, prefix, rest = name.split(":")
        unit = f"{prefix}-{rest}.scope" if prefix else rest
        return f"{below_mount(slice_name or 'system.slice').rstrip('/')}/{unit}"
    if name.endswith(".slice") and "/" not in name:
        parts = name.removesuffix(".slice").split("-") if name != "-.slice" else []
        return "/" + "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))
    return "/" + name.strip("/")
