"""What the RPC methods ask of the layer below, as protocols: ``lifecycle`` provides them, tests fake them.

Every method raises errors of :mod:`crinoid.core.api.errors` only; ids may be given as unique prefixes. Methods that are
no coroutines read what is committed and never wait. Arguments are passed by position.
"""

import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from crinoid.core.api.sessions import AttachSession, ExecSession
from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.api.values.image import Credentials
from crinoid.core.api.values.pod import LinuxResources, PodConfig
from crinoid.core.api.values.runtime import ExecOutput
from crinoid.core.lifecycle.events.events import EventReader
from crinoid.core.lifecycle.queries import (
    ContainerFilter,
    ContainerUsage,
    FilesystemReport,
    NodeStatus,
    PodFilter,
    PodUsage,
)
from crinoid.core.lifecycle.stats.metric_table import MetricDescriptor
from crinoid.core.lifecycle.stats.metrics import PodSamples
from crinoid.core.lifecycle.streams import StreamChoice
from crinoid.core.state.records import ContainerRecord, ImageRecord, PodRecord


class Pods(Protocol):
    """Pod sandboxes. ``stop`` and ``remove`` are idempotent, for a pod that is unknown too."""

    async def run(self, config: PodConfig, runtime_handler: str, /) -> str:
        """Make the pod, or join a request for the same one that is under way; return its id."""
        ...

    def acknowledge(self, pod_id: str, /) -> None:
        """Note that the client was told the id, so no retry may claim the pod."""
        ...

    async def stop(self, pod_id: str, /) -> None:
        """End all containers of the pod and give its network back."""
        ...

    async def remove(self, pod_id: str, /) -> None:
        """Leave nothing of the pod."""
        ...

    async def update(self, pod_id: str, resources: LinuxResources | None, overhead: LinuxResources | None, /) -> None:
        """Change limits of the pod as a whole; absent ones stay as they are."""
        ...

    def get(self, pod_id: str, /) -> PodRecord:
        """Find the pod; raise NotFound, or InvalidArgument for a prefix of several."""
        ...

    @property
    def version(self) -> int:
        """Another number after each change of any record."""
        ...

    def list(self, query: PodFilter, /) -> Sequence[PodRecord]:
        """Return the pods that pass."""
        ...

    def info(self, pod_id: str, /) -> Mapping[str, str]:
        """Return the verbose information: JSON texts by topic."""
        ...


class Containers(Protocol):
    """Containers. ``stop`` and ``remove`` are idempotent, for a container that is unknown too."""

    async def create(self, pod_id: str, config: ContainerConfig, pod_config: PodConfig | None, /) -> str:
        """Prepare a container in the pod; return its id."""
        ...

    def acknowledge(self, container_id: str, /) -> None:
        """Note that the client was told the id, so no retry may claim the container."""
        ...

    async def start(self, container_id: str, /) -> None:
        """Run what was created."""
        ...

    async def stop(self, container_id: str, timeout_s: float, /) -> None:
        """Send the stop signal, and SIGKILL once the grace period is over."""
        ...

    async def remove(self, container_id: str, /) -> None:
        """Kill the container if need be, and leave nothing of it but its log."""
        ...

    def get(self, container_id: str, /) -> ContainerRecord:
        """Find the container; raise NotFound, or InvalidArgument for a prefix of several."""
        ...

    @property
    def version(self) -> int:
        """Another number after each change of any record."""
        ...

    def list(self, query: ContainerFilter, /) -> Sequence[ContainerRecord]:
        """Return the containers that pass."""
        ...

    def info(self, container_id: str, /) -> Mapping[str, str]:
        """Return the verbose information: JSON texts by topic."""
        ...

    async def update(self, container_id: str, resources: LinuxResources, annotations: Mapping[str, str], /) -> None:
        """Change limits; zero and empty fields stay as they are."""
        ...

    async def reopen_log(self, container_id: str, /) -> None:
        """Open the log path anew after it was rotated away."""
        ...

    async def exec_sync(self, container_id: str, command: tuple[str, ...], timeout_s: float | None, /) -> ExecOutput:
        """Run a command to its end; raise DeadlineExceeded after killing its process tree."""
        ...


class Images(Protocol):
    """Images. ``remove`` is idempotent."""

    async def pull(
        self, reference: str, credentials: Credentials | None, annotations: Mapping[str, str], runtime_handler: str, /
    ) -> str:
        """Fetch and unpack an image; return its id."""
        ...

    def find(self, reference: str, /) -> ImageRecord | None:
        """Find an image by tag, reference with digest, id or short id."""
        ...

    def find_usable(self, reference: str, /) -> ImageRecord | None:
        """Find an image, but none that has to be pulled again before containers can be made of it."""
        ...

    async def verify(self, record: ImageRecord, /) -> Sequence[str]:
        """Read all that is stored of an image; return what is wrong."""
        ...

    def get(self, image_id: str, /) -> ImageRecord | None:
        """Find an image by its whole id."""
        ...

    @property
    def version(self) -> int:
        """Another number after each change of any record."""
        ...

    def list(self) -> Sequence[ImageRecord]:
        """Return all images."""
        ...

    def info(self, record: ImageRecord, /) -> Mapping[str, str]:
        """Return the verbose information: JSON texts by topic."""
        ...

    def user_of(self, record: ImageRecord, /) -> tuple[int | None, str]:
        """Return the image's default user as a uid, or as a name where it is no number."""
        ...

    async def remove(self, reference: str, /) -> None:
        """Drop the image with all its names."""
        ...

    async def filesystems(self) -> tuple[tuple[FilesystemReport, ...], tuple[FilesystemReport, ...]]:
        """Measure what images take, and what writable layers take."""
        ...


