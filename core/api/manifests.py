"""Manifests and indexes of images: read with suspicion, chosen by platform. For image sources, ours and others'.

A registry driver brings bytes from outside here before it believes anything in them; the kernel checks what a driver
gave it once more with the same functions (image-spec: descriptor.md, manifest.md, image-index.md; Docker's image
manifest version 2, schema 2). JSON is read as Go's encoding/json reads it, since that is what its writers try it with:
``null`` is the empty value, also inside lists and maps, and the case of keys does not matter.
"""

import functools
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.values.image import Descriptor, Platform

MAX_DOCUMENT_BYTES = 8 << 20
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
#: An escape in a text of JSON; its first group is a surrogate without its other half.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}


def _no_nulls(value: Any) -> Any:  # Any: whatever the JSON holds
    """Make the empty text of each ``null`` in a list or map of texts."""
    if isinstance(value, dict):
        return {key: "" if item is None else item for key, item in value.items()}
    return ["" if item is None else item for item in value] if isinstance(value, list) else value


Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")]
Texts = Annotated[tuple[str, ...], BeforeValidator(_no_nulls)]
TextMap = Annotated[Mapping[str, str], BeforeValidator(_no_nulls)]


class Document(BaseModel):
    """JSON from outside, with Go's idea of ``null`` and of keys; unknown keys are of no interest."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _read_as_go(cls, value: Any) -> Any:  # Any: whatever the JSON holds
        if value is None:
            return {}
        if not isinstance(value, dict):
            return value
        names = _names_by_folded(cls)
        return {names.get(key.lower(), key): item for key, item in value.items() if item is not None}


@functools.cache
def _names_by_folded(model: type[BaseModel]) -> Mapping[str, str]:
    fields = (field.alias or name for name, field in model.model_fields.items())
    return {name.lower(): name for name in fields}


def _with_known_digests(entries: Any) -> Any:  # Any: whatever the JSON holds
    """Leave out entries whose digest is of an unknown algorithm or none: it is theirs alone, unless all are so."""
    if not isinstance(entries, list):
        return entries
    known = [one for one in entries if not isinstance(one, dict) or is_digest(str(one.get("digest", "")))]
    return known or entries


class PlatformDocument(Document):
    """The platform of an entry of an index."""

    os: str = ""
    architecture: str = ""
    variant: str = ""


class DescriptorDocument(Document):
    """A descriptor, also as an entry of an index."""

    digest: Digest
    size: Annotated[int, Field(ge=0, lt=1 << 63)]
    media_type: Annotated[str, Field(alias="mediaType")] = ""
    urls: Texts = ()
    annotations: TextMap = {}
    platform: PlatformDocument | None = None

    def descriptor(self) -> Descriptor:
        """Return the value that crosses the hooks."""
        return Descriptor(self.media_type, self.digest, self.size, dict(self.annotations), self.urls)


class IndexDocument(Document):
    """An OCI index or a Docker manifest list."""

    media_type: Annotated[str, Field(alias="mediaType")] = ""
    manifests: Annotated[tuple[DescriptorDocument, ...], BeforeValidator(_with_known_digests)] = ()


class ManifestDocument(Document):
    """An image manifest; its layers are from the bottom up."""

    config: DescriptorDocument
    media_type: Annotated[str, Field(alias="mediaType")] = ""
    artifact_type: Annotated[str, Field(alias="artifactType")] = ""
    layers: tuple[DescriptorDocument, ...] = ()
    annotations: TextMap = {}


_D = TypeVar("_D", bound=Document)


def read_index(content: bytes, what: str) -> IndexDocument:
    """Parse an index; raise CorruptContent, naming ``what``."""
    return parse(IndexDocument, content, what)


def read_manifest(content: bytes, what: str) -> ManifestDocument:
    """Parse an image manifest; raise CorruptContent, naming ``what``."""
    return parse(ManifestDocument, content, what)


def parse(model: type[_D], content: bytes | str, what: str) -> _D:
    """Validate JSON from outside against a model; raise CorruptContent, naming ``what`` and the first fault."""
    try:
        try:
            return model.model_validate_json(content)
        except ValidationError:
            if (text := as_text(content)) == content:
                raise
            return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptContent(f"{what}: {f'{place}: ' if place else ''}{first['msg']}") from error


def as_text(content: bytes | str) -> str:
    """Return JSON as Go reads it: what is no Unicode, bytes or a surrogate without its other half, is U+FFFD."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text) if "\\u" in text else text


