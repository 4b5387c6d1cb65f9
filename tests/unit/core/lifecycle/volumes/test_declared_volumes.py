"""Volumes that images declare: which are made, and that nothing of the host gets into one."""

import asyncio
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import files
from crinoid.core.api.values.container import VolumeMount
from crinoid.core.lifecycle.volumes.declared_volumes import fill_volume, select_paths
from support.descriptors import open_below


def test_which_are_made() -> None:
    mounts = [VolumeMount(container_path="/taken/", host_path="/x")]
    declared = ("/data/", "var/lib/./x", "/taken", "/sys/fs/cgroup", "/dev", "/devices", "/data")
    assert select_paths(declared, mounts) == ("/data", "/devices", "/var/lib/x")


@pytest.mark.parametrize("path", ["", "/", "//", "/a/.."])
def test_the_root_is_no_volume(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"the image's config\.Volumes has"):
        select_paths(["/data", path], [])


def test_an_image_that_declares_too_many_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="declares 300 volumes"):
        select_paths([f"/v{number}" for number in range(300)], [])


async def test_a_volume_begins_as_the_image_has_it(tmp_path: Path) -> None:
    source = tmp_path / "root/data"
    (source / "below").mkdir(parents=True)
    (source / "below/file").write_text("content")
    (source / "link").symlink_to("/etc/passwd")
    source.chmod(0o1770)
    os.utime(source / "below/file", (7, 7))
    await fill_volume(tmp_path / "root", "/data", tmp_path / "volume")
    assert stat.S_IMODE((tmp_path / "volume").stat().st_mode) == 0o1770
    assert (tmp_path / "volume/below/file").read_text() == "content"
    assert (tmp_path / "volume/below/file").stat().st_mtime == 7
    assert (tmp_path / "volume/link").readlink() == Path("/etc/passwd")


async def test_a_path_that_the_image_has_not_is_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    await fill_volume(tmp_path / "root", "/none/such", tmp_path / "volume")
    assert list((tmp_path / "volume").iterdir()) == []


async def test_links_stay_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").touch()
    (tmp_path / "root/inside").mkdir(parents=True)
    (tmp_path / "root/inside/file").touch()
    (tmp_path / "root/out").symlink_to(tmp_path / "secret")
    (tmp_path / "root/up").symlink_to("../../../../secret")
    (tmp_path / "root/in").symlink_to("/inside")
    for number, name in enumerate(("/out", "/up")):
        await fill_volume(tmp_path / "root", name, tmp_path / f"v{number}")
        assert list((tmp_path / f"v{number}").iterdir()) == []
    await fill_volume(tmp_path / "root", "/in", tmp_path / "volume")
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["file"]


async def test_a_cancellation_while_the_image_is_looked_into_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root/data").mkdir(parents=True)
    begun, open_in_root = threading.Event(), files.open_in_root

    def slow(root: int, path: str, flags: int) -> int:
        begun.set()
        time.sleep(0.1)
        return open_in_root(root, path, flags)

    monkeypatch.setattr(files, "open_in_root", slow)
    task = asyncio.create_task(fill_volume(tmp_path / "root", "/data", tmp_path / "volume"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert open_below(tmp_path) == []


async def test_a_file_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").touch()
    with pytest.raises(InvalidArgument, match="volume /file of the image is no directory"):
        await fill_volume(tmp_path / "root", "/file", tmp_path / "volume")
