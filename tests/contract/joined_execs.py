"""An exec without the runtime's binary, held to what the binary makes of the same request, attribute by attribute."""

import asyncio
import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, ResourceExhausted
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.testing.runtimes import BoundRuntime, Workbench, minimal_process
from crinoid.core.api.values.pod import ProfileType, SecurityProfile
from crinoid.core.api.values.runtime import ContainerRequest, ExecOutput, ExecRequest
from crinoid.plugins.runtimes.joining.joining_process import JoiningProcess
from crinoid.plugins.runtimes.processes import pidfds
from crinoid.plugins.runtimes.processes.installed_filter import read_filter
from crinoid.plugins.runtimes.processes.pidfds import children
from support.filters import verdict

RUNTIME_DEFAULT = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
CAPABILITIES = ["CAP_CHOWN", "CAP_SETUID", "CAP_NET_RAW"]
KINDS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_HOST_ID = 300000

# What a process can tell of itself. The shell is the process executed, so /proc/$$ is its own.
TELLS = """
b=/bin/busybox
cat /proc/$$/status /proc/$$/limits /proc/$$/cgroup /proc/$$/oom_score_adj /proc/$$/timerslack_ns /proc/$$/mountinfo
cat /proc/$$/coredump_filter /proc/$$/loginuid /proc/$$/sessionid /proc/$$/attr/current
for one in cgroup ipc mnt net pid pid_for_children user uts time; do $b readlink /proc/$$/ns/$one; done
$b cut -d ' ' -f 7,8,18,19,40,41 /proc/$$/stat
$b readlink /proc/$$/cwd /proc/$$/root; $b readlink /proc/$$/exe
for fd in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && $b stat -L -c "$fd %F %a %u" /proc/$$/fd/$fd; done
umask; pwd; $b env | $b sort; id
"""
_ITS_OWN = re.compile(
    r"^(\w*Pid|NS\w+|Tgid|State|Vm\w+|Rss\w+|Hugetlb\w*|voluntary_\w+|nonvoluntary_\w+|Threads|SigQ|FDSize|"
    r"Cpus_allowed\w*|Mems_allowed\w*|untag_mask|x86_\w+|CoreDumping|THP_enabled):.*$",
    re.MULTILINE,
)
_NUMBERS = re.compile(rb"\d+")
_EXEC_CGROUP = re.compile(r"(?<!:)/exec-[0-9a-f]{16}$|(?<=:/)exec-[0-9a-f]{16}$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """A container, and what is executed in it."""

    process: dict[str, Any] = field(default_factory=dict)
    seccomp: SecurityProfile | None = None
    linux: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    owner: int = 0


CASES = {
    "plain": Case(),
    "privileged ways": Case({"noNewPrivileges": False, "capabilities": {"bounding": CAPABILITIES}}),
    "another user": Case(
        {
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [7, 8]},
            "cwd": "/tmp",  # the container's
            "env": ["PATH=/nowhere:/bin", "HOME=/home", "A=b=c", "A=last", "EMPTY="],
        }
    ),
    "another user with capabilities": Case(
        {
            "noNewPrivileges": False,
            "user": {"uid": 1000, "gid": 1000},
            "capabilities": {kind: ["CAP_NET_BIND_SERVICE"] for kind in KINDS},
        }
    ),
    "limits": Case(
        {
            # Its soft limit of open files, where it is another than the hard one, runc (1.1) overrules by that.
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200},
                {"type": "RLIMIT_FSIZE", "soft": 1 << 20, "hard": 1 << 30},
            ],
            "oomScoreAdj": 500,
        }
    ),
    "filtered": Case({}, RUNTIME_DEFAULT),
    "filtered with new privileges": Case({"noNewPrivileges": False}, RUNTIME_DEFAULT),
    "filtered, another user": Case({"user": {"uid": 5, "gid": 6}, "noNewPrivileges": False}, RUNTIME_DEFAULT),
    "host namespaces": Case(without=("pid", "network", "ipc", "uts")),
    "cgroup namespace": Case(linux={"namespaces": ("cgroup",)}),
    "user namespace": Case(linux={"namespaces": ("user",)}, owner=_HOST_ID),
    "user namespace, another user": Case(
        {"user": {"uid": 1000, "gid": 1000}}, linux={"namespaces": ("user", "cgroup")}, owner=_HOST_ID
    ),
}

_ALLOWED = {"defaultAction": "SCMP_ACT_ALLOW"}
_REFUSED = {"names": ["mkdir", "acct"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}
_ARGUMENT = {"index": 0, "value": 0x20000, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}
FILTERS: dict[str, dict[str, Any]] = {
    "default": {},
    "of a few rules": {**_ALLOWED, "syscalls": [_REFUSED, {**_REFUSED, "names": ["clone"], "args": [_ARGUMENT]}]},
    "that kills": {**_ALLOWED, "syscalls": [{"names": _REFUSED["names"], "action": "SCMP_ACT_KILL_PROCESS"}]},
}


async def filter_of(bench: Workbench, request: ContainerRequest, command: str) -> bytes:
    """The program of the filter of one process in a container."""
    await bench.until(lambda: command in bench.commands(request), f"{command} runs")
    for pid in cgroups.processes(request.handle.cgroup):
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1] == command.encode().split():
            program = await read_filter(pid, pidfds.start_time(pid))
            assert program is not None
            return program
    raise AssertionError(f"{command} does not run")


def calls() -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """System calls of x86-64, of its x32 way, of x86 and of another processor, known and not, with some arguments."""
    for architecture in (0xC000003E, 0x40000003, 0xC00000B7):
        for number in (*range(-1, 800), *range(0x40000000, 0x40000800)):
            yield architecture, number, (0,) * 6
        for number in (41, 56, 120, 135, 359, 0x40000038):  # what filters look at the arguments of
            for value in (0, 1, 2, 8, 0x20000, 0x20008, 40, 0x7E020000, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1):
                yield architecture, number, (value, value, 0, 0, 0, 0)


def described(bench: Workbench, case: Case) -> ContainerRequest:
    """The container of a case."""
    request = bench.request(
        "sleep", "1000", seccomp=case.seccomp, process=minimal_process("sleep", "1000", **case.process)
    )
    linux = dict(request.spec["linux"])
    kinds = [one["type"] for one in linux["namespaces"] if one["type"] not in case.without]
    linux["namespaces"] = [{"type": kind} for kind in (*kinds, *case.linux.get("namespaces", ()))]
    if case.owner:
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": case.owner, "size": 65536}]
        for path in (bench.rootfs, *bench.rootfs.rglob("*")):
            os.lchown(path, case.owner, case.owner)
        for above in bench.rootfs.parents:
            if above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
    return dataclasses.replace(request, spec={**request.spec, "linux": linux})


def told(output: ExecOutput) -> str:
    """What a process told of itself, without what is each process's own."""
    assert output.exit_code == 0, output.stderr.decode()
    return _EXEC_CGROUP.sub("", _ITS_OWN.sub("", output.stdout.decode()))


class Starts:
    """A count, in a file for all processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def note(self) -> None:
        """Count one."""
        with self._path.open("ab") as file:
            file.write(b".")

    def __len__(self) -> int:
        return self._path.stat().st_size


class JoinedExecs:
    """Tests for a driver whose execs can be joined."""

    def make_binary_driver(self, host: Host) -> object:
        """The same driver, that has the binary run every exec."""
        raise NotImplementedError

    @pytest.fixture
    def by_binary(self, host: Host) -> BoundRuntime:
        """It runs what is executed in the same containers."""
        return BoundRuntime(self.make_binary_driver(host))

    @pytest.fixture(autouse=True)
    def starts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Starts:
        """Each start of an exec without the binary, from before there is a driver on: it may be made in a child."""
        seen = Starts(tmp_path / "starts")
        start: Callable[..., Any] = JoiningProcess.start

        def noted(self: JoiningProcess, *args: Any) -> Any:
            seen.note()
            return start(self, *args)

        monkeypatch.setattr(JoiningProcess, "start", noted)
        return seen

    @pytest.mark.parametrize("name", CASES)
    async def test_an_exec_is_the_same_without_the_binary(
        self, bench: Workbench, by_binary: BoundRuntime, starts: Starts, name: str
    ) -> None:
        case = CASES[name]
        request = described(bench, case)
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        process = minimal_process("sh", "-c", TELLS, **case.process)
        joined = await bench.runtime.exec_sync(request.handle, ExecRequest(process=process, timeout_s=60))
        assert starts
        binary = await by_binary.exec_sync(request.handle, ExecRequest(process=process, timeout_s=60))
        differences = list(difflib.unified_diff(told(binary).splitlines(), told(joined).splitlines(), n=0))
        assert not differences, differences
        assert _NUMBERS.sub(b"N", joined.stderr) == _NUMBERS.sub(b"N", binary.stderr)

    @pytest.mark.parametrize("has_new_privileges", [True, False])
    @pytest.mark.parametrize("name", FILTERS)
    async def test_its_filter_is_the_one_that_the_binary_loads(
        self, bench: Workbench, by_binary: BoundRuntime, starts: list[object], name: str, has_new_privileges: bool
    ) -> None:
        if name == "default":
            profile = RUNTIME_DEFAULT
        else:
            (bench.directory / "profile.json").write_text(json.dumps(FILTERS[name]))
            profile = SecurityProfile(ProfileType.LOCALHOST, str(bench.directory / "profile.json"))
        may = {"noNewPrivileges": not has_new_privileges}
        request = await bench.start("sleep", "1000", seccomp=profile, process=minimal_process("sleep", "1000", **may))
        filters = []
        for runtime, length in ((bench.runtime, "6001"), (by_binary, "6002")):
            executed = ExecRequest(process=minimal_process("sleep", length, **may), timeout_s=60)
            running = asyncio.create_task(runtime.exec_sync(request.handle, executed))
            filters.append(await filter_of(bench, request, f"sleep {length}"))
            running.cancel()
            await asyncio.wait({running})
        assert filters[0] == await filter_of(bench, request, "sleep 1000")
        assert len(filters[0]) == len(filters[1])
        for call in calls():  # runc puts the architectures into another order each time
            assert verdict(filters[0], *call) == verdict(filters[1], *call), call
        assert bool(starts) == (name != "that kills" or not has_new_privileges)

    @pytest.mark.parametrize(
        ("args", "changes"),
        [
            (["nothing-of-this-name"], {}),
            (["/nothing/there"], {}),
            (["/etc"], {}),
            (["/etc/passwd"], {}),
            (["true"], {"cwd": "/nowhere"}),
            (["true"], {"cwd": "/etc/passwd"}),
        ],
    )
    async def test_what_cant_be_executed_is_refused_alike(
        self, bench: Workbench, by_binary: BoundRuntime, starts: Starts, args: list[str], changes: dict[str, str]
    ) -> None:
        (bench.rootfs / "bin/no-format").write_bytes(b"\0\1\2\3")
        (bench.rootfs / "bin/no-format").chmod(0o755)
        request = await bench.start("sleep", "1000")
        errors = []
        for runtime in (bench.runtime, by_binary):
            with pytest.raises(CrinoidError) as caught:
                await runtime.exec_sync(
                    request.handle, ExecRequest(process=minimal_process(*args, **changes), timeout_s=60)
                )
            errors.append(caught.value)
        assert len(starts) == 1
        assert type(errors[0]) is type(errors[1]), errors
        assert bench.commands(request) == ["sleep 1000"]

    async def test_what_has_no_format_ends_with_1(
        self, bench: Workbench, by_binary: BoundRuntime, starts: Starts
    ) -> None:
        (bench.rootfs / "bin/no-format").write_bytes(b"\0\1\2\3")
        (bench.rootfs / "bin/no-format").chmod(0o755)
        request = await bench.start("sleep", "1000")
        for runtime in (bench.runtime, by_binary):
            process = minimal_process("/bin/no-format")
            output = await runtime.exec_sync(request.handle, ExecRequest(process=process, timeout_s=60))
            assert (output.exit_code, output.stdout) == (1, b"")
            assert b"exec format error" in output.stderr.lower()
        assert len(starts) == 1

    @pytest.mark.parametrize("may_trace", [False, True])
    async def test_no_container_of_the_pod_can_look_into_a_child_before_it_is_inside(
        self, bench: Workbench, starts: list[object], may_trace: bool
    ) -> None:
        """A child is in the PID namespace first, and in the host's mounts still; a debug container may share it."""
        request = await bench.start("sleep", "1000")
        (pid,) = cgroups.processes(request.handle.cgroup)
        capabilities = {"bounding": ["CAP_SYS_PTRACE"] if may_trace else []}
        beside = bench.request("sleep", "2000", process=minimal_process("sleep", "2000", capabilities=capabilities))
        linux = dict(beside.spec["linux"])
        others = [one for one in linux["namespaces"] if one["type"] != "pid"]
        linux["namespaces"] = [*others, {"type": "pid", "path": f"/proc/{pid}/ns/pid"}]
        beside = dataclasses.replace(beside, spec={**beside.spec, "linux": linux})
        await bench.runtime.create(beside)
        await bench.runtime.start(beside.handle)
        assert (await bench.execute(request, "true")).exit_code == 0
        assert bool(starts) != may_trace

    async def test_it_leads_a_session_of_its_own(self, bench: Workbench, starts: Starts) -> None:
        request = await bench.start("sleep", "1000")
        output = await bench.execute(request, "sh", "-c", "echo $$; /bin/busybox cut -d ' ' -f 5,6 /proc/$$/stat")
        pid, group, session = output.stdout.split()
        assert pid == group == session
        assert len(starts) == 1

    async def test_the_program_of_who_executes_cant_be_written_through(self, bench: Workbench, starts: Starts) -> None:
        """What is executed in a container may be /proc/self/exe, by a script, and open that (CVE-2019-5736)."""
        request = await bench.start("sleep", "1000")
        await bench.execute(request, "true")
        assert len(starts) == 1
        helpers = [
            pid
            for parent in (os.getpid(), *children(os.getpid()))  # of a driver in a child, too
            for pid in children(parent)
            if b"joining.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert helpers
        for pid in helpers:
            assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY
            assert Path(f"/proc/{pid}/exe").stat().st_ino == Path(sys.executable).stat().st_ino

    async def test_nothing_executes_beside_as_many_processes_as_may_be(self, bench: Workbench, starts: Starts) -> None:
        request = await bench.start("sleep", "1000")
        _limit_pids(request)
        with pytest.raises(ResourceExhausted, match="may have 1"):
            await bench.execute(request, "true")
        assert not starts

    async def test_all_that_came_of_it_is_killed_at_its_timeout(self, bench: Workbench, starts: Starts) -> None:
        request = await bench.start("sleep", "1000")
        with pytest.raises(DeadlineExceeded, match="had not ended after 1 s"):
            await bench.execute(request, "sh", "-c", "sleep 6001 & (setsid sleep 6002 &); sleep 6003", timeout_s=1.0)
        await bench.until(lambda: bench.commands(request) == ["sleep 1000"], "all of the tree is gone")
        assert len(starts) == 1


def _limit_pids(request: ContainerRequest) -> None:
    root = "/sys/fs/cgroup" if cgroups.version() == 2 else "/sys/fs/cgroup/pids"
    Path(f"{root}{request.handle.cgroup}/pids.max").write_text("1")
