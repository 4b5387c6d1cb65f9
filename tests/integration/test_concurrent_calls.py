"""Calls at the same moment about the same pod and container: each is answered as if it had come first or last.

Clients know what to do about NOT_FOUND or FAILED_PRECONDITION; INTERNAL and UNKNOWN mean that crinoid was caught
between two states. ``CRINOID_CHAOS=1`` fires every pair of calls instead of a sample.
"""

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.process import spawn_in_cgroup
from integration.conftest import BUSYBOX, Node
from integration.own_nodes import own_node
from support.cri import RPCS, Json
from support.daemon import container_config, pod_config
from support.patience import patient

SAMPLE = 45
EXPECTED = {
    *("OK", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS"),
    "UNAVAILABLE",  # a create that was given up, as its pod is being ended
}


@dataclass(frozen=True)
class Target:
    """A pod with a container."""

    node: Node
    pod: str
    container: str
    pod_config: Json
    handler: str

    def call(self, rpc: str, **fields: Any) -> object:
        """Call an RPC about the pod or the container."""
        about: Json = {"pod_sandbox_id": self.pod} if "pod_sandbox_id" in fields_of(rpc) else {}
        about |= {"container_id": self.container} if "container_id" in fields_of(rpc) else {}
        return self.node.call(rpc, **about, **fields)


CONFIG = container_config("c", BUSYBOX, "sleep", "600")
LIMITS = {"cpu_shares": 512}
CALLS: dict[str, Callable[[Target], object]] = {
    "RunPodSandbox": lambda on: on.call("RunPodSandbox", config=on.pod_config, runtime_handler=on.handler),
    "CreateContainer": lambda on: on.call("CreateContainer", config=CONFIG),
    "CreateContainer of another": lambda on: on.call("CreateContainer", config=CONFIG | {"metadata": {"name": "d"}}),
    "StartContainer": lambda on: on.call("StartContainer"),
    "StopContainer": lambda on: on.call("StopContainer", timeout=0),
    "StopContainer with grace": lambda on: on.call("StopContainer", timeout=1),
    "RemoveContainer": lambda on: on.call("RemoveContainer"),
    "StopPodSandbox": lambda on: on.call("StopPodSandbox"),
    "RemovePodSandbox": lambda on: on.call("RemovePodSandbox"),
    "ExecSync": lambda on: on.call("ExecSync", cmd=["true"], timeout=20),
    "Exec": lambda on: on.call("Exec", cmd=["true"], stdout=True),
    "Attach": lambda on: on.call("Attach", stdout=True),
    "PortForward": lambda on: on.call("PortForward", port=[80]),
    "UpdateContainerResources": lambda on: on.call("UpdateContainerResources", linux=LIMITS),
    "UpdatePodSandboxResources": lambda on: on.call("UpdatePodSandboxResources", resources=LIMITS),
    "ContainerStats": lambda on: on.call("ContainerStats"),
    "ListContainerStats": lambda on: on.call("ListContainerStats"),
    "PodSandboxStats": lambda on: on.call("PodSandboxStats"),
    "ListPodSandboxMetrics": lambda on: on.call("ListPodSandboxMetrics"),
    "ContainerStatus": lambda on: on.call("ContainerStatus", verbose=True),
    "PodSandboxStatus": lambda on: on.call("PodSandboxStatus", verbose=True),
    "ReopenContainerLog": lambda on: on.call("ReopenContainerLog"),
    "CheckpointContainer": lambda on: on.call("CheckpointContainer", location=str(on.node.logs / f"{on.pod}.tar")),
    "PullImage": lambda on: on.node.pull(),
    "RemoveImage": lambda on: on.call("RemoveImage", image={"image": BUSYBOX}),
}


def fields_of(rpc: str) -> Collection[str]:
    return set(RPCS[rpc].input_type.fields_by_name)


def make_target(node: Node, number: int, *, started: bool) -> Target:
    config = pod_config(f"p{number}", log_directory=str(node.logs / f"p{number}"))
    handler = random.choice(("", "crun"))
    pod = str(node.call("RunPodSandbox", config=config, runtime_handler=handler)["pod_sandbox_id"])
    container = str(node.call("CreateContainer", pod_sandbox_id=pod, config=CONFIG)["container_id"])
    if started:
        node.call("StartContainer", container_id=container)
    return Target(node, pod, container, config, handler)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with own_node(tmp_path_factory.mktemp("concurrent")) as node:
        yield node


def answer_of(call: Callable[[Target], object], target: Target, delay_s: float) -> tuple[str, str]:
    time.sleep(delay_s)
    try:
        call(target)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def pairs() -> list[tuple[str, str, bool]]:
    """All calls with all others and themselves, on a created and on a running container; or a sample of them."""
    found = [
        (*pair, started) for pair in itertools.combinations_with_replacement(CALLS, 2) for started in (False, True)
    ]
    return found if os.environ.get("CRINOID_CHAOS") else random.sample(found, SAMPLE)


@pytest.mark.timeout(3600 if os.environ.get("CRINOID_CHAOS") else 120)
def test_calls_at_the_same_moment_are_answered_as_if_one_came_first(node: Node) -> None:
    wrong: list[tuple[object, ...]] = []
    with ThreadPoolExecutor(4) as threads:
        for number, (one, other, started) in enumerate(pairs()):
            node.pull()
            target = make_target(node, number, started=started)
            delay_s = random.choice((0.0, 0.0, 0.003, 0.01, 0.03))
            fired = ((one, 0.0), (other, delay_s))
            futures = [threads.submit(answer_of, CALLS[name], target, after_s) for name, after_s in fired]
            answers = [future.result() for future in futures]
            wrong += [(one, other, started, *said) for said in answers if said[0] not in EXPECTED]
            node.call("RemovePodSandbox", pod_sandbox_id=target.pod)
    assert not wrong, "\n".join(map(str, wrong))
    node.remove_pods()
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []


def test_a_cgroup_is_made_and_entered_while_others_remove_it(tmp_path: Path) -> None:
    """Its parent, too: the end of a node's last pod takes away what is empty."""
    top = f"/crt{os.getpid()}"
    ended = threading.Event()

    def remove() -> None:
        while not ended.is_set():
            for path in (f"{top}/monitors", top):
                cgroups.remove_marked(path)

    async def spawn() -> None:
        for _ in range(40):
            process = await spawn_in_cgroup(("true",), env={}, fds={}, cwd=tmp_path, cgroup=f"{top}/monitors")
            assert await process.wait() == 0
            process.close()

    def make() -> None:
        for number in range(40):
            cgroups.make(f"{top}/pod{number}")
            cgroups.remove(f"{top}/pod{number}")

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        with ThreadPoolExecutor(2) as threads:
            made = threads.submit(make)
            threads.submit(lambda: asyncio.run(spawn())).result(patient(60))
            made.result(patient(60))
    finally:
        ended.set()
        remover.join()
        cgroups.remove(top)
