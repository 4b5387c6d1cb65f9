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
from crinoid.core.lifecycle.images.targets import ImageSource

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

    source: ImageSource
    image: ResolvedImage
    manifest: ManifestDocument


async def resolve(sources: Mapping[str, ImageSource], request: ResolveRequest) -> Resolution:
    """Return the first source's answer that stands up to inspection.

    Raises NotFound when no source has the image, naming each with what it said, or else an error of the kind that
    tells most, with that source's words first.
    """
    failures: list[tuple[CrinoidError, ImageSource]] = []
    for source in sources.values():
        try:
            image = await source.resolve(request)
            return Resolution(source, image, inspect(image, request, source.label))
        except CrinoidError as error:
            failures.append((error, source))
    if not failures:
        raise NotFound("no image source is configured: name one in images.sources")
    failure = _sum_up(failures, request)
    raise failure from failures[0][0]


def _sum_up(failures: list[tuple[CrinoidError, ImageSource]], request: ResolveRequest) -> CrinoidError:
    """Sort what the sources said, the one that tells most first, and return it as one error of that one's kind.

    What the kubelet shows in the pod's event is cut: so the cause comes first, and who said it after that.
    """
    failures.sort(key=lambda failure: rank(failure[0]))
    # A source that serves only certain references says nothing about this one, unless nobody else says anything.
    failures[:] = [one for one in failures if not isinstance(one[0], NotServed)] or failures
    said = []
    for error, source in failures:
        words = error.message
        if not isinstance(error, DriverError):  # there the hook's name is what the driver's author needs
            for known in (f"{source.label} resolve: ", f"{source.label}: ", f"pull {request.reference}: "):
                words = words.removeprefix(known)
            words = f"{words} [{source.label}]"
        said.append(words)
    return restate(failures[0][0], "; ".join(said))


def rank(error: CrinoidError) -> int:
    """Return how little an error tells, where several sources failed."""
    if isinstance(error, NotFound):
        return len(_TELLING) + 1
    return next((rank for rank, kind in enumerate(_TELLING) if isinstance(error, kind)), len(_TELLING))


def inspect(image: ResolvedImage, request: ResolveRequest, label: str) -> ManifestDocument:
    """Verify what a source answered and parse the manifest; raise CorruptContent or Unsupported, naming the source."""
    check_answer(image, request, label)
    return read_manifest(image.manifest_content, f"{label}: manifest {image.manifest.digest}")


def check_answer(image: ResolvedImage, request: ResolveRequest, label: str) -> None:
    """Verify that what a source answered is what was asked for, whatever kind of manifest it is."""
    wanted = request.reference.digest
    # The digest that the user wrote is the root of trust; of a tag, it is the source's word what it means.
    if wanted and image.target.digest != wanted:
        raise CorruptContent(f"{label} answered with {image.target.digest} where {wanted} was asked for")
    verify(image.target_content, image.target, f"{label}: manifest")
    verify(image.manifest_content, image.manifest, f"{label}: manifest")
    if image.target.digest != image.manifest.digest:
        index = read_index(image.target_content, f"{label}: index {image.target.digest}")
        # An index may name the manifest by way of another index, which the source alone has seen.
        nested = any(entry.media_type in INDEX_TYPES for entry in index.manifests)
        if not nested and image.manifest.digest not in {entry.digest for entry in index.manifests}:
            raise CorruptContent(f"{label}: index {image.target.digest} does not list manifest {image.manifest.digest}")
