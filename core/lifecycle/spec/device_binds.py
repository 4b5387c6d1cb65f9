"""Devices of a container in a user namespace: nobody may make a node there (mknod(2), EPERM), so the host's is bound.

Called by ``builder`` when the specification is complete, CDI's devices included. The cgroup's rules stay as they are.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.lifecycle.spec.mounts import keep_flags

JsonObject = dict[str, Any]


def bind_devices(spec: JsonObject) -> None:
    """Turn ``linux.devices`` into bind mounts. Blocks. Raises Unsupported for a device that the host has no node of.

    The flags that the kernel wants kept are repeated on all bind mounts, also those of devices' files and extensions.
    """
    entries = [*spec["mounts"], *(_bind(node) for node in spec["linux"].pop("devices", ()))]
    for entry in entries:
        touching(entry.get("source", ""))
        if entry.get("type") == "bind" and Path(entry["source"]).exists():  # else the runtime says so
            keep_flags(entry)
    spec["mounts"] = sorted(entries, key=lambda one: len(PurePosixPath(one["destination"]).parts))


def _bind(node: JsonObject) -> JsonObject:
    return {
        "destination": node["path"],
        "type": "bind",
        "source": str(_source(node)),
        "options": ["bind", "nosuid", "noexec"],
    }


def _source(node: JsonObject) -> Path:
    if node["type"] == "p":
        raise Unsupported(f"device {node['path']}: runtimes make no pipes in a user namespace")
    number = os.makedev(node["major"], node["minor"])
    kind = "block" if node["type"] == "b" else "char"
    for path in (Path(node["path"]), _named_by_kernel(kind, number)):
        touching(path or "")
        if path is not None and path.exists() and path.stat().st_rdev == number:
            return path
    raise Unsupported(
        f"device {node['path']} ({node['type']} {node['major']}:{node['minor']}): the host has no node of it in /dev, "
        "and in a user namespace none can be made"
    )


def _named_by_kernel(kind: str, number: int) -> Path | None:
    try:
        lines = Path(f"/sys/dev/{kind}/{os.major(number)}:{os.minor(number)}/uevent").read_text().splitlines()
    except OSError:
        return None
    names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
    return Path("/dev") / names[0] if names else None
