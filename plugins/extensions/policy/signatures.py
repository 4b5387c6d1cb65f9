"""Finds what was signed with an image, and verifies it: cosign's signatures, by a public key.

Where they are, for an image's digest ``sha256:HEX``: in a manifest tagged ``sha256-HEX.sig`` beside the image, in
manifests that refer to it (OCI distribution-spec 1.1), or as sigstore bundles that refer to it. In which form:

- simple signing (containers/image, docs/containers-signature.5.md): the layer is a JSON payload that names the digest,
  its annotation the signature of the payload's bytes.
- a bundle (sigstore/protobuf-specs, version 0.3): JSON with a DSSE envelope, which signs its type and payload together;
  the payload is an in-toto statement, whose subject has the digest.

Only the key counts. Certificates and transparency logs are not looked at: a key that was stolen signs what it likes.
"""

import base64
import binascii
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from crinoid.core.api.errors import CorruptContent, CrinoidError, NotFound
from crinoid.core.api.hooks.extension import ImageDocuments
from crinoid.core.api.manifests import MAX_DOCUMENT_BYTES, DescriptorDocument, read_manifest
from crinoid.core.api.values.image import Descriptor, ImageReference

if TYPE_CHECKING:
    from crinoid.plugins.extensions.policy.keys import PublicKey

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
_STATEMENT = "application/vnd.in-toto+json"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"
_MAX_BYTES = 1 << 20
_MOST = 64
"""Signatures that are looked at: anybody who may push to a registry can add more."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that is right: by which key, and the repository that it names, if any."""

    key: str
    repository: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What claims to be a signature: the bytes that were signed, and what they say."""

    content: bytes
    signatures: tuple[bytes, ...]
    digests: tuple[str, ...]
    repository: str


async def find_signature(
    documents: ImageDocuments,
    reference: ImageReference,
    digest: str,
    keys: "Sequence[PublicKey]",
    said: list[str],
) -> AsyncIterator[Signed]:
    """Yield the signatures of a digest that are right; ``said`` is told why others are none.

    Raises what image sources raise when they can't be asked, but not where some signature was found.
    """
    count = 0
    failure: CrinoidError | None = None
    for find in (_tagged, _referring):
        try:
            async for name, layer, content in find(documents, reference, digest):
                if (count := count + 1) > _MOST:
                    said.append(f"more than {_MOST} signatures: the others are not looked at")
                    return
                try:
                    candidate = _read_simple(layer, content) if name == "simple" else _read_bundle(content)
                    signed = _verify(candidate, digest, keys)
                except (CorruptContent, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    said.append(f"a signature can't be read ({error})")
                    continue
                if isinstance(signed, str):
                    said.append(signed)
                else:
                    yield signed
        except NotFound:
            continue
        except CrinoidError as error:
            failure = error
    if not count and failure is not None:
        raise failure
    if failure is not None:
        said.append(failure.message)


_Found = tuple[Literal["simple", "bundle"], Descriptor, bytes]


async def _tagged(documents: ImageDocuments, reference: ImageReference, digest: str) -> AsyncIterator[_Found]:
    tag = f"{digest.replace(':', '-')}.sig"
    place = ImageReference(reference.registry, reference.repository, tag)
    found = await documents.resolve(place)
    async for one in _layers(documents, place, found.manifest_content, found.manifest.digest):
        yield one


async def _referring(documents: ImageDocuments, reference: ImageReference, digest: str) -> AsyncIterator[_Found]:
    place = ImageReference(reference.registry, reference.repository, "", digest)
    for artifact_type in (BUNDLE, COSIGN_ARTIFACT):
        for referrer in await documents.list_referrers(place, artifact_type):
            one_place = ImageReference(reference.registry, reference.repository, "", referrer.digest)
            found = await documents.resolve(one_place)
            async for one in _layers(documents, one_place, found.manifest_content, referrer.digest):
                yield one


async def _layers(
    documents: ImageDocuments, place: ImageReference, content: bytes, digest: str
) -> AsyncIterator[_Found]:
    """Yield the signatures that a manifest has for layers; others mean something else."""
    if len(content) > MAX_DOCUMENT_BYTES:
        return
    layers: tuple[DescriptorDocument, ...] = read_manifest(content, f"manifest {digest}").layers
    for layer in layers[: _MOST + 1]:
        blob = layer.descriptor()
        if layer.media_type == SIMPLE_SIGNING:
            yield "simple", blob, await documents.read(place, blob, _MAX_BYTES)
        elif layer.media_type == BUNDLE:
            yield "bundle", blob, await documents.read(place, blob, _MAX_BYTES)


def _read_simple(layer: Descriptor, content: bytes) -> _Candidate:
    critical: Any = json.loads(content)["critical"]  # whatever the JSON holds; a wrong type is caught by the caller
    identity = critical.get("identity") or {}
    return _Candidate(
        content,
        (_decode(layer.annotations.get(SIGNATURE, "")),),
        (str(critical["image"]["docker-manifest-digest"]),),
        str(identity.get("docker-reference") or ""),
    )


def _read_bundle(content: bytes) -> _Candidate:
    envelope: Any = json.loads(content)["dsseEnvelope"]
    kind, payload = str(envelope["payloadType"]), _decode(envelope["payload"])
    if kind != _STATEMENT:
        raise ValueError(f"its payload is of type {kind!r}")
    statement: Any = json.loads(payload)
    if (predicate := statement.get("predicateType")) != _SIGNED:
        raise ValueError(f"it states {predicate!r}, which is no signature of an image")
    digests = (
        f"{algorithm}:{value}" for subject in statement["subject"] for algorithm, value in subject["digest"].items()
    )
    signed = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)
    return _Candidate(signed, tuple(_decode(one["sig"]) for one in envelope["signatures"][:_MOST]), tuple(digests), "")


def _verify(candidate: _Candidate, digest: str, keys: "Sequence[PublicKey]") -> Signed | str:
    """Return who signed, or why it does not count. What a signature says counts only once it is verified."""
    for key in keys:
        if any(key.verifies(candidate.content, signature) for signature in candidate.signatures):
            if digest not in candidate.digests:
                return f"a signature by {key.name} is of {', '.join(candidate.digests)[:200]}, another image"
            return Signed(key.name, candidate.repository)
    return "a signature is by none of the keys"


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("its base64 is damaged") from error
