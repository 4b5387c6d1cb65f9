"""The demo's image: Debian's busybox in one layer, as an OCI image layout (image-spec, image-layout.md)."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import Unsupported

_MEDIA = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_APPLETS = ("cat", "grep", "hostname", "httpd", "id", "kill", "nc", "ps", "readlink", "sh", "sleep", "uname", "wget")
_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "www")
_BUSYBOX = Path("/bin/busybox")
_HEADER_BYTES = 4096


def write_layout(directory: Path, reference: str) -> int:
    """Make a layout that holds the image under the reference; return the size of its layer in bytes."""
    (directory / "blobs/sha256").mkdir(parents=True)
    tree = _make_layer()
    layer = gzip.compress(tree, 6, mtime=0)
    config = {
        "os": "linux",
        "architecture": _ARCHITECTURES.get(os.uname().machine, os.uname().machine),
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(tree)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": _add(directory, "config.v1+json", _write(config)),
        "layers": [_add(directory, "layer.v1.tar+gzip", layer)],
    }
    named = _add(directory, "manifest.v1+json", _write(manifest))
    named["annotations"] = {"org.opencontainers.image.ref.name": reference}
    (directory / "index.json").write_bytes(_write({"schemaVersion": 2, "manifests": [named]}))
    (directory / "oci-layout").write_bytes(_write({"imageLayoutVersion": "1.0.0"}))
    return len(layer)


def _make_layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _DIRECTORIES:
            archive.addfile(_member(name, tarfile.DIRTYPE, 0o755))
        for name in _APPLETS:
            archive.addfile(_member(f"bin/{name}", tarfile.SYMTYPE, 0o777, linkname="busybox"))
        for name, mode, content in (
            ("bin/busybox", 0o755, _read_busybox()),
            ("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n"),
            ("etc/group", 0o644, b"root:x:0:\n"),
        ):
            archive.addfile(_member(name, tarfile.REGTYPE, mode, size=len(content)), io.BytesIO(content))
    return buffer.getvalue()


def _member(name: str, kind: bytes, mode: int, linkname: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname, member.size = kind, mode, linkname, size
    return member


def _read_busybox() -> bytes:
    content = _BUSYBOX.read_bytes()
    if b"/ld-" in content[:_HEADER_BYTES]:  # the loader it asks for, which the image has not
        raise Unsupported(f"{_BUSYBOX} is not static: apt-get install busybox-static")
    return content


def _add(directory: Path, kind: str, content: bytes) -> dict[str, Any]:
    """Add a blob, and return its descriptor."""
    digest = _digest(content)
    (directory / "blobs" / digest.replace(":", "/")).write_bytes(content)
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": digest, "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _write(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
