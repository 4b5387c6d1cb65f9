"""Fakes of the services, and a real server and client over a unix socket."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import NotFound
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.image import Credentials
from crinoid.core.api.values.network import Attachment
from crinoid.core.api.values.pod import LinuxResources, PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerHandle, ExecOutput
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage
from crinoid.core.cri.calls import CallHooks
from crinoid.core.cri.client import Client
from crinoid.core.cri.server import Endpoint, Server
from crinoid.core.lifecycle.events.events import EventReader
from crinoid.core.lifecycle.queries import (
    Condition,
    ContainerFilter,
    ContainerUsage,
    FilesystemReport,
    HandlerReport,
    NodeStatus,
    PodFilter,
    PodUsage,
)
from crinoid.core.lifecycle.stats.metric_table import METRICS, MetricDescriptor, Reading
from crinoid.core.lifecycle.stats.metrics import ContainerSamples, PodSamples, take_samples
from crinoid.core.state.records import (
    ContainerRecord,
    ContainerState,
    ImageRecord,
    PodRecord,
    PodState,
    ProcessUser,
)

SECOND_NS = 10**9
VERSIONS = itertools.count()


def make_pod(pod_id: str = "pod1", created_at_ns: int = SECOND_NS, **changes: Any) -> PodRecord:
    config = PodConfig(metadata=PodMetadata("web", "shop", "u1", 2), labels={"app": "web"}, annotations={"a": "b"})
    given: dict[str, Any] = {
        "id": pod_id,
        "config": config,
        "runtime_handler": "fast",
        "runtime": "fast",
        "network": "default",
        "snapshotter": "overlay",
        "state": PodState.READY,
        "created_at_ns": created_at_ns,
        "attachment": Attachment(("10.0.0.5", "fd00::5")),
    }
    return PodRecord(**(given | changes))


def make_container(container_id: str = "c1", created_at_ns: int = SECOND_NS, **changes: Any) -> ContainerRecord:
    config = ContainerConfig(
        metadata=ContainerMetadata("nginx", 1), image="sha256:abc", user_specified_image="nginx", labels={"l": "1"}
    )
    given: dict[str, Any] = {
        "id": container_id,
        "pod_id": "pod1",
        "config": config,
        "handle": ContainerHandle(container_id, "pod1", Path("/bundle"), "/kubepods/c1"),
        "image_id": "sha256:abc",
        "image_ref": "docker.io/library/nginx@sha256:def",
        "state": ContainerState.RUNNING,
        "created_at_ns": created_at_ns,
        "started_at_ns": created_at_ns + 1,
        "log_path": "/var/log/pods/x/nginx/1.log",
        "user": ProcessUser(101, 102, (103,)),
        "resources": LinuxResources(cpu_shares=512, hugepage_limits={"2MB": 4}, unified={"memory.high": "max"}),
        "stop_signal": "SIGQUIT",
    }
    return ContainerRecord(**(given | changes))


def make_image(**changes: Any) -> ImageRecord:
    given: dict[str, Any] = {
        "id": "sha256:abc",
        "tags": ("docker.io/library/other:1", "docker.io/library/nginx:latest"),
        "digests": ("docker.io/library/nginx@sha256:def",),
        "size_bytes": 12345,
    }
    return ImageRecord(**(given | changes))


class FakePods:
    """Knows pods by id; ``calls`` tells what was asked, ``pause`` holds ``run`` back."""

    def __init__(self) -> None:
        self.records = {"pod1": make_pod(), "pod2": make_pod("pod2", 2 * SECOND_NS, state=PodState.NOT_READY)}
        self.calls: list[tuple[object, ...]] = []
        self.pause: asyncio.Event | None = None
        self.error: Exception | None = None
        self.cancelled = False

    async def run(self, config: PodConfig, runtime_handler: str, /) -> str:
        self.calls.append(("run", config, runtime_handler))
        if self.error:
            raise self.error
        try:
            if self.pause:
                await self.pause.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "pod9"

    def acknowledge(self, pod_id: str, /) -> None:
        self.calls.append(("acknowledge", pod_id))

    async def stop(self, pod_id: str, /) -> None:
        self.calls.append(("stop", pod_id))

    async def remove(self, pod_id: str, /) -> None:
        self.calls.append(("remove", pod_id))

    async def update(self, pod_id: str, resources: LinuxResources | None, overhead: LinuxResources | None, /) -> None:
        self.calls.append(("update", pod_id, resources, overhead))

    def get(self, pod_id: str, /) -> PodRecord:
        if pod_id not in self.records:
            raise NotFound(f"there is no pod {pod_id}")
        return self.records[pod_id]

    @property
    def version(self) -> int:
        """Tests change records as they like."""
        return next(VERSIONS)

    def list(self, query: PodFilter, /) -> list[PodRecord]:
        self.calls.append(("list", query))
        return [one for one in self.records.values() if query.state in (None, one.state)]

    def info(self, pod_id: str, /) -> Mapping[str, object]:
        return {"pod": pod_id}


class FakeContainers:
    def __init__(self) -> None:
        self.records = {"c1": make_container(), "c2": make_container("c2", 3 * SECOND_NS)}
        self.calls: list[tuple[object, ...]] = []

    async def create(self, pod_id: str, config: ContainerConfig, pod_config: PodConfig | None, /) -> str:
        self.calls.append(("create", pod_id, config, pod_config))
        return "c9"

    def acknowledge(self, container_id: str, /) -> None:
        self.calls.append(("acknowledge", container_id))

    async def start(self, container_id: str, /) -> None:
        self.calls.append(("start", container_id))

    async def stop(self, container_id: str, timeout_s: float, /) -> None:
        self.calls.append(("stop", container_id, timeout_s))

    async def remove(self, container_id: str, /) -> None:
        self.calls.append(("remove", container_id))

    def get(self, container_id: str, /) -> ContainerRecord:
        if container_id not in self.records:
            raise NotFound(f"there is no container {container_id}")
        return self.records[container_id]

    @property
    def version(self) -> int:
        """Tests change records as they like."""
        return next(VERSIONS)

    def list(self, query: ContainerFilter, /) -> list[ContainerRecord]:
        self.calls.append(("list", query))
        return list(self.records.values())

    def info(self, container_id: str, /) -> Mapping[str, object]:
        return {"pid": 7}

    async def update(self, container_id: str, resources: LinuxResources, annotations: Mapping[str, str], /) -> None:
        self.calls.append(("update", container_id, resources, annotations))

    async def reopen_log(self, container_id: str, /) -> None:
        self.calls.append(("reopen_log", container_id))

    async def exec_sync(self, container_id: str, command: tuple[str, ...], timeout_s: float | None, /) -> ExecOutput:
        self.calls.append(("exec_sync", container_id, command, timeout_s))
        return ExecOutput(3, b"out\xff", b"err")


class FakeImages:
    def __init__(self) -> None:
        self.records = {"nginx": make_image(), "sha256:abc": make_image()}
        self.calls: list[tuple[object, ...]] = []
        self.error: Exception | None = None

    async def pull(
        self, reference: str, credentials: Credentials | None, annotations: Mapping[str, str], runtime_handler: str, /
    ) -> str:
        self.calls.append(("pull", reference, credentials, annotations, runtime_handler))
        if self.error:
            raise self.error
        return "sha256:abc"

    def find(self, reference: str, _handler: str | None = None, /) -> ImageRecord | None:
        return self.records.get(reference)

    def find_usable(self, reference: str, _handler: str = "", /) -> ImageRecord | None:
        return self.records.get(reference)

    async def verify(self, record: ImageRecord, /) -> tuple[str, ...]:
        return (f"blob {record.id} is damaged",)

    def get(self, image_id: str, /) -> ImageRecord | None:
        return self.records.get(image_id)

    @property
    def version(self) -> int:
        return next(VERSIONS)

    def list(self) -> tuple[ImageRecord, ...]:
        return (self.records["nginx"],)

    def info(self, record: ImageRecord, /) -> Mapping[str, str]:
        return {"info": record.config}

    def user_of(self, record: ImageRecord, /) -> tuple[int | None, str]:
        return 0, ""

    async def remove(self, reference: str, handler: str = "", /) -> None:
        self.calls.append(("remove", reference, handler))

    async def filesystems(self) -> tuple[tuple[FilesystemReport, ...], tuple[FilesystemReport, ...]]:
        return (FilesystemReport(5, "/images", DiskUsage(10, 2)),), (FilesystemReport(6, "/layers", DiskUsage(20, 3)),)


class FakeStats:
    def __init__(self) -> None:
        self.queries: list[object] = []

    def usage(self, container_id: str = "c1") -> ContainerUsage:
        usage = CgroupUsage(timestamp_ns=9, cpu_ns=8, memory_usage_bytes=70, memory_working_set_bytes=60, pids=4)
        return ContainerUsage(make_container(container_id), usage, 55, DiskUsage(44, 3), 10, "/upper")

    async def container(self, container_id: str, /) -> ContainerUsage:
        return self.usage(container_id)

    async def containers(self, query: ContainerFilter, /) -> list[ContainerUsage]:
        self.queries.append(query)
        return [self.usage("c1"), self.usage("c2")]

    async def container_batches(self, query: ContainerFilter, /) -> AsyncIterator[list[ContainerUsage]]:
        self.queries.append(query)
        yield [self.usage("c1"), self.usage("c2")]
        yield [self.usage("c3")]

    async def pod_batches(self, query: PodFilter, /) -> AsyncIterator[list[PodUsage]]:
        self.queries.append(query)
        for pod_id in ("pod1", "pod2"):
            yield [await self.pod(pod_id)]

    async def pod(self, pod_id: str, /) -> PodUsage:
        network = NetworkUsage(11, (InterfaceUsage("eth0", 1, 2, 3, 4), InterfaceUsage("net1", 5, 6, 7, 8)))
        usage = self.usage()
        return PodUsage(make_pod(pod_id), usage.usage, None, network, (usage,))

    async def pods(self, query: PodFilter, /) -> list[PodUsage]:
        self.queries.append(query)
        return [await self.pod("pod1")]


class FakeMetrics:
    def __init__(self) -> None:
        base = ("", "/pod1", "", "", "shop", "web")
        self.taken = PodSamples(
            "pod1",
            take_samples(Reading(timestamp_ns=9, started_ns=SECOND_NS), base),
            (ContainerSamples("c1", take_samples(Reading(timestamp_ns=9, started_ns=2 * SECOND_NS), base)),),
        )

    def descriptors(self) -> tuple[MetricDescriptor, ...]:
        return METRICS

    async def pods(self) -> list[PodSamples]:
        return [self.taken]

    async def batches(self) -> AsyncIterator[list[PodSamples]]:
        for _ in range(2):
            yield [self.taken]


class FakeEvents:
    """``reader`` is what the next subscriber gets."""

    def __init__(self) -> None:
        self.reader = EventReader(8)
        self.relayed_until_s: list[float | None] = []

    def subscribe(self, relayed_until_s: float | None = None) -> EventReader:
        self.relayed_until_s.append(relayed_until_s)
        return self.reader


class FakeNode:
    version = "1.2.3"

    def __init__(self) -> None:
        self.cidrs: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    async def status(self, verbose: bool, /) -> NodeStatus:
        if self.error:
            raise self.error
        conditions = (Condition("RuntimeReady", True), Condition("NetworkReady", False, "NoConfig", "put one there"))
        return NodeStatus(conditions, (HandlerReport("", True, False), HandlerReport("fast", True, False)), {"a": "{}"})

    def cgroup_driver(self) -> str:
        return "cgroupfs"

    async def set_pod_cidrs(self, cidrs: tuple[str, ...], /) -> None:
        self.cidrs.append(cidrs)


async def _no_acts(_about: object, _since_ns: int) -> list[str]:
    return []


@pytest.fixture
def services() -> SimpleNamespace:
    return SimpleNamespace(
        pods=FakePods(),
        containers=FakeContainers(),
        images=FakeImages(),
        loads=SimpleNamespace(),
        saves=SimpleNamespace(),
        disk=SimpleNamespace(),
        adoptions=SimpleNamespace(),
        stats=FakeStats(),
        node=FakeNode(),
        streams=SimpleNamespace(),
        checkpoints=SimpleNamespace(),
        restorer=SimpleNamespace(),
        events=FakeEvents(),
        metrics=FakeMetrics(),
        dry_run=SimpleNamespace(),
        timelines=SimpleNamespace(is_off=True, read=_no_acts),
    )


@pytest.fixture
def observed() -> list[tuple[str, float, str]]:
    return []


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    return Endpoint(tmp_path / "run" / "crinoid.sock", max_request_bytes=1 << 20)


@pytest.fixture
async def server(endpoint: Endpoint, services: Any, observed: list[tuple[str, float, str]]) -> AsyncIterator[Server]:
    hooks = CallHooks(observe=lambda *told: observed.append(told))
    server = Server(endpoint, services, hooks)
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
async def client(server: Server, endpoint: Endpoint) -> AsyncIterator[Client]:
    async with Client(f"unix://{endpoint.path}") as client:
        yield client
