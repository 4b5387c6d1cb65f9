"""Writes a build as a tar and as Debian's package. Sources: tar(5), deb(5), ar(5).

Members are sorted, belong to root and have one time, and so equal trees make equal bytes (reproducible-builds.org,
SOURCE_DATE_EPOCH).
"""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import PurePosixPath

from crinoid.core.cli.node_build.tree import Entry, Tree

_LEVEL = 6


def write_tar(entries: Iterable[tuple[str, Entry]], epoch: int) -> bytes:
    """Return a gzip'd tar of files by their absolute paths, with the directories above them."""
    buffer = io.BytesIO()
    directories: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, entry in entries:
            for parent in [*reversed(PurePosixPath(path).parents)]:
                name = "." + str(parent).rstrip("/") + "/"
                if name not in directories:
                    directories.add(name)
                    archive.addfile(_member(name, tarfile.DIRTYPE, 0o755, epoch))
            if entry.link:
                member = _member(f".{path}", tarfile.SYMTYPE, 0o777, epoch)
                member.linkname = entry.link
                archive.addfile(member)
            else:
                member = _member(f".{path}", tarfile.REGTYPE, entry.mode, epoch)
                member.size = len(entry.content)
                archive.addfile(member, io.BytesIO(entry.content))
    return gzip.compress(buffer.getvalue(), _LEVEL, mtime=epoch)


def write_deb(tree: Tree, control: dict[str, tuple[bytes, int]], data: bytes, epoch: int) -> bytes:
    """Return the package: an ar archive of three members in their order."""
    files = [(f"/{name}", Entry(content, mode)) for name, (content, mode) in sorted(control.items())]
    members = {"debian-binary": b"2.0\n", "control.tar.gz": write_tar(files, epoch), "data.tar.gz": data}
    out = bytearray(b"!<arch>\n")
    for name, content in members.items():
        out += f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + (b"\n" if len(content) % 2 else b"")
    return bytes(out)


def _member(name: str, kind: bytes, mode: int, epoch: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, epoch
    member.uname = member.gname = "root"
    return member
