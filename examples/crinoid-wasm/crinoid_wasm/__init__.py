"""A runtime driver whose containers are WebAssembly modules: each runs in wasmtime, in a process of its own.

The hooks are here; what lies in a container's bundle is ``bundle``'s. Beside each container a monitor (``monitor.py``,
standard library alone) writes the log and keeps the exit code, so that a restart of the daemon is not noticed. The
monitor's child waits on a FIFO until ``start``, and then becomes the module (``module.py``).
"""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import (
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeRefused,
    Unsupported,
)
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups, files, process
from crinoid.core.api.linux.descriptors import make_pipe, readable
from crinoid.core.api.values.image import Platform
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import (
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ContainerStatus,
    ExitStatus,
    RuntimeFeatures,
    RuntimeState,
    RuntimeTraits,
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid.plugins.runtimes.processes import pidfds
from crinoid_wasm.bundle import Bundle, Plan, plan_of

_MONITOR = str(Path(__file__).with_name("monitor.py"))
_MAX_REPORT_BYTES = 4096
_ANSWER_S = 30.0
_LOOK_S = 0.005
_MAGIC = b"\0asm\1\0\0\0"


class WasmOptions(DriverConfig):
    """Options of the driver."""

    platform: str = Field("wasi/wasm", pattern="^[a-z0-9]+/[a-z0-9]+$")
    """What images have to be for, as their index or configuration says it; some builders write ``wasip1/wasm``."""
    fuel: int = Field(0, ge=0)
    """How many instructions a module may execute, about; 0: as many as it likes. Out of fuel it ends with 134."""
    max_run_s: float = Field(0.0, ge=0)
    """How long a module may run; 0: as long as it likes. When the time is over it ends with 134."""
    max_memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """How large a module's memory may grow, where the container has no limit of its own; beyond it, growing fails."""


class WasmRuntime(RuntimeHooks):
    """The driver."""

    api_version = "1.0"
    Config = WasmOptions
    exec_sync = None  # type: ignore[assignment]  # there is nothing in a module that could execute a command
    exec_stream = None  # type: ignore[assignment]
    attach = None  # type: ignore[assignment]

    def __init__(self, config: WasmOptions, host: Host) -> None:
        self._config = config
        self._log = host.log

    @hookimpl
    def traits(self) -> RuntimeTraits:
        """Images are for a platform of their own; artifacts are those of the CNCF's Wasm OCI artifact layout."""
        return RuntimeTraits(
            platform=Platform(*self._config.platform.split("/")),
            artifact_types=frozenset({"application/vnd.wasm.config.v0+json", "application/vnd.wasm.config.v1+json"}),
        )

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        """Tell wasmtime's version, without importing its 30 MB into the daemon."""
        if importlib.util.find_spec("wasmtime") is None:
            raise Unsupported("the package wasmtime is not installed in crinoid's environment: pip install wasmtime")
        return RuntimeFeatures(name="wasmtime", version=importlib.metadata.version("wasmtime"))

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """Start the monitor; it answers once its child waits for ``start``."""
        handle, bundle = request.handle, Bundle(request.handle.bundle)
        if not cgroups.belongs_to(handle.cgroup, handle.container_id):
            raise InvalidArgument(f"cgroup {handle.cgroup!r} is not the container's own, or one of systemd's units")
        plan = plan_of(request, self._config.fuel, self._config.max_run_s, self._config.max_memory_bytes)
        module = await asyncio.to_thread(_open_module, plan, Path(request.spec["root"]["path"]))
        try:
            bundle.begin(plan)  # raises AlreadyExists
            try:
                pid, monitor_pid = await self._start_monitor(request, bundle, module)
                limits = _limits(request.spec.get("linux", {}).get("resources") or {})
                await asyncio.to_thread(_place, handle.cgroup, pid, limits)
            except Exception:
                await asyncio.to_thread(_remove, handle)
                raise
        finally:
            os.close(module)
        return ContainerProcess(pid, monitor_pid)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        """Let the child go on, and wait until it has begun."""
        bundle = Bundle(handle.bundle)
        if bundle.started.exists():
            raise FailedPrecondition(f"container {handle.container_id} was started before")
        async with _patience(f"the process of container {handle.container_id} does not begin"):
            while not bundle.open_gate():  # the child may not have come to it yet
                if not _is_alive(bundle):
                    raise FailedPrecondition(f"container {handle.container_id} does not wait to be started")
                await asyncio.sleep(_LOOK_S)
            while not bundle.started.exists() and _is_alive(bundle):  # noqa: ASYNC110  # a process
                await asyncio.sleep(_LOOK_S)

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """Wait for the monitor, which ends after its child; if it was killed, for the child itself."""
        bundle = Bundle(handle.bundle)
        if (known := bundle.exit_status()) is not None:
            return known
        if (processes := bundle.processes()) is None:
            raise NotFound(f"there is no container {handle.container_id}")
        with pidfds.opened(*processes.monitor) as monitor:
            if monitor is not None:
                await pidfds.wait(monitor)
        with pidfds.opened(*processes.child) as child:
            code = None
            if child is not None and bundle.exit_status() is None:
                await pidfds.wait(child)
                code = pidfds.exit_code(child, processes.child[0])
        if not bundle.plan_file.exists():
            raise NotFound(f"container {handle.container_id} has been deleted")
        return bundle.end(code)

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        """Go by the exit code, which is written last, and by whether the child is there."""
        bundle = Bundle(handle.bundle)
        if (processes := bundle.processes()) is None:
            return RuntimeState(ContainerStatus.ABSENT)
        if bundle.exit_status() is not None or not _is_alive(bundle):
            return RuntimeState(ContainerStatus.STOPPED)
        status = ContainerStatus.RUNNING if bundle.started.exists() else ContainerStatus.CREATED
        return RuntimeState(status, processes.child[0])

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        """A module is one process and handles no signals: each that ends a program by default ends it."""
        if (processes := Bundle(handle.bundle).processes()) is not None:
            with pidfds.opened(*processes.child) as child:
                if child is not None:
                    pidfds.send(child, signal)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await asyncio.to_thread(_remove, handle)

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        """Limits are the cgroup's; that of the module's own memory stays as it was at the start."""
        if not _is_alive(Bundle(handle.bundle)):
            raise FailedPrecondition(f"container {handle.container_id} does not run")
        await asyncio.to_thread(cgroups.write_resources, handle.cgroup, resources)

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """Leave a request in the bundle for the monitor, which removes it when the new file is open."""
        bundle = Bundle(handle.bundle)
        processes = bundle.processes()
        if processes is None:
            return
        with pidfds.opened(*processes.monitor) as monitor:
            if monitor is None:
                return
            request = bundle.reopen_request(uuid.uuid4().hex)
            async with _patience(f"the monitor of container {handle.container_id} does not reopen the log"):
                while request.exists() and pidfds.send(monitor, bundle.REOPEN_SIGNAL):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
            request.unlink(missing_ok=True)

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        if not _is_alive(Bundle(handle.bundle)):
            raise NotFound(f"container {handle.container_id} has ended")
        usage = await asyncio.to_thread(cgroups.read_usage, handle.cgroup)
        return replace(usage, pids=1)  # the kernel counts wasmtime's own threads

    async def _start_monitor(self, request: ContainerRequest, bundle: Bundle, module: int) -> tuple[int, int]:
        """Start the monitor; return the child's process id and its own. When cancelled, it is ended."""
        reader, writer = make_pipe()
        os.set_blocking(reader, False)
        try:
            monitor = await process.spawn_in_cgroup(
                [sys.executable, "-I", _MONITOR],
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
                fds={3: writer, 4: module},
                cwd=bundle.directory,
                cgroup=request.monitor_cgroup,
            )
            os.close(writer)
            writer = -1
            try:
                async with _patience("the monitor does not answer"):
                    await readable(reader)
                answer = os.read(reader, _MAX_REPORT_BYTES).decode(errors="replace")
            except BaseException:
                monitor.kill()
                await monitor.wait()
                raise
            finally:
                monitor.close()
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        if not answer.startswith("pid "):
            raise CommandFailed(
                ("crinoid-wasm monitor",), 1, answer or "it ended without a word; the daemon's log has more"
            )
        return int(answer.removeprefix("pid ")), monitor.pid


@contextlib.asynccontextmanager
async def _patience(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_ANSWER_S):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"{what} after {_ANSWER_S:g} s") from None


