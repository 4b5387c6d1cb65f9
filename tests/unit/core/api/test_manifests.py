"""Manifests and indexes: which entry of an index a machine takes, and what no document may be."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crinoid.core.api.errors import CorruptContent, CrinoidError, Unsupported
from crinoid.core.api.manifests import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    as_text,
    choose,
    classify,
    digest_of,
    is_digest,
    read_index,
    read_manifest,
    verify,
)
from crinoid.core.api.values.image import Platform


def entry(place: str | None, **more: object) -> dict[str, object]:
    """An entry for a platform in the form ``os/architecture[/variant]``; its digest tells it from the others."""
    found: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": digest_of(str(place).encode()), "size": 1}
    if place is not None:
        os, architecture, *variant = place.split("/")
        found["platform"] = {"os": os, "architecture": architecture, "variant": (variant or [""])[0]}
    return found | more


def chosen(platform: str, *places: str | None) -> str | None:
    """Choose from an index of the places; return the one taken."""
    index = read_index(json.dumps({"manifests": [entry(place) for place in places]}).encode(), "index")
    digest = choose(index, Platform(*platform.split("/")), "index").digest
    return next(place for place in places if digest_of(str(place).encode()) == digest)


@pytest.mark.parametrize(
    ("platform", "places", "taken"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v1"], "linux/amd64/v1"),
        ("linux/amd64", ["linux/x86_64"], "linux/x86_64"),
        ("linux/amd64", ["Linux/AMD64"], "Linux/AMD64"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3"),
        ("linux/amd64", ["linux/386"], "linux/386"),
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm64", ["linux/aarch64"], "linux/aarch64"),
        ("linux/arm64/v9", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm/v7", ["linux/arm64", "linux/arm"], "linux/arm"),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm", ["linux/armhf"], "linux/armhf"),
        ("linux/s390x", ["linux/s390x"], "linux/s390x"),
        ("linux/amd64", [None], None),
        ("linux/amd64", [None, "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], "linux/amd64"),
    ],
)
def test_the_best_entry_is_taken(platform: str, places: list[str | None], taken: str | None) -> None:
    assert chosen(platform, *places) == taken


def test_an_entry_of_an_unknown_algorithm_hides_no_other() -> None:
    """Go reads a digest as any text, and looks at that of the chosen entry alone."""
    strange = entry("linux/amd64", digest="blake3:" + "0" * 64)
    index = read_index(json.dumps({"manifests": [strange, entry("linux/amd64")]}).encode(), "index")
    assert choose(index, Platform("linux", "amd64"), "index").digest == entry("linux/amd64")["digest"]
    with pytest.raises(CorruptContent, match="digest"):
        read_index(json.dumps({"manifests": [strange]}).encode(), "index")


@pytest.mark.parametrize(
    ("author", "read"),
    [
        (b"J\xf6rg", "J\ufffdrg"),
        (b"cut \\ud83d", "cut \ufffd"),
        (b"\\udE00 \\ud83d\\uDE00", "\ufffd \U0001f600"),
        (b"C:\\\\udata", "C:\\udata"),
        (b"\\\\\\ud800", "\\\ufffd"),
    ],
)
def test_texts_that_are_no_unicode_are_read_as_go_reads_them(author: bytes, read: str) -> None:
    config = {"mediaType": DOCKER_CONFIG, "digest": digest_of(b""), "size": 1}
    document = json.dumps({"config": config, "annotations": {"author": "AUTHOR"}}).encode()
    content = document.replace(b"AUTHOR", author)
    assert read_manifest(content, "manifest").annotations == {"author": read}
    assert json.loads(as_text(content))["annotations"] == {"author": read}
    assert classify(content, "", "manifest") == OCI_MANIFEST


@pytest.mark.parametrize(
    ("platform", "places"),
    [
        ("linux/amd64", []),
        ("linux/amd64", ["linux/arm64", "linux/s390x"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm64"]),
        ("linux/amd64", ["unknown/unknown"]),
        ("linux/riscv64", ["windows/riscv64"]),
    ],
)
def test_no_entry_fits(platform: str, places: list[str]) -> None:
    with pytest.raises(Unsupported, match=f"index has no manifest for the platform {platform}; it has: "):
        chosen(platform, *places)


def test_what_stands_beside_images_is_passed_over() -> None:
    attested = entry("linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    other = entry("linux/amd64", mediaType="application/vnd.example+json", digest=digest_of(b"other"))
    image = entry("linux/amd64", digest=digest_of(b"image"))
    index = read_index(json.dumps({"manifests": [attested, other, image]}).encode(), "index")
    assert choose(index, Platform("linux", "amd64"), "index").digest == digest_of(b"image")


def test_nulls_are_empty_lists_as_go_writes_them() -> None:
    config = {"mediaType": "x", "digest": digest_of(b""), "size": 0, "annotations": None, "urls": None}
    assert read_manifest(json.dumps({"config": config, "layers": None}).encode(), "x").layers == ()
    assert read_index(b'{"manifests": null}', "x").manifests == ()
    assert read_index(b"null", "x").manifests == ()
    entries = [entry("linux/amd64", annotations={"a": None}) | {"platform": None}]
    assert read_index(json.dumps({"manifests": entries}).encode(), "x").manifests[0].annotations == {"a": ""}


@pytest.mark.parametrize(
    ("document", "declared", "media_type"),
    [
        ({"manifests": []}, "", OCI_INDEX),
        ({"layers": []}, "", OCI_MANIFEST),
        ({"mediaType": DOCKER_LIST, "manifests": []}, "", DOCKER_LIST),
        ({"manifests": []}, DOCKER_LIST, DOCKER_LIST),
        ({"layers": []}, f"{DOCKER_MANIFEST.upper()}; charset=utf-8", DOCKER_MANIFEST),
    ],
)
def test_media_types(document: dict[str, object], declared: str, media_type: str) -> None:
    assert classify(json.dumps(document).encode(), declared, "x") == media_type


@pytest.mark.parametrize(
    ("digest", "valid"),
    [
        ("sha256:" + "a" * 64, True),
        ("sha384:" + "a" * 96, True),
        ("sha512:" + "0" * 128, True),
        ("sha256:" + "A" * 64, False),
        ("sha256:" + "a" * 63, False),
        ("md5:" + "a" * 32, False),
        ("sha256:" + "../" * 21 + "a", False),
        ("", False),
    ],
)
def test_digests(digest: str, valid: bool) -> None:
    assert is_digest(digest) is valid


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_content_is_verified_by_any_algorithm(algorithm: str) -> None:
    verify(b"content", digest_of(b"content", algorithm), "x")
    with pytest.raises(CorruptContent, match="x has the digest"):
        verify(b"other", digest_of(b"content", algorithm), "x")


def test_an_algorithm_that_is_not_known_is_told() -> None:
    with pytest.raises(Unsupported, match="md5"):
        verify(b"", "md5:d41d8cd98f00b204e9800998ecf8427e", "x")


KEYS = st.sampled_from(
    ["schemaVersion", "mediaType", "manifests", "layers", "config", "digest", "size", "platform", "os", "architecture"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([OCI_INDEX, digest_of(b""), "linux"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(document=JSON, declared=st.sampled_from(["", OCI_INDEX, OCI_MANIFEST, "text/html"]))
def test_no_document_brings_anything_but_a_clear_error(document: object, declared: str) -> None:
    content = json.dumps(document).encode()
    for act in (
        lambda: classify(content, declared, "x"),
        lambda: read_manifest(content, "x"),
        lambda: choose(read_index(content, "x"), Platform("linux", "amd64"), "x"),
    ):
        try:
            act()
        except CrinoidError as error:
            assert "x" in error.message
