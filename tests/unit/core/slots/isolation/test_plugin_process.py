"""A driver's process where something is wrong with its start; how it runs and ends is in tests/integration."""

import asyncio
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.api.linux import cgroups
from crinoid.core.api.testing.fakes import fake_host
from crinoid.core.config.models import IsolationConfig
from crinoid.core.slots.drivers import UnusableDriverError
from crinoid.core.slots.isolation import plugin_process
from crinoid.core.slots.isolation.handshake import Made
from crinoid.core.slots.isolation.plugin_process import LoadedProcess, PluginProcess, Wanted
from crinoid.core.slots.roles import ROLES
from support.patience import patient

PLAIN = (sys.executable, str(Path(__file__).parents[4] / "support/plain_driver.py"))


def wanted(*program: str, memory_bytes: int = 0) -> Wanted:
    isolation = IsolationConfig(program=program or PLAIN, memory_bytes=memory_bytes)
    return Wanted(ROLES["network"], "default", "plain", {}, isolation)


def is_there(pid: int) -> bool:
    """Whether a process is there, if only as a zombie."""
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[PluginProcess]:
    loaded = LoadedProcess(wanted())
    proxy = loaded.make({}, fake_host(tmp_path, "default"))
    assert isinstance(proxy.process, PluginProcess)
    yield proxy.process
    proxy.process.end_now()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(patient(30)):
        while not holds():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.02)


