"""Options are sorted out without root; with root, mounts are really made, and undone."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import mount as mounts
from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.core.api.linux.mount import parse_options
from crinoid.core.api.linux.procfs import read_lines
from crinoid.core.api.values.snapshot import Mount

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    for point in mounts.mountpoints(tmp_path):
        mounts.unmount(point)


def test_flags_propagation_and_data_are_told_apart() -> None:
    options = parse_options(["ro", "nosuid", "size=64k", "rslave", "mode=755", "defaults", "exec"])
    assert options.flags == 1 | 2
    assert options.attributes == 1 | 2
    assert options.propagation == 0x80000 | 0x4000
    assert options.data == ("size=64k", "mode=755")
    assert options.cleared_attributes == 8


def test_the_later_of_two_options_holds() -> None:
    assert parse_options(["ro", "rw"]).flags == 0
    assert parse_options(["rw", "ro"]).cleared == frozenset()


def test_relatime_is_no_recursive_elatime() -> None:
    assert parse_options(["relatime"]).data == ()
    assert parse_options(["redirect_dir=on"]).data == ("redirect_dir=on",)


@needs_root
def test_tmpfs_takes_flags_and_data(target: Path) -> None:
    mounts.mount(Mount("tmpfs", "tmpfs", ("nosuid", "noexec", "size=64k", "mode=711")), target)
    line = line_of(target)
    assert "nosuid" in line and "noexec" in line and "size=64k" in line and "mode=711" in line
    mounts.unmount(target)
    mounts.unmount(target)
    assert mounts.mountpoints(target) == ()


@needs_root
def test_a_recursive_readonly_bind_reaches_the_mounts_below(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    mounts.mount(Mount("tmpfs", "tmpfs"), source / "sub")
    mounts.mount(Mount("bind", str(source), ("rbind", "ro")), target)
    for directory in (target, target / "sub"):
        with pytest.raises(OSError) as caught:
            (directory / "file").touch()
        assert caught.value.errno == errno.EROFS
    (source / "sub" / "file").touch()  # the source itself stays as it was
    assert set(mounts.mountpoints(target)) == {target, target / "sub"}


@needs_root
def test_a_plain_bind_leaves_out_the_mounts_below_and_takes_files(tmp_path: Path, target: Path) -> None:
    source, file = tmp_path / "source", tmp_path / "file"
    (source / "sub").mkdir(parents=True)
    file.touch()
    (source / "one").write_text("one")
    mounts.mount(Mount("tmpfs", "tmpfs"), source / "sub")
    mounts.bind(source, target)
    assert mounts.mountpoints(target) == (target,)
    mounts.bind(source / "one", file, readonly=True)
    assert file.read_text() == "one"
    with pytest.raises(OSError):
        file.write_text("two")


@needs_root
@pytest.mark.parametrize("count", [1, 3, 150])
@pytest.mark.parametrize("old_kernel", [False, True])
def test_overlay_of_any_number_of_layers(tmp_path: Path, target: Path, count: int, old_kernel: bool) -> None:
    odd = tmp_path / "a directory: with, odd\\ things"
    lowers = layers(odd, count)
    data = tuple(f"lowerdir+={path}" for path in lowers)
    for name in ("up", "work"):
        (odd / name).mkdir()
    data += (f"upperdir={odd}/up", f"workdir={odd}/work")
    if old_kernel:
        mounts.mount_overlay_by_string("overlay", target, parse_options(data))
    else:
        mounts.mount(Mount("overlay", "overlay", data), target)
    assert (target / "same").read_text() == "0"  # of the topmost
    assert {f"only-{number}" for number in range(count)} <= set(os.listdir(target))
    (target / "new").touch()
    assert (odd / "up" / "new").exists()


@needs_root
def test_overlay_with_long_names_and_readonly(tmp_path: Path, target: Path) -> None:
    lowers = layers(tmp_path / ("x" * 200) / ("y" * 200), 3)
    mounts.mount(Mount("overlay", "overlay", (*(f"lowerdir+={path}" for path in lowers), "ro")), target)
    assert (target / "same").read_text() == "0"
    with pytest.raises(OSError):
        (target / "new").touch()


@needs_root
def test_a_failed_overlay_says_why_and_mounts_nothing(tmp_path: Path, target: Path) -> None:
    lower = layers(tmp_path / "layers", 1)[0]
    with pytest.raises(OSError, match="no-such-option") as caught:
        mounts.mount(Mount("overlay", "overlay", (f"lowerdir+={lower}", "no-such-option=1")), target)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="nowhere"):
        mounts.mount(Mount("overlay", "overlay", ("lowerdir+=/nowhere",)), target)
    assert mounts.mountpoints(target) == ()


@needs_root
@pytest.mark.parametrize("name", [b"a\rb", b"\xff", b"\xe2\x80\xa8", b"\x1c 9:9 / /x", b"\\ - cgroup"])
def test_a_mount_point_of_any_name_hides_no_other(target: Path, name: bytes) -> None:
    """A user of the host may mount a file system of his own (FUSE), where all see it."""
    odd = target / os.fsdecode(name)
    odd.mkdir(parents=True)
    before = Hierarchies.read(read_lines("/proc/self/mountinfo"))
    mounts.mount(Mount("tmpfs", "tmpfs"), odd)
    assert mounts.mountpoints(target) == (odd,)
    assert mounts.propagation(odd) == mounts.propagation(odd / "below")
    assert Hierarchies.read(read_lines("/proc/self/mountinfo")) == before
    mounts.unmount(odd)
    assert mounts.mountpoints(target) == ()


@needs_root
def test_stacked_and_nested_mounts_are_all_undone(target: Path) -> None:
    for _ in range(2):
        mounts.mount(Mount("tmpfs", "tmpfs"), target)
    (target / "a b").mkdir()
    mounts.mount(Mount("tmpfs", "tmpfs"), target / "a b")
    assert mounts.mountpoints(target)[0] == target / "a b"
    with pytest.raises(OSError) as caught:
        mounts.unmount(target, lazy=False)
    assert caught.value.errno == errno.EBUSY
    mounts.unmount(target)
    assert mounts.mountpoints(target) == ()


@needs_root
def test_propagation(tmp_path: Path, target: Path) -> None:
    mounts.mount(Mount("tmpfs", "tmpfs", ("shared",)), target)
    assert "shared:" in line_of(target)
    mounts.make_private(target)
    assert "shared:" not in line_of(target)
    mounts.make_shared(target)
    assert "shared:" in line_of(target)


def layers(directory: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        path = directory / f"layer-{number}"
        path.mkdir(parents=True)
        (path / "same").write_text(str(number))
        (path / f"only-{number}").touch()
        paths.append(path)
    return paths


def line_of(target: Path) -> str:
    return next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {target} " in line)
