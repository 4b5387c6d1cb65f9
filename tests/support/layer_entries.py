"""Entries of layers, for tests that compare what layers show: as an archive, in ``layer_model``, and as seen."""

import os
import stat
import tarfile
from pathlib import Path

from support.archives import ArchiveBuilder
from support.layer_model import Layer, Node

Entry = tuple[str, list[str], str, list[str]]
"""Kind, path, what a link says, what a hard link names."""
KINDS = [
    *("file", "directory", "private", "whiteout", "whiteout", "opaque", "link", "link", "hard link", "hard link"),
    *("character device", "block device", "FIFO", "nothing"),
]
TARGETS = ["a", "b", "c", "/a", "/b/c", "../b", "a/../c", "a/b", "c/a", "/", "..", "."]


def content(layer: int, number: int) -> str:
    return f"{layer}.{number}"


_DEVICES = {"character device": (tarfile.CHRTYPE, 1, 3), "block device": (tarfile.BLKTYPE, 7, 300)}


def build(entries: list[Entry], layer: int) -> bytes:
    builder = ArchiveBuilder()
    for number, (kind, path, target, other) in enumerate(entries):
        name, parent = "/".join(path), "/".join(path[:-1])
        match kind:
            case "file":
                builder.file(name, content(layer, number).encode())
            case "directory":
                builder.directory(name)
            case "private":
                builder.add(name, tarfile.DIRTYPE, mode=0o1700, uid=1000 + layer, gid=number)
            case "whiteout":
                builder.file(f"{parent}/.wh.{path[-1]}")
            case "opaque":
                builder.file(f"{name}/.wh..wh..opq")
            case "link":
                builder.symlink(name, target)
            case "hard link":
                builder.add(name, tarfile.LNKTYPE, linkname="/".join(other), mode=0o600, uid=6)
            case "FIFO":
                builder.add(name, tarfile.FIFOTYPE, mode=0o600)
            case "nothing":  # overlayfs' own form of a whiteout
                builder.add(name, tarfile.CHRTYPE, devmajor=0, devminor=0)
            case _:
                type_, major, minor = _DEVICES[kind]
                builder.add(name, type_, mode=0o2640, uid=5, devmajor=major, devminor=minor)
    return builder.build()


def modelled(entries: list[Entry], layer: int) -> Layer:
    model = Layer()
    for number, (kind, path, target, other) in enumerate(entries):
        match kind:
            case "file":
                model.add(path, Node("file", content(layer, number), (0o644, 0, 0)))
            case "directory":
                model.add_directory(path, (0o755, 0, 0))
            case "private":
                model.add_directory(path, (0o1700, 1000 + layer, number))
            case "whiteout" | "nothing":
                model.hide(path)
            case "opaque":
                model.hide_below(path)
            case "link":
                model.add(path, Node("link", target, (0o777, 0, 0)))
            case "hard link":
                model.add_hard_link(path, other, (0o600, 6, 0))
            case "FIFO":
                model.add(path, Node("FIFO", "", (0o600, 0, 0)))
            case _:
                _, major, minor = _DEVICES[kind]
                model.add(path, Node(kind, f"{major}:{minor}", (0o2640, 5, 0)))
    return model


_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "FIFO"}
_TYPES |= {stat.S_IFCHR: "character device", stat.S_IFBLK: "block device"}


def seen(root: Path, passes_over_idle_whiteouts: bool = False) -> dict[str, object]:
    """All that is listed, and opened, as ``layer_model`` describes it; what can't be opened is an error or left out."""
    found: dict[str, object] = {}
    first: dict[tuple[int, int], str] = {}

    def look(path: Path) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            if passes_over_idle_whiteouts:
                return
            raise
        kind, name = _TYPES[stat.S_IFMT(status.st_mode)], str(path.relative_to(root))
        content = ""
        if kind == "file":
            content = path.read_text()
        elif kind == "link":
            content = str(path.readlink())
        elif status.st_rdev:
            content = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        looks = (kind, content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        found[name] = looks if kind == "directory" else (*looks, first.setdefault((status.st_dev, status.st_ino), name))
        if kind == "directory":
            for below in sorted(path.iterdir()):
                look(below)

    look(root)
    return found