async def until_restarted(process: PluginProcess) -> None:
    await until(lambda: process.restarts > 0 and not process.problem)


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("no new thread")])
async def test_any_fault_of_a_start_is_followed_by_another_one(
    process: PluginProcess, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, faults = process._start, [fault]

    def start_at_last() -> Made:
        if faults:
            raise faults.pop()
        return start()

    monkeypatch.setattr(process, "_start", start_at_last)
    await process.call_hook("status", {})
    os.kill(process.pid, signal.SIGKILL)
    await until_restarted(process)
    assert not faults
    assert await process.call_hook("status", {})


async def test_a_want_of_threads_is_followed_by_another_start(
    process: PluginProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to be had for the end of the former process, for a start, and for the end of what that left."""
    to_thread, refused = asyncio.to_thread, [True, False, True, True, False]

    async def refuse(function: Any, *arguments: Any) -> Any:
        if refused and refused.pop(0):
            raise ResourceExhausted("no thread can be started: can't start new thread")
        return await to_thread(function, *arguments)

    await process.call_hook("status", {})
    monkeypatch.setattr(asyncio, "to_thread", refuse)
    os.kill(process.pid, signal.SIGKILL)
    await until_restarted(process)
    assert not refused
    assert await process.call_hook("status", {})


async def test_a_driver_that_says_nonsense_at_its_second_start_is_started_again(
    process: PluginProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, pids = process._start, []

    def start_and_distort() -> Made:
        made = start()
        assert process._child is not None
        pids.append(process._child.process.pid)
        return made if len(pids) > 1 else Made(made.hooks, {"no such hook": 1})

    monkeypatch.setattr(process, "_start", start_and_distort)
    await process.call_hook("status", {})
    os.kill(process.pid, signal.SIGKILL)
    await until_restarted(process)
    assert not is_there(pids[0])
    assert process.pid == pids[1]


def test_a_process_that_was_only_loaded_ends_when_another_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a memory limit: the daemon has what was loaded at its start for as long as it runs."""
    monkeypatch.setattr(PluginProcess, "start", lambda self, loaded: (self, loaded))
    loaded = LoadedProcess(wanted(memory_bytes=1 << 30))
    assert loaded._child is not None
    pid = loaded._child.process.pid
    assert is_there(pid)
    made: Any = loaded.make({}, fake_host(tmp_path, "default"))
    assert made[1] is None
    assert not is_there(pid)


def test_two_processes_of_a_slot_have_two_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a reload, where the former one's end kills all in its cgroup."""
    seen: list[str] = []

    def note(_wanted: Wanted, cgroup: str) -> Any:
        seen.append(cgroup)
        raise UnusableDriverError("noted")

    monkeypatch.setattr(plugin_process, "_Child", note)
    for _ in range(2):
        with pytest.raises(UnusableDriverError):
            PluginProcess(wanted(memory_bytes=1 << 30), fake_host(tmp_path, "default"))._start()
    assert len(set(seen)) == 2
    assert all(cgroup.startswith("/crinoid-plugins/") and cgroup.endswith(f".{os.getpid()}") for cgroup in seen)


def test_nothing_runs_on_without_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def join(_cgroup: str, pid: int) -> None:
        pids.append(pid)
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(plugin_process, "_make_cgroup", lambda _path, _bytes: None)
    monkeypatch.setattr(cgroups, "join", join)
    monkeypatch.setattr(cgroups, "remove_marked", lambda _path: True)
    with pytest.raises(UnusableDriverError, match=r"can't be started: .*Permission denied"):
        plugin_process._spawn(wanted("sleep", "1000", memory_bytes=1 << 30), {}, "/crinoid-plugins/x")
    assert len(pids) == 1
    assert not is_there(pids[0])


def test_a_driver_that_says_nonsense_at_the_first_start_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedProcess(wanted())
    assert loaded._child is not None
    pid = loaded._child.process.pid
    make = PluginProcess._make
    monkeypatch.setattr(PluginProcess, "_make", lambda self, child: Made(make(self, child).hooks, {"no such hook": 1}))
    with pytest.raises(Exception, match="no such hook"):
        loaded.make({}, fake_host(tmp_path, "default"))
    assert not is_there(pid)


def test_what_a_driver_logs_is_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """In length, in bytes a second, and in names, each of which would be a logger for ever."""
    loaded = LoadedProcess(wanted())
    child = loaded._child
    assert child is not None
    now_s = time.monotonic()
    monkeypatch.setattr(plugin_process, "time", SimpleNamespace(monotonic=lambda: now_s))
    loggers = len(logging.root.manager.loggerDict)
    with caplog.at_level(logging.DEBUG):
        child.log("long", 10**30, "x" * 100_000)
        assert (caplog.records[-1].levelno, len(caplog.records[-1].getMessage())) == (50, (16 << 10) + 7)
        for number in range(50_000):
            child.log(f"{number}." * 100, logging.INFO, "flood")
        kept = len(caplog.records)
        assert kept < 10_100
        now_s += 3600
        child.log("after", logging.INFO, "the flood")
        told, last = caplog.records[-2:]
        assert told.getMessage() == f"{50_000 - kept + 1} messages of its driver were dropped: they came too fast"
        assert last.name == "crinoid.plugins.network.default.after"
        caplog.clear()
        for _ in range(100_000):
            now_s += 0.0001
            child.log("flood", logging.INFO, "flood")
        told_of = [record for record in caplog.records if "were dropped" in record.getMessage()]
        assert 0 < len(told_of) <= 10
    assert len(logging.root.manager.loggerDict) == loggers
    for number in range(5000):
        child.note_unremoved(f"{number}", "x" * 5000)
    assert len(child.unremoved) == 1000
    assert max(map(len, child.unremoved.values())) == 1000
    loaded.end()


@contextmanager
def started(directory: Path, case: str, hooks: str = "", **isolation: Any) -> Iterator[PluginProcess]:
    """The process of a plain driver with another case in its answers; ``fail`` answers with no error of ours."""
    text = Path(PLAIN[1]).read_text().replace('"ping" | "detach"', '"detach"').replace('"status"]', f'"status"{hooks}]')
    text = text.replace("    match method:\n", f"    match method:\n{indent(dedent(case), ' ' * 8)}")
    program = directory / "odd_driver.py"
    program.write_text(f"{_ODD}\n{text}")
    chosen = IsolationConfig(program=(sys.executable, str(program)), **isolation)
    proxy = LoadedProcess(Wanted(ROLES["network"], "default", "plain", {}, chosen)).make(
        {}, fake_host(directory, "default")
    )
    assert isinstance(proxy.process, PluginProcess)
    try:
        yield proxy.process
    finally:
        proxy.process.end_now()


_ODD = """
import time
from pathlib import Path

PLACE = Path(__file__).parent


def fail(reason):
    send({"answer": message["call"], "error": {"reason": reason, "message": "it says"}})  # that it returns comes late
"""


@pytest.mark.parametrize("reason", ["Cancelled", "BrokenPipe"])
async def test_a_driver_that_fails_a_ping_is_watched_on(tmp_path: Path, reason: str) -> None:
    """Those are no errors of ours, and must end nothing of the daemon's that waits for the answer."""
    case = f"""
        case "ping" if (PLACE / "hold").exists():
            (PLACE / "hold").unlink()
            time.sleep(1000)
        case "ping":
            (PLACE / "pinged").touch()
            return fail({reason!r})
    """
    with started(tmp_path, case, unresponsive_s=0.5) as process:
        await process.call_hook("status", {})
        await until((tmp_path / "pinged").exists)
        (tmp_path / "hold").touch()
        await until(lambda: not (tmp_path / "hold").exists())
        restarts = process.restarts
        await until(lambda: process.restarts > restarts)


@pytest.mark.parametrize("reason", ["Cancelled", "BrokenPipe"])
async def test_a_driver_that_fails_what_it_is_told_again_is_up(tmp_path: Path, reason: str) -> None:
    """As one whose own connection has broken: it was never called again."""
    case = f"""
        case "ping":
            return None
        case "set_pod_cidrs" if (PLACE / "told").exists():
            return fail({reason!r})
        case "set_pod_cidrs":
            return (PLACE / "told").touch()
    """
    with started(tmp_path, case, ', "set_pod_cidrs"') as process:
        await process.call_hook("set_pod_cidrs", {"cidrs": ()})
        os.kill(process.pid, signal.SIGKILL)
        await until_restarted(process)
        assert await process.call_hook("status", {})


@pytest.mark.parametrize("reason", ["Cancelled", "BrokenPipe"])
def test_a_driver_that_fails_to_load_with_no_error_is_told_with_its_slot(tmp_path: Path, reason: str) -> None:
    """A cancellation would end the start without a word."""
    with (
        pytest.raises(UnusableDriverError, match='network "default": load: '),
        started(tmp_path, f'case "load":\n    return fail({reason!r})\n'),
    ):
        pass
