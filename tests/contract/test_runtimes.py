"""The contract of the runtime role, applied to our own drivers with real containers; and what is theirs alone."""

import asyncio
import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.joined_execs import JoinedExecs
from crinoid.core.api.errors import (
    CommandFailed,
    ConfigurationError,
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    Unsupported,
)
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.testing.runtimes import (
    BoundRuntime,
    RuntimeContract,
    Workbench,
    build_rootfs,
    joined_text,
    minimal_process,
)
from crinoid.core.api.values.pod import ProfileType, SecurityProfile
from crinoid.core.api.values.runtime import ContainerStatus, ExecRequest
from crinoid.plugins.runtimes.any_oci import AnyOciOptions, AnyOciRuntime
from crinoid.plugins.runtimes.binaries.options import Deadlines, MonitorOptions
from crinoid.plugins.runtimes.crun import CrunOptions, CrunRuntime
from crinoid.plugins.runtimes.monitor import exit_files
from crinoid.plugins.runtimes.runc import RuncOptions, RuncRuntime
from support import cgroup_namespace
from support.daemon import cgroup_directories

needs_runc = pytest.mark.skipif(not shutil.which("runc"), reason="wants runc and conmon")
needs_crun = pytest.mark.skipif(not shutil.which("crun"), reason="wants crun and conmon")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="running containers needs root")
DEADLINES = Deadlines(exec_drain_s=1.0)
"""Ten seconds, the default, are waited for in tests/integration/test_streaming.py."""


@needs_runc
class TestRunc(JoinedExecs, RuntimeContract):
    has_checkpoints = True

    def make_binary_driver(self, host: Host) -> object:
        return RuncRuntime(RuncOptions(joined_execs=False), host)

    def make_driver(self, host: Host) -> object:
        return RuncRuntime(RuncOptions(deadlines=DEADLINES), host)


@needs_runc
class TestAnyOci(RuntimeContract):
    """runc behind the driver that knows nothing of it but that it is an OCI runtime."""

    has_checkpoints = True

    def make_driver(self, host: Host) -> object:
        return AnyOciRuntime(AnyOciOptions(binary="runc", exec_cgroup=True, deadlines=DEADLINES), host)

    async def test_an_exec_without_a_cgroup_of_its_own_is_killed_by_its_tree(
        self, bench: Workbench, host: Host
    ) -> None:
        bench.runtime = BoundRuntime(AnyOciRuntime(AnyOciOptions(binary="runc"), host))
        request = await bench.start("sleep", "1000")
        with pytest.raises(DeadlineExceeded):
            await bench.execute(request, "sh", "-c", "sleep 6007 & (sleep 6008 &); sleep 6009", timeout_s=1.0)
        await bench.until(lambda: bench.commands(request) == ["sleep 1000"], "all of the tree is gone")


@needs_crun
class TestCrun(JoinedExecs, RuntimeContract):
    __test__ = not cgroup_namespace.is_hybrid()  # else test_crun_where_cgroups_are_not_hybrid runs it
    has_checkpoints = True

    def make_binary_driver(self, host: Host) -> object:
        return CrunRuntime(CrunOptions(joined_execs=False), host)

    async def test_an_exec_has_its_own_umask(self, bench: Workbench, by_binary: BoundRuntime) -> None:
        """runc's exec (1.1) passes over it."""
        request = await bench.start("sleep", "1000")
        process = minimal_process("sh", "-c", "umask", user={"uid": 0, "gid": 0, "umask": 0o027})
        for runtime in (bench.runtime, by_binary):
            output = await runtime.exec_sync(request.handle, ExecRequest(process=process, timeout_s=60))
            assert output.stdout == b"0027\n"

    def make_driver(self, host: Host) -> object:
        return CrunRuntime(CrunOptions(deadlines=DEADLINES), host)

    async def test_a_filter_is_compiled_once(self, bench: Workbench) -> None:
        """The second container gets the program of the first; a request's own program is not taken."""
        programs = []
        for _ in range(2):
            request = bench.request("cat", "/proc/self/status", seccomp=SecurityProfile(ProfileType.RUNTIME_DEFAULT))
            own = {"run.oci.seccomp_bpf_data": "BgAAAAAA/38="}
            request = dataclasses.replace(request, spec={**request.spec, "annotations": own})
            await bench.runtime.create(request)
            spec = json.loads((request.handle.bundle / "config.json").read_text())
            programs.append(spec["annotations"].get("run.oci.seccomp_bpf_data"))
            await bench.runtime.start(request.handle)
            await bench.runtime.wait(request.handle)
            assert request.log_path is not None
            assert "Seccomp:\t2" in joined_text(request.log_path)
        assert programs[0] is None
        assert len(programs[1] or "") > 1000