class Stats(Protocol):
    """Usage of containers and pods; the lists leave out what does not run."""

    async def container(self, container_id: str, /) -> ContainerUsage:
        """Measure one container; raise NotFound."""
        ...

    async def containers(self, query: ContainerFilter, /) -> Sequence[ContainerUsage]:
        """Measure the containers that pass."""
        ...

    def container_batches(self, query: ContainerFilter, /) -> AsyncGenerator[Sequence[ContainerUsage], None]:
        """Measure the containers that pass a few at a time."""
        ...

    async def pod(self, pod_id: str, /) -> PodUsage:
        """Measure one pod with its containers; raise NotFound."""
        ...

    async def pods(self, query: PodFilter, /) -> Sequence[PodUsage]:
        """Measure the pods that pass."""
        ...

    def pod_batches(self, query: PodFilter, /) -> AsyncGenerator[Sequence[PodUsage], None]:
        """Measure the pods that pass a few at a time."""
        ...


class Node(Protocol):
    """The node as a whole."""

    @property
    def version(self) -> str:
        """Crinoid's version."""
        ...

    async def status(self, verbose: bool, /) -> NodeStatus:
        """Examine what RuntimeReady and NetworkReady say."""
        ...

    def cgroup_driver(self) -> str:
        """Return ``systemd`` or ``cgroupfs``."""
        ...

    async def set_pod_cidrs(self, cidrs: tuple[str, ...], /) -> None:
        """Take the node's address ranges, at most one of each family."""
        ...


class Checkpoints(Protocol):
    """Writes down what containers do; they run on."""

    async def container(self, container_id: str, location: str, timeout_s: float, /) -> None:
        """Write a container's archive; ``timeout_s`` 0 is the configured one."""
        ...

    async def pod(self, pod_id: str, output: str, containers: Sequence[str], options: Mapping[str, str], /) -> None:
        """Write the checkpoint of a pod's containers into an empty directory."""
        ...


class Restorer(Protocol):
    """Makes pods from checkpoints."""

    async def restore(
        self,
        checkpoint: str,
        config: PodConfig,
        handler: str,
        options: Mapping[str, str],
        containers: Sequence[ContainerConfig],
        /,
    ) -> tuple[str, Mapping[str, str]]:
        """Make a pod with its containers; return its id, and theirs by name."""
        ...


class Streams(Protocol):
    """What the streaming server asks; see ``StreamService`` of ``lifecycle``."""

    def check_exec(self, container_id: str, command: tuple[str, ...], /) -> str:
        """Return the full id of a container that the command can be executed in; raise otherwise."""
        ...

    def check_attach(self, container_id: str, /) -> str:
        """Return the full id of a container that can be attached to; raise otherwise."""
        ...

    def check_forward(self, pod_id: str, /) -> str:
        """Return the full id of a pod whose ports can be forwarded; raise otherwise."""
        ...

    async def execute(self, container_id: str, command: tuple[str, ...], choice: StreamChoice, /) -> ExecSession:
        """Start a command."""
        ...

    async def attach(self, container_id: str, choice: StreamChoice, /) -> AttachSession:
        """Join a container's streams."""
        ...

    async def connect(self, pod_id: str, port: int, /) -> socket.socket:
        """Connect to a port in a pod; return a socket that does not block."""
        ...


class StreamUrls(Protocol):
    """Where streams can be had: the streaming server as the RPCs see it."""

    def exec_url(self, container_id: str, command: tuple[str, ...], choice: StreamChoice, /) -> str:
        """Return a URL, to be used once, that executes a command."""
        ...

    def attach_url(self, container_id: str, choice: StreamChoice, /) -> str:
        """Return a URL, to be used once, that attaches to a container."""
        ...

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...], /) -> str:
        """Return a URL, to be used once, that forwards ports of a pod."""
        ...


class Events(Protocol):
    """What happens to pods and containers."""

    def subscribe(self) -> EventReader:
        """Follow all that happens from now on."""
        ...


class Metrics(Protocol):
    """Figures of pods and containers for monitoring."""

    def descriptors(self) -> Sequence[MetricDescriptor]:
        """Return every metric there can be."""
        ...

    async def pods(self) -> Sequence[PodSamples]:
        """Read them of every ready pod."""
        ...

    def batches(self) -> AsyncGenerator[Sequence[PodSamples], None]:
        """Read them a few pods at a time."""
        ...


class Services(Protocol):
    """All that the RPC methods need."""

    @property
    def pods(self) -> Pods: ...
    @property
    def containers(self) -> Containers: ...
    @property
    def images(self) -> Images: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def node(self) -> Node: ...
    @property
    def events(self) -> Events: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def restorer(self) -> Restorer: ...
    @property
    def streams(self) -> StreamUrls: ...
