"""What the contract does not ask: the mounts that each driver names, its options, and what it says of a bad host."""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from crinoid.core.api.errors import ResourceExhausted, Unsupported
from crinoid.core.api.host import Host
from crinoid.core.api.linux import mount
from crinoid.core.api.values.snapshot import Mount
from crinoid.plugins.snapshotters import native
from crinoid.plugins.snapshotters.copying import Reflink
from crinoid.plugins.snapshotters.erofs.driver import ErofsSnapshotter
from crinoid.plugins.snapshotters.native import NativeConfig, NativeSnapshotter
from crinoid.plugins.snapshotters.overlay import OverlayConfig, OverlaySnapshotter

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("test", tmp_path, tmp_path, logging.getLogger("test"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount.mount(Mount("tmpfs", "tmpfs", ("size=1m",)), disk)
    yield disk
    mount.unmount(disk)


async def add(driver: OverlaySnapshotter | NativeSnapshotter, chain_id: str, parent: str | None = None) -> Path:
    target = await driver.prepare_layer(chain_id, parent)
    await driver.commit_layer(target.key, chain_id, parent)
    return driver.storage.stack(chain_id)[0]


async def test_overlay_names_layers_topmost_first(host: Host) -> None:
    driver = OverlaySnapshotter(OverlayConfig(mount_options=("xino=off",)), host)
    base, top = await add(driver, "base"), await add(driver, "top", "base")
    (mounts,) = await driver.create_snapshot("container", "top", False)
    directory = driver.storage.snapshot_directory(driver.storage.snapshot("container"))
    lowers = (f"lowerdir+={top}", f"lowerdir+={base}")
    assert mounts == Mount(
        "overlay", "overlay", (*lowers, f"upperdir={directory}/fs", f"workdir={directory}/work", "xino=off")
    )
    (view,) = await driver.create_snapshot("view", "top", True)
    assert view == Mount("overlay", "overlay", (*lowers, "xino=off", "ro"))
    (single,) = await driver.create_snapshot("single", "base", True)
    assert single == Mount("bind", str(base), ("rbind", "ro"))


async def test_native_binds_a_copy_or_the_layer_itself(host: Host) -> None:
    driver = NativeSnapshotter(NativeConfig(), host)
    base = await add(driver, "base")
    (mounts,) = await driver.create_snapshot("container", "base", False)
    assert Path(mounts.source).name == "fs" and mounts.source != str(base)
    assert await driver.create_snapshot("view", "base", True) == (Mount("bind", str(base), ("rbind", "ro")),)


async def test_a_roots_owner_mode_and_attributes_come_from_below(host: Host) -> None:
    driver = OverlaySnapshotter(OverlayConfig(), host)
    target = await driver.prepare_layer("base", None)
    target.directory.chmod(0o1711)
    os.setxattr(target.directory, "user.of", b"the image")
    await driver.commit_layer(target.key, "base", None)
    (mount,) = await driver.create_snapshot("container", "base", False)
    upper = Path(mount.options[1].removeprefix("upperdir="))
    assert upper.stat().st_mode & 0o7777 == 0o1711
    assert os.getxattr(upper, "user.of") == b"the image"


async def test_layers_lie_where_the_options_say(host: Host, tmp_path: Path) -> None:
    driver = NativeSnapshotter(NativeConfig(root=tmp_path / "elsewhere"), host)
    assert (await driver.prepare_layer("base", None)).directory.is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize("option", ["lowerdir=/", "lowerdir+=/", "upperdir=/x", "workdir=/x", "ro", "a,b"])
def test_options_that_would_break_the_mount_are_refused(option: str) -> None:
    with pytest.raises(ValidationError, match="not for the configuration to say"):
        OverlayConfig(mount_options=(option,))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("metacpy=on", "did you mean .*metacopy"),
        ("redirectdir=on", "redirect_dir"),
        ("size=5G", "known: index"),
        ("userxattr", "known: index"),
    ],
)
def test_options_that_overlayfs_has_not_are_told_before_any_mount(option: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OverlayConfig(mount_options=(option,))


def test_a_relative_root_and_unknown_options_are_refused() -> None:
    for options in ({"root": "relative"}, {"reflink": "sometimes"}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            NativeConfig.model_validate(options)


@needs_root
async def test_probe_says_what_to_do_where_overlay_can_not_work(host: Host, tmp_path: Path) -> None:
    """The upper layer of an overlay can't lie on an overlay."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    mount.mount(Mount("overlay", "overlay", (f"lowerdir+={lower}", f"upperdir={upper}", f"workdir={work}")), merged)
    try:
        driver = OverlaySnapshotter(OverlayConfig(root=merged / "snapshots"), host)
        with pytest.raises(Unsupported, match=r"set the option root .* or use the native snapshotter"):
            await driver.probe()
        assert list((merged / "snapshots" / "scratch").iterdir()) == []
    finally:
        mount.unmount(merged)


@needs_root
async def test_probe_finds_an_option_that_the_kernel_does_not_know(host: Host) -> None:
    driver = OverlaySnapshotter(OverlayConfig(mount_options=("xino=perhaps",)), host)
    with pytest.raises(Unsupported, match="xino=perhaps"):
        await driver.probe()


@needs_root
async def test_probe_leaves_nothing(host: Host, tmp_path: Path) -> None:
    driver = OverlaySnapshotter(OverlayConfig(), host)
    await driver.probe()
    assert mount.mountpoints(tmp_path) == ()
    assert [path for path in driver.storage.root.rglob("*") if path.parent != driver.storage.root] == []


@needs_root
@pytest.mark.parametrize("driver", [OverlaySnapshotter, ErofsSnapshotter])
async def test_what_probe_can_not_remove_goes_a_little_later(
    driver: type[OverlaySnapshotter], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Path] = []
    rmdir = Path.rmdir

    def refuse_first(path: Path) -> None:
        if path not in refused and path.parent.name == "scratch":
            refused.append(path)
            raise OSError(errno.EIO, "I/O error", str(path))
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", refuse_first)
    made = driver(driver.Config(), host)
    await made.probe()
    assert refused
    async with asyncio.timeout(30):
        while [path for path in made.storage.root.rglob("*") if path.parent != made.storage.root]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_native_probe_wants_reflink_only_if_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "can_reflink", lambda directory: False)
    await NativeSnapshotter(NativeConfig(), host).probe()
    with pytest.raises(Unsupported, match="btrfs"):
        await NativeSnapshotter(NativeConfig(reflink=Reflink.ALWAYS), host).probe()


@needs_root
async def test_a_full_disk_is_named_and_a_half_made_copy_removed(host: Host, small_disk: Path) -> None:
    driver = NativeSnapshotter(NativeConfig(root=small_disk / "snapshots"), host)
    target = await driver.prepare_layer("base", None)
    (target.directory / "large").write_bytes(b"x" * 600_000)
    await driver.commit_layer(target.key, "base", None)
    with pytest.raises(ResourceExhausted, match="no space"):
        await driver.create_snapshot("container", "base", False)
    with pytest.raises(ResourceExhausted, match="no space"):
        await driver.prepare_layer("top", "base")
    assert await driver.list_snapshots() == ()
    assert await driver.list_unfinished() == ()
    await driver.remove_layer("base")


async def test_a_long_copy_ends_soon_after_it_is_cancelled(host: Host) -> None:
    driver = NativeSnapshotter(NativeConfig(reflink=Reflink.NEVER), host)
    target = await driver.prepare_layer("base", None)
    for number in range(20_000):
        (target.directory / str(number)).touch()
    await driver.commit_layer(target.key, "base", None)
    creating = asyncio.create_task(driver.create_snapshot("container", "base", False))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    creating.cancel()
    await asyncio.wait({creating})
    assert creating.cancelled()
    assert time.monotonic() - started < 5
    assert await driver.list_snapshots() == ()
    assert list((driver.storage.root / "scratch").iterdir()) == []
