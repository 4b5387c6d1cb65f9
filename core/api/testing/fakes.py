"""Fake and noop drivers of every role, for unit tests of the kernel and of third parties.

A fake keeps its world in memory, behaves as its role's hooks say, writes down every call in ``calls``, and fails or
hangs where a test tells it to. A noop does as little as its hooks allow and remembers nothing. Both are drivers like
any other: they can be named by an entry point, or made by hand with :func:`fake_host`.
"""

import asyncio
import hashlib
import itertools
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import AlreadyExists, CorruptContent, CrinoidError, FailedPrecondition, NotFound
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, ImageView, Kernel, PodView, PullView
from crinoid.core.api.host import Host
from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.checkpoint import CheckpointRequest, RestoreRequest
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    Platform,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.core.api.values.pod import LinuxResources
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
from crinoid.core.api.values.snapshot import (
    DiskUsage,
    LayerDescriptor,
    LayerStream,
    LayerTarget,
    Mount,
    SnapshotterFeatures,
    WhiteoutForm,
)
from crinoid.core.api.values.stats import CgroupUsage

FIRST_FAKE_PID = 1 << 22
"""Fake processes have ids from here on, which no Linux kernel gives to a real one (its largest ``pid_max``)."""


def fake_host(directory: Path, slot: str = "fake") -> Host:
    """Return a host whose directories lie in ``directory`` and exist."""
    state_dir, run_dir = directory / "state" / slot, directory / "run" / slot
    for path in (state_dir, run_dir):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Host(slot, state_dir, run_dir, logging.getLogger(f"crinoid.plugins.fake.{slot}"), "0")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a hook, with its arguments by name."""

    hook: str
    arguments: Mapping[str, object]


class Recorder:
    """What all fakes share: the calls so far, and what to do at the next ones."""

    api_version = API_VERSION
    Config = NoOptions

    def __init__(self, config: NoOptions, host: Host) -> None:
        self.host = host
        self.calls: list[Call] = []
        self._failures: dict[str, list[BaseException]] = {}
        self._hanging: set[str] = set()

    @property
    def hooks_called(self) -> tuple[str, ...]:
        """The names of the hooks called so far, in order."""
        return tuple(call.hook for call in self.calls)

    def fail(self, hook: str, *errors: BaseException) -> None:
        """Raise these at the next calls of a hook, one each."""
        self._failures.setdefault(hook, []).extend(errors)

    def hang(self, hook: str, hangs: bool = True) -> None:
        """Let a hook never answer from now on, or answer again."""
        (self._hanging.add if hangs else self._hanging.discard)(hook)

    async def _enter(self, hook: str, **arguments: object) -> None:
        self.calls.append(Call(hook, arguments))
        if hook in self._hanging:
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # a real driver lets others run, too
        if self._failures.get(hook):
            raise self._failures[hook].pop(0)


class _FakeContainer:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status = ContainerStatus.CREATED
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    def end(self, exit_code: int, oom_killed: bool = False) -> None:
        if not self.ended.done():
            self.status = ContainerStatus.STOPPED
            self.ended.set_result(ExitStatus(exit_code, time.time_ns(), oom_killed))


class FakeStream:
    """A stream in memory: what is written is read, in pieces as they were written, by one reader."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_closed = False

    async def write(self, data: bytes) -> None:
        """See ByteSink."""
        if self.is_closed:
            raise BrokenPipeError("the stream has been closed")
        self._pieces.put_nowait(data)

    async def close(self) -> None:
        """See ByteSink."""
        self.end()

    def end(self) -> None:
        """Come to the end."""
        self.is_closed = True
        self._pieces.put_nowait(b"")

    async def read(self) -> bytes:
        """See ByteSource."""
        if not (piece := await self._pieces.get()):
            self._pieces.put_nowait(b"")
        return piece


class FakeExecSession(ExecSession):
    """A process that runs until :meth:`finish`; a test reads ``input`` and writes ``output`` and ``errors``."""

    def __init__(self, request: ExecStreamRequest | AttachRequest) -> None:
        self.input, self.output, self.errors = FakeStream(), FakeStream(), FakeStream()
        self.sizes: list[TerminalSize] = []
        self.is_closed = False
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        super().__init__(
            self.input if request.stdin else None,
            self.output if request.stdout else None,
            self.errors if request.stderr else None,
        )

    def finish(self, code: int = 0) -> None:
        """Let the process end."""
        self.output.end()
        self.errors.end()
        if not self._code.done():
            self._code.set_result(code)

    async def wait(self) -> int:
        """See the base."""
        return await asyncio.shield(self._code)

    async def resize(self, size: TerminalSize) -> None:
        """See the base."""
        self.sizes.append(size)

    async def close(self) -> None:
        """See the base."""
        self.is_closed = True
        self.input.end()


