"""Programs are run, bounded, killed with their group and reaped; descriptors arrive where they were sent."""

import asyncio
import contextlib
import errno
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CommandFailed, DeadlineExceeded, Unsupported
from crinoid.core.api.linux import cgroups, libc
from crinoid.core.api.linux import process as process_module
from crinoid.core.api.linux.process import Process, run, run_checked, spawn, spawn_in_cgroup
from crinoid.core.api.linux.threads import call_in_fresh_thread
from support.patience import patient


def open_fds() -> dict[str, str]:
    """Return what each descriptor of this process leads to, but for sockets: other tests' clients reconnect beside it,
    and nothing here opens any."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this listing itself
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return {name: link for name, link in found.items() if not link.startswith("socket:")}


async def nothing_stays_open(before: dict[str, str]) -> None:
    """What was open before may have gone meanwhile: an earlier test's process that nobody waits for any more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patient(10)):
            while open_fds().items() - before.items():  # noqa: ASYNC110  # the threads that waited tell nobody
                await asyncio.sleep(0.01)
    assert open_fds().items() - before.items() == set()


async def test_output_and_exit_code_come_back() -> None:
    finished = await run(["sh", "-c", "cat; echo oops >&2; exit 3"], timeout_s=10, stdin=b"hello")
    assert (finished.exit_code, finished.stdout, finished.stderr) == (3, b"hello", b"oops\n")


async def test_a_signal_is_a_negative_exit_code() -> None:
    assert (await run(["sh", "-c", "kill -TERM $$"], timeout_s=10)).exit_code == -signal.SIGTERM


async def test_large_input_and_output_do_not_deadlock() -> None:
    content = os.urandom(1 << 20)
    assert (await run(["cat"], timeout_s=20, stdin=content)).stdout == content


async def test_output_beyond_the_limit_is_dropped() -> None:
    finished = await run(["head", "-c", "1000000", "/dev/zero"], timeout_s=10, max_output_bytes=1000)
    assert (finished.exit_code, len(finished.stdout)) == (0, 1000)


async def test_checked_failure_carries_the_last_words() -> None:
    with pytest.raises(CommandFailed, match="sh ended with exit code 4: no luck") as caught:
        await run_checked(["sh", "-c", "echo no luck >&2; exit 4"], timeout_s=10)
    assert caught.value.exit_code == 4


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(Unsupported, match="no-such-program-here"):
        await run(["no-such-program-here"], timeout_s=10)


async def test_the_environment_and_directory_are_the_given_ones(tmp_path: Path) -> None:
    finished = await run(["/bin/sh", "-c", "echo $A; pwd"], timeout_s=10, env={"A": "b"}, cwd=tmp_path)
    assert finished.stdout.decode().split() == ["b", str(tmp_path)]
    assert Path.cwd() != tmp_path


async def test_the_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="sh was killed"):
        await run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], timeout_s=3)
    assert time.monotonic() - started < 30
    await gone(int(pid_file.read_text()))


