"""A first process that waits at a fifo is let go, whichever end it holds; what can't be is left to the binary."""

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.oci.starting import has_begun, start_reader, start_writer
from crinoid.plugins.runtimes.processes import pidfds
from support.patience import patient

RUNTIME = str(Path("/bin/sh").resolve())
"""As in life, the process is the runtime's binary for as long as it waits."""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "exec.fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for child in found:
        child.kill()
        child.wait()


def begin(children: list[subprocess.Popen[bytes]], script: str, fifo: Path) -> Processes:
    """Start a process and wait until it stands at the fifo, or has ended."""
    child = subprocess.Popen(["sh", "-c", f"echo; {script}", "sh", str(fifo)], stdout=subprocess.PIPE)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return Processes(child.pid, pidfds.start_time(child.pid), 0, 0)


def wait_for_reader(fifo: Path) -> None:
    deadline = time.monotonic() + patient(10)
    while time.monotonic() < deadline:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("nobody reads")


async def test_one_that_writes(fifo: Path, children: list[subprocess.Popen[bytes]]) -> None:
    processes = begin(children, 'printf 0 >"$1"; exit 7', fifo)
    assert await start_writer(fifo, processes, RUNTIME)
    assert children[0].wait(patient(10)) == 7
    assert not fifo.exists()


async def test_one_that_dies_before_it_writes(fifo: Path, children: list[subprocess.Popen[bytes]]) -> None:
    processes = begin(children, "sleep 0.1", fifo)
    assert not await start_writer(fifo, processes, RUNTIME)


async def test_one_that_reads(fifo: Path, children: list[subprocess.Popen[bytes]]) -> None:
    processes = begin(children, 'exec 3<>"$1"; head -c 1 <&3 >/dev/null; exit 7', fifo)
    wait_for_reader(fifo)
    assert start_reader(fifo, processes)
    assert children[0].wait(patient(10)) == 7
    assert not fifo.exists()


async def test_one_that_was_let_go_by_a_daemon_that_died_at_it(
    fifo: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    processes = begin(children, "exec sleep 100", fifo)
    assert start_reader(fifo, processes)
    assert not fifo.exists()
    os.mkfifo(fifo)
    async with asyncio.timeout(patient(10)):
        assert await start_writer(fifo, processes, RUNTIME)
    assert not fifo.exists()
    assert not start_reader(fifo, processes), "without a fifo the binary is to say what it thinks"
    assert not await start_writer(fifo, processes, RUNTIME)


async def test_a_fifo_that_can_not_be_removed_fails_no_start(
    fifo: Path, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "no", str(path))

    processes = begin(children, 'printf 0 >"$1"; exec sleep 100', fifo)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert await start_writer(fifo, processes, RUNTIME)
    assert start_reader(fifo, processes)


async def test_one_that_has_ended(fifo: Path, children: list[subprocess.Popen[bytes]]) -> None:
    processes = begin(children, "true", fifo)
    children[0].wait()
    assert not has_begun(processes.pid, RUNTIME)
    assert not start_reader(fifo, processes)
    assert not await start_writer(fifo, processes, RUNTIME)
    assert fifo.exists()
