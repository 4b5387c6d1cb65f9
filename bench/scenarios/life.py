"""Pods one after the other, and ten at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.client import forget_pod
from bench.endpoints import Endpoint
from bench.scenarios.node import Bench, Pod, in_fours
from crinoid.core.cri.wire import api_pb2 as cri


def turns(bench: Bench) -> Iterator[Any]:
    """One pod a turn; the first turn warms up."""
    for number in range(bench.rounds + 1):
        yield partial(live, warming=number == 0)


def live(bench: Bench, endpoint: Endpoint, warming: bool = False) -> None:
    """Run, create and start, exec, remove a container that has ended, stop and remove."""
    results, name = bench.results, endpoint.name
    request = bench.request(endpoint)
    with results.ignored(warming):
        with results.timed("ready", name):
            with results.timed("run", name):
                pod = bench.run(endpoint, request)
            with results.timed("start", name):
                container = bench.container(endpoint, pod)
        execution = cri.ExecSyncRequest(container_id=container, cmd=["/bin/true"], timeout=10)
        with results.timed("exec", name):
            answer = endpoint.client.call("ExecSync", execution)
        assert answer.exit_code == 0, f"exec ended with {answer.exit_code}"
        with ThreadPoolExecutor(8) as threads, results.timed("execs", name):
            answers = list(threads.map(lambda _: endpoint.client.call("ExecSync", execution), range(8)))
        assert all(one.exit_code == 0 for one in answers)
        other = bench.container(endpoint, pod, name="other")
        endpoint.client.call("StopContainer", cri.StopContainerRequest(container_id=other, timeout=5))
        with results.timed("remove-container", name):
            endpoint.client.call("RemoveContainer", cri.RemoveContainerRequest(container_id=other))
        with results.timed("stop", name):
            bench.remove(endpoint, pod)
    forget_pod(request)


def crowd_turns(bench: Bench) -> Iterator[Any]:
    """Ten pods at once a turn; the first turn warms up."""
    for number in range(max(2, bench.rounds // 4) + 1):
        yield partial(crowd, warming=number == 0)


def crowd(bench: Bench, endpoint: Endpoint, warming: bool = False) -> None:
    """Ten pods at once, up to the answer of the last StartContainer."""
    requests = [bench.request(endpoint) for _ in range(10)]

    def make(request: Any) -> Pod:
        pod = bench.run(endpoint, request)
        bench.container(endpoint, pod)
        return pod

    results = bench.results
    with ThreadPoolExecutor(10) as threads, results.ignored(warming), results.timed("crowd", endpoint.name):
        pods = list(threads.map(make, requests))
    time.sleep(0.5)  # the last of them have yet to say that they heed SIGTERM
    in_fours(lambda pod: bench.remove(endpoint, pod), pods)
    for request in requests:
        forget_pod(request)
