"""All forms of layers mean the same: stacked by overlayfs, as directories or as EROFS images, they show what layers
applied in turn hold."""

import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.api.archives import Corrupt
from crinoid.core.api.linux import loop, mount
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.images.implied import settle_tree
from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.layer import UnpackResult
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.tree import Tree
from crinoid.plugins.snapshotters.erofs.settling import settle_image
from crinoid.plugins.snapshotters.erofs.writer import IMAGE_FILE
from crinoid.plugins.snapshotters.overlay import shown_trees
from support.archives import ArchiveBuilder
from support.erofs import write_image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root"),
]

_PATHS = st.lists(st.sampled_from("abc"), max_size=3)
_ENTRIES = st.tuples(st.sampled_from(["file", "directory", "private", "whiteout", "opaque"]), _PATHS)
_LAYERS = st.lists(st.lists(_ENTRIES, min_size=1, max_size=8), min_size=2, max_size=4)


@given(_LAYERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_stacked_layers_show_what_applied_layers_hold(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[str, list[str]]]]
) -> None:
    compare(tmp_path_factory.mktemp("forms"), [build(entries, number) for number, entries in enumerate(layers)])


@pytest.mark.parametrize("link", ["usr/lib", "/usr/lib", "./usr/../usr/lib", "up", "nowhere", "usr/file"])
@pytest.mark.parametrize("mark", [".wh.gone", ".wh..wh..opq", ".wh.never"])
def test_a_whiteout_by_way_of_a_lower_link(tmp_path: Path, link: str, mark: str) -> None:
    """As umoci has it: what the link leads to is hidden. (A file there makes a directory of the link, as elsewhere.)"""
    lower = ArchiveBuilder()
    lower.add("usr", tarfile.DIRTYPE, mode=0o711, uid=7, gid=8)
    lower.add("usr/lib", tarfile.DIRTYPE, mode=0o1750, uid=9, gid=10)
    lower.file("usr/lib/gone", b"gone").file("usr/lib/kept/below", b"kept").file("usr/file", b"file")
    lower.add("up", tarfile.SYMTYPE, linkname="usr/lib").add("lib", tarfile.SYMTYPE, linkname=link)
    compare(tmp_path, [lower.build(), ArchiveBuilder().file(f"lib/{mark}").build()])


LINKS = ["usr/lib", "/usr/lib", "../../usr/lib", "./usr/../usr/lib", "up", "nowhere", "lib", "usr/file", "/"]


def _below(kind: str) -> ArchiveBuilder:
    lower = ArchiveBuilder()
    lower.add("usr", tarfile.DIRTYPE, mode=0o711, uid=7, gid=8, mtime=70)
    lower.add("usr/lib", tarfile.DIRTYPE, mode=0o1750, uid=9, gid=10, mtime=90)
    lower.file("usr/lib/gone", b"gone").file("usr/lib/kept/below", b"kept").file("usr/file", b"file")
    lower.add("up", tarfile.SYMTYPE, linkname="usr/lib")
    return lower.file("lib", b"file") if kind == "file" else lower.add("lib", tarfile.SYMTYPE, linkname=kind)


@pytest.mark.parametrize("names", [["new"], ["sub/new"], ["kept/below"], ["new", ".wh.gone"], [".wh.gone", "new"]])
@pytest.mark.parametrize("link", [*LINKS, "file"])
def test_a_parent_that_is_a_link_or_a_file_below(tmp_path: Path, link: str, names: list[str]) -> None:
    """As containerd has it with overlayfs: the layer's directory takes the place of a lower layer's link."""
    upper = ArchiveBuilder()
    for name in names:
        upper.file(f"lib/{name}", b"upper")
    layers = [_below(link).build(), upper.build()]
    compare(tmp_path, layers)
    assert (tmp_path / "applied/lib").is_dir()
    assert not (tmp_path / "applied/lib").is_symlink()
    assert not (tmp_path / "applied/usr/lib/new").exists()


@pytest.mark.parametrize("link", ["usr/lib", "/usr/lib", "up", "usr/lib/../../usr"])
def test_a_link_of_the_same_layer_is_followed_and_those_below_it_are_not(tmp_path: Path, link: str) -> None:
    upper = ArchiveBuilder().add("own", tarfile.SYMTYPE, linkname=link).file("own/new", b"upper")
    upper.file("own/.wh.gone").file("own/deeper/new", b"upper")
    compare(tmp_path, [_below("usr/lib").build(), upper.build()])


