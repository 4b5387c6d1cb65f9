"""All forms of layers mean the same: stacked by overlayfs, as directories or as EROFS images, or applied in turn, they
show what ``support.layer_model`` says."""

import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crinoid.core.api.archives import ArchiveFault
from crinoid.core.api.linux import loop, mount
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.images.implied import settle_tree
from crinoid.core.lifecycle.images.unpack.extraction import Extraction
from crinoid.core.lifecycle.images.unpack.layer import UnpackResult
from crinoid.core.lifecycle.images.unpack.stream import ByteReader
from crinoid.core.lifecycle.images.unpack.tree import Tree
from crinoid.plugins.snapshotters.copying import Reflink, copy_tree
from crinoid.plugins.snapshotters.erofs.settling import settle_image
from crinoid.plugins.snapshotters.erofs.writer import IMAGE_FILE
from crinoid.plugins.snapshotters.overlay import shown_trees
from support.archives import ArchiveBuilder
from support.erofs import write_image
from support.layer_entries import KINDS, TARGETS, Entry, build, modelled, seen
from support.layer_model import LowerHardLink, Refused, Stack
from support.layer_model import described as shown_by

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root"),
]

_PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
_ENTRIES = st.tuples(st.sampled_from(KINDS), _PATHS, st.sampled_from(TARGETS), _PATHS)
_LAYERS = st.lists(st.lists(_ENTRIES, min_size=1, max_size=8), min_size=2, max_size=4)


@given(_LAYERS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_all_forms_show_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Entry]]
) -> None:
    compare(tmp_path_factory.mktemp("forms"), layers)


def _file(path: str) -> Entry:
    return ("file", path.split("/"), "", [])


def _link(path: str, target: str) -> Entry:
    return ("link", path.split("/"), target, [])


def _hidden(path: str) -> Entry:
    return ("whiteout", path.split("/"), "", [])


def _opaque(path: str) -> Entry:
    return ("opaque", path.split("/"), "", [])


def _private(path: str) -> Entry:
    return ("private", path.split("/"), "", [])


_BELOW = [_private("usr/lib"), _file("usr/lib/gone"), _file("usr/lib/kept/below"), _file("usr/file"), _file("file")]


@pytest.mark.parametrize("link", ["usr/lib", "/usr/lib", "./usr/../usr/lib", "up", "nowhere", "lib", "usr/file", "/"])
@pytest.mark.parametrize(
    "upper",
    [
        [_hidden("lib/gone")],
        [_opaque("lib")],
        [_hidden("lib/never")],
        [_hidden("lib/kept/below")],
        [_private("lib"), _hidden("lib/gone")],
        [_hidden("lib/gone"), _private("lib")],
        [_hidden("lib"), _hidden("lib/gone")],
        [_hidden("lib/gone"), _hidden("lib")],
        [_hidden("lib"), _file("lib/new")],
        [_file("lib/new"), _hidden("usr/lib")],
        [_private("usr/lib"), _file("lib/new")],
        [_opaque("usr"), _file("lib/new")],
        [_file("lib/new"), ("hard link", ["hard"], "", ["lib", "new"])],
        [_file("lib/new"), ("hard link", ["usr", "lib", "hard"], "", ["lib", "new"])],
    ],
    ids=str,
)
def test_entries_by_way_of_a_lower_link(tmp_path: Path, link: str, upper: list[Entry]) -> None:
    """As containerd has it with overlayfs: a directory takes the place of the link, and looks as what that leads to."""
    compare(tmp_path, [[*_BELOW, _link("up", "usr/lib"), _link("lib", link)], upper])
    assert not (tmp_path / "n1/lib").is_symlink()


@pytest.mark.parametrize(
    "upper",
    [
        [_hidden("file/x")],
        [_opaque("file")],
        [_hidden("no/where/x")],
        [_opaque("no/where")],
        [_file("usr"), _hidden("usr/file")],
        [_hidden("usr/file"), _file("usr")],
        [_hidden("usr"), _hidden("usr/lib/gone")],
        [_hidden("usr/lib/gone"), _hidden("usr")],
        [_private("usr"), _hidden("usr/lib/gone"), _hidden("usr")],
        [_opaque("usr"), _hidden("usr/lib/gone")],
        [_hidden("usr/lib/gone"), _opaque("usr")],
        [_hidden("usr/lib/gone"), _hidden("usr"), _file("usr/new"), _hidden("usr/lib/gone")],
        [_hidden("usr/lib/gone"), _link("usr", "usr")],
        [_link("own", "usr/lib"), _hidden("own/gone")],
        [_link("own", "nowhere"), _hidden("own/gone")],
    ],
    ids=str,
)
def test_whiteouts_imply_directories_where_nothing_is_hidden(tmp_path: Path, upper: list[Entry]) -> None:
    compare(tmp_path, [_BELOW, upper])


@pytest.mark.parametrize(
    "upper",
    [
        [_link("own", "new"), _hidden("own/never"), _file("own")],
        [_link("own", "new"), _hidden("own/never"), _private("own"), _file("own/made")],
        [_link("own", "new"), _private("own/made"), _file("own")],
        [_link("own", "new"), _private("own/made"), _link("own", "file")],
        [_hidden("own/lib/gone"), _link("own", "usr"), _private("usr/lib"), _hidden("usr/lib/gone")],
    ],
    ids=str,
)
def test_what_is_named_by_a_link_that_goes_later(tmp_path: Path, upper: list[Entry]) -> None:
    compare(tmp_path, [_BELOW, [_private("new"), *upper]])


