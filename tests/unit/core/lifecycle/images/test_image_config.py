"""What image documents may look like, and what they may not."""

import hashlib
import json
from typing import Any

import pytest

from crinoid.core.api.errors import CorruptContent, Unsupported
from crinoid.core.api.manifests import parse
from crinoid.core.api.values.image import Descriptor
from crinoid.core.lifecycle.images.image_config import (
    LAYER_TYPES,
    ImageConfig,
    artifact_type,
    chain_ids,
    read_manifest,
    verify,
)
from crinoid.core.lifecycle.images.images import parse_platform
from crinoid.core.lifecycle.images.unpack import layer

DIGEST = f"sha256:{'a' * 64}"

_EMPTY = "application/vnd.oci.empty.v1+json"
VAGUE = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 1}


def manifest(**changes: object) -> bytes:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": []} | changes).encode()


def layer_of(**changes: object) -> dict[str, object]:
    return LAYER | changes


def test_what_go_writes_for_nothing_is_nothing() -> None:
    text = '{"config": {"Env": null, "Cmd": ["a"], "Volumes": null, "Labels": null}, "rootfs": {"diff_ids": null}}'
    config = parse(ImageConfig, text, "config")
    assert (config.config.env, config.config.cmd, config.config.volumes, config.rootfs.diff_ids) == ((), ("a",), {}, ())
    assert parse(ImageConfig, '{"config": null}', "config").config.user == ""


def test_nulls_in_lists_and_maps_and_the_case_of_keys_are_read_as_go_reads_them() -> None:
    text = '{"CONFIG": {"ENV": [null, "A=b"], "labels": {"a": null}, "entrypoint": [null]}, "OS": "linux"}'
    config = parse(ImageConfig, text, "config")
    assert (config.os, config.config.env, config.config.labels) == ("linux", ("", "A=b"), {"a": ""})
    assert config.config.entrypoint == ("",)
    annotated = layer_of(annotations={"a": None, "b": "c"}, urls=[None])
    found = read_manifest(manifest(annotations={"x": None}, layers=[annotated]), "m")
    assert (found.annotations, found.layers[0].annotations) == ({"x": ""}, {"a": "", "b": "c"})


def test_unknown_fields_are_ignored() -> None:
    found = read_manifest(manifest(annotations={"a": "b"}, future={"x": 1}, layers=[layer_of(data="aGk=")]), "m")
    assert found.layers[0].descriptor() == Descriptor("application/vnd.oci.image.layer.v1.tar", DIGEST, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        manifest(layers="none"),
        manifest(config=None),
        manifest(layers=[layer_of(digest="sha256:" + "A" * 64)]),
        manifest(layers=[layer_of(digest="md5:" + "a" * 32)]),
        manifest(layers=[layer_of(digest=f"{DIGEST}/../../x")]),
        manifest(layers=[layer_of(size=1.5)]),
        manifest(layers=[layer_of(size=1 << 63)]),
        manifest(manifests=[]),
        manifest(Manifests=[]),
        manifest(mediaType="application/vnd.oci.image.index.v1+json"),
        b'{"manifests": []}',
        b"[" * 100_000,
    ],
)
def test_damaged_manifests(content: bytes) -> None:
    with pytest.raises(CorruptContent, match=r"^the manifest"):
        read_manifest(content, "the manifest")


@pytest.mark.parametrize(
    "changes",
    [
        {"mediaType": "application/vnd.example+json"},
        {"schemaVersion": 1},
        {"fsLayers": []},
    ],
)
def test_documents_that_are_no_image_manifest(changes: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read_manifest(manifest(**changes), "the manifest")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, ""),
        ({"config": VAGUE, "layers": [LAYER]}, ""),
        ({"config": VAGUE | {"mediaType": ""}, "layers": [LAYER]}, ""),
        ({"config": VAGUE | {"mediaType": None}, "layers": [LAYER]}, ""),
        ({"config": VAGUE, "layers": [LAYER, LAYER]}, "application/octet-stream"),
        ({"config": VAGUE, "layers": [LAYER | {"mediaType": "text/plain"}]}, "application/octet-stream"),
        ({"config": VAGUE, "layers": [LAYER], "artifactType": "a/b"}, "a/b"),
        ({"config": VAGUE, "layers": []}, "application/octet-stream"),
        ({"config": VAGUE | {"mediaType": ""}, "layers": []}, "unknown"),
        ({"artifactType": "application/x"}, ""),
        ({"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": DIGEST, "size": 2}}, _EMPTY),
        (
            {
                "artifactType": "a/b",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": DIGEST, "size": 2},
            },
            "a/b",
        ),
    ],
)
def test_artifacts_are_told_from_images(changes: dict[str, Any], kind: str) -> None:
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [DIGEST]}}).encode()
    assert artifact_type(read_manifest(manifest(**changes), "m"), config) == kind


def test_an_artifact_may_hold_anything() -> None:
    config = {"mediaType": _EMPTY, "digest": DIGEST, "size": 2}
    read_manifest(manifest(config=config, layers=[layer_of(mediaType="text/plain")]), "m")


def test_foreign_layers_keep_their_addresses() -> None:
    foreign = layer_of(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["https://a.test/b"])
    assert read_manifest(manifest(layers=[foreign]), "m").layers[0].descriptor().urls == ("https://a.test/b",)


def test_layers_that_pass_here_are_those_that_can_be_unpacked() -> None:
    assert LAYER_TYPES == layer._ACCEPTED


def test_chain_ids_as_the_specification_computes_them() -> None:
    one, two, three = (f"sha256:{character * 64}" for character in "123")
    second = hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} {three}".encode()).hexdigest()
    assert chain_ids([one, two, three]) == (one, f"sha256:{second}", f"sha256:{third}")
    assert chain_ids([]) == ()


def test_verification() -> None:
    content = b"content"
    for algorithm in ("sha256", "sha512"):
        digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        verify(content, Descriptor("", digest, 7), "blob")
        with pytest.raises(CorruptContent, match="has the digest"):
            verify(b"tnetnoc", Descriptor("", digest, 7), "blob")
        with pytest.raises(CorruptContent, match="7 bytes where 8 are due"):
            verify(content, Descriptor("", digest, 8), "blob")
    with pytest.raises(Unsupported, match="md5"):
        verify(content, Descriptor("", "md5:00", 7), "blob")


def test_platforms() -> None:
    assert str(parse_platform("linux/arm/v7")) == "linux/arm/v7"
    assert str(parse_platform("linux/amd64")) == "linux/amd64"
