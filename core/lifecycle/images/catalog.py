"""The names of images: which record a reference means, which names a pull adds, and which are pinned.

Between the service and the store's table of images; all of it reads and writes records only. An index in memory counts
what images are called and what they need, so that neither a request nor a garbage collection looks through all of them.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.image import DEFAULT_REGISTRY, ImageReference
from crinoid.core.state.records import ImageRecord
from crinoid.core.state.store import Store

_ID = re.compile(r"(?:sha256:|sha384:|sha512:)?([0-9a-f]+)")
_SHORTEST_PREFIX = 4


class Catalog:
    """Images by name. ``pinned`` are references, or beginnings of them that end in ``*``."""

    def __init__(self, store: Store, pinned: Sequence[str]) -> None:
        self._store = store
        self._pinned = _in_full(pinned)
        self._index = ImageIndex(store.images)
        self._indexed = store.images.version
        self._released: list[ImageRecord] = []

    @property
    def damaged(self) -> Collection[str]:
        """Ids of images whose records can't be read."""
        return self._store.images.damaged

    def list(self) -> list[ImageRecord]:
        """Return all images, the one pulled last first."""
        return sorted(self._store.images, key=lambda record: record.pulled_at_ns, reverse=True)

    def get(self, image_id: str) -> ImageRecord | None:
        """Return the image with exactly this id."""
        return self._store.images.get(image_id)

    def get_whole(self, image_id: str) -> ImageRecord | None:
        """As ``get``, but no record that stands in for one that can't be read: nobody knows what that lacks."""
        return None if image_id in self.damaged else self.get(image_id)

    def find(self, reference: str, platform: str | None = None) -> ImageRecord | None:
        """Return the image of a name in full or short form, of an id, or of a beginning of an id that is unique.

        A name wins over an id that reads the same, and means an image of this ``platform``, as records tell it, or an
        artifact; ``None`` for any, first the node's own. What is no reference at all means no image.
        """
        with contextlib.suppress(InvalidArgument):
            wanted = ImageReference.parse(reference)
            found = list(filter(None, map(self._store.images.get, self.index.ids(name_of(wanted)))))
            fitting = [one for one in found if platform is None or one.artifact or one.platform == platform]
            if fitting:  # an index may have been pulled for two platforms: the one pulled last
                return max(fitting, key=lambda record: (not record.platform, record.pulled_at_ns))
        match = _ID.fullmatch(reference)
        if match is None or len(match[1]) < _SHORTEST_PREFIX:
            return None
        if (exact := self._store.images.get(reference)) is not None:
            return exact
        begun = [record for record in self._store.images if record.id.partition(":")[2].startswith(match[1])]
        return begun[0] if len(begun) == 1 else None

    def add(self, record: ImageRecord) -> ImageRecord:
        """Write an image that is complete, with the names it has already; a tag leaves the image of this platform that
        had it.

        A row that can't be read goes into quarantine, and a whole one takes its place.
        """
        old = self._store.images.get(record.id)
        if old is not None and record.id in self.damaged:
            self.remove(old)
            old = replace(old, manifests=())  # names are all that may be believed
        added = self._put(record if old is None else merge(old, record))
        self._take_tags(added)
        return added

    def rename(self, record: ImageRecord) -> ImageRecord:
        """Write an image with other names than it had; a tag leaves the image that had it."""
        renamed = self._put(record)
        self._take_tags(renamed)
        return renamed

    async def sync(self) -> None:
        """Return once all images outlive a power cut."""
        await self._store.sync()

    def remove(self, record: ImageRecord) -> None:
        """Forget an image with all its names."""
        index, old = self.index, self._store.images.get(record.id)
        self._store.images.drop(record.id)
        if old is not None:
            index.remove(old)
            self._released.append(old)
        self._indexed = self._store.images.version

    def pin(self, pinned: Sequence[str]) -> None:
        """Pin others from now on."""
        self._pinned = _in_full(pinned)
        self.tidy()

    def take_released(self) -> Sequence[ImageRecord]:
        """Return, once, the records that went or changed: nobody may need what they named."""
        released, self._released = self._released, []
        return released

    def tidy(self) -> None:
        """Pin what the configuration says now; let a tag that two images have, after a crash, be the later one's."""
        seen: dict[str, list[ImageRecord]] = {}
        for record in self.list():
            free = [tag for tag in record.tags if not any(_are_rivals(one, record) for one in seen.get(tag, ()))]
            tidied = self._pin(replace(record, tags=tuple(free)))
            for tag in record.tags:
                seen.setdefault(tag, []).append(record)
            if tidied != record:
                self._put(tidied)

    @property
    def index(self) -> "ImageIndex":
        """The names and needs of all images as they are now; made anew where others have written records."""
        if self._indexed != self._store.images.version:
            self._index = ImageIndex(self._store.images)
            self._indexed = self._store.images.version
        return self._index

    def _take_tags(self, owner: ImageRecord) -> None:
        """Take the tags of an image from all others, but for those of other platforms."""
        others = {found for tag in owner.tags for found in self.index.ids(tag)} - {owner.id}
        for other in filter(None, map(self._store.images.get, others)):
            if not _are_rivals(other, owner):
                continue
            self._put(replace(other, tags=tuple(tag for tag in other.tags if tag not in owner.tags)))

    def _put(self, record: ImageRecord) -> ImageRecord:
        index, old = self.index, self._store.images.get(record.id)
        new = self._store.images.put(self._pin(record))
        if old is not None:
            index.remove(old)
            if not blobs_of(old) <= blobs_of(new):  # as with other blobs for the same diffIDs, gzip for zstd
                self._released.append(old)
        index.add(new)
        self._indexed = self._store.images.version
        return new

    def _pin(self, record: ImageRecord) -> ImageRecord:
        names = (*record.tags, *record.digests)
        return replace(record, pinned=any(_matches(name, pattern) for name in names for pattern in self._pinned))