class FakeAttachSession(AttachSession):
    """The streams of a container, as those of a :class:`FakeExecSession`, ``process``."""

    def __init__(self, request: AttachRequest) -> None:
        self.process = FakeExecSession(request)
        super().__init__(self.process.stdin, self.process.stdout, self.process.stderr)

    async def wait(self) -> None:
        """See the base."""
        await self.process.wait()

    async def resize(self, size: TerminalSize) -> None:
        """See the base."""
        await self.process.resize(size)

    async def close(self) -> None:
        """See the base."""
        await self.process.close()


class FakeRuntime(Recorder):
    """Containers that are entries of a table. They end by :meth:`finish`, or by any signal but 0 (128 + signal)."""

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.ignores_sigterm = False
        self.exec_output = ExecOutput(0, b"", b"")
        self.requests: dict[str, ContainerRequest] = {}
        self.execs: list[FakeExecSession] = []
        self.attaches: list[FakeAttachSession] = []
        self._containers: dict[str, _FakeContainer] = {}
        self._pids = itertools.count(FIRST_FAKE_PID)

    def finish(self, container_id: str, exit_code: int = 0, oom_killed: bool = False) -> None:
        """Let a container end by itself."""
        self._containers[container_id].end(exit_code, oom_killed)

    def lose(self, container_id: str) -> None:
        """Forget a container, as a host does that is switched off."""
        del self._containers[container_id]

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        await self._enter("probe")
        return RuntimeFeatures(name="fake", version="1.0")

    @hookimpl
    async def start_pod(self, pod: PodSandbox) -> None:
        await self._enter("start_pod", pod=pod)

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        await self._enter("stop_pod", pod=pod)

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        await self._enter("create", request=request)
        name = request.handle.container_id
        if name in self._containers:
            raise AlreadyExists(f"container {name} is there already")
        container = self._containers[name] = _FakeContainer(next(self._pids))
        self.requests[name] = request
        return ContainerProcess(container.pid)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        await self._enter("start", handle=handle)
        container = self._get(handle)
        if container.status is not ContainerStatus.CREATED:
            raise FailedPrecondition(f"container {handle.container_id} is {container.status.value}, not created")
        container.status = ContainerStatus.RUNNING

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        await self._enter("wait", handle=handle)
        return await asyncio.shield(self._get(handle).ended)

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        await self._enter("state", handle=handle)
        container = self._containers.get(handle.container_id)
        if container is None:
            return RuntimeState(ContainerStatus.ABSENT)
        return RuntimeState(container.status, 0 if container.ended.done() else container.pid)

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        await self._enter("kill", handle=handle, signal=signal, everyone=everyone)
        container = self._containers.get(handle.container_id)
        if container and signal and not (signal == 15 and self.ignores_sigterm):
            container.end(128 + signal)

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        await self._enter("delete", handle=handle)
        container = self._containers.pop(handle.container_id, None)
        if container:
            container.end(137)

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        await self._enter("exec_sync", handle=handle, request=request)
        self._get(handle)
        return self.exec_output

    @hookimpl
    async def exec_stream(self, handle: ContainerHandle, request: ExecStreamRequest) -> ExecSession:
        await self._enter("exec_stream", handle=handle, request=request)
        self._get(handle)
        self.execs.append(FakeExecSession(request))
        return self.execs[-1]

    @hookimpl
    async def attach(self, handle: ContainerHandle, request: AttachRequest) -> AttachSession:
        await self._enter("attach", handle=handle, request=request)
        self._get(handle)
        self.attaches.append(FakeAttachSession(request))
        return self.attaches[-1]

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        await self._enter("update", handle=handle, resources=resources)
        self._get(handle)

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        await self._enter("reopen_log", handle=handle)
        self._get(handle)

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        await self._enter("stats", handle=handle)
        if self._get(handle).ended.done():
            raise NotFound(f"container {handle.container_id} has ended")
        return _usage()

    @hookimpl
    async def stats_many(self, handles: tuple[ContainerHandle, ...]) -> tuple[CgroupUsage | None, ...]:
        await self._enter("stats_many", handles=handles)
        known = [self._containers.get(handle.container_id) for handle in handles]
        return tuple(None if one is None or one.ended.done() else _usage() for one in known)

    @hookimpl
    async def preview(self, request: ContainerRequest) -> tuple[str, ...]:
        await self._enter("preview", request=request)
        return (f"fake create {request.handle.container_id}",)

    @hookimpl
    async def check_checkpoint(self) -> None:
        await self._enter("check_checkpoint")

    @hookimpl
    async def pause(self, handle: ContainerHandle) -> None:
        await self._enter("pause", handle=handle)
        container = self._get(handle)
        if container.status not in (ContainerStatus.RUNNING, ContainerStatus.PAUSED):
            raise FailedPrecondition(f"container {handle.container_id} is {container.status.value}, not running")
        container.status = ContainerStatus.PAUSED

    @hookimpl
    async def resume(self, handle: ContainerHandle) -> None:
        await self._enter("resume", handle=handle)
        container = self._containers.get(handle.container_id)
        if container is not None and container.status is ContainerStatus.PAUSED:
            container.status = ContainerStatus.RUNNING

    @hookimpl
    async def checkpoint(self, request: CheckpointRequest) -> None:
        await self._enter("checkpoint", request=request)
        container = self._get(request.handle)
        if container.status is not ContainerStatus.PAUSED:
            raise FailedPrecondition(f"container {request.handle.container_id} is {container.status.value}, not paused")
        (request.images / "inventory.img").write_text(str(container.pid))
        (request.work / "dump.log").write_text("fake\n")

    @hookimpl
    async def restore(self, request: RestoreRequest) -> ContainerProcess:
        await self._enter("restore", request=request)
        name = request.container.handle.container_id
        if name in self._containers:
            raise AlreadyExists(f"container {name} is there already")
        (request.images / "inventory.img").read_text()
        container = self._containers[name] = _FakeContainer(next(self._pids))
        container.status = ContainerStatus.RUNNING
        self.requests[name] = request.container
        return ContainerProcess(container.pid)

    def _get(self, handle: ContainerHandle) -> _FakeContainer:
        try:
            return self._containers[handle.container_id]
        except KeyError:
            raise NotFound(f"container {handle.container_id} is not there") from None


