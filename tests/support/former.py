"""The root directory of a containerd that was on the node before, as ``crinoid image adopt`` reads it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from support.bolt import write_bolt
from support.images import Blob, BuiltImage

NAMESPACE = b"k8s.io"


def write_containerd(root: Path, images: Mapping[str, BuiltImage]) -> Path:
    """Write the images under their names, with blobs that only root can change; return where these lie."""
    blobs = root / "io.containerd.content.v1.content/blobs"
    targets = {}
    for name, image in images.items():
        shutil.copytree(image.layout / "blobs", blobs, dirs_exist_ok=True)
        targets[name.encode()] = {b"target": _target(image.manifest)}
    for blob in blobs.glob("*/*"):
        blob.chmod(0o444)
    (root / "io.containerd.metadata.v1.bolt").mkdir(parents=True)
    tree = {b"v1": {NAMESPACE: {b"images": targets}}}
    (root / "io.containerd.metadata.v1.bolt/meta.db").write_bytes(write_bolt(tree))
    return blobs


def _target(manifest: Blob) -> dict[bytes, bytes]:
    size, value = bytearray(), 2 * manifest.size  # twice: Go's encoding of signed numbers
    while value >= 0x80:
        size.append(value & 0x7F | 0x80)
        value >>= 7
    size.append(value)
    return {b"digest": manifest.digest.encode(), b"mediatype": manifest.media_type.encode(), b"size": bytes(size)}
