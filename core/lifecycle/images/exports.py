"""Keeps the content store's ``index.json`` in step with the records, so that other programs can read the images."""

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator

from crinoid.core.api.errors import CrinoidError, NotFound
from crinoid.core.api.values.image import Descriptor
from crinoid.core.state.content import INDEX_TYPE, ContentStore
from crinoid.core.state.records import ImageRecord

LOG = logging.getLogger(__name__)
_MAX_DOCUMENT_BYTES = 8 << 20


class Exports:
    """Writes the index, one writer at a time. What can't be written is logged: we never read it ourselves."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._turn = asyncio.Lock()
        self._known: dict[str, Descriptor] = {}
        self._asked = self._written = 0

    async def write(self, images: Iterable[ImageRecord]) -> None:
        """List every name of every image whose manifest is stored; one writing serves all who came before it began."""
        self._asked += 1
        wanted = self._asked
        async with self._turn:
            if self._written >= wanted:
                return
            self._written = self._asked
            records = tuple(images)
            try:
                await asyncio.to_thread(lambda: self._content.write_index(self._named(records)))
            except (OSError, CrinoidError) as error:
                LOG.warning("%s/index.json could not be written: %s", self._content.root, error)

    def _named(self, records: Iterable[ImageRecord]) -> Iterator[tuple[str, Descriptor]]:
        """Yield each name with its manifest or index, as the ``org.opencontainers.image.ref.name`` of index.json.

        Each document is read once: what is known of it holds for as long as an image has it.
        """
        known: dict[str, Descriptor] = {}
        for record in records:
            targets = {name.partition("@")[0]: name.partition("@")[2] for name in record.digests}
            usual = next(iter(record.manifests), "")  # of a name that was given here, not pulled
            names = [(tag, targets.get(tag.rpartition(":")[0], usual)) for tag in record.tags]
            names += [(name, name.partition("@")[2]) for name in record.digests]
            for name, digest in names:
                found = self._known.get(digest) if digest else None
                if digest and found is None:
                    try:
                        content = self._content.read(digest, _MAX_DOCUMENT_BYTES)
                    except NotFound:  # a record alone is no image to other programs
                        continue
                    except (OSError, CrinoidError) as error:  # one that is damaged hides no other
                        LOG.warning("%s/index.json lacks %s: %s", self._content.root, digest, error)
                        continue
                    document = json.loads(content)
                    # "mediaType" is optional in OCI documents: an index shows by what it lists (image-index.md).
                    guess = INDEX_TYPE if "manifests" in document else "application/vnd.oci.image.manifest.v1+json"
                    found = Descriptor(document.get("mediaType") or guess, digest, len(content))
                if found is not None:
                    known[digest] = found
                    yield name, found
        self._known = known
