"""The extension policy: rules, signatures in every form, images that are there, and what of it is a mistake."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crinoid.core.api.errors import CrinoidError, Refused, SignatureValidationFailed, Unavailable
from crinoid.core.api.hooks.extension import ContainerView, ImageView, PodView, PullView
from crinoid.core.api.testing.fakes import FakeDocuments, FakeKernel, fake_host
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, VolumeMount
from crinoid.core.api.values.image import Descriptor, ImageReference, ResolvedImage
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.plugins.extensions.policy import PolicyExtension
from crinoid.plugins.extensions.policy.options import PolicyOptions
from support.images import OCI_MANIFEST, Blob, digest_of, read_blob
from support.signing import (
    BUNDLE,
    SIMPLE_SIGNING,
    Key,
    bundle_of,
    make_key,
    payload_of,
    private_pem,
    referring,
    sign_by_tag,
)

NAME = "registry.test/team/app"
INDEX, MANIFEST, OTHER = (digest_of(text) for text in (b"index", b"manifest", b"other"))


class World:
    """A policy, and what image sources have."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layout = directory / "layout"
        self.kernel = FakeKernel()
        self.documents: FakeDocuments = self.kernel.documents
        self.key = make_key(directory / "release.pub")

    def policy(self, **options: Any) -> PolicyExtension:
        model = PolicyOptions.model_validate_json(json.dumps(options, default=str), strict=True)
        return PolicyExtension(model, fake_host(self.directory, "policy"))

    def signed(self, **more: Any) -> PolicyExtension:
        return self.policy(
            rules=[{"images": ["registry.test/*"], "action": "signed", "keys": [self.key.public], **more}]
        )

    async def pull(self, policy: PolicyExtension, name: str | None = f"{NAME}:1", target: str = INDEX) -> str:
        reference = ImageReference.parse(name) if name else None
        index, manifest = (Descriptor(OCI_MANIFEST, digest, 1) for digest in (target, MANIFEST))
        return await policy.image_pulling(PullView(reference, index, manifest, "near", self.documents))

    def publish(self, blob: Blob, reference: str) -> None:
        """Have image sources know a manifest of the layout, and all that it names."""
        content = read_blob(self.layout, blob.digest)
        found = Descriptor(blob.media_type, blob.digest, blob.size)
        self.documents.manifests[reference] = ResolvedImage(found, content, found, content)
        for layer in json.loads(content)["layers"]:
            self.documents.blobs[layer["digest"]] = read_blob(self.layout, layer["digest"])

    def sign(self, digest: str = INDEX, key: Key | None = None, name: str = NAME, **more: Any) -> None:
        blob = sign_by_tag(self.layout, name, digest, key or self.key, **more)
        self.publish(blob, f"{NAME}:{INDEX.replace(':', '-')}.sig")

    def bundle(self, content: bytes, artifact_type: str = BUNDLE) -> None:
        blob = referring(self.layout, Blob(OCI_MANIFEST, INDEX, 1), artifact_type, content)
        self.publish(blob, f"{NAME}@{blob.digest}")
        self.documents.referrers[INDEX, artifact_type] = (Descriptor(blob.media_type, blob.digest, blob.size),)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestRules:
    async def test_the_first_that_is_about_an_image_decides(self, world: World) -> None:
        rules = [
            {"images": ["registry.test/team/app"], "digests": [OTHER], "action": "deny"},
            {"images": ["registry.test/team/*"], "action": "allow"},
            {"images": ["*"], "action": "deny"},
        ]
        policy = world.policy(rules=rules)
        assert (await world.pull(policy)).startswith("allowed by rule 2 (registry.test/team/*)")
        with pytest.raises(Refused, match="denied by rule 1"):
            await world.pull(policy, target=OTHER)
        with pytest.raises(Refused, match="denied by rule 3"):
            await world.pull(policy, "docker.io/library/busybox:latest")

    @pytest.mark.parametrize(("default", "fits"), [("deny", False), ("allow", True)])
    async def test_what_no_rule_is_about(self, world: World, default: str, fits: bool) -> None:
        policy = world.policy(default=default)
        if fits:
            assert (await world.pull(policy)).startswith("allowed by default")
        else:
            with pytest.raises(Refused, match=f"no rule allows {NAME}"):
                await world.pull(policy)

    @pytest.mark.parametrize("digest", [INDEX, MANIFEST])
    async def test_a_digest_may_be_the_index_s_or_the_manifest_s(self, world: World, digest: str) -> None:
        policy = world.policy(rules=[{"digests": [digest], "action": "allow"}])
        assert digest in await world.pull(policy)

    async def test_a_tag_that_looks_like_the_digest_of_another_counts_nothing(self, world: World) -> None:
        policy = world.policy(rules=[{"digests": [OTHER], "action": "allow"}])
        with pytest.raises(Refused):
            await world.pull(policy, f"{NAME}:{OTHER.replace(':', '-')}")

    async def test_an_image_without_a_name_is_of_no_registry(self, world: World) -> None:
        policy = world.policy(rules=[{"images": ["registry.test/*"], "action": "allow"}])
        with pytest.raises(Refused):
            await world.pull(policy, None)


