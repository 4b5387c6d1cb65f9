"""Takes over the images of the runtime that was on this node before (``crinoid image adopt``).

For each name: the documents say which blobs there must be, ``ContentStore.place`` takes those from the other's files,
by reflink, hard link or copy, and verifies them; then the image is pulled with the other's files as its source, which
finds all blobs there and unpacks. What fails leaves nothing, and the next name is taken.
"""

import os
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crinoid.core.api.errors import CrinoidError, InvalidArgument
from crinoid.core.api.finishing import finish
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.manifests import read_manifest
from crinoid.core.api.values.image import Descriptor, ImageReference, ResolveRequest
from crinoid.core.lifecycle.images.adoption.containerd import (
    NAMESPACE,
    ROOT,
    ContainerdImage,
    ContainerdStore,
    FormerImage,
)
from crinoid.core.lifecycle.images.image_config import artifact_type
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.state.content import ContentStore

_UNPACKED = (
    "CRI-O keeps images unpacked (containers/storage) and throws the layers' blobs away: nothing there has the digests "
    "that registries and manifests name. Save them with `skopeo copy containers-storage:NAME "
    "oci-archive:FILE:NAME`, which packs the layers anew, and `crinoid ctl load FILE`"
)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What became of one name: the image, with the bytes that were cloned, linked and copied, or why it is none."""

    name: str
    image_id: str = ""
    cloned_bytes: int = 0
    linked_bytes: int = 0
    copied_bytes: int = 0
    fault: str = ""


class Adoptions:
    """Adopts images into the node's content store."""

    def __init__(self, images: ImageService, content: ContentStore) -> None:
        self._images = images
        self._content = content

    async def adopt(
        self, runtime: str, root: str, namespace: str, names: Sequence[str], copy: bool
    ) -> AsyncGenerator[int | Adopted, None]:
        """Yield how many names there are, then what became of each.

        Raises InvalidArgument for a runtime that is not known, NotFound where nothing of it is on this host.
        """
        if runtime in ("cri-o", "crio"):
            raise InvalidArgument(_UNPACKED)
        if runtime != "containerd":
            raise InvalidArgument(f"images of {runtime!r} can't be adopted; known: containerd")
        store = ContainerdStore(Path(root) if root else ROOT)
        found = await call_in_thread(lambda: store.list(namespace or NAMESPACE))
        wanted = [image for image in found if _is_wanted(image, names)]
        yield len(wanted)
        for image in wanted:
            try:
                yield await self._adopt(ContainerdImage(store, image), copy)
            except CrinoidError as error:
                yield Adopted(str(image.reference), fault=error.message)

    async def _adopt(self, source: ContainerdImage, copy: bool) -> Adopted:
        reference = source.image.reference
        asked = ResolveRequest(reference, self._images.platform)
        resolved = await source.resolve(asked)
        manifest = read_manifest(resolved.manifest_content, f"manifest {resolved.manifest.digest}")
        config = manifest.config.descriptor()
        layers = [layer.descriptor() for layer in manifest.layers]
        digests = [blob.digest for blob in (config, *layers)]
        taken: Counter[str] = Counter()
        try:
            async with self._images.holding(digests):
                is_artifact = bool(artifact_type(manifest, await source.store.read(config)))
                for blob in (config, *layers):
                    # An artifact's files get another mode where they are mounted, and a link's is the other's, too.
                    how = await call_in_thread(partial(self._place, source.store, blob, not copy and not is_artifact))
                    taken[how] += blob.size
                record = await self._images.take_in(source, reference)
        except BaseException:  # cancelled, too: the client has gone
            await finish(self._images.let_go(digests))
            raise
        return Adopted(str(reference), record.id, taken["cloned"], taken["linked"], taken["copied"])

    def _place(self, store: ContainerdStore, blob: Descriptor, may_link: bool) -> str:
        if self._content.has(blob):
            return "there"
        with store.open(blob.digest) as file:
            return self._content.place(blob, file.fileno(), may_link and _is_safe_to_link(file.fileno()))


def _is_safe_to_link(file: int) -> bool:
    """Return whether nobody but root can change a file: with a link to it we would have what they make of it."""
    found = os.fstat(file)
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_wanted(image: FormerImage, names: Sequence[str]) -> bool:
    """Return whether a name was asked for: in full or short form, or by its beginning."""
    full = str(image.reference)
    return not names or any(
        full.startswith(name[:-1]) if name.endswith("*") else full == str(ImageReference.parse(name)) for name in names
    )