def classify(content: bytes, declared: str, what: str) -> str:
    """Return the media type of a manifest or an index.

    ``declared`` is what the descriptor said, or else the Content-Type, where anything may stand: one that is no type of
    image documents counts for nothing. The document's own ``mediaType`` must be of the same kind, and the document must
    not be both kinds at once: the same bytes must mean the same to everyone (image-spec, manifest.md, ``mediaType``).
    Raises Unsupported for schema 1, CorruptContent for the rest.
    """
    declared = declared.partition(";")[0].strip().lower()
    facts = _top_level(content, what)
    if declared in _SCHEMA1_TYPES or facts.get("schemaversion") == 1 or "fslayers" in facts:
        raise Unsupported(f"{what} is of Docker's schema 1, which no longer is an image format: push the image anew")
    own = facts.get("mediatype") or ""
    if not isinstance(own, str):
        raise CorruptContent(f"{what}: mediaType is not a text")
    if declared not in INDEX_TYPES | MANIFEST_TYPES:
        declared = own or (OCI_INDEX if "manifests" in facts else OCI_MANIFEST)
    if own and own != declared and not any({own, declared} <= kind for kind in (INDEX_TYPES, MANIFEST_TYPES)):
        raise CorruptContent(f"{what} says it is {own!r}, but was announced as {declared!r}")
    if declared not in INDEX_TYPES | MANIFEST_TYPES:
        raise Unsupported(f"{what} is of type {declared!r}, which is neither an image manifest nor an index")
    if ("manifests" in facts) == (declared in MANIFEST_TYPES) or {"manifests", "layers"} <= facts.keys():
        raise CorruptContent(f"{what} does not have the fields of its type {declared!r}")
    return declared


def _top_level(content: bytes, what: str) -> dict[str, Any]:
    """Return the fields of a document, by their names in lower case."""
    try:
        facts = json.loads(as_text(content))
    except (ValueError, RecursionError) as error:
        raise CorruptContent(f"{what} is not JSON ({error or type(error).__name__})") from error
    if not isinstance(facts, dict):
        raise CorruptContent(f"{what} is JSON, but not an object")
    return {key.lower(): value for key, value in facts.items()}


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of the content by one of the registered algorithms."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def is_digest(text: str) -> bool:
    """Return whether this is a digest of an algorithm that can be verified here."""
    algorithm, _, value = text.partition(":")
    return _ALGORITHMS.get(algorithm) == len(value) and not value.strip("0123456789abcdef")


def verify(content: bytes, digest: str, what: str) -> None:
    """Raise CorruptContent when the content is not that of the digest, Unsupported for an unknown algorithm."""
    if not is_digest(digest):
        raise Unsupported(f"{what}: {digest!r} is not a digest by sha256, sha384 or sha512")
    actual = digest_of(content, digest.partition(":")[0])
    if not hmac.compare_digest(actual, digest):
        raise CorruptContent(f"{what} has the digest {actual}, not {digest}")


def choose(index: IndexDocument, platform: Platform, what: str) -> Descriptor:
    """Return the entry of an index that fits the platform best; raise Unsupported when none does.

    Variants as the peers have them: a processor runs those below its own, best first. Entries without a platform come
    last. Attestations and other documents that only stand beside images are passed over.
    """
    images = [entry for entry in index.manifests if _is_image(entry)]
    wanted = _runnable(platform)
    ranked = [(wanted.index(place), entry) for entry in images if (place := _place(entry, platform)) in wanted]
    if not ranked:
        known = ", ".join(dict.fromkeys(str(_platform(entry)) for entry in images)) or "none at all"
        raise Unsupported(f"{what} has no manifest for the platform {platform}; it has: {known}")
    return min(ranked, key=lambda pair: pair[0])[1].descriptor()


_Place = tuple[str, str]
_ANYWHERE: _Place = ("", "")


def _is_image(entry: DescriptorDocument) -> bool:
    attested = entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest"
    unknown = entry.platform is not None and "unknown" in (entry.platform.os, entry.platform.architecture)
    return entry.media_type in INDEX_TYPES | MANIFEST_TYPES and not attested and not unknown


def _platform(entry: DescriptorDocument) -> Platform:
    place = entry.platform
    return Platform(place.os, place.architecture, place.variant) if place else Platform("any", "")


def _place(entry: DescriptorDocument, platform: Platform) -> _Place | None:
    """Return the entry's architecture and variant in normal form, or ``None`` for another operating system."""
    if entry.platform is None:
        return _ANYWHERE
    found = _platform(entry).normalized()
    return (found.architecture, found.variant) if found.os == platform.normalized().os else None


def _runnable(platform: Platform) -> Sequence[_Place]:
    """Return what a machine of the platform runs, best first."""
    usual = platform.normalized()
    architecture, variant = usual.architecture, usual.variant
    level = int(variant[1:]) if variant[1:].isdigit() else 0
    places: list[_Place] = [(architecture, variant)]
    if architecture in ("amd64", "arm"):
        places = [(architecture, f"v{number}") for number in range(level, 0, -1)] or places
    if architecture == "amd64":
        places.append(("386", ""))
    if architecture == "arm64":
        places += [("arm64", f"v{number}") for number in range(level - 1, 7, -1)]
        places += [("arm", f"v{number}") for number in range(8, 4, -1)]
    return [*places, _ANYWHERE]
