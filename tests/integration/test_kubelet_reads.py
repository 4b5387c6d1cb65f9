"""Every answer that a kubelet asks for has what it reads unasked, in whatever state pods and containers are.

The rules are in ``support/kubelet.py``. A thread asks for everything all the time, as a kubelet does, while pods of all
kinds are made, hurt, stopped and removed.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from crinoid.core.api.linux import cgroups
from crinoid.core.cri.wire import api_pb2
from integration.conftest import BUSYBOX, Node
from integration.pods import Pod
from integration.test_user_namespaces import user_namespace
from support.cri import RPCS, Cri
from support.kubelet import breaches
from support.patience import patient

OF_PODS = ("PodSandboxStatus", "PodSandboxStats")
OF_CONTAINERS = ("ContainerStatus", "ContainerStats")
LISTS = (
    *("ListPodSandbox", "ListContainers", "ListImages", "ListPodSandboxStats", "ListContainerStats"),
    *("ListPodSandboxMetrics", "ListMetricDescriptors", "ImageFsInfo", "Status", "RuntimeConfig", "Version"),
)
STREAMS = (
    *("StreamPodSandboxes", "StreamContainers", "StreamImages", "StreamPodSandboxStats", "StreamContainerStats"),
    "StreamPodSandboxMetrics",
)


class Kubelet:
    """Asks for everything, and holds each answer to the rules."""

    def __init__(self, socket: Path) -> None:
        self.cri = Cri(socket)
        self.breaches: list[str] = []
        self.answers = 0
        self.networks: dict[str, set[bool]] = {}
        """By pod, whether its statistics in lists had a network."""

    def ask(self, rpc: str, **fields: object) -> list[Message]:
        """Ask once; what has gone meanwhile has no answer."""
        kind = getattr(api_pb2, RPCS[rpc].output_type.name)
        request = json_format.ParseDict(fields, getattr(api_pb2, RPCS[rpc].input_type.name)()).SerializeToString()
        try:
            if RPCS[rpc].server_streaming:
                answers = [kind.FromString(one) for one in self.cri.stream_raw(rpc, request)]
            else:
                answers = [kind.FromString(self.cri.raw(rpc, request))]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                self.breaches.append(f"{rpc}: {error.code()} {error.details()}")
            return []
        self.answers += len(answers)
        for answer in answers:
            self.breaches += [f"{rpc}: {one}" for one in breaches(answer)]
        return answers

    def look(self) -> None:
        """Ask for everything once."""
        pods = [pod.id for answer in self.ask("ListPodSandbox") for pod in answer.items]  # type: ignore[attr-defined]
        found = [one.id for answer in self.ask("ListContainers") for one in answer.containers]  # type: ignore[attr-defined]
        for rpc in (*LISTS, *STREAMS):
            self.note_networks(self.ask(rpc))
        for rpc, pod in itertools.product(OF_PODS, pods):
            self.ask(rpc, pod_sandbox_id=pod)
        for rpc, container in itertools.product(OF_CONTAINERS, found):
            self.ask(rpc, container_id=container)

    def note_networks(self, answers: list[Message]) -> None:
        """Remember what lists of pods' statistics tell of networks."""
        for answer in answers:
            for pod in getattr(answer, "stats", None) or getattr(answer, "pod_sandbox_stats", None) or ():
                if isinstance(pod, api_pb2.PodSandboxStats):
                    self.networks.setdefault(pod.attributes.id, set()).add(pod.linux.HasField("network"))

    def follow(self) -> None:
        """Hold all events to the rules, until the stream ends."""
        with contextlib.suppress(grpc.RpcError):
            for one in self.events:
                self.answers += 1
                event = api_pb2.ContainerEventResponse.FromString(one)
                self.breaches += [f"GetContainerEvents: {breach}" for breach in breaches(event)]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Ask for all that there is, again and again, beside what the block does."""
        self.events = self.cri.stream_raw("GetContainerEvents", b"", timeout_s=600)
        ended = threading.Event()

        def go_on() -> None:
            while not ended.is_set():
                self.look()

        threads = [threading.Thread(target=work) for work in (go_on, self.follow)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            threads[0].join(patient(60))
            self.events.cancel()
            threads[1].join(patient(60))
            assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def kubelet(node: Node) -> Iterator[Kubelet]:
    kubelet = Kubelet(node.daemon.socket)
    yield kubelet
    kubelet.cri.close()
    assert kubelet.breaches == []


def in_network(node: Node, pod: str, container: str, *command: str) -> None:
    """Run a command of the host's in the network namespace of a pod with a running container."""
    pid = Pod(node, pod).pid(container)
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *command], check=True)


