"""The first step of a pull: asks the image sources in order what a reference means, and believes none of them.

Between ``pull`` and the registry slots. A source that has no such image, or fails, or lies, passes the question on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crinoid.core.api.errors import (
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    NotFound,
    NotServed,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.manifests import INDEX_TYPES, ManifestDocument, read_index
from crinoid.core.api.values.image import ResolvedImage, ResolveRequest
from crinoid.core.lifecycle.images.faults import restate
from crinoid.core.lifecycle.images.image_config import read_manifest, verify
from crinoid.core.slots.registry import RegistrySlot

_TELLING: tuple[type[CrinoidError], ...] = (
    CorruptContent,
    PermissionDenied,
    Unsupported,
    ResourceExhausted,
    DeadlineExceeded,
    Unavailable,
    DriverError,
)
"""Which error tells most, where every source failed: NotFound comes last of all."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference means, verified, and the source that has it."""

    source: RegistrySlot
    image: ResolvedImage
    manifest: ManifestDocument


async def resolve(sources: Mapping[str, RegistrySlot], request: ResolveRequest) -> Resolution:
    """Return the first source's answer that stands up to inspection.

    Raises NotFound when no source has the image, naming each with what it said, or else an error of the kind that
    tells most, with that source's words first.
    """
    failures: list[tuple[CrinoidError, RegistrySlot]] = []
    for source in sources.values():
        try:
            image = await source.resolve(request)
            return Resolution(source, image, inspect(image, request, source.label))
        except CrinoidError as error:
            failures.append((error, source))
    if not failures:
        raise NotFound("no image source is configured: name one in images.sources")
    # What the pod's event shows is cut: the cause comes first, and who said it after that.
    failures.sort(key=lambda failure: _rank(failure[0]))
    telling = [one for one in failures if not isinstance(one[0], NotServed)] or failures
    said = "; ".join(_cause(error, source, request) for error, source in telling)
    raise restate(telling[0][0], said) from telling[0][0]


def _cause(error: CrinoidError, source: RegistrySlot, request: ResolveRequest) -> str:
    """Return what a source said, without what stands around it anyway: the hook, and the reference."""
    if isinstance(error, DriverError):  # here the hook is what its author needs
        return error.message
    words = error.message
    for known in (f"{source.label} resolve: ", f"{source.label}: ", f"pull {request.reference}: "):
        words = words.removeprefix(known)
    return f"{words} [{source.label}]"


def inspect(image: ResolvedImage, request: ResolveRequest, label: str) -> ManifestDocument:
    """Verify what a source answered and parse the manifest; raise CorruptContent or Unsupported, naming the source."""
    wanted = request.reference.digest
    if wanted and image.target.digest != wanted:
        raise CorruptContent(f"{label} answered with {image.target.digest} where {wanted} was asked for")
    verify(image.target_content, image.target, f"{label}: manifest")
    verify(image.manifest_content, image.manifest, f"{label}: manifest")
    if image.target.digest != image.manifest.digest:
        _check_listed(image, label)
    return read_manifest(image.manifest_content, f"{label}: manifest {image.manifest.digest}")


def _check_listed(image: ResolvedImage, label: str) -> None:
    """Check that the index names the manifest, unless it names it by way of another index."""
    index = read_index(image.target_content, f"{label}: index {image.target.digest}")
    nested = any(entry.media_type in INDEX_TYPES for entry in index.manifests)
    if not nested and image.manifest.digest not in {entry.digest for entry in index.manifests}:
        raise CorruptContent(f"{label}: index {image.target.digest} does not list manifest {image.manifest.digest}")


def _rank(error: CrinoidError) -> int:
    if isinstance(error, NotFound):
        return len(_TELLING) + 1
    return next((rank for rank, kind in enumerate(_TELLING) if isinstance(error, kind)), len(_TELLING))
