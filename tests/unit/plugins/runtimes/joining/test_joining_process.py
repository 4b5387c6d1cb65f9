"""The process that forks exec processes, without a container: what it starts, and how it ends."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.linux import capabilities
from crinoid.plugins.runtimes.joining import child
from crinoid.plugins.runtimes.joining.joining_process import Joining, JoiningProcess
from crinoid.plugins.runtimes.processes.pidfds import children
from support.patience import patient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a process that gives up privileges has to have them")


def request(*args: str, **changes: Any) -> dict[str, object]:
    """What runs a program as the host's root, in no other cgroup or namespace."""
    own = sum(1 << capabilities.NAMES.index(name) for name in capabilities.effective())
    described: dict[str, object] = {
        "args": [os.fsencode(one) for one in args],
        "env": [b"PATH=/usr/bin:/bin", b"HOME=/"],
        "path": b"/usr/bin:/bin",
        "cwd": "/",
        "uid": 0,
        "gid": 0,
        "groups": [],
        "umask": 0o022,
        "capabilities": {"bounding": own, "effective": own, "permitted": own, "inheritable": 0, "ambient": 0},
        "rlimits": [],
        "oom_score_adj": None,
        "no_new_privileges": False,
        "seccomp": None,
        "keyring": b"test",
        "cgroups": [],
        "namespaces": 0,
        "joins_pids": False,
    }
    return described | changes


class Started:
    """A process on its way, and what it says."""

    def __init__(self, joining: Joining, output: int, failure: int) -> None:
        self.joining = joining
        self._output = output
        self._failure = failure

    async def output(self) -> bytes:
        """All that it writes."""
        return await asyncio.to_thread(_read_all, self._output)

    async def failure(self) -> bytes:
        """Why it could not be executed; nothing where it was."""
        return await asyncio.to_thread(_read_all, self._failure)


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


@pytest.fixture
async def process() -> AsyncIterator[JoiningProcess]:
    made = JoiningProcess()
    yield made
    made.close()


@pytest.fixture
def pidfd() -> Iterator[int]:
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


def start(process: JoiningProcess, pidfd: int, described: dict[str, object], timeout_s: float = 30.0) -> Started:
    output, failure = os.pipe(), os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        joining = process.start(described, timeout_s, (null, output[1], output[1], pidfd, failure[1]))
    finally:
        for fd in (null, output[1], failure[1]):
            os.close(fd)
    return Started(joining, output[0], failure[0])


def helpers() -> list[int]:
    """The processes that fork for this one."""
    found = []
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"joining.helper" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def ended(pid: int) -> None:
    """Wait until a process has gone, or is a zombie."""
    async with asyncio.timeout(patient(20.0)):
        while _is_there(pid):  # noqa: ASYNC110  # it is not ours to wait for
            await asyncio.sleep(0.02)


def _is_there(pid: int) -> bool:
    return _state(pid) not in "ZX"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


async def test_one_process_forks_many(process: JoiningProcess, pidfd: int) -> None:
    before = helpers()
    made = [start(process, pidfd, request("sh", "-c", f"echo {number}; exit {number}")) for number in range(20)]
    for number, one in enumerate(made):
        assert await one.joining.started > 0
        assert await one.output() == b"%d\n" % number
        assert await one.failure() == b""
        assert os.waitstatus_to_exitcode(await one.joining.ended) == number
    assert len(helpers()) == len(before) + 1


async def test_nothing_but_its_streams_is_open(process: JoiningProcess, pidfd: int) -> None:
    made = start(process, pidfd, request("sh", "-c", "echo /proc/$$/fd/*"))
    names = [Path(one).name for one in (await made.output()).decode().split()]
    assert names == ["0", "1", "2", "3"]  # the last is the directory that the shell reads for this