class TestSignatures:
    @pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519"])
    async def test_by_tag_with_every_kind_of_key(self, world: World, kind: str) -> None:
        world.key = make_key(world.directory / "release.pub", kind)
        world.sign()
        words = await world.pull(world.signed())
        assert f"{INDEX} is signed by release.pub" in words

    async def test_as_a_bundle_that_refers(self, world: World) -> None:
        world.bundle(bundle_of(world.key, INDEX))
        assert "is signed by release.pub" in await world.pull(world.signed())

    async def test_of_several_the_right_one_counts(self, world: World) -> None:
        world.sign(key=make_key(world.directory / "other.pub"))
        world.bundle(bundle_of(world.key, INDEX))
        assert "is signed by release.pub" in await world.pull(world.signed())

    async def test_of_the_manifest_alone(self, world: World) -> None:
        blob = sign_by_tag(world.layout, NAME, MANIFEST, world.key)
        world.publish(blob, f"{NAME}:{MANIFEST.replace(':', '-')}.sig")
        assert f"{MANIFEST} is signed" in await world.pull(world.signed())

    async def test_none_at_all(self, world: World) -> None:
        with pytest.raises(SignatureValidationFailed, match="there is no signature of it"):
            await world.pull(world.signed())

    @pytest.mark.parametrize(
        ("forge", "words"),
        [
            (lambda world: world.sign(key=make_key(world.directory / "evil.pub")), "none of the keys"),
            (lambda world: world.sign(payload=payload_of(OTHER, NAME)), "another image"),
            (lambda world: world.sign(signature=b""), "none of the keys"),
            (lambda world: world.sign(signature=b"!!"), "base64"),
            (lambda world: world.sign(signature=base64.b64encode(b"x" * 64)), "none of the keys"),
            (lambda world: world.sign(payload=b"{}"), "can't be read"),
            (lambda world: world.sign(payload=b"[1]"), "can't be read"),
            (lambda world: world.sign(payload=b'{"critical": 1}'), "can't be read"),
            (lambda world: world.sign(payload=b"[" * 100_000), "can't be read"),
            (lambda world: world.bundle(bundle_of(world.key, OTHER)), "another image"),
            (lambda world: world.bundle(bundle_of(make_key(world.directory / "evil.pub"), INDEX)), "none of the keys"),
            (lambda world: world.bundle(bundle_of(world.key, INDEX, "https://slsa.dev/provenance/v1")), "no signature"),
            (lambda world: world.bundle(b"{}"), "can't be read"),
            (lambda world: world.bundle(b'{"dsseEnvelope": {"payloadType": "x", "payload": ""}}'), "of type 'x'"),
        ],
    )
    async def test_what_is_no_signature_is_said(self, world: World, forge: Any, words: str) -> None:
        forge(world)
        with pytest.raises(SignatureValidationFailed, match=words):
            await world.pull(world.signed())

    async def test_a_payload_that_was_changed_after_it_was_signed(self, world: World) -> None:
        right = payload_of(OTHER, NAME)
        world.sign(payload=payload_of(INDEX, NAME), signature=base64.b64encode(world.key.sign(right)))
        with pytest.raises(SignatureValidationFailed, match="none of the keys"):
            await world.pull(world.signed())

    async def test_sources_that_can_t_be_asked_are_no_missing_signature(self, world: World) -> None:
        world.documents.fault = Unavailable("the registry is down")
        with pytest.raises(Unavailable, match="is down"):
            await world.pull(world.signed())

    async def test_a_registry_without_referrers_hides_no_tag(self, world: World) -> None:
        world.sign()
        listing = world.documents.list_referrers

        async def fail(reference: ImageReference, artifact_type: str) -> Any:
            raise Unavailable("no such list")

        world.documents.list_referrers = fail  # type: ignore[method-assign]
        assert listing is not fail
        assert "is signed" in await world.pull(world.signed())

    @pytest.mark.parametrize(("signed_as", "fits"), [(NAME, True), ("registry.test/*", True), ("other/*", False)])
    async def test_the_repository_that_is_signed(self, world: World, signed_as: str, fits: bool) -> None:
        world.sign()
        policy = world.signed(signed_as=[signed_as])
        if fits:
            assert "is signed" in await world.pull(policy)
        else:
            with pytest.raises(SignatureValidationFailed, match=f"is for {NAME}"):
                await world.pull(policy)

    async def test_too_many_signatures_are_not_all_looked_at(self, world: World) -> None:
        evil = make_key(world.directory / "evil.pub")
        blob = sign_by_tag(world.layout, NAME, INDEX, evil)
        world.publish(blob, f"{NAME}:{INDEX.replace(':', '-')}.sig")
        content = json.loads(read_blob(world.layout, blob.digest))
        content["layers"] *= 10_000
        text = json.dumps(content).encode()
        found = Descriptor(OCI_MANIFEST, digest_of(text), len(text))
        place = f"{NAME}:{INDEX.replace(':', '-')}.sig"
        world.documents.manifests[place] = ResolvedImage(found, text, found, text)
        with pytest.raises(SignatureValidationFailed, match="more than 64"):
            await world.pull(world.signed())
        assert SIMPLE_SIGNING in text.decode()


