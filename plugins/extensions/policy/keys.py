"""Public keys, as ``cosign generate-key-pair`` and openssl write them (PEM), and what they verify.

ECDSA over the NIST curves with the hash that goes with the curve, or with SHA-256 as cosign has it for all of them;
RSA by PKCS#1 v1.5 with SHA-256; Ed25519.
"""

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from crinoid.core.api.linux.files import read_regular

_MAX_BYTES = 1 << 16
_LEAST_RSA_BITS = 2048
_HASHES: dict[str, HashAlgorithm] = {"secp256r1": SHA256(), "secp384r1": SHA384(), "secp521r1": SHA512()}


class KeyFault(ValueError):
    """A file holds no public key that can be used; the message says why."""


class PublicKey:
    """A public key, read once."""

    def __init__(self, path: Path) -> None:
        """Raises KeyFault."""
        self.name = path.name
        try:
            content = read_regular(path, _MAX_BYTES)
        except OSError as error:
            raise KeyFault(f"key {path} can't be read: {error.strerror}") from error
        if b"PRIVATE KEY" in content:
            raise KeyFault(f"key {path} is a private key, which does not belong on a node; put the public one there")
        try:
            key = load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFault(f"key {path} is no public key in PEM form ({error})") from error
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
            raise KeyFault(f"key {path} is of {key.key_size} bits, fewer than {_LEAST_RSA_BITS}")
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _HASHES:
            raise KeyFault(f"key {path} is of the curve {key.curve.name}; P-256, P-384 and P-521 can be used")
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
            raise KeyFault(f"key {path} is of a kind that images are not signed with: ECDSA, RSA or Ed25519 are")
        self._key = key
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = hashlib.sha256(spki).hexdigest()

    def verifies(self, content: bytes, signature: bytes) -> bool:
        """Return whether the signature is this key's, of this content."""
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            usual = _HASHES[self._key.curve.name]
            return any(self._verifies(content, signature, hashed) for hashed in (usual, SHA256()))
        return self._verifies(content, signature, SHA256())

    def _verifies(self, content: bytes, signature: bytes, hashed: HashAlgorithm) -> bool:
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, content, ec.ECDSA(hashed))
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, content, padding.PKCS1v15(), hashed)
            else:
                self._key.verify(signature, content)
        except InvalidSignature:
            return False
        return True
