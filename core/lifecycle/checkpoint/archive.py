"""The form of a checkpoint on disk, as CRI-O, containerd and Podman write it and checkpointctl reads it.

A container's checkpoint is a tar: ``config.dump`` (where it comes from), ``spec.dump`` (its OCI specification),
``checkpoint/`` (criu's images), ``rootfs-diff.tar``, ``deleted.files``, ``bind.mounts``, criu's ``stats-dump`` and
``dump.log``. A pod's is a folder with one such tar for each container and ``pod.options``, ``pod.dump`` beside them.
"""

import json
import os
import stat
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from crinoid.core.api.errors import CorruptContent, CrinoidError, InvalidArgument
from crinoid.core.api.manifests import Document, parse

CONFIG, SPEC, IMAGES, ROOT_DIFF = "config.dump", "spec.dump", "checkpoint", "rootfs-diff.tar"
DELETED, BIND_MOUNTS, STATISTICS, LOG = "deleted.files", "bind.mounts", "stats-dump", "dump.log"
FILES = (CONFIG, SPEC, DELETED, BIND_MOUNTS, STATISTICS, LOG, ROOT_DIFF)
POD_OPTIONS, POD_DUMP = "pod.options", "pod.dump"
POD_VERSION = 1
ANNOTATIONS = frozenset({"org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"})
"""Annotations of a manifest that make an image a checkpoint: checkpointctl's, and CRI-O's."""

_MAX_DOCUMENT_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
D = TypeVar("D", bound=Document)


class ContainerDump(Document):
    """``config.dump``: the container, its image as an id and by name, and when it was checkpointed."""

    id: str = ""
    name: str = ""
    image: Annotated[str, Field(alias="rootfsImage")] = ""
    image_ref: Annotated[str, Field(alias="rootfsImageRef")] = ""
    image_name: Annotated[str, Field(alias="rootfsImageName")] = ""
    runtime: str = ""


class UserDump(Document):
    """The user of an OCI ``process``."""

    uid: int = 0
    gid: int = 0


class ProcessDump(Document):
    """The part of an OCI ``process`` that says what the checkpointed process was."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    user: UserDump = UserDump()


class LinuxDump(Document):
    """Where the container was."""

    cgroup: Annotated[str, Field(alias="cgroupsPath")] = ""


class SpecDump(Document):
    """``spec.dump``."""

    process: ProcessDump = ProcessDump()
    linux: LinuxDump = LinuxDump()


class PodOptions(Document):
    """``pod.options``: the names of the pod's containers, each with the name of its archive without ``.tar``."""

    version: int
    containers: Mapping[str, str]


class PodDump(Document):
    """``pod.dump``: what the pod was, as far as a restore looks at it."""

    runtime: Annotated[str, Field(alias="runtimeHandler")] = ""
    driver: Annotated[str, Field(alias="runtimeDriver")] = ""


def pack(folder: Path, target: Path, given_up: threading.Event) -> None:
    """Write the archive of what lies in a folder, for root alone, synced to disk. Blocks."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in [name for name in FILES if (folder / name).exists()]:
                _add(archive, folder / name, name)
            archive.add(folder / IMAGES, IMAGES, recursive=False)
            for path in sorted((folder / IMAGES).iterdir()):
                if given_up.is_set():
                    raise CrinoidError("the archive was not needed any more")
                _add(archive, path, f"{IMAGES}/{path.name}")
        file.flush()
        os.fsync(file.fileno())


def unpack(source: Path, folder: Path, given_up: threading.Event) -> None:
    """Unpack the parts of an archive that are known here into an empty folder; what else it has is passed over. Blocks.

    Raises CorruptContent for what is no such archive. A name never leads out of the folder: only plain files are made,
    in it and in ``checkpoint/``.
    """
    (folder / IMAGES).mkdir(mode=0o700)
    try:
        with tarfile.open(source, "r:*") as archive:
            for member in archive:
                if given_up.is_set():
                    raise CrinoidError("the checkpoint was not needed any more")
                if (name := _target_of(member)) is not None:
                    _extract(archive, member, folder / name)
    except (tarfile.TarError, EOFError) as error:
        raise CorruptContent(f"{source} is no checkpoint archive: {error}") from error
    except FileExistsError as error:
        raise CorruptContent(f"{source} holds {error.filename} twice") from error


def check_folder(folder: Path, what: str) -> None:
    """Raise CorruptContent unless the parts of an unpacked checkpoint are there, and are plain files, no links."""
    for name in (CONFIG, SPEC):
        if not (folder / name).exists():
            raise CorruptContent(f"{what} is no checkpoint of a container: it has no {name}")
    for name in (*FILES, IMAGES):
        _check_kind(folder / name, stat.S_ISDIR if name == IMAGES else stat.S_ISREG, what)
    if not (folder / IMAGES / "inventory.img").exists():
        raise CorruptContent(f"{what} holds no state of processes: {IMAGES}/inventory.img is missing")
    for path in (folder / IMAGES).iterdir():
        _check_kind(path, stat.S_ISREG, what)


def read_dump(model: type[D], path: Path, what: str) -> D:
    """Read one of the JSON documents. Raises CorruptContent, InvalidArgument where it is not there."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            content = file.read(_MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise InvalidArgument(f"{what}: {path.name} can't be read: {error.strerror}") from error
    return parse(model, content, f"{what}: {path.name}")


def read_deleted(folder: Path, what: str) -> tuple[str, ...]:
    """Return the paths of files of the image that the container had deleted."""
    try:
        found = json.loads((folder / DELETED).read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise CorruptContent(f"{what}: {DELETED} is no JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise CorruptContent(f"{what}: {DELETED} is no list of paths")
    return tuple(found)


def write_json(path: Path, document: object) -> None:
    """Write a document for root alone."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(document, file, indent=2)


def bind_mounts(spec: Mapping[str, Any]) -> Sequence[Mapping[str, object]]:
    """Return what ``bind.mounts`` says of a specification: each bind mount, and whether a file or a folder."""
    found = []
    for mount in spec.get("mounts", ()):
        if mount.get("type") != "bind":
            continue
        source = Path(mount["source"])
        kind = "directory" if source.is_dir() else "file"
        mode = stat.S_IMODE(source.stat().st_mode)
        found.append(
            {"source": str(source), "destination": mount["destination"], "file_type": kind, "permissions": mode}
        )
    return found


def _target_of(member: tarfile.TarInfo) -> str | None:
    name = member.name.removeprefix("./").strip("/")
    folder, _, base = name.rpartition("/")
    known = name in FILES if not folder else folder == IMAGES and base not in ("", ".", "..")
    return name if known and member.isreg() and member.sparse is None else None


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None, "a plain file has content"
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with content, open(fd, "wb") as file:
        while piece := content.read(_PIECE_BYTES):
            file.write(piece)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a plain file; criu leaves nothing else that is worth keeping."""
    if stat.S_ISREG(path.lstat().st_mode):
        archive.add(path, name, recursive=False)


def _check_kind(path: Path, fits: Any, what: str) -> None:  # Any: the functions of stat have no names for their type
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not fits(mode):
        raise CorruptContent(f"{what}: {path.name} is a link or another thing that no checkpoint holds")
