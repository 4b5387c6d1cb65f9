"""A watched directory tells of files when they are complete, and of its own end."""

import asyncio
from pathlib import Path

import pytest

from crinoid.core.api.linux.inotify import DirectoryWatch


async def take(watch: DirectoryWatch, count: int) -> list[str]:
    async with asyncio.timeout(60):
        return [await anext(watch) for _ in range(count)]


async def test_names_of_written_and_moved_files_come_in_order(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with DirectoryWatch(directory) as watch:
        (directory / "written").write_text("x")
        (tmp_path / "other").write_text("y")
        (tmp_path / "other").rename(directory / "moved")
        (directory / "moved").unlink()
        (directory / "last").touch()
        assert await take(watch, 3) == ["written", "moved", "last"]


async def test_a_file_is_told_only_when_it_is_closed(tmp_path: Path) -> None:
    with DirectoryWatch(tmp_path) as watch, (tmp_path / "open").open("w") as file:
        file.write("x")
        file.flush()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.1)
        file.close()
        assert await take(watch, 1) == ["open"]


async def test_removals_come_when_asked_for(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "a").touch()
    (directory / "b").touch()
    with DirectoryWatch(directory, removals=True) as watch:
        (directory / "a").unlink()
        (directory / "b").rename(tmp_path / "b")
        assert await take(watch, 2) == ["a", "b"]


async def test_new_directories_come_when_asked_for(tmp_path: Path) -> None:
    with DirectoryWatch(tmp_path, directories=True) as watch:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").touch()
        (tmp_path / "c").mkdir()
        assert await take(watch, 3) == ["a", "b", "c"]  # b once, when it was closed


async def test_iteration_ends_with_the_directory_and_at_close(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    with DirectoryWatch(directory) as watch:
        directory.rmdir()
        async with asyncio.timeout(60):
            assert [name async for name in watch] == []
    watch = DirectoryWatch(tmp_path)
    waiting = asyncio.create_task(take(watch, 1))
    await asyncio.sleep(0)
    watch.close()
    watch.close()
    with pytest.raises((StopAsyncIteration, RuntimeError)):
        await waiting


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        DirectoryWatch(tmp_path / "none")
