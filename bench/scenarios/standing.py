"""Many pods that just stand there: lists, stats, memory, CPU of polling and of idling, restart, removal."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.endpoints import Endpoint
from bench.measure import cpu_of, memory_mib, pss_mib, spent
from bench.scenarios.node import Bench, in_fours
from crinoid.core.cri.wire import api_pb2 as cri

Question = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to watch, how often to ask and to restart, and what else to do beside the pods that stand there."""

    seconds: float
    often: int
    restarts: int
    beside: Callable[[Bench, Endpoint], None] = lambda bench, endpoint: None


def turns(bench: Bench) -> Iterator[Any]:
    """Each turn has all the pods of one endpoint stand there, alone."""
    for _ in range(1 if bench.quick else 2):
        yield partial(stand, count=bench.pods, effort=Effort(bench.seconds, often=30, restarts=3))


def stand(bench: Bench, endpoint: Endpoint, count: int, effort: Effort) -> None:
    """Have ``count`` pods stand there, and measure all that belongs to it."""
    with bench.many(endpoint, count) as pods:
        effort.beside(bench, endpoint)
        ask(bench, endpoint, standing_questions(endpoint), effort.often)
        if endpoint.processes():
            _watch(bench, endpoint, effort.seconds)
        for _ in range(effort.restarts if endpoint.engine is not None else 0):
            with bench.results.timed("restart", endpoint.name):
                endpoint.end()
                with bench.results.timed("accepting", endpoint.name):
                    endpoint.launch()
                    endpoint.wait_for_socket()
                found = endpoint.wait_for_list(count)
            assert found == count, f"{found} of {count} containers after the restart"
        with bench.results.timed("removal", endpoint.name):
            in_fours(lambda pod: bench.remove(endpoint, pod), pods)
        pods.clear()


def standing_questions(endpoint: Endpoint) -> Mapping[str, list[Question]]:
    """Return what a kubelet asks, by figure."""
    client = endpoint.client
    containers = client.call("ListContainers", cri.ListContainersRequest()).containers
    container_status = cri.ContainerStatusRequest(container_id=containers[0].id)
    pod_status = cri.PodSandboxStatusRequest(pod_sandbox_id=containers[0].pod_sandbox_id)
    return {
        "version": [client.prepare("Version", cri.VersionRequest())],
        "lists": [
            client.prepare("ListContainers", cri.ListContainersRequest()),
            client.prepare("ListPodSandbox", cri.ListPodSandboxRequest()),
            client.prepare("ContainerStatus", container_status),
        ],
        "container-status": [client.prepare("ContainerStatus", container_status)],
        "pod-status": [client.prepare("PodSandboxStatus", pod_status)],
        "container-stats": [client.prepare("ListContainerStats", cri.ListContainerStatsRequest())],
        "pod-stats": [client.prepare("ListPodSandboxStats", cri.ListPodSandboxStatsRequest())],
    }


def ask(bench: Bench, endpoint: Endpoint, questions: Mapping[str, list[Question]], often: int) -> None:
    """Ask the questions of each figure, one after the other; two rounds of each warm up."""
    for figure, calls in questions.items():
        for number in range(often + 2):
            with bench.results.ignored(number < 2), bench.results.timed(figure, endpoint.name):
                for call in calls:
                    call()


def _watch(bench: Bench, endpoint: Endpoint, seconds: float) -> None:
    """Measure CPU while a kubelet polls, memory after it, and CPU while nobody asks for anything."""
    for figure, act in (("polling", partial(_poll, endpoint, seconds)), ("idle", partial(time.sleep, seconds))):
        before = cpu_of(endpoint.processes())
        act()
        after = cpu_of(endpoint.processes())
        bench.results.add(figure, endpoint.name, spent(before, after))
        if figure == "polling":
            bench.results.add("memory", endpoint.name, memory_mib(endpoint.processes()))
            bench.results.add("pss", endpoint.name, pss_mib(endpoint.processes()))


def _poll(endpoint: Endpoint, seconds: float) -> None:
    """Ask what a kubelet asks: both lists each second, status each five, stats and the image file system each ten."""
    client = endpoint.client
    pod = client.call("ListPodSandbox", cri.ListPodSandboxRequest()).items[0].id
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number % 10 == 0:
            client.call("ListContainerStats", cri.ListContainerStatsRequest())
            client.call("ListPodSandboxStats", cri.ListPodSandboxStatsRequest())
            client.call("ImageFsInfo", cri.ImageFsInfoRequest())
        if number % 5 == 0:
            client.call("Status", cri.StatusRequest())
            client.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=pod))
        client.call("ListPodSandbox", cri.ListPodSandboxRequest())
        client.call("ListContainers", cri.ListContainersRequest())
        if time.monotonic() + 1 > end:
            break
        time.sleep(1)
    time.sleep(max(0, end - time.monotonic()))