class FakeGuestRuntime(FakeRuntime):
    """Pods that are guests: entries of a table, which end by :meth:`lose_guest`; images are for ``wasi/wasm``.

    ``forward_port`` connects to a socket whose other end is in ``forwarded``. It can't execute commands.
    """

    exec_sync = None  # type: ignore[assignment]  # leaves the hook out

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.told = RuntimeTraits(platform=Platform("wasi", "wasm"), artifact_types=frozenset({"application/x.wasm"}))
        self.forwarded: list[socket.socket] = []
        self._guests: dict[str, asyncio.Future[str]] = {}

    @property
    def guests(self) -> tuple[str, ...]:
        """The pods whose guests are there, alive or not."""
        return tuple(self._guests)

    def lose_guest(self, pod_id: str, why: str) -> None:
        """Let a guest end by itself."""
        self._guests[pod_id].set_result(why)

    @hookimpl
    def traits(self) -> RuntimeTraits:
        return self.told

    @hookimpl
    async def start_pod(self, pod: PodSandbox) -> None:
        self._guests[pod.pod_id] = asyncio.get_running_loop().create_future()
        await self._enter("start_pod", pod=pod)

    @hookimpl
    async def stop_pod(self, pod: PodSandbox) -> None:
        await self._enter("stop_pod", pod=pod)
        self._guests.pop(pod.pod_id, None)

    @hookimpl
    async def wait_pod(self, pod: PodSandbox) -> str:
        await self._enter("wait_pod", pod=pod)
        return await asyncio.shield(self._guests[pod.pod_id])

    @hookimpl
    async def update_pod(
        self, pod: PodSandbox, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        await self._enter("update_pod", pod=pod, resources=resources, overhead=overhead)

    @hookimpl
    async def pod_stats(self, pod: PodSandbox) -> CgroupUsage:
        await self._enter("pod_stats", pod=pod)
        return CgroupUsage(timestamp_ns=time.time_ns(), cpu_ns=4711)

    @hookimpl
    async def forward_port(self, pod: PodSandbox, port: int) -> socket.socket:
        await self._enter("forward_port", pod=pod, port=port)
        ours, theirs = socket.socketpair()
        self.forwarded.append(theirs)
        return ours


def _usage() -> CgroupUsage:
    return CgroupUsage(timestamp_ns=time.time_ns(), cpu_ns=1, memory_usage_bytes=1 << 20, pids=1)


class FakeNetwork(Recorder):
    """Attachments that are entries of a table; addresses count up from 192.0.2.1 (RFC 5737)."""

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.ready = NetworkStatus(True)
        self.host_network = False
        self.attached: dict[str, Attachment] = {}
        self.cidrs: tuple[str, ...] = ()
        self._numbers = itertools.count(1)

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(self.host_network)

    @hookimpl
    async def status(self) -> NetworkStatus:
        await self._enter("status")
        return self.ready

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        await self._enter("plan", request=request)
        return {"pod": request.pod_id}

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        await self._enter("attach", request=request, plan=plan)
        address = f"192.0.2.{next(self._numbers)}"
        self.attached[request.pod_id] = Attachment((address,), {"pod": request.pod_id, "address": address})
        return self.attached[request.pod_id]

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await self._enter("detach", request=request, data=data)
        self.attached.pop(request.pod_id, None)

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await self._enter("check", request=request, data=data)

    @hookimpl
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        await self._enter("set_pod_cidrs", cidrs=cidrs)
        self.cidrs = cidrs

    @hookimpl
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        await self._enter("collect_garbage", valid=valid)
        owned = {request.pod_id for request, _ in valid}
        self.attached = {pod: attachment for pod, attachment in self.attached.items() if pod in owned}

    @hookimpl
    async def close(self) -> None:
        await self._enter("close")


class FakeSnapshotter(Recorder):
    """Layers are directories that nobody stacks: the mounts of a snapshot are one bind of an empty directory of its
    own."""

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.layers: dict[str, str | None] = {}
        self.snapshots: dict[str, str | None] = {}
        self.unfinished: set[str] = set()
        self._numbers = itertools.count(1)

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return SnapshotterFeatures(parallel_unpack=True)

    @hookimpl
    async def probe(self) -> None:
        await self._enter("probe")

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        await self._enter("prepare_layer", chain_id=chain_id, parent=parent)
        key = f"layer-{next(self._numbers)}"
        self.unfinished.add(key)
        return LayerTarget(key, self._directory(key), WhiteoutForm.OVERLAY)

    @hookimpl
    async def write_layer(self, key: str, stream: LayerStream) -> None:
        await self._enter("write_layer", key=key, stream=stream)
        if key not in self.unfinished:
            raise NotFound(f"layer {key} was not prepared")

    @hookimpl
    async def verify_layer(self, chain_id: str) -> None:
        await self._enter("verify_layer", chain_id=chain_id)
        if chain_id not in self.layers:
            raise NotFound(f"layer {chain_id} was not committed")

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        await self._enter("commit_layer", key=key, chain_id=chain_id, parent=parent)
        if key not in self.unfinished:
            raise NotFound(f"layer {key} was not prepared")
        self.unfinished.discard(key)
        self.layers.setdefault(chain_id, parent)

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        await self._enter("discard_layer", key=key)
        self.unfinished.discard(key)

    @hookimpl
    async def has_layer(self, chain_id: str) -> bool:
        await self._enter("has_layer", chain_id=chain_id)
        return chain_id in self.layers

    @hookimpl
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        await self._enter("list_layers")
        return tuple(self.layers.items())

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        await self._enter("remove_layer", chain_id=chain_id)
        if chain_id in {*self.layers.values(), *self.snapshots.values()}:
            raise FailedPrecondition(f"something stands on layer {chain_id}")
        self.layers.pop(chain_id, None)

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        await self._enter("create_snapshot", key=key, parent=parent, readonly=readonly)
        if key in self.snapshots:
            raise AlreadyExists(f"snapshot {key} is there already")
        if parent is not None and parent not in self.layers:
            raise NotFound(f"layer {parent} is not there")
        self.snapshots[key] = parent
        return self._mounts(key)

    @hookimpl
    async def mounts(self, key: str) -> tuple[Mount, ...]:
        await self._enter("mounts", key=key)
        self._get(key)
        return self._mounts(key)

    @hookimpl
    async def remove_snapshot(self, key: str) -> None:
        await self._enter("remove_snapshot", key=key)
        self.snapshots.pop(key, None)

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        await self._enter("list_snapshots")
        return tuple(self.snapshots)

    @hookimpl
    async def list_unfinished(self) -> tuple[str, ...]:
        await self._enter("list_unfinished")
        return tuple(sorted(self.unfinished))

    @hookimpl
    async def usage(self, key: str) -> DiskUsage:
        await self._enter("usage", key=key)
        self._get(key)
        return DiskUsage(4096, 1)

    @hookimpl
    async def layer_usage(self, chain_id: str) -> DiskUsage:
        await self._enter("layer_usage", chain_id=chain_id)
        if chain_id not in self.layers:
            raise NotFound(f"layer {chain_id} is not there")
        return DiskUsage(4096, 1)

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        await self._enter("total_usage")
        return DiskUsage(4096 * len(self.layers), len(self.layers))

    def _get(self, key: str) -> str | None:
        if key not in self.snapshots:
            raise NotFound(f"snapshot {key} is not there")
        return self.snapshots[key]

    def _mounts(self, key: str) -> tuple[Mount, ...]:
        return (Mount("bind", str(self._directory(key)), ("rbind", "rw")),)

    def _directory(self, key: str) -> Path:
        directory = self.host.state_dir / hashlib.sha256(key.encode()).hexdigest()[:16]
        directory.mkdir(parents=True, exist_ok=True)
        return directory


class FakeBringingSnapshotter(FakeSnapshotter):
    """The same, but asked for each layer before its blob is fetched: a snapshotter that has this hook is taken to need
    no blobs. It brings those whose chain ids are in ``brings``."""

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.brings: set[str] = set()

    @hookimpl
    async def bring_layer(self, layer: LayerDescriptor) -> bool:
        await self._enter("bring_layer", layer=layer)
        if layer.chain_id not in self.brings:
            return False
        self.layers.setdefault(layer.chain_id, layer.parent)
        return True


class FakeRegistry(Recorder):
    """Images and blobs that a test puts into ``images`` (by full reference) and ``blobs`` (by digest); ``referrers`` by
    the digest of what they refer to, and their type."""

    PIECE_BYTES = 1 << 16

    def __init__(self, config: NoOptions, host: Host) -> None:
        super().__init__(config, host)
        self.images: dict[str, ResolvedImage] = {}
        self.blobs: dict[str, bytes] = {}
        self.referrers: dict[tuple[str, str], tuple[Descriptor, ...]] = {}
        self.ready = SourceStatus(True)
        self.closed = False

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        await self._enter("resolve", request=request)
        try:
            return self.images[str(request.reference)]
        except KeyError:
            raise NotFound(f"pull {request.reference}: it is not here") from None

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        await self._enter("open_blob", request=request)
        if request.blob.digest not in self.blobs:
            raise NotFound(f"blob {request.blob.digest} is not here")
        return self._stream(self.blobs[request.blob.digest][request.offset :])

    @hookimpl
    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        await self._enter("list_referrers", request=request)
        return self.referrers.get((request.reference.digest, request.artifact_type), ())

    @hookimpl
    async def status(self) -> SourceStatus:
        await self._enter("status")
        return self.ready

    @hookimpl
    async def close(self) -> None:
        await self._enter("close")
        self.closed = True

    async def _stream(self, content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), self.PIECE_BYTES):
            await self._enter("piece")
            yield content[start : start + self.PIECE_BYTES]


