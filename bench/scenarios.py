"""What is measured. Each scenario takes the endpoints in turn (A B A B), so that a drift of the machine hits all alike.

A scenario adds samples under the name of its figure; units stand in the name. The pods of a scenario are its own, and
are gone when it ends.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import container_request, pod_request
from bench.endpoints import Endpoint
from bench.measure import Samples, cpu_s, machine_cpu_s, pss_mib, settle, timed
from crinoid.core.cri.wire import api_pb2 as cri

_numbers = itertools.count()
LINES_MB = 200


@dataclass
class Results:
    """Samples by figure and endpoint, and the CPU that others took during each scenario, in percent of one core."""

    samples: dict[str, dict[str, Samples]] = field(default_factory=dict)
    foreign_cpu: dict[str, float] = field(default_factory=dict)

    def of(self, figure: str, endpoint: Endpoint) -> Samples:
        """Return where to add the samples of a figure."""
        return self.samples.setdefault(figure, {}).setdefault(endpoint.name, Samples())


@dataclass
class Bench:
    """What scenarios run with: endpoints, images, and how often."""

    endpoints: Sequence[Endpoint]
    registry: str
    images: dict[str, str]
    logs: Path
    rounds: int
    pods: int
    seconds: float
    results: Results = field(default_factory=Results)

    def pod(self, endpoint: Endpoint) -> tuple[str, Any]:
        """Run a pod; return its id and request."""
        request = pod_request(f"bench-{next(_numbers)}", self.logs / endpoint.name, endpoint.cgroup, endpoint.handler)
        return endpoint.client.call("RunPodSandbox", request).pod_sandbox_id, request

    def container(self, endpoint: Endpoint, pod: tuple[str, Any], *command: str) -> str:
        """Create and start a container; return its id."""
        request = container_request(pod[0], pod[1], self.images["busybox"], *(command or ("sleep", "100000")))
        container: str = endpoint.client.call("CreateContainer", request).container_id
        endpoint.client.call("StartContainer", cri.StartContainerRequest(container_id=container))
        return container

    def remove(self, endpoint: Endpoint, pod: tuple[str, Any]) -> None:
        """Stop and remove a pod."""
        endpoint.client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod[0]))
        endpoint.client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod[0]))

    @contextmanager
    def many(self, endpoint: Endpoint, count: int) -> Iterator[list[tuple[str, Any]]]:
        """Pods with a running container each."""
        with ThreadPoolExecutor(4) as threads:
            pods = list(threads.map(lambda _: self.pod(endpoint), range(count)))
            list(threads.map(lambda pod: self.container(endpoint, pod), pods))
            try:
                yield pods
            finally:
                list(threads.map(lambda pod: self.remove(endpoint, pod), pods))


Scenario = Callable[[Bench], None]


def life(bench: Bench) -> None:
    """One pod after the other: run, create and start, exec, stop and remove."""
    for number in range(bench.rounds + 1):
        for endpoint in bench.endpoints:
            results = bench.results if number else Results()  # the first round warms up
            ready = results.of("pod ready, ms", endpoint)
            with timed(ready):
                with timed(results.of("RunPodSandbox, ms", endpoint)):
                    pod = bench.pod(endpoint)
                with timed(results.of("CreateContainer + StartContainer, ms", endpoint)):
                    container = bench.container(endpoint, pod)
            request = cri.ExecSyncRequest(container_id=container, cmd=["/bin/true"], timeout=10)
            with timed(results.of("ExecSync(true), ms", endpoint)):
                endpoint.client.call("ExecSync", request)
            with timed(results.of("StopPodSandbox + RemovePodSandbox, ms", endpoint)):
                bench.remove(endpoint, pod)


def crowd(bench: Bench) -> None:
    """Ten pods at once, up to the answer of the last StartContainer."""
    for number in range(max(2, bench.rounds // 4) + 1):
        for endpoint in bench.endpoints:
            results = bench.results if number else Results()

            def make(_: int, endpoint: Endpoint = endpoint) -> tuple[str, Any]:
                pod = bench.pod(endpoint)
                bench.container(endpoint, pod)
                return pod

            with ThreadPoolExecutor(10) as threads:
                with timed(results.of("ten pods at once, ms", endpoint)):
                    pods = list(threads.map(make, range(10)))
                list(threads.map(lambda pod, e=endpoint: bench.remove(e, pod), pods))


def standing(bench: Bench) -> None:
    """Many pods that just stand there: lists, stats, memory, CPU of polling and of idling, restart, removal."""
    for endpoint in bench.endpoints:
        with bench.many(endpoint, bench.pods) as pods:
            suffix = f"at {bench.pods} pods"
            _ask(bench, endpoint, suffix)
            processes = endpoint.processes()
            bench.results.of(f"PSS of daemon and monitors {suffix}, MiB", endpoint).values.append(pss_mib(processes))
            _poll(bench, endpoint, pods, f"CPU of {bench.seconds:g} s of polling {suffix}, s")
            began = cpu_s(endpoint.processes())
            time.sleep(bench.seconds)
            idle = cpu_s(endpoint.processes()) - began
            bench.results.of(f"CPU of {bench.seconds:g} s left alone {suffix}, s", endpoint).values.append(idle)
            if endpoint.engine is not None:
                for _ in range(3):
                    with timed(bench.results.of(f"restart until the first full list {suffix}, ms", endpoint)):
                        endpoint.restart()
                        assert endpoint.wait_for_list() == bench.pods
            removing = bench.results.of(f"removing {bench.pods} pods four at a time, s", endpoint)
            with timed(removing, 1), ThreadPoolExecutor(4) as threads:
                list(threads.map(lambda pod, e=endpoint: bench.remove(e, pod), pods))
            pods.clear()  # a peer takes it amiss to remove what is gone


def _ask(bench: Bench, endpoint: Endpoint, suffix: str) -> None:
    """The questions of a kubelet, one after the other."""
    client = endpoint.client
    containers = [one.id for one in client.call("ListContainers", cri.ListContainersRequest()).containers]
    questions: dict[str, list[tuple[str, Any]]] = {
        "ListContainers, ListPodSandbox, ContainerStatus": [
            ("ListContainers", cri.ListContainersRequest()),
            ("ListPodSandbox", cri.ListPodSandboxRequest()),
            ("ContainerStatus", cri.ContainerStatusRequest(container_id=containers[0])),
        ],
        "ListContainerStats": [("ListContainerStats", cri.ListContainerStatsRequest())],
        "ListPodSandboxStats": [("ListPodSandboxStats", cri.ListPodSandboxStatsRequest())],
    }
    for figure, calls in questions.items():
        for _ in range(30):
            with timed(bench.results.of(f"{figure} {suffix}, ms", endpoint)):
                for rpc, request in calls:
                    client.call(rpc, request)


def _poll(bench: Bench, endpoint: Endpoint, pods: Sequence[tuple[str, Any]], figure: str) -> None:
    """What a kubelet asks each second: both lists; every ten seconds stats, status and the image file system."""
    client, processes = endpoint.client, endpoint.processes()
    began, end = cpu_s(processes), time.monotonic() + bench.seconds
    client.call("ListContainerStats", cri.ListContainerStatsRequest())
    client.call("ListPodSandboxStats", cri.ListPodSandboxStatsRequest())
    client.call("ImageFsInfo", cri.ImageFsInfoRequest())
    for number in itertools.count():
        client.call("ListPodSandbox", cri.ListPodSandboxRequest())
        client.call("ListContainers", cri.ListContainersRequest())
        if number % 5 == 0:
            client.call("Status", cri.StatusRequest())
            client.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=pods[0][0]))
        if time.monotonic() + 1 > end:
            break
        time.sleep(1)
    time.sleep(max(0, end - time.monotonic()))
    bench.results.of(figure, endpoint).values.append(cpu_s(processes) - began)


def logging(bench: Bench) -> None:
    """A container that writes lines of 100 bytes as fast as it can, until it ends; every line must be in the log."""
    lines = LINES_MB * 10_000
    script = f"yes $(printf %099d 7) | head -n {lines}"
    for _ in range(2):
        for endpoint in bench.endpoints:
            pod = bench.pod(endpoint)
            with timed(bench.results.of(f"a container that writes {LINES_MB} MB of lines, s", endpoint), 1):
                container = bench.container(endpoint, pod, "sh", "-c", script)
                _wait_exit(endpoint, container)
            request = cri.ContainerStatusRequest(container_id=container)
            log = Path(endpoint.client.call("ContainerStatus", request).status.log_path)
            found = _whole_lines(log)
            assert found == lines, f"{endpoint.name} has {found} of {lines} lines"
            bench.remove(endpoint, pod)
            log.unlink()


def _wait_exit(endpoint: Endpoint, container: str) -> None:
    request = cri.ContainerStatusRequest(container_id=container)
    while endpoint.client.call("ContainerStatus", request).status.state != cri.CONTAINER_EXITED:
        time.sleep(0.005)


def _whole_lines(log: Path) -> int:
    """Count lines after partial ones (tag P) are joined, and check that each is what was written."""
    expected, count, pending = b"7".rjust(99, b"0"), 0, b""
    with log.open("rb") as file:
        for line in file:
            _, _, tag, text = line.rstrip(b"\n").split(b" ", 3)
            pending += text
            if tag == b"F":
                assert pending == expected, pending
                count, pending = count + 1, b""
    return count


def pulling(bench: Bench) -> None:
    """The two images, from a registry on loopback, with a settled disk before each pull."""
    for figure, image in (
        ("PullImage, 500 MB in 20,000 files in 4 layers, s", "large"),
        ("PullImage, 30,000 tiny files in one layer, s", "tiny"),
    ):
        for _ in range(2):
            for endpoint in bench.endpoints:
                spec = cri.ImageSpec(image=bench.images[image])
                settle()
                time.sleep(1)
                with timed(bench.results.of(figure, endpoint), 1):
                    endpoint.client.call("PullImage", cri.PullImageRequest(image=spec), 600)
                endpoint.client.call("RemoveImage", cri.RemoveImageRequest(image=spec))


SCENARIOS: dict[str, Scenario] = {
    "life": life,
    "crowd": crowd,
    "standing": standing,
    "logging": logging,
    "pulling": pulling,
}


def run(bench: Bench, names: Sequence[str]) -> Results:
    """Run scenarios by name; note what everybody else's CPU was meanwhile."""
    for name in names:
        own = [pid for endpoint in bench.endpoints for pid in endpoint.processes()]
        began, machine, ours = time.monotonic(), machine_cpu_s(), cpu_s(own)
        SCENARIOS[name](bench)
        spent = machine_cpu_s() - machine - (cpu_s(own) - ours)
        bench.results.foreign_cpu[name] = 100 * spent / (time.monotonic() - began)
    return bench.results