def _are_rivals(one: ImageRecord, other: ImageRecord) -> bool:
    """Return whether a tag can mean only one of two images: an index has one for each platform."""
    return one.platform == other.platform or bool(one.artifact or other.artifact)


def _in_full(pinned: Sequence[str]) -> list[str]:
    """Return references in full form; the beginning of a name stays as it is."""
    patterns = []
    for pattern in pinned:
        with contextlib.suppress(InvalidArgument):
            pattern = pattern if pattern.endswith("*") else str(ImageReference.parse(pattern))
        patterns.append(pattern)
    return patterns


class ImageIndex:
    """Images by name, and how many images need each layer and each blob."""

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        self._named: dict[str, dict[str, None]] = {}
        self._layers: Counter[str] = Counter()
        self._blobs: Counter[str] = Counter()
        for record in records:
            self.add(record)

    def add(self, record: ImageRecord) -> None:
        """Count a record that is new."""
        for name in _names(record):
            self._named.setdefault(name, {})[record.id] = None
        self._layers.update(set(record.chain_ids))
        self._blobs.update(blobs_of(record))

    def remove(self, record: ImageRecord) -> None:
        """Count a record no more."""
        for name in _names(record):
            named = self._named[name]
            del named[record.id]
            if not named:
                del self._named[name]
        for counts, names in ((self._layers, set(record.chain_ids)), (self._blobs, blobs_of(record))):
            counts.subtract(names)
            for name in names:
                if not counts[name]:
                    del counts[name]

    def ids(self, name: str) -> Iterable[str]:
        """Return the ids of the images with a name: ``repository:tag``, or ``repository@digest``."""
        return tuple(self._named.get(name, ()))

    def needs_layer(self, chain_id: str) -> bool:
        """Return whether an image consists of the layer, among others."""
        return chain_id in self._layers

    def needs_blob(self, digest: str) -> bool:
        """Return whether an image consists of the blob: configuration, manifest, index or layer."""
        return digest in self._blobs


def names_of(reference: ImageReference, target_digest: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tags and digests that a pull of the reference gives its image.

    A reference with tag and digest gives no tag: the tag may mean another image at the registry by now.
    """
    tags = () if reference.digest else (f"{reference.name}:{reference.tag}",)
    return tags, (f"{reference.name}@{target_digest}",)


def name_of(reference: ImageReference) -> str:
    """Return the name that an image of the reference has: a digest decides where there is one."""
    return f"{reference.name}@{reference.digest}" if reference.digest else f"{reference.name}:{reference.tag}"


def merge(old: ImageRecord, new: ImageRecord) -> ImageRecord:
    """Return ``new`` with the names and manifests of ``old``, which is the same image."""
    return replace(
        new,
        tags=_join(old.tags, new.tags),
        digests=_join(old.digests, new.digests),
        manifests=_join(old.manifests, new.manifests),
    )


def _join(old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def _matches(name: str, pattern: str) -> bool:
    if not pattern.endswith("*"):
        return name == pattern
    short = name.removeprefix(f"{DEFAULT_REGISTRY}/")
    return any(form.startswith(pattern[:-1]) for form in (name, short, short.removeprefix("library/")))


def blobs_of(record: ImageRecord) -> set[str]:
    """Return the digests of all that an image consists of."""
    return {record.id, *record.manifests, *(layer.digest for layer in record.layers)}


def _names(record: ImageRecord) -> set[str]:
    """A digest may be that of the index that was pulled, or of the manifest that was chosen from it."""
    repositories = {name.partition("@")[0] for name in record.digests}
    return {
        *record.tags,
        *record.digests,
        *(f"{name}@{digest}" for name in repositories for digest in record.manifests),
    }
