"""Manifests that refer to another, such as signatures (OCI distribution-spec 1.1, "Listing Referrers").

A registry without that list has an index under a tag made of the digest instead, which its clients keep
("Referrers Tag Schema").
"""

from typing import Annotated

from pydantic import Field

from crinoid.core.api.manifests import MANIFEST_TYPES, DescriptorDocument, Document, parse
from crinoid.core.api.values.image import Descriptor


class _Referrer(DescriptorDocument):
    artifact_type: Annotated[str, Field(alias="artifactType")] = ""


class _Referrers(Document):
    manifests: tuple[_Referrer, ...] = ()


def read_referrers(content: bytes, artifact_type: str, what: str) -> tuple[Descriptor, ...]:
    """Return the manifests of a type; registries need not filter. Raises CorruptContent."""
    listed = parse(_Referrers, content, what).manifests
    return tuple(
        one.descriptor() for one in listed if one.artifact_type == artifact_type and one.media_type in MANIFEST_TYPES
    )


def tag_of(digest: str) -> str:
    """Return the tag of the index."""
    return digest.replace(":", "-")[:128]
