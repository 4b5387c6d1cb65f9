"""What scenarios run with: the endpoints, the images, how often; and pods, made as a kubelet makes them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import container_request, forget_pod, pod_request, prepare_pod
from bench.endpoints import Endpoint
from bench.images import Sizes
from bench.results import Results
from crinoid.core.cri.wire import api_pb2 as cri
from support.registry import RunningRegistry

_numbers = itertools.count()
_SERVICE = "trap exit TERM; sleep 100000 & wait"  # a well-behaved one: CRI-O waits long for what ignores SIGTERM
Pod = tuple[str, Any]
"""A pod's id, and the request it was made by."""


@dataclass
class Bench:
    """What scenarios run with. ``seconds`` is how long polling and idling are watched, ``sizes`` what is pulled,
    ``images_only`` names endpoints that are part of those scenarios alone in which the snapshotter matters."""

    endpoints: Sequence[Endpoint]
    registry: str
    images: dict[str, str]
    logs: Path
    rounds: int
    pods: int
    seconds: float
    results: Results = field(default_factory=Results)
    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    log_mb: int = 200
    running_registry: RunningRegistry | None = None
    small_images: list[str] = field(default_factory=list)
    images_only: frozenset[str] = frozenset()

    @property
    def growth_seconds(self) -> float:
        """How long polling and idling are watched where there are many numbers of pods to watch."""
        return round(0.3 * self.seconds, 1)

    def request(self, endpoint: Endpoint) -> Any:
        """Return a request for a pod, and have ready what a kubelet has ready."""
        request = pod_request(f"bench-{next(_numbers)}", self.logs / endpoint.name, endpoint.cgroup, endpoint.handler)
        prepare_pod(request)
        return request

    def run(self, endpoint: Endpoint, request: Any) -> Pod:
        """Run a pod."""
        return endpoint.client.call("RunPodSandbox", request).pod_sandbox_id, request

    def pod(self, endpoint: Endpoint) -> Pod:
        """Run a pod; return its id and request."""
        return self.run(endpoint, self.request(endpoint))

    def container(self, endpoint: Endpoint, pod: Pod, *command: str, image: str = "", name: str = "app") -> str:
        """Create and start a container; return its id."""
        words = command or ("sh", "-c", _SERVICE)
        request = container_request(pod[0], pod[1], image or self.images["busybox"], *words, name=name)
        container: str = endpoint.client.call("CreateContainer", request).container_id
        endpoint.client.call("StartContainer", cri.StartContainerRequest(container_id=container))
        return container

    def remove(self, endpoint: Endpoint, pod: Pod) -> None:
        """Stop and remove a pod."""
        endpoint.client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod[0]))
        endpoint.client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod[0]))

    @contextmanager
    def many(self, endpoint: Endpoint, count: int) -> Iterator[list[Pod]]:
        """Pods with a running container each; those that are still in the list at the end are removed."""
        requests = [self.request(endpoint) for _ in range(count)]
        pods: list[Pod] = []
        try:
            pods += in_fours(lambda request: self.run(endpoint, request), requests)
            in_fours(lambda pod: self.container(endpoint, pod), pods)
            yield pods
        finally:
            in_fours(lambda pod: self.remove(endpoint, pod), pods)
            for request in requests:
                forget_pod(request)


def in_fours(work: Callable[[Any], Any], things: Sequence[Any]) -> list[Any]:
    """Do the same with many things, four at a time."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(work, things))
