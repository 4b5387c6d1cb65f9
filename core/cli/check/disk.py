"""Room for images and containers, and the path of the socket."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("disk")
_LEAST_BYTES = 1 << 30
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its closing NUL


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left; ``inodes`` 0 where it does not count them."""

    free_bytes: int
    bytes: int
    free_inodes: int
    inodes: int


def examine_disk(config: Config) -> Iterator[Finding]:
    """Examine the file systems of root and run."""
    directory = existing(config.root)
    if not os.access(directory, os.W_OK):
        yield _AREA.failure("root", f"{directory} can't be written", "run as root, or set root to another directory")
    stats = os.statvfs(directory)
    room = Room(stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize, stats.f_favail, stats.f_files)
    yield from judge_room(config.root, room)
    yield _judge_socket(config.server.socket)


def judge_room(path: Path, room: Room) -> Iterator[Finding]:
    """Judge what is left: the kubelet evicts below 10 % of bytes and 5 % of inodes (its nodefs defaults)."""
    share = room.free_bytes / max(room.bytes, 1)
    detail = f"{_write_size(room.free_bytes)} of {_write_size(room.bytes)} free for {path}"
    if room.free_bytes < _LEAST_BYTES:
        yield _AREA.failure("space", detail, "free some, or set root to a larger file system")
    elif share < 0.1:
        yield _AREA.warning("space", detail, "free some: the kubelet starts to evict pods below 10 %")
    else:
        yield _AREA.ok("space", detail)
    if room.inodes and room.free_inodes / room.inodes < 0.05:
        detail = f"{room.free_inodes} of {room.inodes} free"
        yield _AREA.warning("inodes", detail, "remove files: the kubelet starts to evict pods below 5 %")
    elif room.inodes:
        yield _AREA.ok("inodes", f"{room.free_inodes} of {room.inodes} free")


def existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next(directory for directory in (path, *path.parents) if directory.is_dir())


def _judge_socket(path: Path) -> Finding:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        return _AREA.failure("socket", f"{path} is longer than 107 bytes", "set server.socket to a shorter path")
    if path.exists() and not path.is_socket():
        return _AREA.failure("socket", f"{path} is no socket", "move it away, or set server.socket to another path")
    return _AREA.ok("socket", f"{path}{': a daemon serves it' if _is_served(path) else ''}")


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _write_size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
