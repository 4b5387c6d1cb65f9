"""What images, containers and volumes take on disk, and what of it nothing needs (``crinoid ctl system df``).

Layers were measured once for all; every writable layer and every volume is walked: seconds on a node with much, and
asked by people.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux.files import disk_usage
from crinoid.core.lifecycle.images.catalog import blobs_of
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.slots.binding import Slots
from crinoid.core.state.content import ContentStore
from crinoid.core.state.records import ContainerRecord, ContainerState, ImageRecord
from crinoid.core.state.store import Store

_ENDED = frozenset({ContainerState.EXITED})


@dataclass(frozen=True, slots=True)
class ImageUse:
    """Bytes that only this image needs, and that it needs together with others; the containers that use it."""

    record: ImageRecord
    unique_bytes: int
    shared_bytes: int
    containers: int


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer: its files in one snapshotter, its blob where that is stored, and how many images consist of it."""

    chain_id: str
    snapshotter: str
    digest: str
    unpacked_bytes: int
    blob_bytes: int
    images: int


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """What a container wrote to its root file system, and to the volumes that its image declares."""

    record: ContainerRecord
    writable_bytes: int
    volume_bytes: int

    @property
    def is_ended(self) -> bool:
        """Whether its removal would stop nothing."""
        return self.record.state in _ENDED


@dataclass(frozen=True, slots=True)
class NodeUse:
    """All of it. ``reclaimable``: of images that no container uses and that are not pinned."""

    images: tuple[ImageUse, ...]
    layers: tuple[LayerUse, ...]
    containers: tuple[ContainerUse, ...]
    images_bytes: int
    images_reclaimable_bytes: int


@dataclass(slots=True)
class _Pieces:
    """What is on disk, by name (digests of blobs, layers by snapshotter), and which images need it."""

    sizes: dict[str, int] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)


class NodeDisk:
    """Measures the node."""

    def __init__(self, root: Path, store: Store, content: ContentStore, slots: Slots, images: ImageService) -> None:
        self._containers = root / "containers"
        self._store = store
        self._content = content
        self._slots = slots
        self._images = images

    async def measure(self) -> NodeUse:
        """Measure all. What can't be measured, as it goes meanwhile, counts nothing."""
        records = self._images.list()
        pieces = _Pieces()
        for record in records:
            needed = pieces.needs[record.id] = blobs_of(record)
            pieces.sizes.update((digest, self._content.size(digest)) for digest in needed)
        layers = await self._measure_layers(records, pieces)
        users = self._users()
        counts = Counter(name for needed in pieces.needs.values() for name in needed)
        images = tuple(_use_of(record, pieces, counts, users) for record in records)
        kept = {name for use in images if use.containers or use.record.pinned for name in pieces.needs[use.record.id]}
        return NodeUse(
            images,
            tuple(layers),
            tuple([await self._container(record) for record in self._store.containers]),
            sum(pieces.sizes.values()),
            sum(size for name, size in pieces.sizes.items() if name not in kept),
        )

    async def _measure_layers(self, records: Sequence[ImageRecord], pieces: _Pieces) -> list[LayerUse]:
        """Measure every layer of every image once in each snapshotter that has it, and note who needs it."""
        blobs: dict[str, str] = {}
        images: dict[str, list[str]] = {}
        for record in records:
            for chain_id in set(record.chain_ids):
                images.setdefault(chain_id, []).append(record.id)
            blobs.update(zip(record.chain_ids, (layer.digest for layer in record.layers), strict=False))
        layers = []
        for slot in self._slots.snapshotters.values():
            for chain_id, _ in await slot.list_layers():
                if chain_id not in images:
                    continue
                try:
                    unpacked = (await slot.layer_usage(chain_id)).used_bytes
                except CrinoidError:
                    unpacked = 0
                name, digest = f"{slot.name} {chain_id}", blobs[chain_id]
                pieces.sizes[name] = unpacked
                for image in images[chain_id]:
                    pieces.needs[image].add(name)
                blob = self._content.size(digest)
                layers.append(LayerUse(chain_id, slot.name, digest, unpacked, blob, len(images[chain_id])))
        return layers

    async def _container(self, record: ContainerRecord) -> ContainerUse:
        pod = self._store.pods.get(record.pod_id)
        layer = await self._images.writables.measure(pod.snapshotter if pod else "", record.id)
        volumes = await asyncio.to_thread(_measure, self._containers / record.id / "volumes")
        return ContainerUse(record, layer.usage.used_bytes if layer.usage else 0, volumes)

    def _users(self) -> Mapping[str, int]:
        """Count the containers of each image, as root or as an image volume."""
        return Counter(
            image for record in self._store.containers for image in {record.image_id, *record.volume_images.values()}
        )


def _use_of(record: ImageRecord, pieces: _Pieces, counts: Counter[str], users: Mapping[str, int]) -> ImageUse:
    needed = pieces.needs[record.id]
    unique = sum(pieces.sizes[name] for name in needed if counts[name] == 1)
    return ImageUse(record, unique, sum(pieces.sizes[name] for name in needed) - unique, users.get(record.id, 0))


def _measure(path: Path) -> int:
    try:
        return disk_usage(path).used_bytes
    except OSError:
        return 0
