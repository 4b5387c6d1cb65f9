"""What processes and block devices tell about themselves in /proc and /sys (proc(5)); what has gone counts nothing."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """Open descriptors, and how many of them are sockets."""

    descriptors: int
    sockets: int


def count_open_files(pids: Iterable[int]) -> OpenFiles:
    """Count the descriptors of processes; looks at each one, so call it in a thread."""
    descriptors = sockets = 0
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                descriptors += 1
                sockets += _is_socket(entry.path)
    return OpenFiles(descriptors, sockets)


def read_lines(path: str) -> list[str]:
    """Return the lines of a file of the kernel's that holds names which others chose, such as mount points.

    A name may hold any byte but a newline: those that Python takes for the end of a line are none, and what is no UTF-8
    is read as with ``os.fsdecode``.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read()).removesuffix("\n").split("\n")


def soft_limit(pid: int, name: str) -> int | None:
    """Return a process's soft limit, such as ``Max open files``; -1 for none, ``None`` when it can't be read."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    found = next((line[len(name) :].split() for line in lines if line.startswith(name)), None)
    if not found:
        return None
    return -1 if found[0] == "unlimited" else int(found[0])


def device_name(major: int, minor: int) -> str:
    """Return a block device's path such as ``/dev/sda1``, ``8:1`` where it has no name."""
    try:
        lines = Path(f"/sys/dev/block/{major}:{minor}/uevent").read_text().splitlines()
    except OSError:
        return f"{major}:{minor}"
    names = (line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME="))
    return next((f"/dev/{name}" for name in names), f"{major}:{minor}")


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")  # noqa: PTH115  # thousands of them
    except OSError:
        return False