@needs_crun
@needs_root
@pytest.mark.skipif(not cgroup_namespace.is_hybrid(), reason="TestCrun runs as it is")
@pytest.mark.timeout(300)
def test_crun_where_cgroups_are_not_hybrid(tmp_path: Path) -> None:
    """crun refuses cgroup v2 beside v1: its part runs where that can't be seen."""
    run_again(cgroup_namespace.prefix(), tmp_path, "TestCrun")


@needs_runc
@needs_crun
@needs_root
@pytest.mark.skipif(not cgroup_namespace.is_hybrid(), reason="the host is one of v1, or is of v2 itself")
@pytest.mark.timeout(300)
def test_where_cgroups_are_v2(tmp_path: Path) -> None:
    """What touches cgroups, but for limits: v2 has no controllers where v1 has them."""
    acts = "whole_life or timeout or deleting or everyone or background or cancelled or monitor"
    run_again(cgroup_namespace.v2_prefix(), tmp_path, f"(TestRunc or TestCrun) and ({acts})")


def run_again(prefix: tuple[str, ...], tmp_path: Path, selected: str) -> None:
    """Run part of this file in another mount namespace."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'again'}"]
    finished = subprocess.run(
        [*prefix, *command, __file__, "-k", selected], capture_output=True, text=True, timeout=280, check=False
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    assert " passed" in finished.stdout


DAEMON = """
import asyncio, json, logging, sys
from pathlib import Path
from crinoid.core.api.host import Host
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest
from crinoid.plugins.runtimes.runc import RuncOptions, RuncRuntime

directory, container_id, bundle, cgroup = sys.argv[1:]
handle = ContainerHandle(container_id, "pod", Path(bundle), cgroup)
spec = json.loads(Path(directory, "spec.json").read_text())
host = Host("broken", Path(directory, "state"), Path(directory, "run"), logging.getLogger())
runtime = RuncRuntime(RuncOptions(), host)
print("creating", flush=True)
asyncio.run(runtime.create(ContainerRequest(handle=handle, spec=spec)))
print("created", flush=True)
"""


def script(path: Path, text: str) -> Path:
    """Write a program that plays a broken runtime."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_runc
