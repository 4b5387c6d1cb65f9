"""The two forms of whiteouts mean the same: layers stacked by overlayfs show what layers applied in turn hold."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.faults import Corrupt
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.tree import Tree
from support.archives import ArchiveBuilder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root"),
]

_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
_ENTRIES = st.tuples(st.sampled_from(["file", "folder", "whiteout", "opaque"]), _PATHS)
_LAYERS = st.lists(st.lists(_ENTRIES, min_size=1, max_size=8), min_size=2, max_size=4)


@given(_LAYERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_stacked_layers_show_what_applied_layers_hold(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, list[str]]]]
) -> None:
    base = tmp_path_factory.mktemp("forms")
    applied, lowers, merged = base / "applied", [base / f"l{number}" for number in range(len(layers))], base / "merged"
    for folder in (applied, *lowers, merged):
        folder.mkdir()
    for number, lower in enumerate(lowers):
        archive = build([entry for entry in layers[number] if is_sound(entry, layers[number], applied)], number)
        try:
            unpack(archive, lower, overlay=True)
        except Corrupt:
            return  # a file of the same layer where a folder must be
        unpack(archive, applied, overlay=False)
    options = "lowerdir=" + ":".join(str(lower) for lower in reversed(lowers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        assert described(merged) == described(applied)
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def is_sound(entry: tuple[str, list[str]], layer: list[tuple[str, list[str]]], applied: Path) -> bool:
    """Tell whether builders write such an entry: no whiteout of nothing, and none of a folder after one in it."""
    kind, path = entry
    if kind in ("file", "folder"):
        return True
    later = layer[layer.index(entry) + 1 :]
    if any(what in ("whiteout", "opaque") and path[: len(other)] == other for what, other in later):
        return False
    present = applied.joinpath(*path)
    return present.is_dir() if kind == "opaque" else present.exists()


def build(entries: list[tuple[str, list[str]]], layer: int) -> bytes:
    builder = ArchiveBuilder()
    for number, (kind, path) in enumerate(entries):
        name, parent = "/".join(path), "/".join(path[:-1])
        match kind:
            case "file":
                builder.file(name, f"{layer}.{number}".encode())
            case "folder":
                builder.folder(name)
            case "whiteout":
                builder.file(f"{parent}/.wh.{path[-1]}")
            case "opaque":
                builder.file(f"{name}/.wh..wh..opq")
    return builder.build()


def unpack(archive: bytes, target: Path, overlay: bool) -> None:
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = ByteReader(iter([archive]))
        Extraction(reader, Tree(fd, overlay, reader), None).run()
    finally:
        os.close(fd)


def described(root: Path) -> dict[str, bytes | None]:
    found = root.rglob("*")
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in found}
