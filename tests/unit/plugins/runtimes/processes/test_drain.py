"""A pipe that nobody reads holds up nobody."""

import asyncio
import errno
import fcntl
import os
import subprocess
import sys

import pytest

from crinoid.core.api.testing.patience import patient
from crinoid.plugins.runtimes.processes.drain import MAX_SAID_BYTES, drained, make_room

_MORE = 3 * MAX_SAID_BYTES


async def test_a_child_that_says_more_than_a_pipe_holds_ends() -> None:
    """As conmon does, its parent reads only once it has ended."""
    script = f"import os, sys; os.write(2, b'x' * {_MORE}); os.write(2, b'the end')"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}]).wait()"
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=writer)
    os.close(writer)
    try:
        async with asyncio.timeout(patient(60)), drained(lambda: process.pid):
            assert await asyncio.to_thread(process.wait) == 0
        os.set_blocking(reader, False)
        assert os.read(reader, 2 * MAX_SAID_BYTES).endswith(b"the end")
    finally:
        process.kill()
        os.close(reader)


async def test_a_look_that_fails_fails_no_create_and_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.plugins.runtimes.processes.drain._PAUSE_S", 0.01)
    looks: list[int] = []

    def find() -> int:
        looks.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with asyncio.timeout(patient(60)), drained(find):
        while len(looks) < 3:  # noqa: ASYNC110  # of the block that is tested
            await asyncio.sleep(0.01)


async def test_whoever_waits_can_be_cancelled() -> None:
    """At the last moment, too."""

    async def create() -> None:
        async with drained(lambda: 0):
            ready.set()
        await asyncio.sleep(60)

    ready = asyncio.Event()
    creating = asyncio.create_task(create())
    await ready.wait()
    creating.cancel()
    async with asyncio.timeout(patient(10)):
        await asyncio.wait({creating})
    assert creating.cancelled()


def test_a_pipe_that_is_not_full_is_left_to_its_reader() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"x" * 10_000)
    make_room(f"/proc/self/fd/{writer}")
    assert fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) == size
    os.write(writer, b"x" * (size - 10_000))
    make_room(f"/proc/self/fd/{writer}")
    assert fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) == MAX_SAID_BYTES
    assert len(os.read(reader, 2 * size)) == size, "nothing of it is lost"
    os.close(reader)
    os.close(writer)


def test_what_is_no_pipe_is_left() -> None:
    make_room("/dev/null")
    make_room("/proc/self/exe")
