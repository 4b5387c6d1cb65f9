"""What image sources have of an image beside its layers, for extensions that judge images: see ``ImageDocuments``."""

from collections.abc import Mapping
from contextlib import aclosing

from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound
from crinoid.core.api.manifests import verify
from crinoid.core.api.values.image import (
    BlobRequest,
    Credentials,
    Descriptor,
    ImageReference,
    Platform,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
)
from crinoid.core.lifecycle.images.resolution import check_answer, rank
from crinoid.core.slots.registry import RegistrySlot


class SourceDocuments:
    """The documents of the configured image sources, asked with one pull's credentials or, without, the node's."""

    def __init__(
        self,
        sources: Mapping[str, RegistrySlot],
        platform: Platform,
        credentials: Credentials | None = None,
        served_by: str = "",
    ) -> None:
        """``served_by``: the source that the image came from. What it does not have, there is not, though others can't
        be asked: an air-gapped node's registry need not answer."""
        self._sources = sources
        self._platform = platform
        self._credentials = credentials
        self._served_by = served_by

    async def resolve(self, reference: ImageReference) -> ResolvedImage:
        """Find a manifest of any kind, verified."""
        request = ResolveRequest(reference, self._platform, self._credentials)
        failures: dict[str, CrinoidError] = {}
        for name, source in self._sources.items():
            try:
                found = await source.resolve(request)
                check_answer(found, request, source.label)
                return found
            except CrinoidError as error:
                failures[name] = error
        raise self._most_telling(failures) or NotFound("no image source is configured")

    async def read(self, reference: ImageReference, blob: Descriptor, max_bytes: int) -> bytes:
        """Read a blob from the first source that has it, verified."""
        if blob.size > max_bytes:
            raise CorruptContent(f"blob {blob.digest} of {reference} is {blob.size} bytes long, more than {max_bytes}")
        failures: dict[str, CrinoidError] = {}
        for name, source in self._sources.items():
            try:
                return await _read(source, BlobRequest(reference, blob, self._credentials))
            except CrinoidError as error:
                failures[name] = error
        raise self._most_telling(failures) or NotFound("no image source is configured")

    async def list_referrers(self, reference: ImageReference, artifact_type: str) -> tuple[Descriptor, ...]:
        """Return what all sources list."""
        found: dict[str, Descriptor] = {}
        failures: dict[str, CrinoidError] = {}
        request = ReferrersRequest(reference, artifact_type, self._credentials)
        for name, source in self._sources.items():
            try:
                found |= {one.digest: one for one in await source.list_referrers(request)}
            except CrinoidError as error:
                failures[name] = error
        has_answered = self._served_by in set(self._sources) - set(failures)
        if not found and not has_answered and (failure := self._most_telling(failures)) is not None:
            raise failure
        return tuple(found.values())

    def _most_telling(self, failures: Mapping[str, CrinoidError]) -> CrinoidError | None:
        return failures.get(self._served_by) or min(failures.values(), key=rank, default=None)


async def _read(source: RegistrySlot, request: BlobRequest) -> bytes:
    content = b""
    async with aclosing(await source.open_blob(request)) as stream:
        async for piece in stream:
            content += piece
            if len(content) > request.blob.size:
                break
    verify(content, request.blob.digest, f"{source.label}: blob")
    return content
