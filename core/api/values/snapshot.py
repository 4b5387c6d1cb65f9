"""What crosses the snapshotter's hooks: mounts, targets to unpack a layer into, disk usage."""

import enum
from dataclasses import dataclass
from pathlib import Path


class WhiteoutForm(enum.Enum):
    """What a layer's whiteouts become in the directory it is unpacked into.

    ``DELETE``: they remove what the lower layers put into the same tree, so the parent must be unpacked first.
    ``OVERLAY``: a character device 0:0, and ``trusted.overlay.opaque`` on an opaque directory, so that the directory
    serves as one lower layer of an overlay mount and can be unpacked without its parents.
    """

    DELETE = "delete"
    OVERLAY = "overlay"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) to be made. ``type`` ``bind`` or a file system; ``options`` as in fstab, one each.

    The kernel of crinoid splits flags (``ro``, ``nosuid``, ``rbind``) from the file system's own data; an overlay's
    ``lowerdir`` is one option per layer, topmost first, each ``lowerdir+=PATH``.
    """

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """Where to unpack a layer: ``key`` names the attempt until it is committed or discarded."""

    key: str
    directory: Path
    whiteouts: WhiteoutForm


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
