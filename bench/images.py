"""The images that are pulled, made once a run and pushed to a registry on loopback."""

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from support.images import Entry, ImageConfig, build_busybox, build_image, busybox_layer, make_layer
from support.registry import RunningRegistry

LARGE_LAYERS = 4
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the two images of the pulls are: ``large`` in MB and files, ``tiny`` in files."""

    large_mb: int = 500
    large_files: int = 20_000
    tiny_files: int = 30_000


QUICK = Sizes(50, 2_000, 3_000)


def push_all(directory: Path, registry: RunningRegistry, pulls: bool, sizes: Sizes | None = None) -> dict[str, str]:
    """Build and push: ``busybox``, ``pause`` and, where pulls are measured, ``large`` and ``tiny``."""
    sizes = sizes or Sizes()
    layout = directory / "layout"
    build_busybox(layout, "bench/busybox:1")
    build_busybox(layout, "bench/pause:1", ImageConfig(entrypoint=("/bin/sleep", "1000000"), cmd=()))
    names = {"busybox": "bench/busybox:1", "pause": "bench/pause:1"}
    if pulls:
        build_image(layout, "bench/large:1", [busybox_layer(), *_large_layers(sizes)])
        build_image(layout, "bench/tiny:1", [_tiny_layer(sizes)])
        names |= {"large": "bench/large:1", "tiny": "bench/tiny:1"}
    return {key: registry.push(layout, name, name) for key, name in names.items()}


def push_small(directory: Path, registry: RunningRegistry, count: int) -> list[str]:
    """Build and push images that share all but a small layer of their own; return their references."""
    layout = directory / "small"
    references = []
    for number in range(count):
        name = f"bench/small-{number}:1"
        entries = [Entry(path=f"srv/{file}", content=b"%d of %d\n" % (file, number)) for file in range(10)]
        build_image(layout, name, [busybox_layer(), make_layer(entries)])
        references.append(registry.push(layout, name, name))
    return references


def push_layered(directory: Path, registry: RunningRegistry, layers: int, salt: int) -> str:
    """Build and push an image of so many layers above busybox's; no two salts have one of those in common."""
    layout, name = directory / "layered", f"bench/layered-{layers}-{salt}:1"
    build_image(layout, name, [busybox_layer(), *(_thin_layer(layers, salt, n) for n in range(layers))])
    return registry.push(layout, name, name)


def push_many(registry: RunningRegistry, count: int, layers: int) -> list[str]:
    """Build and push images of so many layers of their own above busybox's; return their references.

    A program for each image would take minutes, so the blobs are sent from here.
    """
    base = busybox_layer()
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda number: _push_one(registry, number, base, layers), range(count)))


def _push_one(registry: RunningRegistry, number: int, base: bytes, layers: int) -> str:
    repository = f"bench/many-{number}"
    archives = [base, *(_thin_layer(layers, 1000 + number, n) for n in range(layers))]
    with contextlib.closing(http.client.HTTPConnection(registry.host)) as connection:
        sent = [_send(connection, repository, gzip.compress(archive, 1)) for archive in archives]
        diff_ids = [f"sha256:{hashlib.sha256(archive).hexdigest()}" for archive in archives]
        config = {"os": "linux", "architecture": _ARCHITECTURES.get(os.uname().machine, os.uname().machine)}
        text = json.dumps(config | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, **_send(connection, repository, text)},
            "layers": [{"mediaType": _LAYER, **blob} for blob in sent],
        }
        body = json.dumps(manifest)
        _ask(connection, "PUT", f"/v2/{repository}/manifests/1", body.encode(), {"Content-Type": _MANIFEST})
    return f"{registry.host}/{repository}:1"


def _send(connection: http.client.HTTPConnection, repository: str, blob: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    place = _ask(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", {}).partition("://")[2].partition("/")[2]
    kind = {"Content-Type": "application/octet-stream"}
    _ask(connection, "PUT", f"/{place}{'&' if '?' in place else '?'}digest={digest}", blob, kind)
    return {"digest": digest, "size": len(blob)}


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]) -> str:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 400:  # HTTP's errors
        raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:200]}")
    return answer.getheader("Location", "")


def _thin_layer(layers: int, salt: int, number: int) -> bytes:
    content = b"%d of %d, %d\n" % (number, layers, salt)
    return make_layer([Entry(path=f"srv/l{number}/{file}", content=content * 100) for file in range(5)])


def _large_layers(sizes: Sizes | None = None) -> Iterator[bytes]:
    """Files of many sizes with content that compresses about as programs do."""
    sizes = sizes or Sizes()
    source = random.Random(1)  # noqa: S311  # the same bytes at every run
    words = [source.randbytes(source.randint(3, 12)) for _ in range(4096)]
    block = b"".join(source.choice(words) for _ in range(300_000))
    average = sizes.large_mb * 1_000_000 / sizes.large_files
    for layer in range(LARGE_LAYERS):
        entries = []
        for number in range(sizes.large_files // LARGE_LAYERS):
            size = int(average * source.choice((0.1, 0.3, 0.6, 1.0, 3.0)))
            start = source.randrange(len(block) - 100_000)
            content = (block[start : start + 100_000] * (size // 100_000 + 1))[:size]
            entries.append(Entry(path=f"usr/lib/l{layer}/d{number % 100}/f{number}", content=content))
        yield make_layer(_as_walked(entries))


def _tiny_layer(sizes: Sizes | None = None) -> bytes:
    count = (sizes or Sizes()).tiny_files
    files = _as_walked(Entry(path=f"srv/d{n % 300}/f{n}", content=b"%d\n" % n) for n in range(count))
    return make_layer([Entry(path="bin/sh", content=b"x", mode=0o755), *files])


def _as_walked(entries: Iterable[Entry]) -> list[Entry]:
    """Sort as builders do, which walk a tree: what lies in one directory comes together."""
    return sorted(entries, key=lambda entry: entry.path.split("/"))
