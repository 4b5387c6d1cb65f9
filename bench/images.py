"""The images that are pulled, made once a run and pushed to a registry on loopback."""

import random
from pathlib import Path

from support.images import Entry, ImageConfig, build_busybox, build_image, busybox_layer, make_layer
from support.registry import RunningRegistry

LARGE_FILES, LARGE_BYTES, LARGE_LAYERS, TINY_FILES = 20_000, 500 << 20, 4, 30_000


def push_all(folder: Path, registry: RunningRegistry, pulls: bool) -> dict[str, str]:
    """Build and push: ``busybox``, ``pause`` and, where pulls are measured, ``large`` and ``tiny``."""
    layout = folder / "layout"
    build_busybox(layout, "bench/busybox:1")
    build_busybox(layout, "bench/pause:1", ImageConfig(entrypoint=("/bin/sleep", "1000000"), cmd=()))
    names = {"busybox": "bench/busybox:1", "pause": "bench/pause:1"}
    if pulls:
        build_image(layout, "bench/large:1", [busybox_layer(), *_large_layers()])
        build_image(layout, "bench/tiny:1", [_tiny_layer()])
        names |= {"large": "bench/large:1", "tiny": "bench/tiny:1"}
    return {key: registry.push(layout, name, name) for key, name in names.items()}


def _large_layers() -> list[bytes]:
    """Files of many sizes with content that compresses about as programs do."""
    source = random.Random(1)  # noqa: S311  # the same bytes at every run
    words = [source.randbytes(source.randint(3, 12)) for _ in range(4096)]
    block = b"".join(source.choice(words) for _ in range(300_000))
    layers = []
    for layer in range(LARGE_LAYERS):
        entries = []
        for number in range(LARGE_FILES // LARGE_LAYERS):
            size = int(LARGE_BYTES / LARGE_FILES * source.choice((0.1, 0.3, 0.6, 1.0, 3.0)))
            start = source.randrange(len(block) - 100_000)
            content = (block[start : start + 100_000] * (size // 100_000 + 1))[:size]
            entries.append(Entry(path=f"usr/lib/l{layer}/d{number % 100}/f{number}", content=content))
        layers.append(make_layer(entries))
    return layers


def _tiny_layer() -> bytes:
    files = (Entry(path=f"srv/d{n % 300}/f{n}", content=b"%d\n" % n) for n in range(TINY_FILES))
    return make_layer([Entry(path="bin/sh", content=b"x", mode=0o755), *files])
