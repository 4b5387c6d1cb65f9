"""Files show other owners through a mapped mount, and nothing of how that was done is left."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import Unsupported
from crinoid.core.api.linux import idmaps, mount, namespaces
from crinoid.core.api.linux.idmaps import IdMaps
from crinoid.core.api.values.pod import IdMapping
from crinoid.core.api.values.snapshot import Mount
from support.processes import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
MAPS = IdMaps((IdMapping(100_000, 0, 1000),), (IdMapping(200_000, 0, 1000),))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    try:
        idmaps.try_in(tmp_path / "tried")
    except Unsupported as error:
        pytest.skip(error.message)
    for name in ("low", "high", "upper", "work", "shown"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/file").write_text("low")
    os.chown(tmp_path / "low/file", 5, 6)
    (tmp_path / "high/other").write_text("high")
    yield tmp_path
    for point in mount.mountpoints(tmp_path):
        mount.unmount(point)


def owners(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def test_a_bind_mount(directory: Path) -> None:
    idmaps.mount_mapped(Mount("bind", str(directory / "low"), ("rbind", "ro")), directory / "shown", MAPS)
    assert owners(directory / "shown/file") == (100_005, 200_006)
    assert owners(directory / "low/file") == (5, 6)
    with pytest.raises(OSError, match="Read-only"):
        (directory / "shown/new").touch()


def test_a_pinned_namespace_has_the_maps(directory: Path) -> None:
    pin = directory / "user"
    namespaces.pin({"user": pin}, uids=MAPS.uids, gids=MAPS.gids)
    idmaps.mount_mapped(Mount("bind", str(directory / "low/file")), directory / "high/other", IdMaps((), (), pin))
    assert owners(directory / "high/other") == (100_005, 200_006)


def test_an_overlay(directory: Path) -> None:
    lowers = (f"lowerdir+={directory / 'high'}", f"lowerdir+={directory / 'low'}")
    parts = (f"upperdir={directory / 'upper'}", f"workdir={directory / 'work'}", "index=off")
    idmaps.mount_mapped(Mount("overlay", "overlay", (*lowers, *parts)), directory / "shown", MAPS)
    shown = directory / "shown"
    assert [owners(shown / name) for name in (".", "file", "other")] == [
        (100_000, 200_000),
        (100_005, 200_006),
        (100_000, 200_000),
    ]
    (shown / "file").write_text("changed")
    assert owners(directory / "upper/file") == (100_005, 200_006)
    assert (directory / "low/file").read_text() == "low"
    assert mount.mountpoints(directory) == (shown,), "the layers' own mounts are gone"


def test_an_overlay_of_a_hundred_layers(directory: Path) -> None:
    layers = [directory / f"layer-with-a-name-of-some-length-{number}" for number in range(100)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / str(number)).touch()
    options = tuple(f"lowerdir+={layer}" for layer in layers)
    idmaps.mount_mapped(Mount("overlay", "overlay", (*options, "ro")), directory / "shown", MAPS)
    assert {owners(path) for path in (directory / "shown").iterdir()} == {(100_000, 200_000)}
    assert len(list((directory / "shown").iterdir())) == 100


def test_a_mount_below_that_can_not_be_mapped_does_not_hinder(directory: Path) -> None:
    (directory / "low/below").mkdir()
    mount.mount(Mount("proc", "proc"), directory / "low/below")
    idmaps.mount_mapped(Mount("bind", str(directory / "low"), ("rbind", "rprivate")), directory / "shown", MAPS)
    assert owners(directory / "shown/file") == (100_005, 200_006)
    assert owners(directory / "shown/below/version") == (0, 0)


def test_what_can_not_be_mapped_is_named(directory: Path) -> None:
    with pytest.raises(Unsupported, match=r"/proc/sys: its file system has no id-mapped mounts with this kernel"):
        idmaps.mount_mapped(Mount("bind", "/proc/sys"), directory / "shown", MAPS)
    with pytest.raises(Unsupported, match="the proc file system"):
        idmaps.mount_mapped(Mount("proc", "proc"), directory / "shown", MAPS)
    assert mount.mountpoints(directory) == ()


def test_nothing_runs_on() -> None:
    before = children()
    with MAPS.opened() as fd:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:")
    assert children() <= before


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "new/.idmaps-of-one-killed/one").mkdir(parents=True)
    idmaps.try_in(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
