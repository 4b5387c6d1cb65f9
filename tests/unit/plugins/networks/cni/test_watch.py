"""Changes of the configuration directory are told, wherever its path is missing and whatever a listener does."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.linux import libc
from crinoid.plugins.networks.cni import watch as module
from crinoid.plugins.networks.cni.watch import ConfigurationWatch

LOG = logging.getLogger("test-watch")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen within a minute")


class Listener:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def listener() -> Listener:
    return Listener()


async def started(directory: Path, listener: Listener) -> ConfigurationWatch:
    watch = ConfigurationWatch(directory, 5.0, LOG)
    watch.call(listener)
    watch.start()
    watch.start()
    if directory.is_dir():
        await until(lambda: listener.calls == 1)  # it stands
    return watch


@pytest.mark.parametrize("change", ["write", "move in", "move out", "remove"])
async def test_changes_are_told(change: str, tmp_path: Path, listener: Listener) -> None:
    directory = tmp_path / "net.d"
    directory.mkdir()
    (directory / "a.conf").touch()
    (tmp_path / "b.conf").touch()
    watch = await started(directory, listener)
    changes: dict[str, Callable[[], object]] = {
        "write": lambda: (directory / "a.conf").write_text("x"),
        "move in": lambda: (tmp_path / "b.conf").rename(directory / "b.conf"),
        "move out": lambda: (directory / "a.conf").rename(tmp_path / "a.conf"),
        "remove": lambda: (directory / "a.conf").unlink(),
    }
    changes[change]()
    await until(lambda: listener.calls > 1)
    await watch.close()
    await watch.close()


async def test_a_directory_that_is_made_later_and_made_again(tmp_path: Path, listener: Listener) -> None:
    directory = tmp_path / "etc/cni/net.d"
    watch = await started(directory, listener)
    for _ in range(2):
        calls = listener.calls
        directory.mkdir(parents=True)
        (directory / "a.conf").touch()
        await until(lambda calls=calls: listener.calls > calls)  # type: ignore[misc]
        calls = listener.calls
        (directory / "a.conf").unlink()
        directory.rmdir()
        directory.parent.rmdir()
        await until(lambda calls=calls: listener.calls > calls)  # type: ignore[misc]
    await watch.close()


async def test_a_listener_that_fails_does_not_end_it(
    tmp_path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise DriverError("the disk hangs")

    watch = ConfigurationWatch(tmp_path, 5.0, LOG)
    watch.call(fail)
    watch.call(listener)
    watch.start()
    await until(lambda: listener.calls == 1)
    (tmp_path / "a.conf").touch()
    await until(lambda: listener.calls > 1)
    assert "the disk hangs" in caplog.text
    await watch.close()


async def test_without_inotify_it_tries_again(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = libc.call
    refused: list[str] = []

    def refuse_once(name: str, *arguments: object, **more: object) -> int:
        if name == "inotify_init1" and not refused:
            refused.append(name)
            raise OSError(24, "Too many open files")
        return real(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(libc, "call", refuse_once)
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    watch = await started(tmp_path, listener)
    assert "are seen at the next request only: [Errno 24] Too many open files" in caplog.text
    await watch.close()
