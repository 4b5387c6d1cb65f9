"""The form of a checkpoint on disk, as CRI-O, containerd and Podman write it and checkpointctl reads it.

A container's checkpoint is a tar: ``config.dump`` (where it comes from), ``spec.dump`` (its OCI specification),
``checkpoint/`` (criu's images), ``rootfs-diff.tar``, ``deleted.files``, ``bind.mounts``, criu's ``stats-dump`` and
``dump.log``. A pod's is a directory with one such tar for each container and ``pod.options``, ``pod.dump`` beside them.
"""

import errno
import json
import os
import stat
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, cast

from pydantic import AfterValidator, Field, StringConstraints

from crinoid.core.api.errors import CorruptContent, CrinoidError, InvalidArgument, ResourceExhausted
from crinoid.core.api.linux.files import read_regular, sync_file
from crinoid.core.api.manifests import Document, parse
from crinoid.core.lifecycle.images.unpack.flushing import STEP_BYTES, find_shortage

CONFIG, SPEC, IMAGES, ROOT_DIFF = "config.dump", "spec.dump", "checkpoint", "rootfs-diff.tar"
DELETED, BIND_MOUNTS, STATISTICS, LOG = "deleted.files", "bind.mounts", "stats-dump", "dump.log"
FILES = (CONFIG, SPEC, DELETED, BIND_MOUNTS, STATISTICS, LOG, ROOT_DIFF)
"""What is written into an archive, besides criu's images."""
POD_OPTIONS, POD_DUMP = "pod.options", "pod.dump"
POD_VERSION = 1
ANNOTATIONS = frozenset({"org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"})
"""Annotations of a manifest that make an image a checkpoint: checkpointctl's, and CRI-O's."""

_MIB = 1 << 20
PARTS = (
    (CONFIG, _MIB),
    (SPEC, 8 * _MIB),
    (DELETED, 16 * _MIB),
    (BIND_MOUNTS, 8 * _MIB),
    (STATISTICS, _MIB),
    (LOG, None),
    (ROOT_DIFF, None),
    (f"{IMAGES}/", None),
)
"""What is taken out of an archive: each part with its most bytes, ``None`` where the archive's own limit is all."""
MAX_MEMBERS = 1 << 20
_MAX_IMAGES = 100_000
_MAX_VALUES = 1 << 17
D = TypeVar("D", bound=Document)


def _be_cgroup(path: str) -> str:
    """Accept what a runtime calls a cgroup: a path, or ``slice:prefix:name`` of systemd's."""
    if path and (".." in path.split("/") or not (path.startswith("/") or path.count(":") == 2)):
        raise ValueError("is no cgroup's path")
    return path


Text = Annotated[str, StringConstraints(strict=True, pattern=r"^[^\x00]*$", max_length=4096)]
Argument = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[^\x00]*$", max_length=1 << 17)
]  # the kernel's MAX_ARG_STRLEN
Id = Annotated[int, Field(strict=True, ge=0, lt=(1 << 32) - 1)]
Truth = Annotated[bool, Field(strict=True)]
Directory = Annotated[str, StringConstraints(strict=True, pattern=r"^/[^\x00]*$", max_length=4096)]


class ContainerDump(Document):
    """``config.dump``: the container, its image as an id and by name, and when it was checkpointed."""

    id: Text = ""
    name: Text = ""
    image: Annotated[Text, Field(alias="rootfsImage")] = ""
    image_ref: Annotated[Text, Field(alias="rootfsImageRef")] = ""
    image_name: Annotated[Text, Field(alias="rootfsImageName")] = ""
    runtime: Text = ""


class UserDump(Document):
    """The user of an OCI ``process``."""

    uid: Id = 0
    gid: Id = 0


class ProcessDump(Document):
    """The part of an OCI ``process`` that says what the checkpointed process was."""

    args: tuple[Argument, ...] = ()
    env: tuple[Argument, ...] = ()
    cwd: Directory = "/"
    terminal: Truth = False
    user: UserDump = UserDump()


class LinuxDump(Document):
    """Where the container was."""

    cgroup: Annotated[Text, AfterValidator(_be_cgroup), Field(alias="cgroupsPath")] = ""


class SpecDump(Document):
    """``spec.dump``."""

    process: ProcessDump = ProcessDump()
    linux: LinuxDump = LinuxDump()


class PodOptions(Document):
    """``pod.options``: the names of the pod's containers, each with the name of its archive without ``.tar``."""

    version: Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
    containers: Annotated[Mapping[Text, Text], Field(max_length=10_000)]


class PodDump(Document):
    """``pod.dump``: what the pod was, as far as a restore looks at it."""

    runtime: Annotated[Text, Field(alias="runtimeHandler")] = ""
    driver: Annotated[Text, Field(alias="runtimeDriver")] = ""


