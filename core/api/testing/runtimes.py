"""The contract of the runtime role as tests: whoever writes a driver applies them to it.

Subclass the contract, and say how a driver is made::

    class TestMine(RuntimeContract):
        def make_driver(self, host: Host) -> object:
            return MyRuntime(MyOptions(), host)

It wants root, pytest, pytest-asyncio and a statically linked busybox (Debian: busybox-static). Each test runs real
containers in a cgroup of its own, which must be gone at the end. ``build_rootfs`` and ``minimal_spec`` serve a driver's
own tests too. A driver whose containers are no processes of the host, have no cgroup or run no programs for Linux says
so by the switches of the class (``has_…``): what it can't do is skipped and named, all the rest holds for it.

A driver whose traits say that it mounts roots finds the root in ``root_mounts``, any other in ``root.path``. For
one with ``start_pod`` a pod is started before each test, and stopped after it. What its guests have to do
(``has_guests``) is tested once it says in ``end_guest`` how one is lost.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar

import pytest

from crinoid.core.api.errors import (
    CrinoidError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups
from crinoid.core.api.sessions import AttachSession, ByteSource, ExecSession
from crinoid.core.api.testing.binding import bind_hooks, cuts
from crinoid.core.api.testing.contract import Contract, files_below, needs
from crinoid.core.api.testing.patience import patient
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
from crinoid.core.api.values.pod import LinuxResources, PodConfig, PodMetadata, ProfileType, SecurityProfile
from crinoid.core.api.values.runtime import (
    AttachRequest,
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ContainerStatus,
    ExecOutput,
    ExecRequest,
    ExecStreamRequest,
    ExitStatus,
    PodSandbox,
    RuntimeFeatures,
    RuntimeState,
    RuntimeTraits,
    TerminalSize,
)
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.api.values.stats import CgroupUsage

T = TypeVar("T")

APPLETS = (
    "cat",
    "head",
    "id",
    "mkdir",
    "nc",
    "nohup",
    "seq",
    "setsid",
    "sh",
    "sleep",
    "stty",
    "tail",
    "true",
    "tty",
    "yes",
    "echo",
)
LASTS, ENDS = ("sleep", "1000"), ("true",)
SPEAKS_AND_FAILS = ("sh", "-c", "echo out; echo err >&2; exit 7")
CAPABILITIES = ("CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE")
TMP = "/tmp"  # noqa: S108  # the container's own
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_RUNTIME_DEFAULT = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
_WAIT_S = patient(20.0)
_NOT_FOUND = re.compile(r"no such file|not found", re.IGNORECASE)


def build_rootfs(directory: Path) -> Path:
    """Make a root file system of busybox in ``directory``, which is made; skips the test where there is no busybox."""
    busybox = next((path for path in _BUSYBOX if path.exists()), None)
    if busybox is None:
        pytest.skip("wants a static busybox: apt-get install busybox-static")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    for name in APPLETS:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n")
    return directory


def minimal_process(*args: str, **changes: object) -> dict[str, Any]:
    """Return an OCI ``process`` that runs ``args`` as root with few capabilities."""
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin", "HOME=/"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
    }
    return {**process, **changes}


def minimal_spec(rootfs: Path, cgroup: str, process: dict[str, Any], resources: object = None) -> dict[str, Any]:
    """Return the least OCI spec for a container of its own namespaces."""
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666"],
        },
        {"destination": TMP, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
    ]
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(rootfs)},
        "mounts": mounts,
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces, "resources": resources or {}},
    }


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log in the CRI's form; ``tag`` is ``F`` for a full line, ``P`` for a piece of one."""

    stream: str
    tag: str
    text: str


def read_log(path: Path) -> list[LogLine]:
    """Read a log in the CRI's form; fails on a line that is not of it."""
    lines = path.read_text().splitlines()
    parts = [line.split(" ", 3) for line in lines]
    assert all(len(part) == 4 for part in parts), f"not a CRI log: {lines[:3]}"
    return [LogLine(stream, tag, text) for _, stream, tag, text in parts]


def joined_text(path: Path, stream: str = "stdout") -> str:
    """Return what a stream of a log was, its pieces joined."""
    lines = [line for line in read_log(path) if line.stream == stream]
    return "".join(line.text + ("\n" if line.tag == "F" else "") for line in lines)


