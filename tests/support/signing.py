"""Signs images as cosign does, for tests: keys, simple signing payloads, signature manifests and sigstore bundles."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from support.images import OCI_CONFIG, OCI_MANIFEST, Blob, add_blob, add_json, name_manifest

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"


@dataclass
class Key:
    """A private key, and the file of its public half."""

    private: Any
    public: Path

    def sign(self, content: bytes) -> bytes:
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return self.private.sign(content, ec.ECDSA(SHA256()))
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(content, padding.PKCS1v15(), SHA256())
        return bytes(self.private.sign(content))


def make_key(path: Path, kind: str = "p256") -> Key:
    """Make a key; ``path`` gets the public one in PEM."""
    makers: dict[str, Callable[[], Any]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "short-rsa": lambda: rsa.generate_private_key(65537, 1024),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    }
    private = makers[kind]()
    path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Key(private, path)


def private_pem(key: Key) -> bytes:
    return bytes(key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def payload_of(digest: str, repository: str) -> bytes:
    """Return what cosign signs."""
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def bundle_of(key: Key, digest: str, predicate: str = SIGN_PREDICATE) -> bytes:
    """Return a sigstore bundle with a DSSE envelope."""
    algorithm, _, value = digest.partition(":")
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: value}}],
        "predicateType": predicate,
        "predicate": {},
    }
    payload, kind = json.dumps(statement).encode(), "application/vnd.in-toto+json"
    signed = b"DSSEv1 " + f"{len(kind)} {kind} {len(payload)} ".encode() + payload
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(key.sign(signed)).decode()}],
    }
    material = {"publicKey": {"hint": "x"}}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()


def sign_by_tag(
    layout: Path, repository: str, digest: str, key: Key, payload: bytes = b"", signature: bytes | None = None
) -> Blob:
    """Add a signature manifest under cosign's tag; ``payload`` and ``signature`` in the place of right ones."""
    payload = payload or payload_of(digest, repository)
    made = base64.b64encode(key.sign(payload)) if signature is None else signature
    layer = add_blob(layout, SIMPLE_SIGNING, payload).document() | {
        "annotations": {"dev.cosignproject.cosign/signature": made.decode()}
    }
    config = add_json(layout, OCI_CONFIG, {"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}})
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.document(), "layers": [layer]}
    manifest = add_json(layout, OCI_MANIFEST, document)
    name_manifest(layout, f"{repository}:{digest.replace(':', '-')}.sig", manifest)
    return manifest


def referring(layout: Path, subject: Blob, artifact_type: str, content: bytes) -> Blob:
    """Add a manifest that refers to another, with one layer of the same type."""
    empty = add_blob(layout, "application/vnd.oci.empty.v1+json", b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": empty.document(),
        "layers": [add_blob(layout, artifact_type, content).document()],
        "subject": subject.document(),
    }
    return add_json(layout, OCI_MANIFEST, document)
