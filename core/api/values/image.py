"""What crosses the image source's hooks: references, descriptors, credentials, a resolved image."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from crinoid.core.api.errors import InvalidArgument

DEFAULT_REGISTRY = "docker.io"
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}))?"
)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A reference in full form: ``registry/repository[:tag][@digest]``, at least one of tag and digest set.

    Short names mean Docker Hub, as every peer reads them: ``busybox`` is ``docker.io/library/busybox:latest``.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "ImageReference":
        """Read a reference as a user writes it; raise InvalidArgument when it is none."""
        registry, rest = _split_registry(text)
        match = _REFERENCE.fullmatch(rest) if len(text) <= 512 else None
        if match is None:
            raise InvalidArgument(f"image reference {text!r} is not of the form [registry/]name[:tag][@digest]")
        repository = match["path"]
        if registry == DEFAULT_REGISTRY and "/" not in repository:
            repository = f"library/{repository}"
        tag, digest = match["tag"] or "", match["digest"] or ""
        return cls(registry, repository, tag if tag or digest else "latest", digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def selector(self) -> str:
        """What names the manifest at the registry: the digest where given, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def _split_registry(text: str) -> tuple[str, str]:
    """Split off the host, which has a dot, a colon or a capital letter, or is ``localhost``."""
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or any(c in ".:[" or c.isupper() for c in first)):
        port = first.rpartition(":")[2] if re.search(r":[0-9]+$", first) else "1"
        if not re.fullmatch(_HOST, first) or not 0 < int(port) < 1 << 16:
            raise InvalidArgument(f"image reference {text!r}: {first!r} is not a registry host")
        return (DEFAULT_REGISTRY if first == "index.docker.io" else first), rest
    return DEFAULT_REGISTRY, text


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest in an index is for, in Go's terms (``linux``, ``amd64``, ``v8``)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalized(self) -> "Platform":
        """Return the platform as Go would name it: ``Linux/x86_64`` is ``linux/amd64/v1``; variants are explicit."""
        architecture, variant = self.architecture.lower(), self.variant.lower()
        variant = f"v{variant}" if variant.isdecimal() else variant
        if architecture in ("armhf", "armel"):
            architecture, variant = "arm", "v7" if architecture == "armhf" else "v6"
        system, architecture = self.os.lower(), _ARCHITECTURES.get(architecture, architecture)
        return Platform(_SYSTEMS.get(system, system), architecture, variant or _VARIANTS.get(architecture, ""))


_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_SYSTEMS = {"macos": "darwin"}
_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""What an architecture means that names no variant."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest (OCI image-spec, descriptor.md); ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a pull request carries to authenticate (api.proto, AuthConfig); its text never shows in logs.

    ``auth`` has been decoded into user name and password. ``registry_token`` is sent as a bearer token as it is.
    """

    username: str = ""
    password: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, …)"


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """A reference to be resolved for a platform; ``credentials`` ``None``: the node's own, or anonymous."""

    reference: ImageReference
    platform: Platform
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a reference means now.

    ``target`` is what the reference names: an index or a manifest; ``manifest`` is the one for the platform, the same
    as ``target`` where there is no index. Both documents are verified against their digests by the driver and once
    more by the kernel.
    """

    target: Descriptor
    target_content: bytes
    manifest: Descriptor
    manifest_content: bytes


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A blob of a resolved image, from byte ``offset`` on.

    ``doubted``: what the source gave before was not of the digest. One that has the blob from several places begins
    with the one that counts most; one that has no other may raise CorruptContent at once.
    """

    reference: ImageReference
    blob: Descriptor
    credentials: Credentials | None = None
    offset: int = 0
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class ReferrersRequest:
    """Which manifests of ``artifact_type`` name the manifest of the reference's digest as their subject."""

    reference: ImageReference
    artifact_type: str
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """Whether an image source can be asked at all; the message says what to do where not, or what hinders some pulls.

    ``notes`` are worth a warning and hinder nothing, such as a key that the source passes over.
    """

    ready: bool
    message: str = ""
    notes: tuple[str, ...] = ()