async def test_signals_are_as_the_kernel_has_them_at_first(process: JoiningProcess, pidfd: int) -> None:
    made = start(process, pidfd, request("cat", "/proc/self/status"))
    lines = dict(line.split(":\t") for line in (await made.output()).decode().splitlines() if line.startswith("Sig"))
    assert {lines[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}


async def test_what_it_fails_with_is_told(process: JoiningProcess, pidfd: int) -> None:
    cases: list[tuple[dict[str, object], bytes, bytes]] = [
        (request("nothing-here"), child.REFUSED, b"executable file not found in $PATH"),
        (request("true", cwd="/nowhere"), child.REFUSED, b"no such file or directory"),
        (request("true", cgroups=["/nowhere/cgroup.procs"]), child.CANT_JOIN, b"/nowhere/cgroup.procs"),
        (request("true", rlimits=[(99, 1, 1)]), child.CANT_JOIN, b"setrlimit"),
        ({"args": []}, child.CANT_JOIN, b"KeyError"),
    ]
    for described, whose, words in cases:
        made = start(process, pidfd, {"joins_pids": False, **described})
        told, _, said = (await made.failure()).partition(b"\0")
        assert (told, words in said) == (whose, True), said
        assert os.waitstatus_to_exitcode(await made.joining.ended) == 255


async def test_a_request_that_makes_no_sense_ends_nothing_else(process: JoiningProcess, pidfd: int) -> None:
    made = start(process, pidfd, request("sleep", "1000"))
    assert await made.joining.started > 0
    senseless = start(process, pidfd, {})
    assert (await senseless.failure()).startswith(child.CANT_JOIN + b"\0")
    assert (await senseless.joining.started, await senseless.joining.ended) == (0, 0)
    made.joining.kill()
    assert os.waitstatus_to_exitcode(await made.joining.ended) == -signal.SIGKILL


async def test_one_that_was_stopped_can_be_killed(process: JoiningProcess, pidfd: int) -> None:
    made = start(process, pidfd, request("sh", "-c", "echo $$; kill -STOP $$; echo went on"))
    other = start(process, pidfd, request("sh", "-c", "kill -STOP $$"))
    pid = await made.joining.started
    async with asyncio.timeout(patient(20.0)):
        while _state(pid) != "T":  # noqa: ASYNC110  # it is not ours to wait for
            await asyncio.sleep(0.02)
        made.joining.kill()
        assert os.waitstatus_to_exitcode(await made.joining.ended) == -signal.SIGKILL
    assert await made.output() == b"%d\n" % pid
    assert not other.joining.ended.done()
    made.joining.kill()  # its id may be another's by now
    other.joining.kill()
    assert os.waitstatus_to_exitcode(await other.joining.ended) == -signal.SIGKILL


_TRACED = """
import ctypes, os, time
reader, writer = os.pipe()
if os.fork() == 0:
    ctypes.CDLL(None).ptrace(0x4206, os.getppid(), None, None)  # PTRACE_SEIZE
    os.write(1, b"%d" % os.getpid())
    os.write(writer, b"0")
    os.closerange(0, 9)
    time.sleep(1000)
os.read(reader, 1)
os._exit(3)
"""


async def test_one_whose_tracer_does_not_let_go_holds_up_no_other(process: JoiningProcess, pidfd: int) -> None:
    """A container's process may trace another one, and a zombie is the tracer's to reap first."""
    traced = start(process, pidfd, request(sys.executable, "-c", _TRACED))
    pid = await traced.joining.started
    tracer = int(await traced.output())
    try:
        await ended(pid)
        async with asyncio.timeout(patient(20.0)):
            for _ in range(3):
                assert await start(process, pidfd, request("true")).joining.ended == 0
        assert not traced.joining.ended.done()
    finally:
        os.kill(tracer, signal.SIGKILL)
    async with asyncio.timeout(patient(20.0)):
        assert os.waitstatus_to_exitcode(await traced.joining.ended) == 3


async def test_a_working_directory_may_be_open_to_root_alone(
    process: JoiningProcess, pidfd: int, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    none = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), 0)
    described = request("readlink", "/proc/self/cwd", cwd=str(tmp_path), uid=1000, gid=1000, capabilities=none)
    made = start(process, pidfd, described)
    assert await made.failure() == b""
    assert (await made.output()).decode().strip() == str(tmp_path)


async def test_a_killed_helper_is_told_and_another_one_started(process: JoiningProcess, pidfd: int) -> None:
    before = set(helpers())
    made = start(process, pidfd, request("sleep", "1000"))
    pid = await made.joining.started
    (first,) = set(helpers()) - before
    try:
        os.kill(first, signal.SIGKILL)
        with pytest.raises(DriverError, match="has ended"):
            await made.joining.ended
        again = start(process, pidfd, request("true"))
        assert os.waitstatus_to_exitcode(await again.joining.ended) == 0
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_it_ends_with_its_socket(process: JoiningProcess, pidfd: int) -> None:
    before = set(helpers())
    assert await start(process, pidfd, request("true")).joining.ended == 0
    (helper,) = set(helpers()) - before
    process.close()
    await ended(helper)


async def test_without_a_daemon_a_process_ends_by_its_timeout(process: JoiningProcess, pidfd: int) -> None:
    before = set(helpers())
    short = start(process, pidfd, request("sleep", "6010"), timeout_s=0.1)
    long = start(process, pidfd, request("sleep", "6011"), timeout_s=3600)
    pids = await short.joining.started, await long.joining.started
    (helper,) = set(helpers()) - before
    process.close()
    try:
        await ended(pids[0])
        assert _is_there(pids[1])
        assert _is_there(helper)
    finally:
        os.kill(pids[1], signal.SIGKILL)
    await ended(helper)


async def test_a_daemon_that_did_not_read_all_ends_nothing_but_itself(process: JoiningProcess, pidfd: int) -> None:
    """The kernel tells of such an end by ECONNRESET."""
    before = set(helpers())
    start(process, pidfd, request("sleep", "6012"), timeout_s=0.1)
    helper, pid = _new_helper_and_its_child(before)
    process.close()
    await ended(pid)
    await ended(helper)


def _new_helper_and_its_child(before: set[int]) -> tuple[int, int]:
    """Wait for them without giving the loop its turn."""
    until = time.monotonic() + patient(20.0)
    while time.monotonic() < until:
        time.sleep(0.1)  # after it was forked, it is told of
        for helper in set(helpers()) - before:
            for pid in children(helper):
                return helper, pid
    raise AssertionError("nothing was forked")