def _is_alive(bundle: Bundle) -> bool:
    processes = bundle.processes()
    return processes is not None and pidfds.start_time(processes.child[0]) == processes.child[1]


def _open_module(plan: Plan, root: Path) -> int:
    """Open the program within the root, whatever links there are, and see that it is a module."""
    candidates = (
        [plan.args[0]] if "/" in plan.args[0] else [f"{place}/{plan.args[0]}" for place in (plan.cwd, *plan.path)]
    )
    for candidate in candidates:
        try:
            with files.open_regular(Path(plan.cwd) / candidate, root) as file:
                head = file.read(len(_MAGIC))
                if head != _MAGIC:
                    what = (
                        "a component, and only core modules run here"
                        if head[:4] == _MAGIC[:4]
                        else "no WebAssembly module"
                    )
                    raise RuntimeRefused(f"{candidate} is {what}: exec format error")
                file.seek(0)
                return os.dup(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise RuntimeRefused(f"{candidate} can't be read: {error.strerror}") from error
    raise RuntimeRefused(f"{plan.args[0]}: no such file in the image (looked for {', '.join(candidates)})")


def _place(cgroup: str, pid: int, limits: LinuxResources) -> None:
    if not cgroups.exists(cgroup):
        cgroups.make(cgroup)
    cgroups.join(cgroup, pid)
    cgroups.write_resources(cgroup, limits)


def _limits(resources: dict[str, dict[str, object]]) -> LinuxResources:
    """Read the OCI specification's limits (config-linux.md, "Control groups") as far as the CRI has them."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found = {
        "memory_limit_bytes": memory.get("limit"),
        "memory_swap_limit_bytes": memory.get("swap"),
        "cpu_shares": cpu.get("shares"),
        "cpu_quota": cpu.get("quota"),
        "cpu_period": cpu.get("period"),
        "cpuset_cpus": cpu.get("cpus"),
        "cpuset_mems": cpu.get("mems"),
        "unified": resources.get("unified"),
    }
    return LinuxResources(**{name: value for name, value in found.items() if value})  # type: ignore[arg-type]


def _remove(handle: ContainerHandle) -> None:
    """End what runs, the child first, so that the monitor can write down how; then cgroup and files. Idempotent."""
    bundle = Bundle(handle.bundle)
    bundle.end_processes()
    if cgroups.belongs_to(handle.cgroup, handle.container_id) and cgroups.exists(handle.cgroup):
        cgroups.kill(handle.cgroup)
        cgroups.remove(handle.cgroup)
    bundle.remove()
