"""Processes that are not our children."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.snapshotters import storage


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_its_start(child: "subprocess.Popen[bytes]") -> None:
    started = pidfds.start_time(child.pid)
    assert started > 0
    with pidfds.opened(child.pid, started) as fd:
        assert fd is not None
    with pidfds.opened(child.pid, started + 1) as fd:
        assert fd is None, "the id is another's"
    with pidfds.opened(0, 0) as fd:
        assert fd is None


async def test_its_end(child: "subprocess.Popen[bytes]") -> None:
    with pidfds.opened(child.pid, pidfds.start_time(child.pid)) as fd:
        assert fd is not None
        assert not await pidfds.wait_for(fd, 0.01)
        assert pidfds.exit_code(fd, child.pid) is None
        assert pidfds.send(fd, signal.SIGTERM)
        async with asyncio.timeout(60):
            await pidfds.wait(fd)
        assert pidfds.start_time(child.pid) == 0, "a zombie has ended"
        assert pidfds.exit_code(fd, child.pid) == 128 + signal.SIGTERM
        child.wait()
        assert pidfds.exit_code(fd, child.pid) in (128 + signal.SIGTERM, None)
        assert not pidfds.send(fd, signal.SIGTERM)


def test_what_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert pidfds.start_time(gone.pid) == 0
    assert pidfds.open_pidfd(gone.pid, 5) is None
    assert pidfds.children(gone.pid) == ()
    assert pidfds.session(gone.pid) == 0


def test_family(child: "subprocess.Popen[bytes]") -> None:
    assert child.pid in pidfds.children(os.getpid())
    assert pidfds.session(child.pid) == os.getsid(0)


def test_a_process_may_call_itself_anything() -> None:
    script = "open('/proc/self/comm', 'wb').write(b'\\xff) R'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert pidfds.describe(process.pid).startswith(f"{process.pid} (\ufffd) R")
        assert pidfds.start_time(process.pid) > 0
        assert storage._started(process.pid) == str(pidfds.start_time(process.pid))
        process.kill()