def test_directories_that_a_layer_only_passes_keep_their_time(tmp_path: Path) -> None:
    upper = ArchiveBuilder().file("usr/lib/new").file("usr/.wh.file").file("lib/.wh.gone").file("usr/lib/made/new")
    root = ArchiveBuilder().directory("./", mtime=50)
    compare(tmp_path, [root.build(), _below("usr/lib").build(), upper.build()])
    applied = tmp_path / "applied"
    assert [int(path.stat().st_mtime) for path in (applied, applied / "usr", applied / "usr/lib")] == [50, 70, 90]
    assert not (applied / "usr/lib/gone").exists()


def test_an_image_by_way_of_a_loop_device(tmp_path: Path) -> None:
    """As before Linux 6.12, which mounts files."""
    image = write_image(ArchiveBuilder().file("d/f", b"content").build(), tmp_path)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with loop.attached(image) as device:
        mount.mount(Mount("erofs", device, ("ro",)), mounted)
    try:
        assert (mounted / "d/f").read_text() == "content"
    finally:
        mount.unmount(mounted, lazy=False)
    backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file")
    assert not backing.exists() or str(image) not in backing.read_text()


def compare(base: Path, layers: list[bytes]) -> None:
    """Stack layers by overlayfs, apply them in turn, and compare what there is."""
    applied, lowers, merged = base / "applied", [base / f"l{number}" for number in range(len(layers))], base / "merged"
    images = [base / f"i{number}" for number in range(len(layers))]
    nothing = base / "nothing"
    for directory in (applied, *lowers, *images, nothing, merged):
        directory.mkdir()
    for number, (lower, archive) in enumerate(zip(lowers, layers, strict=True)):
        try:
            unpacked = unpack(archive, lower, overlay=True)
        except Corrupt:
            return  # a file of the same layer where a directory must be
        settle_tree(shown_trees(tuple(lowers[:number][::-1])), lower, unpacked)
        unpack(archive, applied, overlay=False)
        below = [image / IMAGE_FILE for image in images[:number][::-1]]
        settle_image(write_image(archive, images[number]), below, bytes(16))
    assert shown(shown_trees(tuple(reversed(lowers))), nothing, merged) == described(applied)
    try:
        for image in images:
            mount.mount(Mount("erofs", str(image / IMAGE_FILE), ("ro",)), image)
        assert shown(shown_trees(tuple(reversed(images))), nothing, merged) == described(applied)
    finally:
        for image in images:
            mount.unmount(image)


def shown(trees: tuple[Path, ...], nothing: Path, merged: Path) -> dict[str, object]:
    options = "lowerdir=" + ":".join(map(str, [*trees, nothing]))  # an overlay needs two
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        return described(merged)
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def build(entries: list[tuple[str, list[str]]], layer: int) -> bytes:
    builder = ArchiveBuilder()
    for number, (kind, path) in enumerate(entries):
        if not path and kind in ("file", "whiteout"):
            continue  # the root is none
        name, parent = "/".join(path) or "./", "/".join(path[:-1])
        match kind:
            case "file":
                builder.file(name, f"{layer}.{number}".encode())
            case "directory":
                builder.directory(name)
            case "private":
                builder.add(name, tarfile.DIRTYPE, mode=0o1700, uid=1000 + layer, gid=number)
            case "whiteout":
                builder.file(f"{parent}/.wh.{path[-1]}")
            case "opaque":
                builder.file(f"{name.removesuffix('/')}/.wh..wh..opq")
    return builder.build()


def unpack(archive: bytes, target: Path, overlay: bool) -> UnpackResult:
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = ByteReader(iter([archive]))
        tree = Tree(fd, overlay, reader)
        Extraction(reader, tree, None).run()
        implied, renewed, hiding = (
            tuple(path.decode() for path in paths) for paths in (tree.implied, tree.renewed, tree.hiding)
        )
        return UnpackResult("", 0, 0, implied, renewed, hiding)
    finally:
        os.close(fd)


def described(root: Path) -> dict[str, object]:
    """All that is listed, and opened: with mode and owner, and the content of files."""
    found: dict[str, object] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content: object = stat.S_IFMT(status.st_mode)
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(root))] = (content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return found