async def test_cancellation_kills_and_reaps(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"], timeout_s=60))
    while not (pid_file.exists() and pid_file.read_text()):  # noqa: ASYNC110  # another process writes it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{int(pid_file.read_text())}").exists()


async def test_output_of_a_process_that_outlives_the_program_is_not_waited_for(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    finished = await run(["sh", "-c", f"yes & echo $! > {pid_file}; echo done"], timeout_s=5, max_output_bytes=1 << 20)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert finished.exit_code == 0


async def test_low_descriptors_do_not_overwrite_each_other() -> None:
    """Swapping: the child's 3 is our second pipe's end, its 4 the first one's, whatever numbers those have here."""
    a, b = os.memfd_create("a"), os.memfd_create("b")
    try:
        low, high = sorted((a, b))
        script = f"echo low > /proc/self/fd/{high}; echo high > /proc/self/fd/{low}"
        finished = await run(["sh", "-c", script], timeout_s=10, fds={high: low, low: high})
        assert finished.exit_code == 0, finished.stderr
        assert (os.pread(low, 10, 0), os.pread(high, 10, 0)) == (b"low\n", b"high\n")
    finally:
        os.close(a)
        os.close(b)


async def test_no_descriptor_reaches_the_child_or_stays_with_us() -> None:
    await run(["true"], timeout_s=10)
    before = open_fds()
    secret = os.open("/dev/zero", os.O_RDONLY)
    finished = await run(["ls", "-l", "/proc/self/fd"], timeout_s=10)
    os.close(secret)
    assert b"/dev/null" in finished.stdout
    assert b"/dev/zero" not in finished.stdout
    await nothing_stays_open(before)


async def test_ignored_signals_are_not_inherited() -> None:
    finished = await run(["grep", "SigIgn", "/proc/self/status"], timeout_s=10)
    assert int(finished.stdout.split()[1], 16) == 0  # not those that Python ignores, nor the C library's own


async def test_what_the_daemon_was_told_to_ignore_is_not_inherited() -> None:
    """By nohup, for example."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        finished = await run(["grep", "SigIgn", "/proc/self/status"], timeout_s=10)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert int(finished.stdout.split()[1], 16) == 0


async def test_what_holds_a_null_byte_is_not_cut_there() -> None:
    for command, env in ((["echo", "a\0b"], None), (["echo"], {"A": "x\0y"})):
        with pytest.raises(ValueError, match="null byte"):
            await run(command, timeout_s=10, env=env)


async def test_many_may_wait_for_a_spawned_process() -> None:
    process = spawn(["sh", "-c", "exit 7"])
    assert list(await asyncio.gather(process.wait(), process.wait())) == [7, 7]
    assert await process.wait() == 7
    process.kill()  # nothing to do, no error
    process.close()
    process.close()


async def test_a_closed_process_leaves_no_zombie() -> None:
    process = spawn(["sleep", "0.1"])
    process.close()
    await gone(process.pid)


async def gone(pid: int) -> None:
    """A process that init must reap takes a moment."""
    async with asyncio.timeout(60):
        while is_alive(pid):  # noqa: ASYNC110  # no child of ours tells
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def cgroup() -> Iterator[str]:
    if os.geteuid() != 0 or not cgroups.controllers():
        pytest.skip("needs root and writable cgroups")
    path = f"/crt-{uuid.uuid4().hex[:8]}"
    yield path
    cgroups.kill(path)
    cgroups.remove(path)


async def test_a_program_is_spawned_in_a_directory_and_a_cgroup(tmp_path: Path, cgroup: str) -> None:
    """Made if need be; the daemon itself stays where it is."""
    reader, writer = os.pipe()
    with open(reader, "rb") as output:
        process = await spawn_in_cgroup(
            ["sh", "-c", "pwd; exec sleep 100"], env=dict(os.environ), fds={1: writer}, cwd=tmp_path, cgroup=cgroup
        )
        os.close(writer)
        assert output.readline() == f"{tmp_path}\n".encode()
        deadline = time.monotonic() + patient(10)
        while cgroups.processes(cgroup) != (process.pid,):  # the thread that started it has to end first
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        process.close()
    assert Path.cwd() != tmp_path
    assert cgroup not in Path("/proc/self/cgroup").read_text()


def test_a_thread_in_a_cgroup_does_not_make_its_process_one_to_be_killed(cgroup: str) -> None:
    """Version 1: ``cgroup.procs`` has a process as long as one thread of it is there, say one that starts another."""
    if cgroups.version() == 2:
        with pytest.raises(Unsupported):
            cgroups.enter(cgroup)
        return
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        cgroups.enter(cgroup)
        entered.set()
        leave.wait(60)

    cgroups.make(cgroup)
    thread = threading.Thread(target=stay)
    thread.start()
    try:
        assert entered.wait(60)
        assert any(str(os.getpid()) in Path(root + cgroup, "cgroup.procs").read_text() for root in cgroups._host().made)
        assert cgroups.processes(cgroup) == ()
        cgroups.kill(cgroup)
    finally:
        leave.set()
        thread.join()


async def test_a_cgroup_that_somebody_is_making_is_made_ready(tmp_path: Path, cgroup: str) -> None:
    """Version 1: between a cpuset's making and its first processor nobody can join it."""
    host = cgroups._host()
    for root in host.made:
        Path(root + cgroup).mkdir()
    process = await spawn_in_cgroup(["sleep", "100"], env=dict(os.environ), fds={}, cwd=tmp_path, cgroup=cgroup)
    assert process.pid in cgroups.processes(cgroup)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    process.close()


async def test_what_is_spawned_for_somebody_who_has_gone_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[Process] = []
    original = process_module._spawn_in

    def spawn_slowly(*arguments: Any, **options: Any) -> Process:
        caller.get_loop().call_soon_threadsafe(caller.cancel)
        time.sleep(0.1)
        spawned.append(original(*arguments, **options))
        return spawned[-1]

    monkeypatch.setattr(process_module, "_spawn_in", spawn_slowly)
    caller = asyncio.ensure_future(
        spawn_in_cgroup(["sleep", "100"], env=dict(os.environ), fds={}, cwd=tmp_path, cgroup="")
    )
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await spawned[0].wait() == -signal.SIGKILL


@pytest.fixture
def closed_umask() -> Iterator[None]:
    """The daemon's."""
    old = os.umask(0o077)
    yield
    os.umask(old)


@pytest.mark.usefixtures("closed_umask")
async def test_no_program_inherits_the_umask(tmp_path: Path) -> None:
    command = ["sh", "-c", "umask"]
    for cwd in (None, tmp_path):
        assert (await run(command, timeout_s=20, cwd=cwd)).stdout == b"0022\n"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    for start in (spawn, lambda command, **more: call_in_fresh_thread(lambda: spawn(command, **more))):
        process = start(command, fds={1: writer})
        assert await process.wait() == 0
        process.close()
    process = await spawn_in_cgroup(command, env=os.environ, fds={1: writer}, cwd=tmp_path, cgroup="")
    assert await process.wait() == 0
    process.close()
    os.close(writer)
    assert os.read(reader, 100) == b"0022\n" * 3
    os.close(reader)
    assert os.umask(0o077) == 0o077


@pytest.mark.usefixtures("closed_umask")
async def test_what_others_make_while_programs_start_is_closed(tmp_path: Path) -> None:
    """umask(2) is of all threads at once: a change for a moment would show here."""
    done = threading.Event()

    def make_files() -> int:
        number = 0
        while not done.is_set():
            (tmp_path / f"{number}").touch(0o666)
            number += 1
        return number

    making = asyncio.create_task(asyncio.to_thread(make_files))
    for _ in range(50):
        process = spawn(["true"])
        await process.wait()
        process.close()
    done.set()
    assert await making > 100
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


async def test_who_dies_with_the_daemon_outlives_its_start() -> None:
    """PR_SET_PDEATHSIG means the thread that started the program."""
    process = spawn(["setpriv", "--pdeathsig", "KILL", "sh", "-c", "sleep 0.3; exit 7"])
    assert await process.wait() == 7
    process.close()


async def test_who_dies_with_the_daemon_outlives_its_start_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several: the thread that started one may end before it asks to die with it."""
    await run(["true"], timeout_s=20)
    monkeypatch.chdir(tmp_path)
    before = open_fds()
    processes = [spawn(["setpriv", "--pdeathsig", "KILL", "sh", "-c", "sleep 0.3; exit 7"]) for _ in range(10)]
    assert [await process.wait() for process in processes] == [7] * 10
    for process in processes:
        process.close()
    await nothing_stays_open(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.parametrize("fresh", [True, False])
def test_a_program_is_in_the_namespaces_of_whoever_starts_it(fresh: bool) -> None:
    codes: list[int] = []

    def start() -> None:
        libc.call("unshare", 0x04000000)
        libc.call("sethostname", b"elsewhere", 9)
        process = spawn(["sh", "-c", 'test "$(uname -n)" = elsewhere'])
        codes.append(process.reap())
        process.close()

    if fresh:
        call_in_fresh_thread(start)
    else:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert codes == [0]


async def test_a_program_is_in_the_directory_of_whoever_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(["true"], timeout_s=20)
    monkeypatch.chdir(tmp_path)
    assert (await run(["pwd", "-P"], timeout_s=20)).stdout.decode() == f"{tmp_path.resolve()}\n"


async def test_programs_are_started_though_the_daemons_directory_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    monkeypatch.chdir(directory)
    directory.rmdir()
    assert (await run(["true"], timeout_s=20)).exit_code == 0


def test_a_starter_that_the_kernel_refuses_its_own_fs_once_starts_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, say; the daemon's loop waits for the answer."""
    refused, call = [OSError(errno.ENOMEM, "no memory")], libc.call

    def refuse_once(name: str, *arguments: Any, **named: Any) -> int:
        if refused and name == "unshare":
            raise refused.pop()
        return call(name, *arguments, **named)

    monkeypatch.setattr(libc, "call", refuse_once)
    starter, answers = process_module._Starter(), []

    def ask(number: int) -> None:
        try:
            answers.append(starter.start(lambda: number))
        except OSError as error:
            answers.append(error.errno or 0)

    for number in (1, 2):
        asking = threading.Thread(target=ask, args=(number,), daemon=True)
        asking.start()
        asking.join(patient(5))
    assert answers == [errno.ENOMEM, 2]
