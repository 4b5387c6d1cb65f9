"""The list of what refers to a manifest: by the registry, by the tag that stands for it, or not at all."""

import json

import pytest

from crinoid.core.api.errors import CorruptContent, CrinoidError
from crinoid.core.api.values.image import ImageReference, ReferrersRequest
from support.faults import FaultRegistry, refuse, send
from support.images import OCI_INDEX, OCI_MANIFEST, digest_of

from .conftest import MakeRegistry

SUBJECT, SIGNATURE, OTHER = (digest_of(text) for text in (b"subject", b"signature", b"other"))
TYPE = "application/vnd.test.signature"
ENTRIES = [
    {"mediaType": OCI_MANIFEST, "digest": SIGNATURE, "size": 5, "artifactType": TYPE},
    {"mediaType": OCI_MANIFEST, "digest": OTHER, "size": 5, "artifactType": "application/vnd.test.sbom"},
    {"mediaType": "text/plain", "digest": OTHER, "size": 5, "artifactType": TYPE},
]
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": ENTRIES}).encode()
PATH = f"/v2/app/referrers/{SUBJECT}"


def request(server: FaultRegistry) -> ReferrersRequest:
    return ReferrersRequest(ImageReference.parse(f"{server.host}/app@{SUBJECT}"), TYPE)


async def test_those_of_the_type(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on(PATH, send(INDEX, OCI_INDEX))
    (found,) = await make_registry().list_referrers(request(server))
    assert (found.media_type, found.digest, found.size) == (OCI_MANIFEST, SIGNATURE, 5)


async def test_the_tag_where_the_registry_has_no_list(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on(PATH, refuse(404))
    server.on_manifest(SUBJECT.replace(":", "-"), send(INDEX, OCI_INDEX))
    (found,) = await make_registry().list_referrers(request(server))
    assert found.digest == SIGNATURE


async def test_neither(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on(PATH, refuse(404))
    server.on_manifest(SUBJECT.replace(":", "-"), refuse(404))
    assert await make_registry().list_referrers(request(server)) == ()


async def test_a_registry_that_refuses_is_no_empty_list(make_registry: MakeRegistry, server: FaultRegistry) -> None:
    server.on(PATH, refuse(403))
    with pytest.raises(CrinoidError, match="403"):
        await make_registry().list_referrers(request(server))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"manifests": [{"digest": "x"}]}'])
async def test_what_is_no_list(make_registry: MakeRegistry, server: FaultRegistry, content: bytes) -> None:
    server.on(PATH, send(content, OCI_INDEX))
    with pytest.raises(CorruptContent):
        await make_registry().list_referrers(request(server))
