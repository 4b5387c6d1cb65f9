"""Documents of an image as its makers write them: what the kernel asks of a manifest, and the configuration.

Read by a pull before anything is fetched, and by whoever needs an image's defaults; ``api.manifests`` has what image
sources need too. Strict about digests and sizes. Choosing a manifest from an index is the source's trade.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

from crinoid.core.api import manifests
from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.manifests import (
    CONFIG_TYPES,
    INDEX_TYPES,
    DescriptorDocument,
    Document,
    ManifestDocument,
    TextMap,
    Texts,
    classify,
    parse,
)
from crinoid.core.api.values.image import Descriptor

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

_VAGUE_CONFIG_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
"""What builders write that know no better; what the configuration is shows in it."""

DiffId = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class ContainerDefaults(Document):
    """What a container of the image gets unless it is told otherwise (config.md, ``config``)."""

    user: Annotated[str, Field(alias="User")] = ""
    env: Annotated[Texts, Field(alias="Env")] = ()
    entrypoint: Annotated[Texts, Field(alias="Entrypoint")] = ()
    cmd: Annotated[Texts, Field(alias="Cmd")] = ()
    working_dir: Annotated[str, Field(alias="WorkingDir")] = ""
    stop_signal: Annotated[str, Field(alias="StopSignal")] = ""
    volumes: Annotated[Mapping[str, object], Field(alias="Volumes")] = {}
    labels: TextMap = Field(alias="Labels", default={})
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


def read_manifest(content: bytes, what: str) -> ManifestDocument:
    """Parse a manifest and check that it is one: no index in disguise, and an image's layers can be unpacked.

    What blobs an artifact has is nobody's concern here. Raises CorruptContent, or Unsupported naming the media type
    that is not done here.
    """
    if classify(content, "", what) in INDEX_TYPES:
        raise CorruptContent(f"{what} is an index where a manifest is due")
    manifest = parse(ManifestDocument, content, what)
    if manifest.config.media_type in CONFIG_TYPES:
        for layer in manifest.layers:
            _check_layer(layer, what)
    return manifest


def artifact_type(manifest: ManifestDocument, config: bytes) -> str:
    """Return the type of an artifact by its manifest and the content of its configuration; empty for an image.

    An image whose configuration has a media type that says nothing shows by its layers, and by a configuration that
    has a diffID for each of them (moby#48361).
    """
    media_type = manifest.config.media_type
    if media_type in CONFIG_TYPES:
        return ""
    if media_type in _VAGUE_CONFIG_TYPES and not manifest.artifact_type:
        layered = all(layer.media_type in LAYER_TYPES for layer in manifest.layers)
        if manifest.layers and layered and _diff_ids(config) == len(manifest.layers):
            return ""
    return manifest.artifact_type or media_type or "unknown"


def _diff_ids(config: bytes) -> int:
    try:
        return len(parse(ImageConfig, config, "configuration").rootfs.diff_ids)
    except CorruptContent:
        return 0


def verify(content: bytes, descriptor: Descriptor, what: str) -> None:
    """Raise CorruptContent unless the bytes are those that the descriptor names."""
    if len(content) != descriptor.size:
        raise CorruptContent(f"{what} {descriptor.digest} has {len(content)} bytes where {descriptor.size} are due")
    manifests.verify(content, descriptor.digest, what)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return what names each layer together with all below it, from the bottom up (config.md, "ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        text = f"{found[-1]} {diff_id}" if found else ""
        found.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff_id)
    return tuple(found)


def _check_layer(layer: DescriptorDocument, what: str) -> None:
    if layer.media_type in LAYER_TYPES:
        return
    if "+encrypted" in layer.media_type:
        raise Unsupported(f"{what}: layer {layer.digest} is encrypted ({layer.media_type}): no key is known here")
    raise Unsupported(f"{what}: layer {layer.digest} is of media type {layer.media_type!r}, which can't be unpacked")