class FakeExtension(Recorder):
    """Writes down what it is told, adds ``adjustment`` to every container, and makes of every change ``resources``."""

    adjustment: ContainerAdjustment | None = None
    resources: LinuxResources | None = None
    kernel: Kernel | None = None
    words: str | None = None

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        await self._enter("connect", kernel=kernel)
        self.kernel = kernel

    @hookimpl
    async def close(self) -> None:
        await self._enter("close")

    @hookimpl
    async def pod_starting(self, pod: PodView) -> None:
        await self._enter("pod_starting", pod=pod)

    @hookimpl
    async def pod_started(self, pod: PodView) -> None:
        await self._enter("pod_started", pod=pod)

    @hookimpl
    async def pod_updating(
        self, pod: PodView, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        await self._enter("pod_updating", pod=pod, resources=resources, overhead=overhead)

    @hookimpl
    async def pod_updated(self, pod: PodView) -> None:
        await self._enter("pod_updated", pod=pod)

    @hookimpl
    async def pod_stopping(self, pod: PodView) -> None:
        await self._enter("pod_stopping", pod=pod)

    @hookimpl
    async def pod_stopped(self, pod: PodView) -> None:
        await self._enter("pod_stopped", pod=pod)

    @hookimpl
    async def pod_removed(self, pod: PodView) -> None:
        await self._enter("pod_removed", pod=pod)

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        await self._enter("adjust_container", container=container)
        return self.adjustment

    @hookimpl
    async def container_created(self, container: ContainerView) -> None:
        await self._enter("container_created", container=container)

    @hookimpl
    async def container_starting(self, container: ContainerView) -> None:
        await self._enter("container_starting", container=container)

    @hookimpl
    async def container_started(self, container: ContainerView) -> None:
        await self._enter("container_started", container=container)

    @hookimpl
    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources | None:
        await self._enter("container_updating", container=container, resources=resources)
        return self.resources

    @hookimpl
    async def container_updated(self, container: ContainerView) -> None:
        await self._enter("container_updated", container=container)

    @hookimpl
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        await self._enter("container_exited", container=container, status=status)

    @hookimpl
    async def container_removed(self, container: ContainerView) -> None:
        await self._enter("container_removed", container=container)

    @hookimpl
    async def image_pulling(self, image: PullView) -> str | None:
        await self._enter("image_pulling", image=image)
        return self.words

    @hookimpl
    async def image_pulled(self, reference: str, image_id: str) -> None:
        await self._enter("image_pulled", reference=reference, image_id=image_id)

    @hookimpl
    async def image_removed(self, image_id: str) -> None:
        await self._enter("image_removed", image_id=image_id)


@dataclass
class FakeDocuments:
    """What image sources have, for tests of an extension: ``manifests`` by reference, ``blobs`` and, by the digest of
    what they refer to and their type, ``referrers``. With a ``fault`` none can be asked."""

    manifests: dict[str, ResolvedImage] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    referrers: dict[tuple[str, str], tuple[Descriptor, ...]] = field(default_factory=dict)
    fault: CrinoidError | None = None

    async def resolve(self, reference: ImageReference) -> ResolvedImage:
        if self.fault is not None:
            raise self.fault
        if str(reference) not in self.manifests:
            raise NotFound(f"{reference} is not here")
        return self.manifests[str(reference)]

    async def read(self, reference: ImageReference, blob: Descriptor, max_bytes: int) -> bytes:
        if (content := self.blobs.get(blob.digest)) is None:
            raise NotFound(f"blob {blob.digest} of {reference} is not here")
        if len(content) > max_bytes:
            raise CorruptContent(f"blob {blob.digest} is longer than {max_bytes} bytes")
        return content

    async def list_referrers(self, reference: ImageReference, artifact_type: str) -> tuple[Descriptor, ...]:
        if self.fault is not None:
            raise self.fault
        return self.referrers.get((reference.digest, artifact_type), ())


class FakeKernel:
    """The kernel for tests of an extension: what is in ``known_pods``, ``known_containers``, ``known_images`` and
    ``documents``, and what was asked."""

    def __init__(self) -> None:
        self.known_pods: list[PodView] = []
        self.known_containers: list[ContainerView] = []
        self.known_images: dict[str, ImageView] = {}
        self.documents = FakeDocuments()
        self.updated: list[tuple[str, LinuxResources]] = []
        self.stopped: list[tuple[str, str]] = []

    def pods(self) -> tuple[PodView, ...]:
        return tuple(self.known_pods)

    async def containers(self) -> tuple[ContainerView, ...]:
        return tuple(self.known_containers)

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        self._find(container_id)
        self.updated.append((container_id, resources))

    async def stop_container(self, container_id: str, reason: str) -> None:
        self._find(container_id)
        self.stopped.append((container_id, reason))

    def image(self, name: str) -> ImageView | None:
        return self.known_images.get(name)

    def _find(self, container_id: str) -> None:
        if container_id not in {container.container_id for container in self.known_containers}:
            raise NotFound(f"container {container_id} is not there")