def container(image_id: str, *volumes: str) -> ContainerView:
    pod = PodView("p", PodConfig(metadata=PodMetadata(name="p", uid="u", namespace="default")), "")
    mounts = tuple(VolumeMount(container_path="/v", image=name) for name in volumes)
    return ContainerView("c", pod, ContainerConfig(metadata=ContainerMetadata(name="c"), mounts=mounts), image_id)


class TestPresentImages:
    """What is on the node and was not judged by this policy."""

    async def connect(self, world: World, policy: PolicyExtension, *words: str, name: str = f"{NAME}:1") -> None:
        decisions = tuple(("policy", one) for one in words)
        world.kernel.known_images["id"] = ImageView("id", (name,), (), (INDEX, MANIFEST), decisions)
        await policy.connect(world.kernel)

    async def test_what_was_judged_is_not_judged_again(self, world: World) -> None:
        world.sign()
        policy = world.signed()
        words = await world.pull(policy)
        world.documents.fault = Unavailable("down")
        await self.connect(world, policy, words)
        await policy.adjust_container(container("id"))

    async def test_what_another_policy_judged_is_judged_again(self, world: World) -> None:
        words = await world.pull(world.policy(default="allow"))
        policy = world.signed()
        await self.connect(world, policy, words)
        with pytest.raises(SignatureValidationFailed, match="on the node"):
            await policy.adjust_container(container("id"))
        world.sign()
        await policy.adjust_container(container("id"))

    async def test_another_key_in_the_same_file_is_another_policy(self, world: World) -> None:
        world.sign()
        words = await world.pull(world.signed())
        world.key = make_key(world.directory / "release.pub")
        policy = world.signed()
        await self.connect(world, policy, words)
        with pytest.raises(SignatureValidationFailed, match="none of the keys"):
            await policy.adjust_container(container("id"))

    async def test_image_volumes_too(self, world: World) -> None:
        policy = world.policy(rules=[{"images": ["registry.test/other"], "action": "allow"}])
        await self.connect(world, policy)
        world.kernel.known_images["good"] = ImageView("good", ("registry.test/other:1",), (), (OTHER,))
        await policy.adjust_container(container("good"))
        with pytest.raises(Refused, match="no rule allows"):
            await policy.adjust_container(container("good", "id"))

    async def test_trusted_where_the_site_says_so(self, world: World) -> None:
        policy = world.policy(present="trust")
        await self.connect(world, policy)
        await policy.adjust_container(container("id"))

    async def test_what_was_decided_is_forgotten_with_the_image(self, world: World) -> None:
        world.sign()
        policy = world.signed()
        await self.connect(world, policy)
        await policy.adjust_container(container("id"))
        world.documents.fault = Unavailable("down")
        await policy.adjust_container(container("id"))
        await policy.image_removed("id")
        with pytest.raises(Unavailable):
            await policy.adjust_container(container("id"))


class TestMistakes:
    """They stop the start, and ``crinoid config check`` tells them."""

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ({"action": "signed"}, "needs keys"),
            ({"action": "allow", "keys": ["KEY"]}, "go with the action"),
            ({"images": ["busybox"]}, "docker.io/library/busybox"),
            ({"images": ["registry.test/app:1"]}, "has a tag"),
            ({"images": ["Registry/UPPER"]}, "is no registry"),
            ({"digests": ["abc"]}, "algorithm"),
            ({"action": "permit"}, "action"),
            ({"imges": ["x"]}, "imges"),
            ({"action": "signed", "keys": ["/nowhere.pub"]}, "can't be read"),
            ({"action": "signed", "keys": ["PRIVATE"]}, "private key"),
            ({"action": "signed", "keys": ["GARBAGE"]}, "no public key"),
            ({"action": "signed", "keys": ["SHORT"]}, "1024 bits"),
            ({"action": "signed", "keys": ["CURVE"]}, "secp256k1"),
        ],
    )
    def test_a_rule_that_can_t_be_meant(self, world: World, rule: dict[str, Any], words: str) -> None:
        (world.directory / "PRIVATE").write_bytes(private_pem(world.key))
        (world.directory / "GARBAGE").write_bytes(b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n")
        make_key(world.directory / "SHORT", "short-rsa")
        make_key(world.directory / "CURVE", "k1")
        names = {
            "KEY": world.key.public,
            **{name: world.directory / name for name in ("PRIVATE", "GARBAGE", "SHORT", "CURVE")},
        }
        rule = {**rule, "keys": [names.get(one, one) for one in rule["keys"]]} if "keys" in rule else rule
        with pytest.raises(ValidationError, match=words):
            world.policy(rules=[rule])

    def test_it_fails_closed(self) -> None:
        assert PolicyExtension.on_failure == "fail"

    def test_the_errors_are_what_the_kubelet_reads(self) -> None:
        assert issubclass(SignatureValidationFailed, CrinoidError)
        assert SignatureValidationFailed.reason == "SignatureValidationFailed"
