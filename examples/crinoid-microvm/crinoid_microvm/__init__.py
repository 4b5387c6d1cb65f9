"""A runtime driver whose pods are virtual machines: QEMU, the node's own kernel, an agent of one C file.

The hooks are here. ``machine`` is one pod's QEMU and the way to its agent, ``boot`` what it boots from, ``network`` how
it gets the pod's network, ``containers`` what of an OCI specification a guest can have. No process but QEMU stays
beside a pod: the agent writes the logs, QEMU and the pod's directory are there when the daemon comes back.
"""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import cgroups, mount, rights
from crinoid.core.api.linux.cgroup_names import below_mount
from crinoid.core.api.linux.namespaces import call_in
from crinoid.core.api.linux.process import run_checked
from crinoid.core.api.linux.threads import call_in_thread
from crinoid.core.api.sessions import AttachSession, ByteSource, ExecSession
from crinoid.core.api.values.pod import LinuxResources, NamespaceMode
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
)
from crinoid.core.api.values.stats import CgroupUsage
from crinoid_microvm import boot, network
from crinoid_microvm.containers import hide, limits, process_fields, show, show_log, translate
from crinoid_microvm.machine import Machine, Shape, command_line, try_boot
from crinoid_microvm.protocol import Connection
from crinoid_microvm.protocol import Field as Words
from crinoid_microvm.sessions import GuestAttach, GuestExec, Relay
from crinoid_microvm.usage import read_usage

_RECORD, _EXIT = "microvm.json", "microvm-exit.json"
_KILLED_S = 10.0
_VERSION_S = 10.0
_MIB = 1 << 20
_PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


class MicrovmOptions(DriverConfig):
    """Options of the driver."""

    qemu: str = "qemu-system-x86_64"
    """QEMU's program, by its path or as PATH has it."""
    acceleration: Literal["auto", "kvm", "tcg"] = "auto"
    """``kvm`` is fast, ``tcg`` emulates; ``auto`` is ``kvm`` where a kernel boots with it, which the first pod waits
    for."""
    kvm_s: float = Field(10.0, gt=0)
    """How long ``auto`` waits for that kernel."""
    kernel: Path | None = None
    """A kernel's image, ``vmlinuz`` or ``vmlinux``; without it, the newest in ``/boot`` that has modules."""
    modules: Path | None = None
    """The directory of that kernel's modules, such as ``/lib/modules/6.1.0-40-amd64``."""
    cpus: int = Field(1, ge=1, le=64)
    """How many processors a guest has."""
    memory_bytes: int = Field(256 * _MIB, ge=96 * _MIB)
    """How much memory the guest of a pod without a memory limit has. QEMU takes of it what the guest has used."""
    overhead_bytes: int = Field(96 * _MIB, ge=64 * _MIB)
    """What the guest of a pod with a memory limit has beside that limit, for its kernel and the agent."""
    boot_s: float = Field(90.0, gt=0)
    """How long a guest may take until its agent is ready; ``deadlines.runtime.start_pod`` bounds it, too."""