@pytest.mark.parametrize(
    "upper",
    [
        [_file("own/file"), ("hard link", ["own"], "", ["own", "file"])],
        [_file("new/file"), _link("own/way", "../new"), ("hard link", ["own"], "", ["own", "way", "file"])],
        [_file("new/file"), ("hard link", ["own", "x"], "", ["new", "file"]), ("hard link", ["own"], "", ["own", "x"])],
    ],
    ids=str,
)
def test_a_hard_link_that_takes_the_place_of_the_way_to_its_file(tmp_path: Path, upper: list[Entry]) -> None:
    """containerd removes what is there, and finds no file then."""
    compare(tmp_path, [_BELOW, upper])


def test_a_directory_takes_nothing_over_from_one_that_is_gone(tmp_path: Path) -> None:
    """It has the inode of the one that was hidden and replaced, as ext4 gives it."""
    upper = [_file("a/b/new"), _hidden("a/b"), _file("a"), _file("below/new")]
    compare(tmp_path, [[_private("below"), _file("below/file"), _file("a/b/below")], upper])


def _below(kind: str) -> ArchiveBuilder:
    lower = ArchiveBuilder()
    lower.add("usr", tarfile.DIRTYPE, mode=0o711, uid=7, gid=8, mtime=70)
    lower.add("usr/lib", tarfile.DIRTYPE, mode=0o1750, uid=9, gid=10, mtime=90)
    lower.file("usr/lib/gone", b"gone").file("usr/lib/kept/below", b"kept").file("usr/file", b"file")
    lower.add("up", tarfile.SYMTYPE, linkname="usr/lib")
    return lower.file("lib", b"file") if kind == "file" else lower.add("lib", tarfile.SYMTYPE, linkname=kind)


def test_directories_that_a_layer_only_passes_keep_their_time(tmp_path: Path) -> None:
    upper = ArchiveBuilder().file("usr/lib/new").file("usr/.wh.file").file("usr/lib/.wh.gone").file("usr/lib/made/new")
    root = ArchiveBuilder().directory("./", mtime=50)
    stack(tmp_path, [root.build(), _below("usr/lib").build(), upper.build()])
    applied = tmp_path / "n2"
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


def compare(base: Path, layers: list[list[Entry]]) -> None:
    """Compare what all forms show with what the model says."""
    model = Stack()
    archives = [build(entries, number) for number, entries in enumerate(layers)]
    for number, entries in enumerate(layers):
        try:
            model.put(modelled(entries, number))
        except Refused as refusal:
            check_refused(base, archives[: number + 1], is_of_lower=isinstance(refusal, LowerHardLink))
            return
    for form in stack(base, archives):
        assert form == shown_by(model.root)


def check_refused(base: Path, layers: list[bytes], is_of_lower: bool) -> None:
    """Check that each form refuses the last layer; ``is_of_lower``: copies may have what it needs."""
    alone, image, copy = base / "alone", base / "image", base / "copy"
    for directory in (alone, image, copy):
        directory.mkdir()
    with pytest.raises((ArchiveFault, OSError)):
        unpack(layers[-1], alone, overlay=True)
    with pytest.raises((ArchiveFault, OSError)):
        write_image(layers[-1], image)
    if not is_of_lower:
        for layer in layers[:-1]:
            unpack(layer, copy, overlay=False)
        with pytest.raises((ArchiveFault, OSError)):
            unpack(layers[-1], copy, overlay=False)


def stack(base: Path, layers: list[bytes]) -> tuple[dict[str, object], ...]:
    """Stack layers by overlayfs as directories and as images, and apply them in turn; return what each shows."""
    copies, lowers, images = ([base / f"{kind}{number}" for number in range(len(layers))] for kind in "nli")
    nothing, merged = base / "nothing", base / "merged"
    for directory in (*copies, *lowers, *images, nothing, merged):
        directory.mkdir()
    for number, archive in enumerate(layers):
        unpacked = unpack(archive, lowers[number], overlay=True)
        settle_tree(shown_trees(tuple(lowers[:number][::-1])), lowers[number], unpacked)
        below = [image / IMAGE_FILE for image in images[:number][::-1]]
        settle_image(write_image(archive, images[number]), below, bytes(16))
        if number:
            copy_tree(copies[number - 1], copies[number], Reflink.AUTO, threading.Event())
        unpacked = unpack(archive, copies[number], overlay=False)
        if number and unpacked.implied:
            settle_tree((copies[number - 1],), copies[number], unpacked)
    found = [seen(copies[-1]), shown(shown_trees(tuple(reversed(lowers))), nothing, merged)]
    mounted = list[Path]()
    try:
        for image in images:
            mount.mount(Mount("erofs", str(image / IMAGE_FILE), ("ro",)), image)
            mounted.append(image)
        return (*found, shown(shown_trees(tuple(reversed(images))), nothing, merged))
    finally:
        for image in mounted:
            mount.unmount(image)


def shown(trees: tuple[Path, ...], nothing: Path, merged: Path) -> dict[str, object]:
    options = "lowerdir=" + ":".join(map(str, [*trees, nothing]))  # an overlay needs two
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
    try:
        return seen(merged)
    finally:
        subprocess.run(["umount", str(merged)], check=True)


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
