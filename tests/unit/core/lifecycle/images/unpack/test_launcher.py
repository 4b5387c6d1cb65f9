"""The process that forks unpackers: one for many layers, gone when idle, replaced when killed."""

import asyncio
import gzip
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crinoid.core.api.errors import CorruptContent, CrinoidError, DeadlineExceeded
from crinoid.core.api.values.snapshot import WhiteoutForm
from crinoid.core.lifecycle.images.unpack import launcher as launching
from crinoid.core.lifecycle.images.unpack.launcher import Launcher
from crinoid.core.lifecycle.images.unpack.layer import Growing, UnpackRequest, unpack_layer
from support.archives import ArchiveBuilder, header
from support.processes import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="confinement needs root")

ARCHIVE = ArchiveBuilder().file("f", b"x").build()
ENDLESS = gzip.compress(header(b"f", size=b"0") * 20_000, 1) * 200


@pytest.fixture
async def launcher() -> AsyncIterator[Launcher]:
    launcher = Launcher()
    yield launcher
    await launcher.close()


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[[bytes], UnpackRequest]:
    made: list[Path] = []

    def make(blob: bytes) -> UnpackRequest:
        made.append(tmp_path / f"target{len(made)}")
        made[-1].mkdir()
        path = tmp_path / f"blob{len(made)}"
        path.write_bytes(blob)
        media_type = "application/vnd.oci.image.layer.v1.tar"
        return UnpackRequest(
            path,
            media_type,
            made[-1],
            WhiteoutForm.OVERLAY,
            f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}",
            sync=False,
        )

    return make


async def ended(pids: set[int]) -> None:
    async with asyncio.timeout(60):
        while pids & children():  # noqa: ASYNC110  # the kernel tells nobody but their parent
            await asyncio.sleep(0.01)


def _is_written(request: UnpackRequest) -> bool:
    (request.target / "f").unlink(missing_ok=True)
    time.sleep(0.05)
    return (request.target / "f").exists()


async def begun(request: UnpackRequest) -> None:
    async with asyncio.timeout(60):
        while not (request.target / "f").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.01)


async def test_one_process_serves_many_layers(launcher: Launcher, request_for) -> None:
    before = children()
    await unpack_layer(request_for(ARCHIVE), launcher)
    forking = children() - before
    assert len(forking) == 1
    for result in await asyncio.gather(*(unpack_layer(request_for(ARCHIVE), launcher) for _ in range(20))):
        assert result.inodes == 1
    with pytest.raises(CorruptContent):
        await unpack_layer(replace(request_for(ARCHIVE), expected_diff_id="sha256:0"), launcher)
    assert children() - before == forking
    await launcher.close()
    assert children() == before


async def test_cancelling_one_leaves_the_others(launcher: Launcher, request_for) -> None:
    one, other = request_for(ENDLESS), request_for(ENDLESS)
    tasks = [asyncio.create_task(unpack_layer(request, launcher)) for request in (one, other)]
    await asyncio.gather(begun(one), begun(other))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert (await unpack_layer(request_for(ARCHIVE), launcher)).inodes == 1
    assert not tasks[1].done()
    tasks[1].cancel()
    await asyncio.wait(tasks)


async def test_when_it_is_killed_its_layers_fail_and_the_next_starts_another(launcher: Launcher, request_for) -> None:
    before = children()
    request = request_for(ENDLESS)
    task = asyncio.create_task(unpack_layer(request, launcher))
    await begun(request)
    (forking,) = children() - before
    os.kill(forking, signal.SIGKILL)
    with pytest.raises(CrinoidError, match="exit code -9"):
        await task
    async with asyncio.timeout(60):
        while _is_written(request):  # noqa: ASYNC110  # until the unpacker has followed the process that forked it
            await asyncio.sleep(0.01)
    assert (await unpack_layer(request_for(ARCHIVE), launcher)).inodes == 1


async def test_killed_unpacker_is_told_with_its_signal(launcher: Launcher, request_for) -> None:
    before = children()
    request = request_for(ENDLESS)
    task = asyncio.create_task(unpack_layer(request, launcher))
    await begun(request)
    (forking,) = children() - before
    (unpacker,) = Path(f"/proc/{forking}/task/{forking}/children").read_text().split()
    os.kill(int(unpacker), signal.SIGKILL)
    with pytest.raises(CrinoidError, match="exit code -9"):
        await task


async def test_it_ends_when_idle_and_starts_anew(launcher: Launcher, request_for, monkeypatch) -> None:
    monkeypatch.setattr(launching, "_IDLE_S", 0.01)
    before = children()
    for _ in range(3):
        await unpack_layer(request_for(ARCHIVE), launcher)
        await ended(children() - before)


async def test_warmed_up_and_never_used_it_ends(launcher: Launcher, monkeypatch) -> None:
    monkeypatch.setattr(launching, "_IDLE_S", 0.01)
    before = children()
    launcher.warm_up()
    launcher.warm_up()
    assert len(children() - before) == 1
    await ended(children() - before)


async def test_closing_ends_what_is_under_way(launcher: Launcher, request_for) -> None:
    before = children()
    request = request_for(ENDLESS)
    task = asyncio.create_task(unpack_layer(request, launcher))
    await begun(request)
    await launcher.close()
    with pytest.raises(CrinoidError, match="told to end"):
        await task
    assert children() == before


class Writer:
    """Writes ARCHIVE's file as a download does; ``request`` is for the layer of it."""

    def __init__(self, request: UnpackRequest) -> None:
        request.blob.write_bytes(b"")
        self._file = request.blob.open("r+b", buffering=0)
        self._counter = os.eventfd(0)
        self.whole: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        growing = Growing(self._file.fileno(), len(ARCHIVE), self._counter, self.whole)
        self.request = replace(request, growing=growing)

    def add(self, data: bytes) -> None:
        self._file.write(data)
        os.eventfd_write(self._counter, len(data))

    def close(self) -> None:
        self._file.close()
        os.close(self._counter)


@pytest.fixture
async def writer(request_for) -> AsyncIterator[Writer]:
    writer = Writer(request_for(b""))
    yield writer
    writer.close()


async def test_a_blob_is_unpacked_behind_its_writer(launcher: Launcher, writer: Writer) -> None:
    task = asyncio.create_task(unpack_layer(writer.request, launcher))
    writer.add(ARCHIVE[:1024])
    await begun(writer.request)
    for at in range(1024, len(ARCHIVE), 1024):
        assert not task.done()
        writer.add(ARCHIVE[at : at + 1024])
    assert (await task).inodes == 1


async def test_who_waits_for_bytes_can_be_cancelled(launcher: Launcher, writer: Writer) -> None:
    before = children()
    task = asyncio.create_task(unpack_layer(writer.request, launcher))
    writer.add(ARCHIVE[:1024])
    await begun(writer.request)
    (forking,) = children() - before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Path(f"/proc/{forking}/task/{forking}/children").read_text() == ""


async def test_the_deadline_counts_from_when_the_blob_is_whole(launcher: Launcher, writer: Writer) -> None:
    task = asyncio.create_task(unpack_layer(replace(writer.request, timeout_s=0.05), launcher))
    writer.add(ARCHIVE[:1024])
    await begun(writer.request)
    await asyncio.sleep(0.2)
    assert not task.done()
    writer.whole.set_result(True)  # though the unpacker has not got all of it
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.05 s"):
        await task


def test_an_answer_has_a_bound() -> None:
    memory = launching._Memory("test", 100)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(memory.fd, b"x", 100)
        os.write(memory.fd, b"said")
        assert memory.read() == b"said"
    finally:
        memory.close()
