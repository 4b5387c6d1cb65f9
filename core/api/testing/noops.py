"""Noop drivers: the least that satisfies each role's hooks, with no memory and no effect on the host.

For a test of one role that needs the others to be there and quiet, and as the shortest example of a driver.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

from crinoid.core.api import API_VERSION
from crinoid.core.api.config import NoOptions
from crinoid.core.api.errors import NotFound
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.values.image import BlobRequest, ResolvedImage, ResolveRequest, SourceStatus
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.api.values.runtime import (
    ContainerHandle,
    ContainerProcess,
    ContainerRequest,
    ContainerStatus,
    ExecOutput,
    ExecRequest,
    ExitStatus,
    RuntimeFeatures,
    RuntimeState,
)
from crinoid.core.api.values.snapshot import DiskUsage, LayerTarget, Mount, SnapshotterFeatures, WhiteoutForm
from crinoid.core.api.values.stats import CgroupUsage


class _Noop:
    api_version = API_VERSION
    Config = NoOptions

    def __init__(self, config: NoOptions, host: Host) -> None:
        self._host = host


class NoopRuntime(_Noop):
    """A runtime without containers: they are created, never seen again, and never end."""

    @hookimpl
    async def probe(self) -> RuntimeFeatures:
        return RuntimeFeatures(name="noop", version="0")

    @hookimpl
    async def create(self, request: ContainerRequest) -> ContainerProcess:
        return ContainerProcess(0)

    @hookimpl
    async def start(self, handle: ContainerHandle) -> None:
        pass

    @hookimpl
    async def wait(self, handle: ContainerHandle) -> ExitStatus:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    @hookimpl
    async def state(self, handle: ContainerHandle) -> RuntimeState:
        return RuntimeState(ContainerStatus.ABSENT)

    @hookimpl
    async def kill(self, handle: ContainerHandle, signal: int, everyone: bool) -> None:
        pass

    @hookimpl
    async def delete(self, handle: ContainerHandle) -> None:
        pass

    @hookimpl
    async def exec_sync(self, handle: ContainerHandle, request: ExecRequest) -> ExecOutput:
        return ExecOutput(0, b"", b"")

    @hookimpl
    async def update(self, handle: ContainerHandle, resources: LinuxResources) -> None:
        pass

    @hookimpl
    async def reopen_log(self, handle: ContainerHandle) -> None:
        pass

    @hookimpl
    async def stats(self, handle: ContainerHandle) -> CgroupUsage:
        return CgroupUsage(timestamp_ns=time.time_ns())


class NoopNetwork(_Noop):
    """A network that is ready and gives no address."""

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures()

    @hookimpl
    async def status(self) -> NetworkStatus:
        return NetworkStatus(True)

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        return {}

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        return Attachment(())

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        pass


class NoopSnapshotter(_Noop):
    """A snapshotter that takes every layer, has none, and whose snapshots are one empty directory."""

    @hookimpl
    def features(self) -> SnapshotterFeatures:
        return SnapshotterFeatures(parallel_unpack=True)

    @hookimpl
    async def probe(self) -> None:
        pass

    @hookimpl
    async def prepare_layer(self, chain_id: str, parent: str | None) -> LayerTarget:
        return LayerTarget(chain_id, self._host.run_dir, WhiteoutForm.OVERLAY)

    @hookimpl
    async def commit_layer(self, key: str, chain_id: str, parent: str | None) -> None:
        pass

    @hookimpl
    async def discard_layer(self, key: str) -> None:
        pass

    @hookimpl
    async def has_layer(self, chain_id: str) -> bool:
        return False

    @hookimpl
    async def list_layers(self) -> tuple[tuple[str, str | None], ...]:
        return ()

    @hookimpl
    async def remove_layer(self, chain_id: str) -> None:
        pass

    @hookimpl
    async def create_snapshot(self, key: str, parent: str | None, readonly: bool) -> tuple[Mount, ...]:
        return (Mount("bind", str(self._host.run_dir), ("rbind", "ro")),)

    @hookimpl
    async def mounts(self, key: str) -> tuple[Mount, ...]:
        return (Mount("bind", str(self._host.run_dir), ("rbind", "ro")),)

    @hookimpl
    async def remove_snapshot(self, key: str) -> None:
        pass

    @hookimpl
    async def list_snapshots(self) -> tuple[str, ...]:
        return ()

    @hookimpl
    async def list_unfinished(self) -> tuple[str, ...]:
        return ()

    @hookimpl
    async def usage(self, key: str) -> DiskUsage:
        return DiskUsage(0, 0)

    @hookimpl
    async def layer_usage(self, chain_id: str) -> DiskUsage:
        return DiskUsage(0, 0)

    @hookimpl
    async def total_usage(self) -> DiskUsage:
        return DiskUsage(0, 0)


class NoopRegistry(_Noop):
    """An image source that has no image."""

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        raise NotFound(f"image {request.reference} is not here: this source has none")

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        raise NotFound(f"blob {request.blob.digest} is not here: this source has none")

    @hookimpl
    async def status(self) -> SourceStatus:
        return SourceStatus(True)


class NoopExtension(_Noop):
    """An extension that has no hook."""
