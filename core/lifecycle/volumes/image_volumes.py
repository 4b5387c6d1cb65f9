"""Image volumes: mounts of a container that show an image's files, or a part of them, read-only.

Called by ``builder`` before the specification is built. Each image that a container mounts is one read-only snapshot
of that container, mounted once below its bundle however many mounts show parts of it; both go by the ledger, with the
container. The snapshot keeps the image's layers, also when the image is removed meanwhile.
Source: api.proto, Mount (``image``, ``image_sub_path``).
"""

import asyncio
import dataclasses
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotFound
from crinoid.core.api.linux import files, rights
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.container import VolumeMount
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.lifecycle.resources.ownership import volume_key
from crinoid.core.lifecycle.resources.resources import Resources
from crinoid.core.slots.snapshotter import SnapshotterSlot
from crinoid.core.state.records import ImageRecord

REASON = "ImageVolumeMountFailed"
"""The kubelet knows this word (cri-api, pkg/errors) and says so on the pod."""

DIRECTORY = "image-volumes"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container's mounts with every image volume turned into a path of the host, and the image behind each name."""

    mounts: tuple[VolumeMount, ...]
    images: Mapping[str, str]


class ImageVolumes:
    """Mounts images for containers."""

    def __init__(self, images: ImageService, resources: Resources) -> None:
        self._images = images
        self._resources = resources

    async def prepare(
        self,
        container_id: str,
        mounts: tuple[VolumeMount, ...],
        slot: SnapshotterSlot,
        bundle: Path,
        maps: IdMaps | None = None,
    ) -> Prepared:
        """Mount what image volumes show, below ``bundle``; the ledger's owner is the container, ``maps`` are its pod's.

        Raises NotFound for an image that is not on the node or a sub-path that it lacks, InvalidArgument for a
        sub-path that is neither directory nor file, and what unpacking and mounting raise.
        """
        found: dict[str, ImageRecord] = {}
        for mount in (mount for mount in mounts if mount.image):  # all are known before the first is mounted
            if (known := self._images.find(mount.image)) is None:
                raise NotFound(f"{_name(mount)} is not on this node: pull it")
            found[mount.image] = known
        roots: dict[str, Path] = {}
        for number, record in enumerate({record.id: record for record in found.values()}.values()):
            target = bundle / DIRECTORY / str(number)
            rights.make_directories(target, rights.PASSAGE)  # on a tmpfs
            roots[record.id] = await self._mount(container_id, record, slot, target, maps)
        shown = {name: roots[record.id] for name, record in found.items()}
        placed = [await asyncio.to_thread(_place, mount, shown) for mount in mounts]
        return Prepared(tuple(placed), {name: record.id for name, record in found.items()})

    async def _mount(
        self, container_id: str, record: ImageRecord, slot: SnapshotterSlot, target: Path, maps: IdMaps | None
    ) -> Path:
        key = volume_key(container_id, target.name)
        try:
            chain_id = await self._images.ensure_unpacked(record, slot.name)
            mounts = await self._resources.create_snapshot(container_id, key, slot, chain_id, readonly=True)
            await self._resources.mount(container_id, mounts, target, maps)
        except CrinoidError as error:
            error.add_note(f"{REASON}: it was to be mounted as a volume")
            raise
        return target


def _place(mount: VolumeMount, roots: Mapping[str, Path]) -> VolumeMount:
    """Turn an image volume into a read-only bind mount of the host path that holds its files."""
    if not mount.image:
        return mount
    source = find_inside(roots[mount.image], mount)
    shown = dataclasses.replace(mount, host_path=str(source), image="", image_sub_path="", readonly=True)
    return dataclasses.replace(shown, uid_mappings=(), gid_mappings=())  # mapped already, with the pod's maps


def find_inside(root: Path, mount: VolumeMount) -> Path:
    """Return the host path of the sub-path; links in the image are followed as a process with this root would.

    Nothing can be changed below a read-only snapshot, so the path stays what it is. Raises NotFound, InvalidArgument.
    """
    if not mount.image_sub_path:
        return root
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # O_PATH: of a FIFO or a device in the image nothing is opened before its type is known.
        fd = files.open_in_root(root_fd, mount.image_sub_path, os.O_PATH)
        try:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise InvalidArgument(f"{_name(mount)}: {mount.image_sub_path!r} is neither a directory nor a file")
            return Path(f"/proc/self/fd/{fd}").readlink()
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{_name(mount)} has no {mount.image_sub_path!r} in it") from error
    except OSError as error:
        raise InvalidArgument(
            f"{_name(mount)}: sub-path {mount.image_sub_path!r} can't be used: {error.strerror}"
        ) from error
    finally:
        os.close(root_fd)


def _name(mount: VolumeMount) -> str:
    return f"{REASON}: image {mount.image!r} for the volume at {mount.container_path}"