@needs_root
class TestBrokenRuntimes:
    """What a binary that is missing, broken or lies does to containers that are there, and to those asked for."""

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        for name in ("state", "run"):
            (tmp_path / name).mkdir()
        return Host("broken", tmp_path / "state", tmp_path / "run", logging.getLogger("broken"))

    @pytest.fixture
    def bench(self, host: Host, tmp_path: Path) -> Iterator[Workbench]:
        parent = f"/crinoid-broken-{uuid.uuid4().hex[:12]}"
        cgroups.make(parent)
        bench = Workbench(with_binary(host, ""), tmp_path, build_rootfs(tmp_path / "rootfs"), parent)
        yield bench
        bench.clean()

    async def test_a_missing_binary(self, bench: Workbench, host: Host) -> None:
        bench.runtime = with_binary(host, "/nowhere/runc")
        with pytest.raises(Unsupported, match=r"/nowhere/runc .*apt-get install runc"):
            await bench.runtime.probe()
        with pytest.raises(Unsupported, match="/nowhere/runc"):
            await bench.create("true")

    async def test_a_missing_monitor(self, bench: Workbench, host: Host) -> None:
        options = RuncOptions(monitor=MonitorOptions(binary="conmon-of-nowhere"))
        bench.runtime = BoundRuntime(RuncRuntime(options, host))
        with pytest.raises(Unsupported, match=r"conmon-of-nowhere .*apt-get install conmon"):
            await bench.runtime.probe()
        with pytest.raises(Unsupported, match="conmon-of-nowhere"):
            await bench.create("true")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("kill -SEGV $$", "killed"),
            ("exit 0", "reason"),
            ("exit 3", "reason"),
            ("echo rubbish; echo of a sort >&2; exit 1", "rubbish|of a sort"),
            ("head -c 30000 /dev/urandom >&2; exit 1", "."),
            ('for a in "$@"; do case $a in --pid-file) p=1;; *) [ "$p" ] && echo nonsense > $a; p=;; esac; done', "."),
        ],
    )
    async def test_a_binary_that_is_broken(
        self, bench: Workbench, host: Host, tmp_path: Path, text: str, words: str
    ) -> None:
        binary = script(tmp_path / "runc", text)
        bench.runtime = with_binary(host, str(binary))
        with pytest.raises(Unsupported):
            await bench.runtime.probe()
        request = bench.request("true")
        with pytest.raises(CrinoidError, match=words) as raised:
            await bench.runtime.create(request)
        assert str(binary) in raised.value.message
        assert raised.value.message.isprintable()
        assert list(request.handle.bundle.iterdir()) == []

    async def test_a_binary_that_hangs(self, bench: Workbench, host: Host, tmp_path: Path) -> None:
        binary = script(tmp_path / "runc", "exec sleep 8000")
        options = RuncOptions(binary=str(binary), deadlines=Deadlines(create_s=0.3, probe_s=0.3, delete_s=0.3))
        bench.runtime = BoundRuntime(RuncRuntime(options, host))
        with pytest.raises(Unsupported):
            await bench.runtime.probe()
        request = bench.request("true", monitor_cgroup=f"{bench.parent}/monitor")
        with pytest.raises(DeadlineExceeded, match="create"):
            await bench.runtime.create(request)
        assert cgroups.processes(bench.parent) == ()
        assert list(request.handle.bundle.iterdir()) == []

    async def test_a_log_that_hangs(self, bench: Workbench, host: Host, tmp_path: Path) -> None:
        """conmon waits for a FIFO's reader: a daemon has looked before, and what was put there since is given up."""
        os.mkfifo(tmp_path / "log")
        options = RuncOptions(deadlines=Deadlines(monitor_start_s=0.5))
        bench.runtime = BoundRuntime(RuncRuntime(options, host))
        request = bench.request("true", log_path=tmp_path / "log", monitor_cgroup=f"{bench.parent}/monitor")
        with pytest.raises(DeadlineExceeded, match=f"does its log {tmp_path}/log hang"):
            await bench.runtime.create(request)
        assert cgroups.processes(bench.parent) == ()
        assert list(request.handle.bundle.iterdir()) == []

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/full", path)])
    @pytest.mark.parametrize("ending", ["", ".tmp"])
    async def test_a_rotated_log_in_whose_place_is_no_file(self, bench: Workbench, make: Any, ending: str) -> None:
        """conmon opens ``.tmp`` beside the log: it would wait at a FIFO, and follow a link."""
        request = await bench.start("sleep", "1000")
        log = request.log_path
        assert log is not None
        log.rename(f"{log}.1")
        make(f"{log}{ending}")
        async with asyncio.timeout(5):
            with pytest.raises(FailedPrecondition, match=f"log {log} can't be opened anew: "):
                await bench.runtime.reopen_log(request.handle)
        made = Path(f"{log}{ending}")
        made.rmdir() if made.is_dir() else made.unlink()
        await bench.runtime.reopen_log(request.handle)
        assert log.is_file()

    async def test_exec_by_a_broken_binary(self, bench: Workbench, host: Host, tmp_path: Path) -> None:
        request = await bench.start("sleep", "1000")
        broken = script(tmp_path / "runc", "kill -SEGV $$")
        bench.runtime = with_binary(host, str(broken))
        assert (await bench.execute(request, "true")).exit_code == 0, "a plain container needs no binary for it"
        bench.runtime = with_binary(host, str(broken), joined_execs=False)
        with pytest.raises(CommandFailed, match="no process was started"):
            await bench.execute(request, "true")
        hanging = script(tmp_path / "runc", "exec sleep 8001")
        bench.runtime = with_binary(host, str(hanging), joined_execs=False)
        with pytest.raises(DeadlineExceeded):
            await bench.execute(request, "true", timeout_s=0.3)
        bench.runtime = with_binary(host, "")

    async def test_a_container_outlives_its_binary(self, bench: Workbench, host: Host) -> None:
        """Watched, signalled and removed without it."""
        request = await bench.start("sleep", "1000")
        bench.runtime = with_binary(host, "/nowhere/runc")
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING
        await bench.runtime.kill(request.handle, signal.SIGKILL)
        assert (await bench.runtime.wait(request.handle)).exit_code == 137
        await bench.runtime.delete(request.handle)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT
        assert not cgroup_directories(request.handle.cgroup)

    @pytest.mark.parametrize("damage", ["empty", "gone", "rubbish"])
    async def test_a_corrupt_state(self, bench: Workbench, host: Host, damage: str) -> None:
        request = await bench.start("sleep", "1000")
        state = host.run_dir / "state" / request.handle.container_id
        if damage == "gone":
            shutil.rmtree(state)
        else:
            (state / "state.json").write_text("" if damage == "empty" else '{"id": 5')
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING
        await bench.runtime.delete(request.handle)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT
        assert not cgroup_directories(request.handle.cgroup)

    async def test_the_drivers_notes_are_lost(self, bench: Workbench) -> None:
        """As after a kill of the daemon between conmon's report and the note."""
        request = await bench.start("sleep", "1000")
        (request.handle.bundle / "processes.json").unlink()
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING
        await bench.runtime.delete(request.handle)
        assert not cgroup_directories(request.handle.cgroup)
        assert list(request.handle.bundle.iterdir()) == []

    @pytest.mark.parametrize("after_s", [0.003, 0.03])
    async def test_the_daemon_is_killed_during_create(self, bench: Workbench, tmp_path: Path, after_s: float) -> None:
        request = bench.request("sleep", "1000")
        values = [str(tmp_path), request.handle.container_id, str(request.handle.bundle), request.handle.cgroup]
        (tmp_path / "spec.json").write_text(json.dumps(request.spec))
        daemon = subprocess.Popen([sys.executable, "-c", DAEMON, *values], stdout=subprocess.PIPE)
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"creating\n"
        await asyncio.sleep(after_s)
        daemon.kill()
        daemon.communicate()
        await asyncio.sleep(0.01)  # no daemon is back sooner
        await bench.runtime.delete(request.handle)
        await asyncio.sleep(0.1)  # whatever went on would show by now
        assert not cgroup_directories(request.handle.cgroup)
        assert list(request.handle.bundle.iterdir()) == []
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    async def test_a_monitor_that_was_stopped(self, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exit_files, "_MONITOR_GRACE_S", 0.1)
        request = bench.request("sh", "-c", "exit 9")
        process = await bench.runtime.create(request)
        os.kill(process.monitor_pid, signal.SIGSTOP)
        await bench.runtime.start(request.handle)
        assert await bench.runtime.wait(request.handle) == await bench.runtime.wait(request.handle)
        assert (await bench.runtime.wait(request.handle)).exit_code == 9
        os.kill(process.monitor_pid, signal.SIGKILL)

    async def test_reopening_where_another_file_took_the_place(self, bench: Workbench) -> None:
        request = await bench.shell("echo one; sleep 1000")
        log = request.log_path
        assert log is not None
        await bench.until(lambda: joined_text(log) == "one\n", "the first line is there")
        log.rename(log.with_suffix(".old"))
        log.write_text("precious")
        with pytest.raises(FailedPrecondition, match="another file"):
            await bench.runtime.reopen_log(request.handle)
        assert log.read_text() == "precious"

    async def test_reopening_where_the_directory_is_gone(self, bench: Workbench) -> None:
        """conmon would end if it were told."""
        directory = bench.directory / "logs"
        directory.mkdir()
        request = await bench.shell("echo one; sleep 1000", log_path=directory / "log")
        directory.rename(bench.directory / "elsewhere")
        with pytest.raises(FailedPrecondition, match="directory"):
            await bench.runtime.reopen_log(request.handle)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING

    async def test_what_a_slot_adds_to_the_spec(self, bench: Workbench, host: Host, tmp_path: Path) -> None:
        profile = tmp_path / "site.json"
        profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
        options = RuncOptions(annotations={"org.example/site": "x"}, seccomp_profile=profile)
        bench.runtime = BoundRuntime(RuncRuntime(options, host))
        default = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
        request = bench.request("true", seccomp=default)
        own = {"own": "1", "org.systemd.property.User": "'root'", "org.criu.config": "/evil"}
        request = dataclasses.replace(request, spec={**request.spec, "annotations": own})
        await bench.runtime.create(request)
        spec = json.loads((request.handle.bundle / "config.json").read_text())
        assert spec["annotations"] == {"org.example/site": "x", "own": "1"}, "a request commands no runtime"
        assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
        assert (request.handle.bundle / "config.json").stat().st_mode & 0o777 == 0o600

    async def test_a_sites_bad_profile_stops_the_start(self, host: Host, tmp_path: Path) -> None:
        options = RuncOptions(seccomp_profile=tmp_path / "nowhere.json")
        with pytest.raises(ConfigurationError, match=r"nowhere\.json"):
            await BoundRuntime(RuncRuntime(options, host)).probe()

    async def test_the_environment_of_the_daemon_stays_out(
        self, bench: Workbench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """runc would take NOTIFY_SOCKET into the container."""
        monkeypatch.setenv("NOTIFY_SOCKET", str(bench.directory / "notify"))
        request = bench.request("sleep", "1000")
        process = await bench.runtime.create(request)
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{process.monitor_pid}/environ").read_bytes()


@needs_crun
@needs_root
@pytest.mark.skipif(not cgroup_namespace.is_hybrid(), reason="wants a hybrid host")
async def test_crun_says_why_it_can_not_work_here(tmp_path: Path) -> None:
    host = Host("crun", tmp_path, tmp_path, logging.getLogger("crun"))
    with pytest.raises(Unsupported, match=r"hybrid.*systemd\.unified_cgroup_hierarchy=1"):
        await BoundRuntime(CrunRuntime(CrunOptions(), host)).probe()


def with_binary(host: Host, binary: str, *, joined_execs: bool = True) -> BoundRuntime:
    return BoundRuntime(RuncRuntime(RuncOptions(binary=binary, joined_execs=joined_execs), host))
