"""What crosses the snapshotter's hooks: mounts, targets to unpack a layer into, disk usage."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from crinoid.core.api.values.image import Credentials, Descriptor, ImageReference

FileDescriptor = Annotated[int, "an open file"]
"""A descriptor; to a driver in a process of its own it is passed as such, and has another number there."""


class WhiteoutForm(enum.Enum):
    """What a layer's whiteouts become in the directory it is unpacked into.

    ``DELETE``: they remove what the lower layers put into the same tree, so the parent must be unpacked first.
    ``OVERLAY``: a character device 0:0, and ``trusted.overlay.opaque`` on an opaque directory, so that the directory
    serves as one lower layer of an overlay mount and can be unpacked without its parents.
    """

    DELETE = "delete"
    OVERLAY = "overlay"


class LayerForm(enum.Enum):
    """In which form a driver wants a layer.

    ``DIRECTORY``: the confined unpacker fills the target's directory, with files or by the target's ``writer``.
    ``TAR``: the layer's uncompressed archive, ``BLOB``: its blob as it came, both as an open file that was verified,
    for ``write_layer``.
    """

    DIRECTORY = "directory"
    TAR = "tar"
    BLOB = "blob"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) to be made. ``type`` ``bind`` or a file system; ``options`` as in fstab, one each.

    The kernel of crinoid splits flags (``ro``, ``nosuid``, ``rbind``) from the file system's own data; an overlay's
    ``lowerdir`` is one option per layer, topmost first, each ``lowerdir+=PATH``.

    Without a ``target``, it makes the snapshot's root, on top of those before it. With one, a path below the slot's
    ``run_dir``, it is there for later ones to name: a layer that is no directory, say. The kernel makes it unless it is
    there, and undoes it with the last root that needs it; so a target has the same type, source and options each time.
    It can't be written to, and shows files with the owners that they have on disk.
    """

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """Where to unpack a layer: ``key`` names the attempt until it is committed or discarded.

    ``writer``: ``module:class`` of a ``core.api.archives.LayerWriter`` of the driver's, which the confined unpacker is
    to use: it keeps the layer in files of the directory in a form of its own. Such a layer is committed as it was
    written: what in it only lower layers decide (directories without an entry, whiteouts that hide nothing) is for
    ``commit_layer`` to settle.

    ``form``: for ``TAR`` and ``BLOB`` the directory is the kernel's to use until ``write_layer``, and empty then.
    """

    key: str
    directory: Path
    whiteouts: WhiteoutForm
    writer: str = ""
    form: LayerForm = LayerForm.DIRECTORY


@dataclass(frozen=True, slots=True)
class LayerStream:
    """A layer's bytes: ``fd`` is an open file at its start, of ``size`` bytes, the kernel's to close.

    ``media_type`` is the blob's, as its descriptor says, or that of a plain layer archive. ``diff_id`` is what the
    image says of the uncompressed archive: of a blob as it came nobody has looked yet. ``file``: of an artifact, the
    bytes are no archive, but the content of the layer's only file, which has this name.
    """

    fd: FileDescriptor
    size: int
    media_type: str
    diff_id: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class LayerDescriptor:
    """A layer that is pulled, before anything of it was fetched. ``credentials`` are secret, and for this pull only."""

    chain_id: str
    parent: str | None
    diff_id: str
    blob: Descriptor
    image: ImageReference
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What a layer or a container's writable part takes on disk: ``used_bytes`` allocated, and inodes."""

    used_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class SnapshotterFeatures:
    """``parallel_unpack``: layers of one image may be unpacked at the same time, in any order.

    ``root``: a directory on the file system that holds layers and snapshots, which ImageFsInfo reports as theirs;
    ``None`` is the slot's ``state_dir``. ``max_layers``: images of more are refused, before anything of them is
    fetched.
    """

    parallel_unpack: bool
    root: Path | None = None
    max_layers: int | None = None