class BoundRuntime:
    """A driver behind the hooks, called as the kernel calls it: by keyword, one driver to a slot."""

    def __init__(self, driver: object) -> None:
        self._hook = bind_hooks(driver, RuntimeHooks)

    async def probe(self) -> RuntimeFeatures:
        """See the hook."""
        return await self._answer("probe", RuntimeFeatures)

    def has(self, hook: str) -> bool:
        """Return whether the driver has an optional hook."""
        return bool(self._hook.has(hook))

    async def start_pod(self, pod: PodSandbox) -> None:
        """See the hook."""
        await self._answer("start_pod", NoneType, pod=pod)

    async def stop_pod(self, pod: PodSandbox) -> None:
        """See the hook."""
        await self._answer("stop_pod", NoneType, pod=pod)

    async def wait_pod(self, pod: PodSandbox) -> str:
        """See the hook."""
        return await self._answer("wait_pod", str, pod=pod)

    async def update_pod(self, pod: PodSandbox, resources: LinuxResources | None) -> None:
        """See the hook."""
        await self._answer("update_pod", NoneType, pod=pod, resources=resources, overhead=None)

    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        """See the hook."""
        return await self._answer("pod_stats", CgroupUsage, pod=pod)

    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        """See the hook."""
        return await self._answer("forward_port", socket.socket, pod=pod, port=port)

    def traits(self) -> RuntimeTraits:
        """See the hook, which is no coroutine."""
        traits: RuntimeTraits = self._hook.traits()
        return traits

    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        """See the hook."""
        return await self._answer("preview", tuple, request=request)

    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """See the hook."""
        return await self._answer("create", ContainerProcess, request=request)

    async def start(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._answer("start", NoneType, handle=handle)

    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """See the hook; with a deadline, as a test must end."""
        async with asyncio.timeout(_WAIT_S):
            return await self._answer("wait", ExitStatus, handle=handle)

    async def state(self, handle: ContainerHandle) -> RuntimeState:
        """See the hook."""
        return await self._answer("state", RuntimeState, handle=handle)

    async def kill(self, handle: ContainerHandle, number: int, everyone: bool = False) -> None:
        """See the hook."""
        await self._answer("kill", NoneType, handle=handle, signal=number, everyone=everyone)

    async def delete(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._answer("delete", NoneType, handle=handle)

    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        """See the hook."""
        return await self._answer("exec_sync", ExecOutput, handle=handle, request=request)

    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        """See the hook."""
        return await self._answer("exec_stream", ExecSession, handle=handle, request=request)  # type: ignore[type-abstract]

    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        """See the hook."""
        return await self._answer("attach", AttachSession, handle=handle, request=request)  # type: ignore[type-abstract]

    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        """See the hook."""
        await self._answer("update", NoneType, handle=handle, resources=resources)

    async def reopen_log(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._answer("reopen_log", NoneType, handle=handle)

    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        """See the hook."""
        return await self._answer("stats", CgroupUsage, handle=handle)

    async def stats_many(self, *handles: ContainerHandle) -> tuple[CgroupUsage | None, ...]:
        """See the hook; without it, ``stats`` of each."""
        if not self._hook.has("stats_many"):
            return tuple([await self._stats_or_none(handle) for handle in handles])
        answer: tuple[CgroupUsage | None, ...] = await self._answer("stats_many", tuple, handles=handles)
        assert len(answer) == len(handles), f"{len(handles)} containers have {len(answer)} answers"
        return answer

    async def _stats_or_none(self, handle: ContainerHandle) -> CgroupUsage | None:
        try:
            return await self.stats(handle)
        except NotFound:
            return None

    async def check_checkpoint(self) -> None:
        """See the hook."""
        await self._answer("check_checkpoint", NoneType)

    async def pause(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._answer("pause", NoneType, handle=handle)

    async def resume(self, handle: ContainerHandle) -> None:
        """See the hook."""
        await self._answer("resume", NoneType, handle=handle)

    async def checkpoint(self, request: CheckpointRequest) -> None:
        """See the hook."""
        await self._answer("checkpoint", NoneType, request=request)

    async def restore(self, request: RestoreRequest) -> ContainerProcess:
        """See the hook."""
        return await self._answer("restore", ContainerProcess, request=request)

    async def _answer(self, hook: str, _kind: type[T], **arguments: object) -> T:
        answer: T = await getattr(self._hook, hook)(**arguments)  # of that type, as ``bind_hooks`` looks
        return answer


@dataclass(slots=True)
class Workbench:
    """Where a test makes containers: each gets a bundle, a log and a cgroup below ``parent``, and all are ``pod``'s."""

    runtime: BoundRuntime
    directory: Path
    rootfs: Path
    parent: str
    programs: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    made: list[ContainerHandle] = field(default_factory=list)
    pod: PodSandbox = field(init=False)

    def __post_init__(self) -> None:
        self.pod = self.make_pod()

    def make_pod(self) -> PodSandbox:
        """Describe a pod that has no network, with a cgroup of its own below ``parent``."""
        pod_id = uuid.uuid4().hex * 2
        metadata = PodMetadata(f"pod-{pod_id[:8]}", "contract", pod_id)
        parent = f"{self.parent}/pod-{pod_id[:8]}"
        return PodSandbox(pod_id, PodConfig(metadata=metadata, hostname="contract"), {}, parent)

    def request(
        self, *args: str, resources: object = None, process: dict[str, Any] | None = None, **changes: Any
    ) -> ContainerRequest:
        """Describe a container that runs ``args``; ``changes`` are fields of the request."""
        container_id = uuid.uuid4().hex * 2
        bundle = self.directory / "bundles" / container_id
        bundle.mkdir(parents=True)
        handle = ContainerHandle(container_id, self.pod.pod_id, bundle, f"{self.parent}/{container_id}")
        self.made.append(handle)
        process = process or minimal_process(*self.programs.get(args, args))
        spec = minimal_spec(self.rootfs, handle.cgroup, process, resources)
        log = self.directory / f"{container_id}.log"
        root = (Mount("bind", str(self.rootfs), ("rbind",)),)
        return replace(ContainerRequest(handle=handle, spec=spec, log_path=log, root_mounts=root), **changes)

    async def create(self, *args: str, **changes: Any) -> ContainerRequest:
        """Make a container that waits before its entry point."""
        request = self.request(*args, **changes)
        await self.runtime.create(request)
        return request

    async def start(self, *args: str, **changes: Any) -> ContainerRequest:
        """Make a container and let it run."""
        request = await self.create(*args, **changes)
        await self.runtime.start(request.handle)
        return request

    async def shell(self, script: str, **changes: Any) -> ContainerRequest:
        """Make a container that runs a shell script."""
        return await self.start("sh", "-c", script, **changes)

    async def execute(self, request: ContainerRequest, *args: str, **changes: Any) -> ExecOutput:
        """Run an exec process in a container."""
        exec_request = replace(ExecRequest(process=minimal_process(*args), timeout_s=_WAIT_S), **changes)
        return await self.runtime.exec_sync(request.handle, exec_request)

    def commands(self, request: ContainerRequest) -> list[str]:
        """Return the command lines of all that runs in a container's cgroup."""
        return sorted(filter(None, map(_command_line, cgroups.processes(request.handle.cgroup))))

    async def until(self, true: Callable[[], object], what: str) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + _WAIT_S
        while not true():
            assert time.monotonic() < deadline, f"it did not come to it: {what}"
            await asyncio.sleep(patient(0.01))

    def clean(self) -> None:
        """Remove all containers, after a test that may have failed."""
        for handle in self.made:
            with contextlib.suppress(CrinoidError):
                asyncio.run(self.runtime.delete(handle))
        if self.runtime.has("stop_pod"):
            with contextlib.suppress(CrinoidError):
                asyncio.run(self.runtime.stop_pod(self.pod))
        cgroups.kill(self.parent)
        cgroups.remove(self.parent)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _sleeping_in(cgroup: str) -> Iterator[int]:
    """A process of nobody's container."""
    process = subprocess.Popen(["sleep", "1000"])  # any
    try:
        cgroups.join(cgroup, process.pid)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _log(request: ContainerRequest) -> Path:
    assert request.log_path is not None
    return request.log_path


@contextlib.asynccontextmanager
async def _executing(
    bench: Workbench, request: ContainerRequest, wanted: ExecStreamRequest
) -> AsyncIterator[ExecSession]:
    session = await bench.runtime.exec_stream(request.handle, wanted)
    try:
        yield session
    finally:
        await session.close()
        await session.close()


@contextlib.asynccontextmanager
async def _attached(bench: Workbench, request: ContainerRequest, wanted: AttachRequest) -> AsyncIterator[AttachSession]:
    session = await bench.runtime.attach(request.handle, wanted)
    try:
        yield session
    finally:
        await session.close()
        await session.close()


async def _read_all(source: ByteSource | None) -> bytes:
    assert source is not None
    pieces = []
    while piece := await source.read():
        pieces.append(piece)
    return b"".join(pieces)


async def _read_until(source: ByteSource | None, wanted: bytes) -> bytes:
    assert source is not None
    got = b""
    async with asyncio.timeout(_WAIT_S):
        while wanted not in got:
            piece = await source.read()
            assert piece, f"{wanted!r} did not come, but {got!r}"
            got += piece
    return got


@pytest.mark.skipif(os.geteuid() != 0, reason="running containers needs root")
@pytest.mark.asyncio
class RuntimeContract(Contract):
    """What every runtime driver must do. Override ``make_driver``."""

    specification = RuntimeHooks
    has_host_process: ClassVar[bool] = True
    """Whether a container's first process is one of the host's (one of a virtual machine is not): ``pid`` is its id."""
    has_cgroup: ClassVar[bool] = True
    """Whether all that belongs to a container is in the host's cgroup of its handle, and limits are that cgroup's."""
    has_shell: ClassVar[bool] = True
    """Whether containers run programs for Linux, such as busybox; see ``programs``."""
    has_seccomp: ClassVar[bool] = True
    """Whether the driver filters system calls (one for virtual machines may not)."""
    has_exec: ClassVar[bool] = True
    """Whether the driver has the hook ``exec_sync``."""
    has_streams: ClassVar[bool] = True
    """Whether the driver has the hooks ``exec_stream`` and ``attach``."""
    has_checkpoints: ClassVar[bool] = False
    """Whether the driver has the hooks ``pause`` to ``restore``."""
    has_guests: ClassVar[bool] = False
    """Whether its pods are guests, which can end by themselves: it has ``start_pod`` to ``forward_port``, and
    ``end_guest`` of this class is overridden."""
    has_user_namespaces: ClassVar[bool] = True
    """Whether the driver makes the user namespace that a specification asks for."""
    programs: ClassVar[Mapping[tuple[str, ...], tuple[str, ...]]] = {}
    """The arguments to take in the place of busybox's, for a driver whose ``build_rootfs`` has other programs: what
    stands for ``LASTS``, ``ENDS`` and ``SPEAKS_AND_FAILS``."""

    def build_rootfs(self, directory: Path) -> Path:
        """Make the root file system of the containers, with busybox or what ``programs`` names, in a new directory."""
        return build_rootfs(directory)

    def make_driver(self, host: Host) -> object:
        """Make a driver; called twice with the same host, the second is the first after a restart of the daemon."""
        raise NotImplementedError("say how a driver is made")

    def end_guest(self, host: Host, pod: PodSandbox) -> None:
        """End what ``start_pod`` has made for a pod at once, as a crash does: say how, with ``has_guests``."""
        raise NotImplementedError("say how a guest is lost")

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """The driver's place on the node."""
        directories = [tmp_path / name for name in ("state", "run")]
        for directory in directories:
            directory.mkdir(mode=0o700)
        return Host("contract", directories[0], directories[1], logging.getLogger("contract"))

    @pytest.fixture
    def driver(self, host: Host) -> object:
        """The driver under test."""
        return self.make_driver(host)

    @pytest.fixture
    def runtime(self, driver: object) -> BoundRuntime:
        """The driver under test, bound."""
        return BoundRuntime(driver)

    @pytest.fixture
    def bench(self, runtime: BoundRuntime, tmp_path: Path) -> Iterator[Workbench]:
        """A place to make containers."""
        parent = f"/crinoid-contract-{uuid.uuid4().hex[:12]}"
        cgroups.make(parent)
        bench = Workbench(runtime, tmp_path, self.build_rootfs(tmp_path / "rootfs"), parent, self.programs)
        try:
            if runtime.has("start_pod"):
                asyncio.run(runtime.start_pod(bench.pod))
            yield bench
        finally:
            bench.clean()

    @pytest.fixture
    def restarted(self, host: Host, runtime: BoundRuntime) -> Callable[[], BoundRuntime]:
        """Makes the driver anew over the same directories, as after a restart of the daemon."""
        return lambda: BoundRuntime(self.make_driver(host))

    # what it is

    async def test_tells_its_name_and_version(self, runtime: BoundRuntime) -> None:
        features = await runtime.probe()
        assert features.name
        assert re.search(r"\d", features.version), features

    async def test_its_traits_are_constant(self, runtime: BoundRuntime) -> None:
        """One that has none is like any runtime of the node's own programs."""
        if not runtime.has("traits"):
            pytest.skip("the driver has no traits")
        assert runtime.traits() == runtime.traits()

    # a life

    async def test_a_whole_life(self, bench: Workbench) -> None:
        runtime = bench.runtime
        request = bench.request(*SPEAKS_AND_FAILS)
        handle = request.handle
        assert (await runtime.state(handle)).status is ContainerStatus.ABSENT
        process = await runtime.create(request)
        assert process.pid > 1 or not self.has_host_process
        assert await runtime.state(handle) == RuntimeState(ContainerStatus.CREATED, process.pid)
        assert not _log(request).exists() or _log(request).read_text() == "", "it ran before start"
        before_ns = time.time_ns()
        await runtime.start(handle)
        status = await runtime.wait(handle)
        assert (status.exit_code, status.known, status.oom_killed) == (7, True, False)
        assert before_ns - 1_000_000_000 < status.finished_at_ns < time.time_ns() + 1_000_000_000
        assert await runtime.state(handle) == RuntimeState(ContainerStatus.STOPPED)
        assert {(line.stream, line.tag, line.text) for line in read_log(_log(request))} == {
            ("stdout", "F", "out"),
            ("stderr", "F", "err"),
        }
        await runtime.delete(handle)
        assert (await runtime.state(handle)).status is ContainerStatus.ABSENT
        assert joined_text(_log(request)) == "out\n", "delete took the log"

    @needs("host_process", "cgroup")
    async def test_a_running_container_is_told_so(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        state = await bench.runtime.state(request.handle)
        assert state.status is ContainerStatus.RUNNING
        if self.has_shell:
            await bench.until(lambda: _command_line(state.pid) == "sleep 1000", "the entry point is running")
        assert state.pid in cgroups.processes(request.handle.cgroup)

    @pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$; sleep 9", 143)])
    @needs("shell")
    async def test_exit_codes(self, bench: Workbench, script: str, code: int) -> None:
        # as a child: the kernel keeps the first process of a namespace from its own signals
        request = await bench.shell(f"sh -c '{script}'; exit $?")
        assert (await bench.runtime.wait(request.handle)).exit_code == code

    @needs("shell")
    async def test_without_a_log(self, bench: Workbench) -> None:
        request = await bench.shell("echo lost", log_path=None)
        assert (await bench.runtime.wait(request.handle)).exit_code == 0

    @needs("shell")
    async def test_stdin(self, bench: Workbench) -> None:
        """Without stdin a reader sees its end at once; with it, it waits for somebody to attach."""
        without = await bench.shell("cat; echo end")
        assert (await bench.runtime.wait(without.handle)).exit_code == 0
        assert joined_text(_log(without)) == "end\n"
        with_stdin = await bench.start("cat", stdin=True)
        await asyncio.sleep(0.2)
        assert (await bench.runtime.state(with_stdin.handle)).status is ContainerStatus.RUNNING

    @needs("shell")
    async def test_a_terminal(self, bench: Workbench) -> None:
        process = minimal_process("sh", "-c", "tty; echo err >&2", terminal=True)
        request = bench.request(process=process, terminal=True, stdin=True)
        request.spec["mounts"].append({"destination": "/dev/pts", "type": "devpts", "source": "devpts"})
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        assert (await bench.runtime.wait(request.handle)).exit_code == 0
        text = joined_text(_log(request)).replace("\r", "")
        assert re.fullmatch(r"/dev/(pts/\d+|console)\nerr\n", text), text

    @needs("cgroup")
    async def test_a_cgroup_that_is_not_the_containers_is_refused_and_left(self, bench: Workbench) -> None:
        """Its handle may come from a damaged record: neither what runs there nor the cgroup itself ends with it."""
        foreign = f"{bench.parent}/foreign"
        cgroups.make(foreign)
        with _sleeping_in(foreign) as pid:
            request = bench.request("sleep", "1000")
            request = replace(request, handle=replace(request.handle, cgroup=foreign))
            with pytest.raises(CrinoidError, match=re.escape(foreign)):
                await bench.runtime.create(request)
            await bench.runtime.kill(request.handle, signal.SIGKILL, everyone=True)
            await bench.runtime.delete(request.handle)
            assert cgroups.processes(foreign) == (pid,)

    @needs("host_process", "cgroup")
    async def test_a_cgroup_made_for_the_container_is_its_own(self, bench: Workbench) -> None:
        request = bench.request("sleep", "1000")
        chosen = f"{bench.parent}/chosen"
        cgroups.make_new(chosen, request.handle.container_id)
        handle = replace(request.handle, cgroup=chosen)
        spec = minimal_spec(bench.rootfs, chosen, request.spec["process"])
        bench.made[-1] = handle
        await bench.runtime.create(replace(request, handle=handle, spec=spec))
        await bench.runtime.start(handle)
        assert (await bench.runtime.state(handle)).pid in cgroups.processes(chosen)
        await bench.runtime.delete(handle)
        assert not cgroups.exists(chosen)

    @needs("host_process", "cgroup")
    async def test_the_monitor_is_not_in_the_containers_cgroup(self, bench: Workbench) -> None:
        request = bench.request("sleep", "1000", monitor_cgroup=f"{bench.parent}/monitor")
        process = await bench.runtime.create(request)
        if process.monitor_pid:
            assert process.monitor_pid in cgroups.processes(request.monitor_cgroup)
            assert process.monitor_pid not in cgroups.processes(request.handle.cgroup)

    # its end

    @needs("shell")
    async def test_many_may_wait_and_the_answer_stays(
        self, bench: Workbench, restarted: Callable[[], BoundRuntime]
    ) -> None:
        request = await bench.create("sh", "-c", "exit 3")
        waiting = [asyncio.ensure_future(bench.runtime.wait(request.handle)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert not any(wait.done() for wait in waiting)
        await bench.runtime.start(request.handle)
        answers = {*await asyncio.gather(*waiting), await bench.runtime.wait(request.handle)}
        answers.add(await restarted().wait(request.handle))
        assert len(answers) == 1
        assert answers.pop().exit_code == 3

    async def test_a_wait_can_be_given_up(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        waiting = asyncio.ensure_future(bench.runtime.wait(request.handle))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await bench.runtime.kill(request.handle, signal.SIGKILL)
        assert (await bench.runtime.wait(request.handle)).exit_code == 137

    async def test_waiting_for_a_stranger(self, bench: Workbench) -> None:
        with pytest.raises(NotFound):
            await bench.runtime.wait(bench.request("true").handle)

    @needs("cgroup", "shell")
    async def test_out_of_memory(self, bench: Workbench) -> None:
        limit = 24 << 20
        request = await bench.start("tail", "/dev/zero", resources={"memory": {"limit": limit, "swap": limit}})
        status = await bench.runtime.wait(request.handle)
        assert (status.exit_code, status.oom_killed) == (137, True)
        await bench.runtime.delete(request.handle)

    @needs("host_process")
    async def test_the_monitor_is_killed_first(self, bench: Workbench) -> None:
        request = bench.request("sleep", "1000")
        process = await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        if not process.monitor_pid:
            pytest.skip("this driver has no monitor")
        waiting = asyncio.ensure_future(bench.runtime.wait(request.handle))
        await asyncio.sleep(0.05)
        os.kill(process.monitor_pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert not waiting.done(), "the container lives on"
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING
        await bench.runtime.kill(request.handle, signal.SIGKILL)
        status = await waiting
        assert (status.exit_code, status.known) in ((137, True), (255, False))
        assert await bench.runtime.wait(request.handle) == status
        await bench.runtime.delete(request.handle)

    @needs("host_process", "cgroup")
    async def test_monitor_and_container_are_killed_unseen(
        self, bench: Workbench, restarted: Callable[[], BoundRuntime]
    ) -> None:
        request = bench.request("sleep", "1000")
        process = await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        if not process.monitor_pid:
            pytest.skip("this driver has no monitor")
        os.kill(process.monitor_pid, signal.SIGKILL)
        os.kill(process.pid, signal.SIGKILL)
        await bench.until(lambda: not bench.commands(request), "the container has ended")
        first, second = await restarted().wait(request.handle), await restarted().wait(request.handle)
        assert first == second
        assert first.exit_code in (137, 255)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.STOPPED

    # kill and delete

    @needs("shell")
    async def test_a_signal_reaches_the_first_process(self, bench: Workbench) -> None:
        request = await bench.shell("trap 'exit 5' TERM; echo ready; while true; do sleep 0.01; done")
        await bench.until(lambda: joined_text(_log(request)) == "ready\n", "the trap is set")
        await bench.runtime.kill(request.handle, signal.SIGTERM)
        assert (await bench.runtime.wait(request.handle)).exit_code == 5
        await bench.runtime.kill(request.handle, signal.SIGTERM)
        await bench.runtime.kill(request.handle, signal.SIGKILL, everyone=True)

    @needs("shell", "cgroup")
    async def test_a_signal_to_everyone(self, bench: Workbench) -> None:
        """Also where the processes do not end with the first one, as they share the host's PID namespace."""
        request = bench.request("sh", "-c", "setsid sleep 7001 & exec sleep 7000")
        linux = request.spec["linux"]
        linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "pid"]
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        await bench.until(lambda: bench.commands(request) == ["sleep 7000", "sleep 7001"], "both run")
        await bench.runtime.kill(request.handle, signal.SIGKILL, everyone=True)
        assert (await bench.runtime.wait(request.handle)).exit_code == 137
        assert bench.commands(request) == []

    @needs("shell", "cgroup")
    async def test_everyone_gets_the_signal_that_was_sent(self, bench: Workbench) -> None:
        """And not SIGKILL: each process ends as it likes."""
        child = "trap 'echo child; exit' TERM; while true; do sleep 0.01; done"
        script = f"trap 'wait; echo first; exit 6' TERM; sh -c \"{child}\" & echo ready; "
        script += "while true; do sleep 0.01; done"
        request = await bench.shell(script)
        await bench.until(lambda: joined_text(_log(request)) == "ready\n", "both are there")
        await asyncio.sleep(patient(0.1))  # the child's trap
        await bench.runtime.kill(request.handle, signal.SIGTERM, everyone=True)
        assert (await bench.runtime.wait(request.handle)).exit_code == 6
        assert joined_text(_log(request)) == "ready\nchild\nfirst\n"

    @needs("shell")
    async def test_deleting_at_any_time_and_twice(self, bench: Workbench) -> None:
        never = bench.request("true")
        waits = await bench.create("true")
        runs = await bench.shell("trap '' TERM; setsid sleep 7002 & sleep 7003")
        ended = await bench.start("true")
        await bench.runtime.wait(ended.handle)
        for request in (never, waits, runs, ended):
            await bench.runtime.delete(request.handle)
            await bench.runtime.delete(request.handle)
            assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT
            assert not self.has_cgroup or cgroups.processes(request.handle.cgroup) == ()
            assert list(request.handle.bundle.iterdir()) == []
            await bench.runtime.kill(request.handle, signal.SIGKILL)

    async def test_deleting_at_the_same_time(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        await asyncio.gather(*(bench.runtime.delete(request.handle) for _ in range(3)))
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    async def test_a_new_daemon_goes_on(self, bench: Workbench, restarted: Callable[[], BoundRuntime]) -> None:
        request = await bench.create("sleep", "1000")
        await restarted().start(request.handle)
        bench.runtime = restarted()
        if self.has_exec and self.has_shell:
            assert (await bench.execute(request, "echo", "still")).stdout == b"still\n"
        await restarted().kill(request.handle, signal.SIGKILL)
        assert (await restarted().wait(request.handle)).exit_code == 137
        await restarted().delete(request.handle)

    # bad requests

    @pytest.mark.parametrize("program", ["/bin/nowhere", "nowhere"])
    @needs("shell")
    async def test_a_missing_entry_point(self, bench: Workbench, program: str) -> None:
        request = bench.request(program)
        with pytest.raises(CrinoidError, match=_NOT_FOUND) as raised:
            await bench.runtime.create(request)
            await bench.runtime.start(request.handle)
        assert "nowhere" in raised.value.message
        await bench.runtime.delete(request.handle)
        self._nothing_is_left(bench, request)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"args": []}, "args|empty|executable"),
            ({"user": {"uid": -5, "gid": 0}}, "uid|number|unmarshal|config.json"),
        ],
    )
    @needs("shell")
    async def test_a_process_that_can_not_be(self, bench: Workbench, change: dict[str, Any], words: str) -> None:
        request = bench.request(process=minimal_process("true", **change))
        with pytest.raises(CrinoidError, match=f"(?i){words}"):
            await bench.runtime.create(request)
        self._nothing_is_left(bench, request)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    @needs("shell")
    async def test_a_mount_of_what_is_not_there(self, bench: Workbench) -> None:
        request = bench.request("true")
        request.spec["mounts"].append({"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]})
        with pytest.raises(CrinoidError, match=r"(?i)/nowhere.*no such file|no such file.*/nowhere"):
            await bench.runtime.create(request)
        self._nothing_is_left(bench, request)

    async def test_a_create_that_is_cancelled(self, bench: Workbench) -> None:
        for cut in cuts():
            request = bench.request(*LASTS)
            await cut(bench.runtime.create(request))
            await bench.runtime.delete(request.handle)
            self._nothing_is_left(bench, request, f" (create was {cut})")

    async def test_a_delete_that_is_cancelled_can_be_done_again(self, bench: Workbench) -> None:
        for cut in cuts():
            request = await bench.start(*LASTS)
            await cut(bench.runtime.delete(request.handle))
            await bench.runtime.delete(request.handle)
            self._nothing_is_left(bench, request, f" (delete was {cut})")
            assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    async def test_an_id_that_is_taken(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        with pytest.raises(CrinoidError):
            await bench.runtime.create(request)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING, "the first one was hurt"

    async def test_a_log_where_no_directory_is(self, bench: Workbench) -> None:
        request = bench.request("true", log_path=bench.directory / "nowhere" / "log")
        with pytest.raises(CrinoidError, match="log"):
            await bench.runtime.create(request)
        self._nothing_is_left(bench, request)

    @needs("shell")
    async def test_an_entry_point_that_is_no_program(self, bench: Workbench) -> None:
        """Some runtimes notice at create, some at start, some only when it runs: then it ends with an error."""
        (bench.rootfs / "bin/rubbish").write_bytes(b"\x7fELF rubbish")
        (bench.rootfs / "bin/rubbish").chmod(0o755)
        request = bench.request("/bin/rubbish")
        try:
            await bench.runtime.create(request)
            await bench.runtime.start(request.handle)
        except CrinoidError as error:
            assert re.search("(?i)exec format error", error.message), error.message
        else:
            assert (await bench.runtime.wait(request.handle)).exit_code != 0

    def _nothing_is_left(self, bench: Workbench, request: ContainerRequest, when: str = "") -> None:
        found = cgroups.processes(request.handle.cgroup) if self.has_cgroup else ()
        assert found == (), f"processes{when}"
        left = [path.name for path in request.handle.bundle.iterdir()]
        assert left == [], f"in the bundle: {left}{when}"

    @needs("user_namespaces", "shell")
    async def test_a_user_namespace(self, bench: Workbench) -> None:
        request = bench.request("cat", "/proc/self/uid_map", "/proc/self/gid_map")
        linux = request.spec["linux"]
        linux["namespaces"] = [*linux["namespaces"], {"type": "user"}]
        mapping = {"containerID": 0, "hostID": 0, "size": 4711}  # root's own, so that the files are its
        linux["uidMappings"], linux["gidMappings"] = [mapping], [mapping]
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        assert (await bench.runtime.wait(request.handle)).exit_code == 0
        assert [line.split() for line in joined_text(_log(request)).splitlines()] == [["0", "0", "4711"]] * 2

    # seccomp

    @pytest.mark.parametrize(("profile", "mode"), [(None, "0"), (_RUNTIME_DEFAULT, "2")])
    @needs("seccomp")
    async def test_seccomp(self, bench: Workbench, profile: SecurityProfile | None, mode: str) -> None:
        request = await bench.start("cat", "/proc/self/status", seccomp=profile)
        await bench.runtime.wait(request.handle)
        assert re.findall(r"Seccomp:\s+(\d)", joined_text(_log(request))) == [mode]

    @needs("seccomp", "shell")
    async def test_a_local_seccomp_profile(self, bench: Workbench) -> None:
        profile = bench.directory / "profile.json"
        rule = '{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}'
        profile.write_text(f'{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}')
        chosen = SecurityProfile(ProfileType.LOCALHOST, str(profile))
        request = await bench.shell("mkdir /tmp/x", seccomp=chosen)
        assert (await bench.runtime.wait(request.handle)).exit_code != 0
        assert "quota exceeded" in joined_text(_log(request), "stderr")

    @pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"defaultAction": "SCMP_ACT_MAYBE"}'])
    @needs("seccomp")
    async def test_a_bad_local_seccomp_profile(self, bench: Workbench, content: str | None) -> None:
        profile = bench.directory / "profile.json"
        if content is not None:
            profile.write_text(content)
        request = bench.request("true", seccomp=SecurityProfile(ProfileType.LOCALHOST, str(profile)))
        with pytest.raises(InvalidArgument, match=re.escape(str(profile))):
            await bench.runtime.create(request)
        self._nothing_is_left(bench, request)

    # exec

    @needs("exec", "shell")
    async def test_exec(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        script = "echo out; echo err >&2; pwd; echo $HELLO; id -u; exit 5"
        process = minimal_process("sh", "-c", script, cwd=TMP, env=["PATH=/bin", "HELLO=you"])
        process["user"] = {"uid": 1000, "gid": 1000}
        output = await bench.runtime.exec_sync(request.handle, ExecRequest(process=process, timeout_s=_WAIT_S))
        assert output == ExecOutput(5, b"out\n/tmp\nyou\n1000\n", b"err\n")

    @needs("exec", "shell", "host_process")
    async def test_the_oom_score_of_an_exec(self, bench: Workbench) -> None:
        """Or the kernel would rather kill the container, or the rest of the node, than what was executed in it."""
        request = await bench.start(process=minimal_process("sleep", "1000") | {"oomScoreAdj": 777})
        process = minimal_process("cat", "/proc/self/oom_score_adj") | {"oomScoreAdj": 777}
        wanted = ExecRequest(process=process, timeout_s=_WAIT_S)
        assert (await bench.runtime.exec_sync(request.handle, wanted)).stdout == b"777\n"

    @pytest.mark.parametrize(("script", "code"), [("exit 255", 255), ("exit 127", 127), ("kill -9 $$", 137)])
    @needs("exec", "shell")
    async def test_the_exit_code_of_an_exec(self, bench: Workbench, script: str, code: int) -> None:
        request = await bench.start("sleep", "1000")
        assert await bench.execute(request, "sh", "-c", script) == ExecOutput(code, b"", b"")

    @needs("exec", "shell")
    async def test_exec_of_a_missing_program(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        with pytest.raises(CrinoidError, match=_NOT_FOUND):
            await bench.execute(request, "nowhere")

    @needs("exec", "shell")
    async def test_exec_where_nothing_runs(self, bench: Workbench) -> None:
        with pytest.raises((FailedPrecondition, NotFound)):
            await bench.execute(bench.request("true"), "true")
        with pytest.raises(FailedPrecondition):
            await bench.execute(await bench.create("true"), "true")
        request = await bench.start("true")
        await bench.runtime.wait(request.handle)
        with pytest.raises(FailedPrecondition):
            await bench.execute(request, "true")

    @needs("exec", "shell")
    async def test_exec_gives_megabytes_whole(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2"
        output = await bench.execute(request, "sh", "-c", script)
        assert (output.exit_code, len(output.stdout), len(output.stderr)) == (0, 3_000_000, 2_000_000)

    @needs("exec", "shell")
    async def test_exec_drops_what_is_too_much(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        output = await bench.execute(
            request, "sh", "-c", "yes | head -c 5000000; echo end >&2; exit 4", max_output_bytes=1000
        )
        assert output == ExecOutput(4, b"y\n" * 500, b"end\n")

    @needs("exec", "shell", "cgroup")
    async def test_an_exec_does_not_wait_for_what_it_left_in_the_background(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        async with asyncio.timeout(patient(60)):
            output = await bench.execute(request, "sh", "-c", "echo begun; sleep 1001 & exit 0")
        assert output == ExecOutput(0, b"begun\n", b"")
        assert "sleep 1001" in bench.commands(request), "what was left in the background lives on"
        await bench.runtime.delete(request.handle)
        assert cgroups.processes(request.handle.cgroup) == ()

    @needs("exec", "shell", "cgroup")
    async def test_a_timeout_kills_all_that_came_from_an_exec(self, bench: Workbench) -> None:
        own = "sleep 1000 & sleep 1000; true"
        request = await bench.shell(own)
        before = [f"sh -c {own}", "sleep 1000", "sleep 1000"]
        await bench.until(lambda: bench.commands(request) == before, "the container's own processes run")
        tree = "trap '' TERM HUP; sh -c 'sleep 6001 & sleep 6002' & (setsid sleep 6003 &); sleep 0.2; "
        tree += "(setsid sh -c 'trap \"\" TERM; sleep 6004; true' & ); nohup sleep 6005 & sleep 6006"
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="1 s"):
            await bench.execute(request, "sh", "-c", tree, timeout_s=1.0)
        assert time.monotonic() - started_s < patient(5)
        assert bench.commands(request) == before, f"alive: {bench.commands(request)}"

    @needs("exec", "shell", "cgroup")
    async def test_an_exec_that_is_cancelled(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        await bench.until(lambda: bench.commands(request) == ["sleep 1000"], "it runs its program")
        for cut in cuts():
            await cut(bench.execute(request, "sleep", "0.2"))
            assert bench.commands(request) == ["sleep 1000"], f"exec_sync was {cut}"
        executing = asyncio.ensure_future(bench.execute(request, "sleep", "6010"))
        await bench.until(lambda: "sleep 6010" in bench.commands(request), "the exec runs")
        executing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await executing
        assert bench.commands(request) == ["sleep 1000"]

    @needs("exec", "shell")
    async def test_many_execs_at_once(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        outputs = await asyncio.gather(*(bench.execute(request, "echo", str(number)) for number in range(8)))
        assert [output.stdout for output in outputs] == [b"%d\n" % number for number in range(8)]

    @needs("exec", "shell", "cgroup")
    async def test_the_container_ends_during_an_exec(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        executing = asyncio.ensure_future(bench.execute(request, "sleep", "6020"))
        await bench.until(lambda: "sleep 6020" in bench.commands(request), "the exec runs")
        await bench.runtime.kill(request.handle, signal.SIGKILL)
        assert (await executing).exit_code == 137

    # streams

    @needs("streams", "shell")
    async def test_a_streamed_exec(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        process = minimal_process("sh", "-c", "cat; echo err >&2; exit 5")
        async with _executing(bench, request, ExecStreamRequest(process=process, stdin=True)) as session:
            assert session.stdin is not None
            await session.stdin.write(b"some ")
            assert await _read_until(session.stdout, b"some ") == b"some "
            await session.stdin.write(b"input")
            await session.stdin.close()
            outputs = await asyncio.gather(_read_all(session.stdout), _read_all(session.stderr))
            assert (*outputs, await session.wait()) == (b"input", b"err\n", 5)
            await session.resize(TerminalSize(80, 24))

    @pytest.mark.parametrize(("script", "code"), [("exit 255", 255), ("kill -9 $$", 137)])
    @needs("streams", "shell")
    async def test_the_exit_code_of_a_streamed_exec(self, bench: Workbench, script: str, code: int) -> None:
        request = await bench.start("sleep", "1000")
        wanted = ExecStreamRequest(process=minimal_process("sh", "-c", script), stdout=False, stderr=False)
        async with _executing(bench, request, wanted) as session:
            assert (session.stdin, session.stdout, session.stderr) == (None, None, None)
            assert await session.wait() == code

    @needs("streams", "shell")
    async def test_an_exec_on_a_terminal(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        process = minimal_process("sh", "-c", "tty; read line; stty size; exit 3", terminal=True)
        async with _executing(bench, request, ExecStreamRequest(process=process, stdin=True)) as session:
            assert session.stdin is not None
            assert b"/dev/" in await _read_until(session.stdout, b"\n")
            await session.resize(TerminalSize(101, 43))
            await session.stdin.write(b"go\n")
            assert await _read_all(session.stdout) == b"go\r\n43 101\r\n"
            assert await session.wait() == 3

    @needs("exec", "streams", "shell")
    async def test_a_streamed_exec_whose_session_is_closed(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        process = minimal_process("sh", "-c", "trap '' PIPE; cat; echo lost || echo ended > /tmp/end")
        async with _executing(bench, request, ExecStreamRequest(process=process, stdin=True)) as session:
            reading = asyncio.ensure_future(_read_all(session.stdout))
            await asyncio.sleep(0.05)
        assert await reading == b"", "a read that waited has ended"
        assert await session.wait() == 0
        assert (await bench.execute(request, "cat", "/tmp/end")).stdout == b"ended\n"  # noqa: S108

    @needs("streams", "shell", "host_process")
    async def test_the_oom_score_of_a_streamed_exec(self, bench: Workbench) -> None:
        request = await bench.start(process=minimal_process("sleep", "1000") | {"oomScoreAdj": 777})
        for terminal in (False, True):
            process = minimal_process("cat", "/proc/self/oom_score_adj", terminal=terminal) | {"oomScoreAdj": 777}
            wanted = ExecStreamRequest(process=process, stdout=True)
            async with _executing(bench, request, wanted) as session:
                assert (await _read_all(session.stdout)).strip() == b"777"

    @needs("streams", "shell", "cgroup")
    async def test_streamed_execs_that_can_not_start(self, bench: Workbench) -> None:
        request = await bench.start("sleep", "1000")
        for terminal in (False, True):
            process = minimal_process("nowhere", terminal=terminal)
            with pytest.raises(CrinoidError, match=_NOT_FOUND):
                await bench.runtime.exec_stream(request.handle, ExecStreamRequest(process=process))
        with pytest.raises((FailedPrecondition, NotFound)):
            process = minimal_process("true")
            await bench.runtime.exec_stream(bench.request("true").handle, ExecStreamRequest(process=process))
        assert bench.commands(request) == ["sleep 1000"]

    @needs("streams", "shell")
    async def test_attach(self, bench: Workbench) -> None:
        script = "while read line; do echo out $line; echo err $line >&2; done; echo over"
        request = await bench.create("sh", "-c", script, stdin=True, stdin_once=True)
        both = AttachRequest(stdin=True)
        async with _attached(bench, request, both) as one, _attached(bench, request, AttachRequest()) as other:
            await bench.runtime.start(request.handle)
            assert one.stdin is not None
            assert other.stdin is None
            await one.stdin.write(b"1\n")
            await _read_until(one.stdout, b"out 1\n")
            await one.stdin.close()
            outputs = await asyncio.gather(*map(_read_all, (one.stdout, one.stderr, other.stdout, other.stderr)))
            await asyncio.gather(one.wait(), other.wait())
        assert outputs == [b"over\n", b"err 1\n", b"out 1\nover\n", b"err 1\n"]
        assert (await bench.runtime.wait(request.handle)).exit_code == 0

    @needs("streams", "shell")
    async def test_attach_does_not_end_input_that_stays_open(self, bench: Workbench) -> None:
        request = await bench.shell("cat; echo over", stdin=True)
        for _ in range(2):
            async with _attached(bench, request, AttachRequest(stdin=True)) as session:
                assert session.stdin is not None
                await session.stdin.write(b"x")
                await _read_until(session.stdout, b"x")
                await session.stdin.close()
        await asyncio.sleep(0.1)
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.RUNNING

    @needs("streams", "shell")
    async def test_a_slow_session_is_ended_and_holds_up_nobody(self, bench: Workbench) -> None:
        request = await bench.shell("read go; yes | head -c 60000000; echo end", stdin=True, log_path=None)
        async with (
            _attached(bench, request, AttachRequest(stderr=False)) as slow,
            _attached(bench, request, AttachRequest(stdin=True, stderr=False)) as quick,
        ):
            assert quick.stdin is not None
            await quick.stdin.write(b"go\n")
            async with asyncio.timeout(patient(60)):
                assert (await _read_all(quick.stdout)).endswith(b"end\n")
            with pytest.raises(ResourceExhausted):
                await _read_all(slow.stdout)
        assert (await bench.runtime.wait(request.handle)).exit_code == 0

    @needs("streams")
    async def test_attach_where_nothing_runs(self, bench: Workbench) -> None:
        with pytest.raises((FailedPrecondition, NotFound)):
            await bench.runtime.attach(bench.request("true").handle, AttachRequest())
        request = await bench.start("true")
        await bench.runtime.wait(request.handle)
        with pytest.raises(FailedPrecondition):
            await bench.runtime.attach(request.handle, AttachRequest())

    # checkpoints

    @needs("checkpoints", "shell")
    async def test_pause(self, bench: Workbench) -> None:
        request = await bench.shell("i=0; while true; do i=$((i + 1)); echo $i; done")
        log, runtime, handle = _log(request), bench.runtime, request.handle
        await bench.until(lambda: joined_text(log), "it counts")
        for _ in range(2):
            await runtime.pause(handle)
        assert (await runtime.state(handle)).status is ContainerStatus.PAUSED
        await asyncio.sleep(0.1)  # what is in the pipe
        size = log.stat().st_size
        await asyncio.sleep(0.1)
        assert log.stat().st_size == size
        for _ in range(2):
            await runtime.resume(handle)
        await bench.until(lambda: log.stat().st_size > size, "it goes on")
        await runtime.pause(handle)
        await runtime.delete(handle)
        await runtime.resume(handle)

    @needs("checkpoints")
    async def test_pause_where_nothing_runs(self, bench: Workbench) -> None:
        with pytest.raises((FailedPrecondition, NotFound)):
            await bench.runtime.pause((await bench.create("true")).handle)
        await bench.runtime.resume(bench.request("true").handle)

    @needs("checkpoints", "shell", "cgroup")
    async def test_processes_go_on_after_a_restore(self, bench: Workbench) -> None:
        runtime = bench.runtime
        try:
            await runtime.check_checkpoint()
        except Unsupported as error:
            pytest.skip(str(error))
        request = await bench.shell("i=0; while true; do i=$((i + 1)); echo $i; sleep 0.1; done")
        await bench.until(lambda: len(read_log(_log(request))) > 3, "it counts")
        images, work = bench.directory / "images", bench.directory / "work"
        images.mkdir()
        work.mkdir()
        await runtime.pause(request.handle)
        await runtime.checkpoint(
            CheckpointRequest(handle=request.handle, images=images, work=work, timeout_s=4 * _WAIT_S)
        )
        assert (await runtime.state(request.handle)).status is ContainerStatus.PAUSED
        assert (work / "dump.log").exists()
        await runtime.resume(request.handle)
        then = int(read_log(_log(request))[-1].text)
        await runtime.delete(request.handle)
        again = bench.request("true", process=request.spec["process"])
        former = request.handle.cgroup
        restoring = RestoreRequest(container=again, images=images, timeout_s=4 * _WAIT_S, former_cgroup=former)
        await runtime.restore(restoring)
        assert not cgroups.exists(former), "where they were, nothing is left"
        assert (await runtime.state(again.handle)).status is ContainerStatus.RUNNING
        assert (await runtime.state(again.handle)).pid in cgroups.processes(again.handle.cgroup)
        await bench.until(lambda: len(read_log(_log(again))) > 2, "it counts on")
        assert 3 < int(read_log(_log(again))[0].text) <= then + 2
        await runtime.kill(again.handle, signal.SIGKILL)
        assert (await runtime.wait(again.handle)).exit_code == 137

    @needs("checkpoints")
    async def test_what_can_not_be_restored(self, bench: Workbench) -> None:
        images = bench.directory / "images"
        images.mkdir()
        request = bench.request("true")
        with pytest.raises(CrinoidError):
            await bench.runtime.restore(RestoreRequest(container=request, images=images, timeout_s=_WAIT_S))
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    @needs("shell", "cgroup")
    async def test_what_outlives_the_first_process_is_killed(self, bench: Workbench) -> None:
        """Without a PID namespace of its own, only its cgroup tells what belongs to a container."""
        request = bench.request("sh", "-c", "sleep 1000 >/dev/null 2>&1 </dev/null & exit 3")
        namespaces = request.spec["linux"]["namespaces"]
        namespaces.remove({"type": "pid"})
        await bench.runtime.create(request)
        await bench.runtime.start(request.handle)
        assert (await bench.runtime.wait(request.handle)).exit_code == 3
        await bench.until(lambda: bench.commands(request) == ["sleep 1000"], "the child is on its own")
        for _ in range(2):
            await bench.runtime.delete(request.handle)
            assert bench.commands(request) == []
            assert not cgroups.exists(request.handle.cgroup)

    # limits and usage

    @needs("cgroup")
    async def test_update(self, bench: Workbench) -> None:
        resources = {"memory": {"limit": 32 << 20}, "cpu": {"shares": 512}}
        request = await bench.start("sleep", "1000", resources=resources)
        await bench.runtime.update(request.handle, LinuxResources(memory_limit_bytes=64 << 20))
        assert (await bench.runtime.stats(request.handle)).memory_limit_bytes == 64 << 20
        await bench.runtime.update(request.handle, LinuxResources(cpu_quota=50_000, cpu_period=100_000))
        usage = await bench.runtime.stats(request.handle)
        assert usage.memory_limit_bytes == 64 << 20, "a field that was not given was changed"

    @needs("cgroup")
    async def test_update_where_nothing_runs(self, bench: Workbench) -> None:
        with pytest.raises((FailedPrecondition, NotFound)):
            await bench.runtime.update(bench.request("true").handle, LinuxResources(cpu_shares=2))

    @needs("shell")
    async def test_stats(self, bench: Workbench) -> None:
        request = await bench.shell("while true; do true; done")
        await asyncio.sleep(0.2)
        usage = await bench.runtime.stats(request.handle)
        assert usage.cpu_ns > 10_000_000
        assert usage.memory_usage_bytes > 0
        assert 0 < usage.memory_working_set_bytes <= usage.memory_usage_bytes
        assert usage.pids == 1
        await bench.runtime.kill(request.handle, signal.SIGKILL)
        await bench.runtime.wait(request.handle)
        with pytest.raises(NotFound):
            await bench.runtime.stats(request.handle)

    @needs("shell")
    async def test_stats_count_every_process(self, bench: Workbench) -> None:
        request = await bench.shell("sleep 1000 & sleep 1000 & echo ready; exec sleep 1000")
        await bench.until(lambda: joined_text(_log(request)) == "ready\n", "all are there")
        assert (await bench.runtime.stats(request.handle)).pids == 3

    @needs("cgroup")
    async def test_stats_of_many(self, bench: Workbench) -> None:
        """Each is in its place; one that ended, and one that never was, have none."""
        made = [await bench.start("sleep", "1000") for _ in range(3)]
        waiting = await bench.create("sleep", "1000")
        await bench.runtime.kill(made[1].handle, signal.SIGKILL)
        await bench.runtime.wait(made[1].handle)
        resources = LinuxResources(memory_limit_bytes=64 << 20)
        await bench.runtime.update(made[2].handle, resources)
        handles = [one.handle for one in (*made, bench.request("true"), waiting)]
        first, ended, third, absent, created = await bench.runtime.stats_many(*handles)
        assert (ended, absent) == (None, None)
        assert first is not None and third is not None and created is not None
        assert (first.pids, third.pids, third.memory_limit_bytes) == (1, 1, 64 << 20)
        assert first.memory_limit_bytes != third.memory_limit_bytes
        assert await bench.runtime.stats_many() == ()

    # logs

    @needs("exec", "shell")
    async def test_a_flooded_log_loses_nothing_when_it_is_rotated(self, bench: Workbench) -> None:
        flood = "i=1; while ! [ -e /tmp/stop ]; do seq $i $((i + 999)); i=$((i + 1000)); done; echo last"
        request = await bench.shell(flood)
        log = _log(request)
        rotated = []
        for number in range(5):
            await asyncio.sleep(0.03)
            rotated.append(log.rename(log.with_name(f"{log.name}.{number}")))
            await bench.runtime.reopen_log(request.handle)
            assert log.exists(), "the log is there when reopen_log answers"
        await bench.until(lambda: sum(one.stat().st_size for one in (*rotated, log)) > 300_000, "it floods")
        await bench.execute(request, "sh", "-c", "echo > /tmp/stop")
        await bench.runtime.wait(request.handle)
        *numbers, last = "".join(map(joined_text, [*rotated, log])).splitlines()
        assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
        assert (len(numbers) >= 5000, last) == (True, "last")

    @needs("shell")
    async def test_reopening_a_log_that_is_in_its_place(self, bench: Workbench) -> None:
        request = await bench.shell("echo one; sleep 0.3; echo two")
        await bench.until(lambda: joined_text(_log(request)) == "one\n", "the first line is there")
        await asyncio.gather(*(bench.runtime.reopen_log(request.handle) for _ in range(3)))
        await bench.runtime.wait(request.handle)
        assert joined_text(_log(request)) == "one\ntwo\n"
        await bench.runtime.reopen_log(request.handle)

    @needs("shell")
    async def test_reopening_at_the_same_time(self, bench: Workbench) -> None:
        request = await bench.shell("trap 'echo two; exit' TERM; echo one; while true; do sleep 0.01; done")
        log = _log(request)
        await bench.until(lambda: joined_text(log) == "one\n", "the first line is there")
        old = log.rename(log.with_suffix(".old"))
        await asyncio.gather(*(bench.runtime.reopen_log(request.handle) for _ in range(3)))
        await bench.runtime.kill(request.handle, signal.SIGTERM)
        await bench.runtime.wait(request.handle)
        assert (joined_text(old), joined_text(log)) == ("one\n", "two\n")

    # before anything is done

    async def test_a_preview_does_nothing(self, bench: Workbench, host: Host) -> None:
        """Nothing that the request names is there: neither root nor bundle."""
        if not bench.runtime.has("preview"):
            pytest.skip("this driver has no preview")
        request = bench.request("sleep", "1000")
        request.handle.bundle.rmdir()
        request.spec["root"]["path"] = str(bench.directory / "nowhere")
        before = files_below(host.run_dir) | files_below(host.state_dir)
        lines = await bench.runtime.preview(request)
        said = "\n".join(lines)
        assert all(line.strip() for line in lines)
        assert request.handle.container_id in said or "sleep" in said, f"the preview is {lines}"
        assert not request.handle.bundle.exists(), "preview has made the bundle"
        assert files_below(host.run_dir) | files_below(host.state_dir) == before, "preview has made files"
        request.handle.bundle.mkdir()
        assert (await bench.runtime.state(request.handle)).status is ContainerStatus.ABSENT

    # pods that are guests

    @needs("guests")
    async def test_a_guest_is_up_until_it_is_stopped(
        self, bench: Workbench, host: Host, restarted: Callable[[], BoundRuntime]
    ) -> None:
        """Whoever waits for its end can give up, and ask again after a restart of the daemon."""
        for runtime in (bench.runtime, restarted()):
            waiting = asyncio.ensure_future(runtime.wait_pod(bench.pod))
            await asyncio.sleep(patient(0.2))
            assert not waiting.done(), f"wait_pod says that a guest has ended which is up: {await waiting}"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        for _ in range(2):
            await bench.runtime.stop_pod(bench.pod)
        self._no_guest_is_left(bench.pod, host, set())
        assert await restarted().wait_pod(bench.pod), "why a guest that is not there has ended"

    @needs("guests")
    async def test_the_end_of_a_guest_is_told(
        self, bench: Workbench, host: Host, restarted: Callable[[], BoundRuntime]
    ) -> None:
        """And is that of its containers; all can be removed then."""
        request = await bench.start(*LASTS)
        handle, pod = request.handle, bench.pod
        of_pod = asyncio.ensure_future(bench.runtime.wait_pod(pod))
        of_container = asyncio.ensure_future(bench.runtime.wait(handle))
        await asyncio.sleep(patient(0.1))
        self.end_guest(host, pod)
        assert (await of_pod).strip(), "wait_pod does not say why the guest has ended"
        status = await of_container
        assert (status.exit_code, status.known) in ((137, True), (255, False))
        again = restarted()
        assert (await again.wait_pod(pod)).strip(), "wait_pod answers at once when the guest has ended"
        assert (await again.state(handle)).status is ContainerStatus.STOPPED
        assert await again.wait(handle) == status
        for hook in (again.stats(handle), again.pod_stats(pod)):
            with pytest.raises(NotFound):
                await hook
        await again.kill(handle, signal.SIGKILL)
        await again.delete(handle)
        self._nothing_is_left(bench, request)
        await again.stop_pod(pod)
        self._no_guest_is_left(pod, host, set())

    @needs("guests")
    async def test_no_container_is_made_without_its_guest(self, bench: Workbench) -> None:
        await bench.runtime.stop_pod(bench.pod)
        request = bench.request(*ENDS)
        with pytest.raises((FailedPrecondition, NotFound, Unavailable)):
            await bench.runtime.create(request)
        await bench.runtime.delete(request.handle)
        self._nothing_is_left(bench, request)

    @needs("guests")
    async def test_stopping_a_guest_that_never_was(self, bench: Workbench, host: Host) -> None:
        pod, before = bench.make_pod(), files_below(host.run_dir)
        for _ in range(2):
            await bench.runtime.stop_pod(pod)
        self._no_guest_is_left(pod, host, before)

    @needs("guests")
    async def test_a_start_of_a_guest_that_is_cancelled_is_undone(self, bench: Workbench, host: Host) -> None:
        before = files_below(host.run_dir)
        for cut in cuts():
            pod = bench.make_pod()
            await cut(bench.runtime.start_pod(pod))
            await bench.runtime.stop_pod(pod)
            self._no_guest_is_left(pod, host, before, f" (start_pod was {cut})")

    @needs("guests", "shell")
    async def test_limits_of_a_guest_hold_for_all_in_it(self, bench: Workbench) -> None:
        await bench.runtime.update_pod(bench.pod, None)
        limit = LinuxResources(memory_limit_bytes=48 << 20, memory_swap_limit_bytes=48 << 20)
        await bench.runtime.update_pod(bench.pod, limit)
        request = await bench.shell("head -c 150000000 /dev/zero | tail > /dev/null")  # one line, which it keeps
        assert (await bench.runtime.wait(request.handle)).exit_code == 137

    @needs("guests", "shell")
    async def test_what_a_guest_uses(self, bench: Workbench) -> None:
        request = await bench.shell("echo begun; while true; do true; done")
        await bench.until(lambda: joined_text(_log(request)) == "begun\n", "it runs")
        await asyncio.sleep(patient(0.2))
        first = await bench.runtime.pod_stats(bench.pod)
        assert first.cpu_ns > 10_000_000
        assert 0 < first.memory_working_set_bytes <= first.memory_usage_bytes
        assert first.pids >= 1
        await bench.runtime.stop_pod(bench.pod)
        with pytest.raises(NotFound):
            await bench.runtime.pod_stats(bench.pod)

    @needs("guests", "shell")
    async def test_a_port_in_a_guest(self, bench: Workbench) -> None:
        request = await bench.shell("echo ready; nc -l -p 8080 -e cat")
        await bench.until(lambda: joined_text(_log(request)) == "ready\n", "it runs")
        with pytest.raises(Unavailable):
            await bench.runtime.forward_port(bench.pod, 8081)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_WAIT_S):
            made = await self._until_somebody_listens(bench, 8080)
            with made:
                assert not made.getblocking(), "the socket blocks"
                await loop.sock_sendall(made, b"hello")
                assert await loop.sock_recv(made, 5) == b"hello"

    async def _until_somebody_listens(self, bench: Workbench, port: int) -> socket.socket:
        while True:
            with contextlib.suppress(Unavailable):
                return await bench.runtime.forward_port(bench.pod, port)
            await asyncio.sleep(patient(0.05))

    def _no_guest_is_left(self, pod: PodSandbox, host: Host, before: set[str], when: str = "") -> None:
        left = {one for one in files_below(host.run_dir) - before if pod.pod_id in one}
        assert not left, f"stop_pod leaves files: {sorted(left)}{when}"
        parts = [pod.cgroup_parent, f"{pod.cgroup_parent}/{pod.pod_id}"]
        found = [pid for path in parts if cgroups.exists(path) for pid in cgroups.processes(path)]
        assert not found, f"stop_pod leaves processes: {[_command_line(pid) for pid in found]}{when}"