class MicrovmRuntime(RuntimeHooks):
    """The driver."""

    api_version = "1.0"
    Config = MicrovmOptions

    def __init__(self, config: MicrovmOptions, host: Host) -> None:
        self._config = config
        self._host = host
        self._building = asyncio.Lock()
        self._boot_files: boot.BootFiles | None = None
        self._choosing = asyncio.Lock()
        self._accelerator = ""
        self._changing: dict[str, asyncio.Lock] = {}

    @hookimpl
    def traits(self) -> RuntimeTraits:
        """A root is mounted where the guest sees it, and nowhere else; a shared PID namespace is the guest's first."""
        return RuntimeTraits(mounts_root=True, shares_processes=True)

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        """Tell QEMU's version; a kernel, an agent and the programs for the network have to be there, too."""
        qemu = self._qemu()
        for program, package in _PROGRAMS.items():
            if shutil.which(program) is None:
                raise Unsupported(f"{program} is not installed (Debian: {package})")
        await call_in_thread(lambda: boot.find_kernel(self._config.kernel, self._config.modules))
        done = await run_checked([qemu, "--version"], timeout_s=_VERSION_S)
        words = done.stdout.decode(errors="replace").split()
        return RuntimeFeatures(name="qemu", version=words[words.index("version") + 1] if "version" in words else "0")

    # pods

    @hookimpl
    async def start_pod(self, pod: PodSandbox) -> None:
        """Boot the guest and give it the pod's network, names and sysctls."""
        security = pod.config.security
        if security.namespaces.network is NamespaceMode.NODE:
            raise Unsupported(
                "a pod on the node's network (hostNetwork) can't be a guest, which has a network of its own"
            )
        files_of_boot = await self._boot()
        pin = pod.namespaces.get("network")
        found = None if pin is None else await network.read_network(pin)
        shape = await self._shape(pod, files_of_boot, found)
        tap = None
        try:
            if found is not None and pin is not None:
                tap = await call_in_thread(lambda: network.open_tap(pin))
                await network.redirect(pin, found.mtu)
            machine = self._machine(pod.pod_id)
            await machine.start(command_line(shape, files_of_boot), _cgroup(pod), tap, self._config.boot_s)
        finally:
            if tap is not None:
                os.close(tap)
        uts = pod.namespaces.get("uts")
        hostname = (
            pod.config.hostname if uts is None else await call_in_thread(lambda: call_in(uts, socket.gethostname))
        )
        await machine.ask(
            "pod",
            f"pod {pod.pod_id}",
            hostname=hostname,
            interface=network.INTERFACE,
            mac=found.mac if found else "",
            mtu=found.mtu if found else 0,
            address=found.addresses if found else (),
            route=found.routes if found else (),
            sysctl=await call_in_thread(lambda: network.read_sysctls(pin, pod.config.sysctls)),
        )

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        """Kill QEMU: all containers have ended, and what they have written is on the host already."""
        await self._machine(pod.pod_id).stop(_cgroup(pod))
        if (pin := pod.namespaces.get("network")) is not None:
            await network.undo_redirect(pin)
        self._changing.pop(pod.pod_id, None)

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        return await self._machine(pod.pod_id).wait()

    @hookimpl
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        """Bound all containers together, within what the machine has; its size stays as it was at the start."""
        machine = self._machine(pod.pod_id)
        machine.require("update")
        if resources is None:
            return
        has = self._memory_bytes(pod) - self._config.overhead_bytes
        if resources.memory_limit_bytes > has:
            raise FailedPrecondition(
                f"pod {pod.pod_id}: its guest was made for {has} bytes of memory and can't grow to "
                f"{resources.memory_limit_bytes}: the limit holds for a new pod"
            )
        await machine.ask("limit", f"pod {pod.pod_id}", limit=limits(resources))

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        """What QEMU takes of the node, all of the guest in it; the processes are those in the guest."""
        machine = self._machine(pod.pod_id)
        if not machine.is_alive():
            raise NotFound(f"the virtual machine of pod {pod.pod_id} has ended")
        outside = await call_in_thread(lambda: cgroups.read_usage(_cgroup(pod)))
        inside = read_usage(await machine.ask("usage", f"pod {pod.pod_id}"))
        return replace(outside, pids=inside.pids)

    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        machine = self._machine(pod.pod_id)
        connection, _ = await machine.open("forward", f"port {port} of pod {pod.pod_id}", port=port)
        return connection.detach()

    # containers

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        """Show the guest the container's root and volumes, then have the agent make its process."""
        handle, machine = request.handle, self._machine(request.handle.pod_id)
        what = f"container {handle.container_id}"
        machine.require(what)
        fields, binds = await call_in_thread(lambda: translate(request))
        if not _begin(handle.bundle, request.log_path):
            raise AlreadyExists(f"{what} is there already")

        async def make() -> None:
            try:
                await call_in_thread(lambda: show(binds, machine.shared / handle.container_id))
                log = ""
                if (path := request.log_path) is not None:
                    log = f"{handle.container_id}.{uuid.uuid4().hex[:8]}"
                    await call_in_thread(lambda: show_log(path, machine.logs / log))
                await machine.ask("create", what, log=log, **fields)
            except OSError as error:
                raise Unavailable(f"{what}: its root or a volume can't be shown to the guest: {error}") from error

        try:  # to its end, also when cancelled: what the agent makes after a delete would have nobody
            await finish(make())
        except Exception:
            await finish(self._remove(handle))
            raise
        return ContainerProcess(0)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        machine = self._machine(handle.pod_id)
        machine.require(f"container {handle.container_id}")
        await machine.ask("start", f"container {handle.container_id}", id=handle.container_id)

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        """Ask the agent, which answers at the end; where the machine ends first, nobody has seen it."""
        if (known := _exit_status(handle.bundle)) is not None:
            return known
        if not (handle.bundle / _RECORD).exists():
            raise NotFound(f"there is no container {handle.container_id}")
        machine = self._machine(handle.pod_id)
        while machine.is_alive():
            try:
                told = await machine.ask("wait", f"container {handle.container_id}", id=handle.container_id)
                code, finished_ns, out_of_memory = map(int, told.split())
                return _end(handle.bundle, ExitStatus(code, finished_ns, oom_killed=bool(out_of_memory)))
            except Unavailable:
                await asyncio.sleep(0.2)  # the machine is about to be found ended
        if not (handle.bundle / _RECORD).exists():
            raise NotFound(f"container {handle.container_id} has been deleted")
        return _end(handle.bundle, ExitStatus(255, time.time_ns(), known=False))

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        if not (handle.bundle / _RECORD).exists():
            return RuntimeState(ContainerStatus.ABSENT)
        machine = self._machine(handle.pod_id)
        if _exit_status(handle.bundle) is not None or not machine.is_alive():
            return RuntimeState(ContainerStatus.STOPPED)
        told = await machine.ask("state", f"container {handle.container_id}", id=handle.container_id)
        return RuntimeState(ContainerStatus(told))

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        machine = self._machine(handle.pod_id)
        if (handle.bundle / _RECORD).exists() and machine.is_alive():
            with contextlib.suppress(NotFound):
                what = f"container {handle.container_id}"
                await machine.ask("kill", what, id=handle.container_id, signal=signal, everyone=everyone)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await finish(self._remove(handle))

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        """Its processes are in a cgroup of their own in the guest, by which they are killed at the deadline."""
        relay = Relay(await self._execute(handle, request.process, True, stdout=True, stderr=True), False, True, True)
        assert relay.stdout is not None
        assert relay.stderr is not None
        limit = request.max_output_bytes
        outputs = [asyncio.create_task(_collect(one, limit)) for one in (relay.stdout, relay.stderr)]
        try:
            async with asyncio.timeout(request.timeout_s):
                stdout, stderr = await asyncio.gather(*outputs)
                code = await GuestExec(relay).wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"exec in container {handle.container_id} was killed: it had not ended after {request.timeout_s:g} s"
            ) from None
        finally:
            for task in outputs:
                task.cancel()
            await finish(_kill_and_drop(relay))
        return ExecOutput(code, stdout, stderr)

    @hookimpl
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        terminal = bool(request.process.get("terminal"))
        wanted = {"stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr and not terminal}
        connection = await self._execute(handle, request.process, False, **wanted)
        return GuestExec(Relay(connection, request.stdin, request.stdout or terminal, wanted["stderr"]))

    @hookimpl
    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        what = f"container {handle.container_id}"
        machine = self._machine(handle.pod_id)
        self._require(handle, machine)
        connection, _ = await machine.open(
            "attach",
            what,
            id=handle.container_id,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return GuestAttach(Relay(connection, request.stdin, request.stdout, request.stderr))

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        machine = self._machine(handle.pod_id)
        self._require(handle, machine)
        await machine.ask("limit", f"container {handle.container_id}", id=handle.container_id, limit=limits(resources))

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        """Show the guest the new file beside the old one, let the agent change over, and hide the old one."""
        machine = self._machine(handle.pod_id)
        async with self._changing.setdefault(handle.pod_id, asyncio.Lock()):
            path = _log_path(handle.bundle)
            if path is None or not machine.is_alive() or _exit_status(handle.bundle) is not None:
                return
            what, log = f"container {handle.container_id}", f"{handle.container_id}.{uuid.uuid4().hex[:8]}"
            await call_in_thread(lambda: show_log(path, machine.logs / log))
            try:
                await machine.ask("reopen", what, id=handle.container_id, log=log)
            finally:  # whichever of them is in use now stays open in QEMU
                await call_in_thread(lambda: _hide_logs(machine.logs, handle.container_id, log))

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        machine = self._machine(handle.pod_id)
        if not (handle.bundle / _RECORD).exists() or not machine.is_alive() or _exit_status(handle.bundle) is not None:
            raise NotFound(f"container {handle.container_id} has ended")
        return read_usage(await machine.ask("usage", f"container {handle.container_id}", id=handle.container_id))

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        """Name what the guest would be shown and run."""
        process = process_fields(request.spec["process"])
        mounts = [f"show the guest {one.type} {one.source} as the root" for one in request.root_mounts]
        mounts += [
            f"show the guest {one['source']} at {one['destination']}"
            for one in request.spec.get("mounts") or ()
            if one.get("type") in (None, "bind", "rbind", "none")
        ]
        args = process["arg"]
        assert isinstance(args, list)
        return (*mounts, f"run in the guest, as user {process['uid']}: {' '.join(args)}")

    def _machine(self, pod_id: str) -> Machine:
        return Machine(self._host.run_dir / pod_id, pod_id)

    def _require(self, handle: ContainerHandle, machine: Machine) -> None:
        what = f"container {handle.container_id}"
        if not (handle.bundle / _RECORD).exists():
            raise NotFound(f"there is no {what}")
        if _exit_status(handle.bundle) is not None:
            raise FailedPrecondition(f"{what} has ended")
        machine.require(what)

    async def _boot(self) -> boot.BootFiles:
        """Make what guests boot from, once; the files stay, the node's kernel may go on."""
        async with self._building:
            if self._boot_files is None or not self._boot_files.initramfs.is_file():
                directory = self._host.state_dir

                def make() -> boot.BootFiles:
                    kernel = boot.find_kernel(self._config.kernel, self._config.modules)
                    return boot.make_boot_files(kernel, boot.find_agent(directory), directory)

                try:
                    self._boot_files = await call_in_thread(make)
                except OSError as error:
                    raise Unavailable(f"what guests boot from can't be made in {directory}: {error}") from error
            return self._boot_files

    def _qemu(self) -> str:
        if platform.machine() != "x86_64":
            raise Unsupported(f"guests are for x86_64 only, and this node is {platform.machine()}")
        if (found := shutil.which(self._config.qemu)) is None:
            raise Unsupported(
                f"{self._config.qemu} is not installed (Debian: qemu-system-x86), or is named wrong by the option qemu"
            )
        return found

    async def _shape(self, pod: PodSandbox, files_of_boot: boot.BootFiles, found: network.GuestNetwork | None) -> Shape:
        accelerator: str = self._config.acceleration
        if accelerator == "auto":
            accelerator = await self._find_accelerator(files_of_boot)
        khz = 0
        if accelerator == "tcg":
            khz = int((await run_checked([str(files_of_boot.agent), "tsc-khz"], timeout_s=_VERSION_S)).stdout)
        return Shape(
            qemu=self._qemu(),
            accelerator=accelerator,
            memory_bytes=self._memory_bytes(pod),
            cpus=self._config.cpus,
            tsc_khz=khz,
            mac=found.mac if found else "",
        )

    async def _find_accelerator(self, files_of_boot: boot.BootFiles) -> str:
        """Return ``kvm`` where a guest boots with it; tried once."""
        async with self._choosing:
            if not self._accelerator:
                self._accelerator = "tcg"
                if os.access("/dev/kvm", os.R_OK | os.W_OK):
                    shape = Shape(qemu=self._qemu(), accelerator="kvm", memory_bytes=256 * _MIB, cpus=1)
                    if not (why := await try_boot(shape, files_of_boot.kernel, self._config.kvm_s)):
                        self._accelerator = "kvm"
                    else:
                        self._host.log.warning("guests are emulated, as /dev/kvm is there and boots none: %s", why)
            return self._accelerator

    def _memory_bytes(self, pod: PodSandbox) -> int:
        limit = pod.config.resources.memory_limit_bytes if pod.config.resources is not None else 0
        wanted = limit + self._config.overhead_bytes if limit > 0 else self._config.memory_bytes
        return -(-wanted // _MIB) * _MIB

    async def _remove(self, handle: ContainerHandle) -> None:
        machine = self._machine(handle.pod_id)
        if machine.is_alive() and (handle.bundle / _RECORD).exists():
            with contextlib.suppress(NotFound):
                await machine.ask("delete", f"container {handle.container_id}", id=handle.container_id)

        def remove() -> None:
            hide(machine.shared / handle.container_id)
            _hide_logs(machine.logs, handle.container_id, "")
            for path in (handle.bundle / _RECORD, handle.bundle / _EXIT, *handle.bundle.glob(f"{_EXIT}.*")):
                path.unlink(missing_ok=True)

        await call_in_thread(remove)

    async def _execute(
        self, handle: ContainerHandle, process: Mapping[str, object], sync: bool, **streams: bool
    ) -> Connection:
        machine = self._machine(handle.pod_id)
        self._require(handle, machine)
        fields: dict[str, Words] = {
            **process_fields(process),
            **streams,
            "id": handle.container_id,
            "is_exec": True,
            "sync": sync,
        }
        connection, _ = await machine.open("exec", f"exec in container {handle.container_id}", **fields)
        return connection


def _cgroup(pod: PodSandbox) -> str:
    """QEMU's own, in that of the pod: so the pod's limits hold for all of it."""
    return f"{below_mount(pod.cgroup_parent).rstrip('/')}/{pod.pod_id}"


def _begin(bundle: Path, log: Path | None) -> bool:
    """Write down that there is a container; tell whether there was none."""
    try:
        fd = os.open(bundle / _RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, rights.FILE)
    except FileExistsError:
        return False
    with open(fd, "w") as file:
        json.dump({"log": None if log is None else str(log)}, file)
    return True


def _log_path(bundle: Path) -> Path | None:
    try:
        log = json.loads((bundle / _RECORD).read_text())["log"]
    except FileNotFoundError:
        return None
    return None if log is None else Path(log)


def _exit_status(bundle: Path) -> ExitStatus | None:
    try:
        return ExitStatus(**json.loads((bundle / _EXIT).read_text()))
    except FileNotFoundError:
        return None


def _end(bundle: Path, status: ExitStatus) -> ExitStatus:
    """Write down how a container ended, unless that is known: the first to do so counts."""
    own = bundle / f"{_EXIT}.{uuid.uuid4().hex[:8]}"
    try:
        own.write_text(json.dumps(asdict(status)))
    except FileNotFoundError:  # the bundle has gone
        return status
    try:
        os.link(own, bundle / _EXIT)
    except FileExistsError:
        pass
    finally:
        own.unlink(missing_ok=True)
    return _exit_status(bundle) or status


def _hide_logs(logs: Path, container_id: str, besides: str) -> None:
    for path in logs.glob(f"{container_id}.*"):
        if path.name != besides:
            mount.unmount(path)
            path.unlink(missing_ok=True)


async def _collect(source: ByteSource, limit: int) -> bytes:
    pieces, left = list[bytes](), limit
    while piece := await source.read():
        pieces.append(piece[:left])
        left -= len(pieces[-1])
    return b"".join(pieces)


async def _kill_and_drop(relay: Relay) -> None:
    """End an exec with all that came from it, unless it has ended."""
    if not relay.ended.done():
        await relay.tell("k")
        await relay.close()
        await asyncio.wait([relay.ended], timeout=_KILLED_S)
    await relay.drop()