def security(**options: object) -> dict[str, object]:
    """What ``linux`` of a pod says of namespaces."""
    return {"security_context": {"namespace_options": {"pid": "CONTAINER", **options}}}


@pytest.mark.parametrize("network", ["cni", "bridge"])
def test_pods_of_all_kinds(node: Node, kubelet: Kubelet, network: str) -> None:
    handler = f"runc-{network}-overlay"
    with kubelet.watching():
        pods = {
            "plain": node.run_pod("plain", handler),
            "host": node.run_pod("host", handler, linux=security(network="NODE")),
            "no-linux": node.run_pod("no-linux", handler, linux=None),
            "userns": node.run_pod("userns", handler, linux=security(userns_options=user_namespace())),
            "no-eth0": node.run_pod("no-eth0", handler),
            "two": node.run_pod("two", handler),
        }
        running = {}
        for pod in pods.values():
            node.create(pod, "sleep", "1000", name="waiting")
            running[pod] = node.run_container(pod, "sleep", "1000", name="running")
            ended = node.run_container(pod, "true", name="ended")
            node.wait_exit(ended)
            killed = node.run_container(pod, "sleep", "1000", name="killed")
            os.kill(Pod(node, pod).pid(killed), signal.SIGKILL)
            node.wait_exit(killed)
        no_eth0, two = pods["no-eth0"], pods["two"]
        in_network(node, no_eth0, running[no_eth0], "ip", "link", "del", "eth0")
        in_network(node, two, running[two], "ip", "link", "add", "net1", "type", "veth")
        for name in ("\udcff\udcfe", "\u2028", "\x01"):  # one pod's names must not spoil the statistics of all
            in_network(node, two, running[two], "ip", "link", "add", name, "type", "veth")
        in_network(node, two, running[two], "ip", "link", "del", "eth0")
        kubelet.networks.clear()
        for _ in range(2):
            kubelet.look()
        assert {name: kubelet.networks[pod] for name, pod in pods.items()} == {
            "plain": {True}, "host": {False}, "no-linux": {True}, "userns": {True}, "no-eth0": {False}, "two": {False},
        }  # fmt: skip
        assert node.status(running[two])["state"] == "CONTAINER_RUNNING"
        for rpc in ("StopPodSandbox", "RemovePodSandbox"):
            for pod in pods.values():
                node.call(rpc, pod_sandbox_id=pod)
    assert kubelet.answers > 300


@pytest.mark.parametrize("network", ["cni", "bridge"])
def test_a_stop_is_never_seen_half_done(node: Node, kubelet: Kubelet, network: str) -> None:
    """While a network is taken away, its pod still says READY: its statistics are whole, or not in the list."""
    pods = [node.run_pod(f"p{number}", f"runc-{network}-overlay") for number in range(6)]
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            kubelet.note_networks(kubelet.ask("ListPodSandboxStats"))

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + patient(30)
        while kubelet.networks.keys() != set(pods):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for pod in pods:
            node.call("StopPodSandbox", pod_sandbox_id=pod)
    finally:
        ended.set()
        for thread in threads:
            thread.join(patient(60))
    assert kubelet.networks == {pod: {True} for pod in pods}


def test_a_pod_whose_cgroup_was_deleted(node: Node, kubelet: Kubelet) -> None:
    """Nothing runs in it, and somebody removes its cgroup: there are no figures, and still an answer."""
    pod = node.run_pod(handler="runc-bridge-overlay")
    cgroups.remove(f"{node.daemon.cgroup}/{pod}")
    kubelet.look()
    (answer,) = kubelet.ask("PodSandboxStats", pod_sandbox_id=pod)
    assert not answer.stats.linux.HasField("cpu")  # type: ignore[attr-defined]
    assert answer.stats.linux.HasField("network")  # type: ignore[attr-defined]


def test_the_answers_of_calls_that_make_something(node: Node, kubelet: Kubelet) -> None:
    kubelet.ask("PullImage", image={"image": BUSYBOX})
    kubelet.ask("ImageStatus", image={"image": BUSYBOX})
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    kubelet.ask("Exec", container_id=container, cmd=["true"], stdout=True)
    kubelet.ask("Attach", container_id=container, stdout=True)
    kubelet.ask("PortForward", pod_sandbox_id=pod, port=[80])
    assert kubelet.answers == 5
