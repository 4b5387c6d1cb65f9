"""What images are called and what they need, counted: so that no request has to look through all of them.

Between the catalog, which keeps it in step with the records, and the garbage collection, which asks what nobody needs
any more. All of it is in memory.
"""

from collections import Counter
from collections.abc import Iterable

from crinoid.core.api.values.image import ImageReference
from crinoid.core.state.records import ImageRecord


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


def name_of(reference: ImageReference) -> str:
    """Return the name under which the index has a reference: a digest decides where there is one."""
    return f"{reference.name}@{reference.digest}" if reference.digest else f"{reference.name}:{reference.tag}"


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