class Output:
    """A new file for root alone that a tar is written to, with a look now and then at whether to go on.

    However large one file of a container is (a sparse one may have more bytes than there are disks), writing it ends
    soon after ``given_up`` was set, with CrinoidError, and before the disk is full, with ResourceExhausted.
    """

    def __init__(self, target: Path, given_up: threading.Event, keep_free_percent: float) -> None:
        self._given_up = given_up
        self._keep_free_percent = keep_free_percent
        self._left = 0
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = open(fd, "wb")  # noqa: SIM115  # closed by tar

    @contextmanager
    def tar(self) -> Iterator[tarfile.TarFile]:
        """Give the tar to a block; afterwards all of it is on its way to the disk."""
        with self._file, tarfile.open(fileobj=cast("BinaryIO", self), mode="w", format=tarfile.PAX_FORMAT) as archive:
            yield archive

    def write(self, data: bytes) -> int:
        """Write a piece of the tar."""
        if self._given_up.is_set():
            raise CrinoidError("the checkpoint was not needed any more")
        self._left -= len(data)
        if self._left <= 0:
            if shortage := find_shortage(self._file.fileno(), self._keep_free_percent):
                raise ResourceExhausted(f"the checkpoint can't be written: {shortage}")
            self._left = STEP_BYTES
        return self._file.write(data)

    def tell(self) -> int:
        """Return how much was written; tarfile asks at the start."""
        return self._file.tell()


def pack(directory: Path, target: Path, given_up: threading.Event, keep_free_percent: float = 0.0) -> None:
    """Write the archive of what lies in a directory, for root alone, synced to disk. Blocks."""
    with Output(target, given_up, keep_free_percent).tar() as archive:
        for name in [name for name in FILES if (directory / name).exists()]:
            _add(archive, directory / name, name)
        archive.add(directory / IMAGES, IMAGES, recursive=False)
        for path in sorted((directory / IMAGES).iterdir()):
            _add(archive, path, f"{IMAGES}/{path.name}")
    sync_file(target)


def check_directory(directory: Path, what: str) -> None:
    """Raise CorruptContent unless the parts of an unpacked checkpoint are there, and are plain files, no links. Blocks.

    An image's are what its layers made of them, so there may be anything.
    """
    for name in (CONFIG, SPEC):
        if not os.path.lexists(directory / name):
            raise CorruptContent(f"{what} is no checkpoint of a container: it has no {name}")
    for name, _ in PARTS:
        _check_kind(directory / name, stat.S_ISDIR if name.endswith("/") else stat.S_ISREG, what)
    if not os.path.lexists(directory / IMAGES / "inventory.img"):
        raise CorruptContent(f"{what} holds no state of processes: {IMAGES}/inventory.img is missing")
    with os.scandir(directory / IMAGES) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_IMAGES:
                raise CorruptContent(f"{what} holds more than {_MAX_IMAGES} files in {IMAGES}/")
            _check_kind(Path(entry.path), stat.S_ISREG, what)


def read_dump(model: type[D], path: Path, what: str) -> D:
    """Read one of the JSON documents. Blocks.

    Raises CorruptContent for what is not as it should be, InvalidArgument where it can't be read.
    """
    most = dict(PARTS).get(path.name) or _MIB
    try:
        content = read_regular(path, most, follow=False)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise CorruptContent(
                f"{what}: {path.name} has more than {most} bytes, which no checkpoint needs"
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(f"{what}: {path.name} can't be read: {reason}") from error
    # Each value takes many times its text once it is parsed: "[[],[],…" of 8 MB is half a gigabyte.
    if sum(map(content.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise CorruptContent(f"{what}: {path.name} has more than {_MAX_VALUES} values, which no checkpoint needs")
    return parse(model, content, f"{what}: {path.name}")


def write_json(path: Path, document: object) -> None:
    """Write a document for root alone."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(document, file, indent=2)


def bind_mounts(spec: Mapping[str, Any]) -> Sequence[Mapping[str, object]]:
    """Return what ``bind.mounts`` says of a specification: each bind mount, and whether a file or a directory."""
    found = []
    for mount in spec.get("mounts", ()):
        if mount.get("type") != "bind":
            continue
        source = Path(mount["source"])
        try:
            mode = source.stat().st_mode
        except OSError:  # its path has gone since, or can't be reached
            mode = stat.S_IFREG
        kind = "directory" if stat.S_ISDIR(mode) else "file"
        permissions = stat.S_IMODE(mode)
        found.append(
            {"source": str(source), "destination": mount["destination"], "file_type": kind, "permissions": permissions}
        )
    return found


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
