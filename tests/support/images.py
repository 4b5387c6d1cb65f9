"""Small OCI images for tests, built in pure Python into an OCI layout directory (image-spec, image-layout.md).

``build_busybox(layout, "docker.io/library/busybox:latest")`` is what most tests need. The bytes depend on the arguments
alone (no clock, no user names), so the same call gives the same digests.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import zstandard

Compression = Literal["gzip", "zstd", "none"]
Media = Literal["oci", "docker"]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_LAYERS = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "none": "application/vnd.oci.image.layer.v1.tar",
}
_DOCKER_LAYERS = {
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "none": "application/vnd.docker.image.rootfs.diff.tar",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOST_ARCHITECTURE = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)

APPLETS = """
    [ ash awk base64 cat chgrp chmod chown cp cut date dd df dirname dmesg du echo egrep env expr false find free
    grep head hostname httpd id ifconfig ip kill killall less ln ls md5sum mkdir mknod mktemp mount mv nc netstat
    nohup nslookup od pidof ping ping6 printenv printf ps pwd readlink realpath rm rmdir route sed seq sh
    sha256sum sleep sort stat stty su sync sysctl tail tar tee telnet test timeout top touch tr true tty umount
    uname uniq uptime vi wc wget which whoami xargs yes
"""
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nalice:x:1000:1000::/home/alice:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nstaff:x:50:alice\nextra:x:51:alice\nalice:x:1000:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of a layer. ``kind`` as in tar; ``target`` of a symlink or hard link; ``xattrs`` by name."""

    path: str
    kind: Literal["file", "directory", "symlink", "hardlink", "fifo", "chardev", "blockdev"] = "file"
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    mtime: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The part of an image configuration a container takes its defaults from (image-spec, config.md)."""

    user: str = ""
    env: tuple[str, ...] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ("sh",)
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    os: str = "linux"
    architecture: str = HOST_ARCHITECTURE
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    """A descriptor's three facts."""

    media_type: str
    digest: str
    size: int

    def document(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What was built: ``config.digest`` is the image id; ``diff_ids`` and ``layers`` from the bottom up."""

    layout: Path
    reference: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]
    platform: Mapping[str, str]


def build_busybox(
    layout: Path, reference: str, config: ImageConfig | None = None, extra: Sequence[Entry] = ()
) -> BuiltImage:
    """Build a busybox image of one layer, and a second one with the ``extra`` entries if there are any."""
    layers = [busybox_layer(), *([make_layer(extra)] if extra else [])]
    return build_image(layout, reference, layers, config)


def build_image(
    layout: Path,
    reference: str,
    layers: Sequence[bytes],
    config: ImageConfig | None = None,
    compression: Compression = "gzip",
    media: Media = "oci",
) -> BuiltImage:
    """Add an image of uncompressed layers (``make_layer``, ``busybox_layer``) to the layout under the reference.

    An empty reference adds the blobs but no name: for a manifest that only an index is to list.
    """
    config = config or ImageConfig()
    kinds = _OCI_LAYERS if media == "oci" else _DOCKER_LAYERS
    stored = tuple(add_blob(layout, kinds[compression], _compress(layer, compression)) for layer in layers)
    diff_ids = tuple(digest_of(layer) for layer in layers)
    config_blob = add_json(layout, OCI_CONFIG if media == "oci" else DOCKER_CONFIG, _config(config, diff_ids))
    manifest_type = OCI_MANIFEST if media == "oci" else DOCKER_MANIFEST
    manifest = add_json(layout, manifest_type, _manifest(manifest_type, config_blob, stored))
    platform = {"os": config.os, "architecture": config.architecture} | (
        {"variant": config.variant} if config.variant else {}
    )
    if reference:
        name_manifest(layout, reference, manifest)
    return BuiltImage(layout, reference, manifest, config_blob, stored, diff_ids, platform)


def build_index(layout: Path, reference: str, images: Sequence[BuiltImage], media: Media = "oci") -> Blob:
    """Add an index (or Docker manifest list) over images of the same layout, under the reference."""
    media_type = OCI_INDEX if media == "oci" else DOCKER_LIST
    entries = [image.manifest.document() | {"platform": dict(image.platform)} for image in images]
    blob = add_json(layout, media_type, {"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
    if reference:
        name_manifest(layout, reference, blob)
    return blob


def name_manifest(layout: Path, reference: str, blob: Blob) -> None:
    """List a manifest in ``index.json`` with the reference as its name; an older entry of that name goes."""
    path = layout / "index.json"
    index: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "manifests": []}
    name = {"org.opencontainers.image.ref.name": reference}
    others = [entry for entry in index["manifests"] if entry.get("annotations") != name]
    index["manifests"] = [*others, blob.document() | {"annotations": name}]
    _write(layout / "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    _write(path, json.dumps(index).encode())


def add_json(layout: Path, media_type: str, document: object) -> Blob:
    """Add a document as a blob."""
    return add_blob(layout, media_type, json.dumps(document, sort_keys=True).encode())


def add_blob(layout: Path, media_type: str, content: bytes) -> Blob:
    """Add a blob to the layout's store."""
    digest = digest_of(content)
    path = layout / "blobs" / digest.replace(":", "/")
    if not path.exists():
        _write(path, content)
    return Blob(media_type, digest, len(content))


def digest_of(content: bytes) -> str:
    """Return the sha256 digest in the field's form."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@cache
def busybox_layer() -> bytes:
    """Return a layer with Debian's static busybox, its usual applets as links, users and the usual directories."""
    directories = ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "var")
    return make_layer(
        [
            *(Entry(path=name, kind="directory", mode=0o755) for name in directories),
            Entry(path="tmp", kind="directory", mode=0o1777),
            Entry(path="home/alice", kind="directory", mode=0o755, uid=1000, gid=1000),
            Entry(path="bin/busybox", content=find_busybox().read_bytes(), mode=0o755),
            *(Entry(path=f"bin/{name}", kind="symlink", target="busybox") for name in APPLETS.split()),
            Entry(path="etc/passwd", content=PASSWD.encode()),
            Entry(path="etc/group", content=GROUP.encode()),
        ]
    )


def find_busybox() -> Path:
    """Return the path of a static busybox; Debian's package is ``busybox-static``."""
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if path.exists():
            return path
    raise FileNotFoundError("no busybox: apt-get install busybox-static")


def make_layer(entries: Iterable[Entry]) -> bytes:
    """Return an uncompressed layer with the entries in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(_member(entry), io.BytesIO(entry.content))
    return buffer.getvalue()


_KINDS = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "chardev": tarfile.CHRTYPE,
    "blockdev": tarfile.BLKTYPE,
}


def _member(entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.path)
    member.type, member.mode, member.size = _KINDS[entry.kind], entry.mode, len(entry.content)
    member.uid, member.gid, member.mtime, member.linkname = entry.uid, entry.gid, entry.mtime, entry.target
    member.devmajor, member.devminor = entry.device
    member.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.xattrs.items()
    }
    return member


def _compress(layer: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(layer, 1, mtime=0)
    return zstandard.compress(layer, 1) if compression == "zstd" else layer


def _config(config: ImageConfig, diff_ids: tuple[str, ...]) -> dict[str, object]:
    values = {
        "User": config.user,
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.working_dir,
        "StopSignal": config.stop_signal,
        "Volumes": {path: {} for path in config.volumes},
        "Labels": dict(config.labels),
        "ExposedPorts": {port: {} for port in config.exposed_ports},
    }
    document: dict[str, object] = {
        "created": "1970-01-01T00:00:00Z",
        "os": config.os,
        "architecture": config.architecture,
        "config": {name: value for name, value in values.items() if value},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "test"} for _ in diff_ids],
    }
    return document | ({"variant": config.variant} if config.variant else {})


def _manifest(media_type: str, config: Blob, layers: tuple[Blob, ...]) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
    }


def read_named(layout: Path, reference: str) -> Blob:
    """Return the descriptor that ``index.json`` lists under the reference."""
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == reference:
            return Blob(entry["mediaType"], entry["digest"], entry["size"])
    raise KeyError(reference)


def read_blob(layout: Path, digest: str) -> bytes:
    """Return a blob's content."""
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
