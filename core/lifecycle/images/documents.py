"""Documents of an image as its makers write them: manifest, index, configuration (OCI image-spec, and Docker's kin).

Read by a pull before anything is fetched, and by whoever needs an image's defaults. Tolerant of fields that nobody
here knows and of ``null``, strict about digests and sizes. Choosing a manifest from an index is the source's trade.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.values.image import Descriptor

INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_OCI_LAYER, _OCI_FOREIGN = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
LAYER_TYPES = frozenset(
    kind + compression
    for kind in (_OCI_LAYER, _OCI_FOREIGN, _DOCKER_LAYER, _DOCKER_FOREIGN)
    for compression in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)
MAX_CONFIG_BYTES = 8 << 20

Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$")]
DiffId = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Document(BaseModel):
    """JSON from outside. ``null`` is what Go writes for an empty list or map: it counts as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: object) -> object:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class DescriptorDocument(Document):
    """A reference to a blob (descriptor.md)."""

    media_type: Annotated[str, Field(alias="mediaType")] = ""
    digest: Digest
    size: Annotated[int, Field(ge=0, lt=1 << 63)]
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}

    def descriptor(self) -> Descriptor:
        """Return the value that crosses hooks."""
        return Descriptor(self.media_type, self.digest, self.size, dict(self.annotations), self.urls)


class ManifestDocument(Document):
    """An image manifest (manifest.md); its layers are from the bottom up."""

    media_type: Annotated[str, Field(alias="mediaType")] = ""
    artifact_type: Annotated[str, Field(alias="artifactType")] = ""
    config: DescriptorDocument
    layers: tuple[DescriptorDocument, ...] = ()
    annotations: Mapping[str, str] = {}

    @property
    def artifact(self) -> str:
        """The type of an artifact; empty for a container image."""
        if self.config.media_type in CONFIG_TYPES:
            return ""
        return self.artifact_type or self.config.media_type or "unknown"


class IndexDocument(Document):
    """An image index (image-index.md), or Docker's manifest list."""

    media_type: Annotated[str, Field(alias="mediaType")] = ""
    manifests: tuple[DescriptorDocument, ...] = ()


class ContainerDefaults(Document):
    """What a container of the image gets unless it is told otherwise (config.md, ``config``)."""

    user: Annotated[str, Field(alias="User")] = ""
    env: Annotated[tuple[str, ...], Field(alias="Env")] = ()
    entrypoint: Annotated[tuple[str, ...], Field(alias="Entrypoint")] = ()
    cmd: Annotated[tuple[str, ...], Field(alias="Cmd")] = ()
    working_dir: Annotated[str, Field(alias="WorkingDir")] = ""
    stop_signal: Annotated[str, Field(alias="StopSignal")] = ""
    volumes: Annotated[Mapping[str, object], Field(alias="Volumes")] = {}
    labels: Annotated[Mapping[str, str], Field(alias="Labels")] = {}
    exposed_ports: Annotated[Mapping[str, object], Field(alias="ExposedPorts")] = {}


class RootFs(Document):
    """The layers by the digests of their uncompressed archives, from the bottom up."""

    type: str = "layers"
    diff_ids: tuple[DiffId, ...] = ()


class ImageConfig(Document):
    """An image configuration (config.md), whose digest is the image's id."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    created: str = ""
    config: ContainerDefaults = ContainerDefaults()
    rootfs: RootFs = RootFs()


D = TypeVar("D", bound=Document)


def read_document(model: type[D], content: bytes | str, what: str) -> D:
    """Parse and validate a document; raise CorruptContent that names ``what`` and the first thing wrong with it."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CorruptContent(f"{what}: {place + ': ' if place else ''}{first['msg']}") from error


def read_manifest(content: bytes, what: str) -> ManifestDocument:
    """Parse a manifest and check that it is one: no index in disguise, and an image's layers can be unpacked.

    What blobs an artifact has is nobody's concern here. Raises CorruptContent, or Unsupported naming the media type
    that is not done here.
    """
    _check_kind(content, what)
    manifest = read_document(ManifestDocument, content, what)
    if manifest.media_type and manifest.media_type not in MANIFEST_TYPES:
        raise Unsupported(f"{what}: media type {manifest.media_type!r} is no image manifest")
    if not manifest.artifact:
        for layer in manifest.layers:
            _check_layer(layer, what)
    return manifest


def verify(content: bytes, descriptor: Descriptor, what: str) -> None:
    """Raise CorruptContent unless the bytes are those that the descriptor names."""
    if len(content) != descriptor.size:
        raise CorruptContent(f"{what} {descriptor.digest} has {len(content)} bytes where {descriptor.size} are due")
    algorithm, _, expected = descriptor.digest.partition(":")
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise Unsupported(f"{what}: digest algorithm {algorithm!r} is not known here")
    found = hashlib.new(algorithm, content).hexdigest()
    if found != expected:
        raise CorruptContent(f"{what} {descriptor.digest} was answered with other content: {algorithm}:{found}")


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return what names each layer together with all below it, from the bottom up (config.md, "ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        text = f"{found[-1]} {diff_id}" if found else ""
        found.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff_id)
    return tuple(found)


def _check_kind(content: bytes, what: str) -> None:
    """Refuse what others may read as an index: the same bytes must mean the same to everybody."""
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise CorruptContent(f"{what} is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise CorruptContent(f"{what} is no JSON object")
    if facts.get("schemaVersion") == 1 or "fsLayers" in facts:
        raise Unsupported(f"{what} is of Docker's schema 1, which is an image format no more: push the image anew")
    if "manifests" in facts:
        raise CorruptContent(f"{what} lists manifests, as an index does")


def _check_layer(layer: DescriptorDocument, what: str) -> None:
    if layer.media_type in LAYER_TYPES:
        return
    if "+encrypted" in layer.media_type:
        raise Unsupported(f"{what}: layer {layer.digest} is encrypted ({layer.media_type}): no key is known here")
    raise Unsupported(f"{what}: layer {layer.digest} is of media type {layer.media_type!r}, which can't be unpacked")
