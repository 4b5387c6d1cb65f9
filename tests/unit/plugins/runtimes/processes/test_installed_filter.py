"""The filter that a process has, read while it stands still for a moment."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.installed_filter import read_filter

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel shows filters to root alone")
pytestmark = needs_root

ALLOW = bytes.fromhex("060000000000ff7f")  # ret SECCOMP_RET_ALLOW
LOAD_AND_ALLOW = bytes.fromhex("2000000000000000") + ALLOW
FILTERED = """
import ctypes, os, signal, sys, time
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
for text in sys.argv[1:]:
    content = bytes.fromhex(text)
    program = Program(len(content) // 8, content)
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
signal.signal(signal.SIGUSR1, lambda *_: print("got it", flush=True))
print("filtered", flush=True)
while True:
    time.sleep(1000)
"""


class Child:
    def __init__(self, *programs: bytes) -> None:
        command = [sys.executable, "-c", FILTERED, *(one.hex() for one in programs)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        assert self.says() == b"filtered\n"
        self.started = pidfds.start_time(self.pid)

    def says(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def tracer(self) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith("TracerPid:"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for one in made:
        one.end()


async def test_the_only_filter_is_read_and_the_process_goes_on(children: list[Child]) -> None:
    children.append(child := Child(LOAD_AND_ALLOW))
    assert await read_filter(child.pid, child.started) == LOAD_AND_ALLOW
    assert child.tracer() == "0"
    assert child.state() in "SR"
    os.kill(child.pid, signal.SIGUSR1)
    assert child.says() == b"got it\n"


@pytest.mark.parametrize("programs", [(), (ALLOW, LOAD_AND_ALLOW)])
async def test_none_and_more_than_one_are_no_program(children: list[Child], programs: tuple[bytes, ...]) -> None:
    children.append(child := Child(*programs))
    assert await read_filter(child.pid, child.started) is None
    assert child.tracer() == "0"


async def test_a_signal_on_its_way_comes_through(children: list[Child]) -> None:
    children.append(child := Child(ALLOW))
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGUSR1)
    assert await read_filter(child.pid, child.started) == ALLOW
    os.kill(child.pid, signal.SIGCONT)
    assert child.says() == b"got it\n"


async def test_one_that_is_traced_is_not_read(children: list[Child]) -> None:
    children.append(child := Child(ALLOW))
    libc = ctypes.CDLL(None)
    assert libc.ptrace(ctypes.c_long(0x4206), ctypes.c_long(child.pid), None, None) == 0
    with pytest.raises(PermissionError):
        await read_filter(child.pid, child.started)


async def test_another_of_the_same_id_is_not_read(children: list[Child]) -> None:
    children.append(child := Child(ALLOW))
    with pytest.raises(ProcessLookupError):
        await read_filter(child.pid, child.started + 1)
    assert child.tracer() == "0"
    child.end()
    with pytest.raises(ProcessLookupError):
        await read_filter(child.pid, child.started)
