"""The RPCs beyond the basic life: events, lists as streams, metrics, limits of pods."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format

from crinoid.core.cri.wire import api_pb2
from integration.conftest import BUSYBOX, RUNTIMES, Node
from integration.pods import until
from support.cri import Json
from support.patience import patient


class Followed:
    """The events of a node from here on, read in a thread."""

    def __init__(self, node: Node) -> None:
        self._call = node.daemon.cri.stream_raw("GetContainerEvents", b"")
        self._call.initial_metadata()
        self._events: queue.Queue[Json] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self, count: int) -> list[Json]:
        return [self._events.get(timeout=patient(60)) for _ in range(count)]

    def end(self) -> None:
        self._call.cancel()
        self._thread.join(5)
        assert self._events.empty()

    def _read(self) -> None:
        try:
            for data in self._call:
                message = api_pb2.ContainerEventResponse.FromString(data)
                self._events.put(
                    json_format.MessageToDict(
                        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                    )
                )
        except Exception:  # noqa: BLE001  # it was cancelled
            return


@pytest.fixture
def followed(node: Node) -> Iterator[Followed]:
    following = Followed(node)
    yield following
    following.end()


def step(event: Json) -> tuple[str, str]:
    return event["container_id"], event["container_event_type"].removeprefix("CONTAINER_").removesuffix("_EVENT")


def test_the_life_of_a_pod_is_told(node: Node, followed: Followed) -> None:
    second = Followed(node)
    pod = node.run_pod()
    container = node.run_container(pod, "sleep", "1000")
    node.call("StopContainer", container_id=container, timeout=0)
    node.call("RemoveContainer", container_id=container)
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    events = followed.take(8)
    assert [step(event) for event in events] == [
        (pod, "CREATED"),
        (pod, "STARTED"),
        (container, "CREATED"),
        (container, "STARTED"),
        (container, "STOPPED"),
        (container, "DELETED"),
        (pod, "STOPPED"),
        (pod, "DELETED"),
    ]
    assert all(event["pod_sandbox_status"]["id"] == pod for event in events)
    assert [event["pod_sandbox_status"]["state"] for event in events] == ["SANDBOX_READY"] * 6 + [
        "SANDBOX_NOTREADY"
    ] * 2
    states = [[one["state"] for one in event["containers_statuses"]] for event in events]
    assert states == [[], [], ["CONTAINER_CREATED"], ["CONTAINER_RUNNING"], ["CONTAINER_EXITED"], [], [], []]
    assert events[4]["containers_statuses"][0]["exit_code"] == 137
    times = [int(event["created_at"]) for event in events]
    assert times == sorted(times)
    assert [step(event) for event in second.take(8)] == [step(event) for event in events]
    second.end()


def test_a_short_life_is_told_in_order(node: Node, followed: Followed) -> None:
    pod = node.run_pod()
    followed.take(2)
    for number in range(5):
        container = node.run_container(pod, "true", name=f"short{number}")
        assert [step(event) for event in followed.take(3)] == [
            (container, "CREATED"),
            (container, "STARTED"),
            (container, "STOPPED"),
        ]


def test_the_end_of_the_daemon_ends_the_stream(node: Node) -> None:
    following = Followed(node)
    began = time.monotonic()
    node.daemon.stop()
    assert time.monotonic() - began < patient(10)
    following._thread.join(60)
    assert not following._thread.is_alive()
    node.daemon.start()


def streamed(node: Node, rpc: str, kind: Any, **fields: Any) -> list[list[Any]]:
    """Return the items of each message of a stream."""
    request = json_format.ParseDict(fields, getattr(api_pb2, f"{rpc}Request")())
    answers = []
    for data in node.daemon.cri.stream_raw(rpc, request.SerializeToString()):
        message = getattr(api_pb2, f"{rpc}Response").FromString(data)
        answers.append(list(getattr(message, kind)))
    return answers


def test_lists_as_streams(node: Node) -> None:
    pods = [node.run_pod(f"p{number}", labels={"n": str(number)}) for number in range(3)]
    containers = [node.run_container(pods[0], "sleep", "1000", name=f"c{number}") for number in range(3)]

    def ids(rpc: str, field: str, **fields: Any) -> list[str]:
        items = [one for batch in streamed(node, rpc, field, **fields) for one in batch]
        return [getattr(one, "id", "") or getattr(one, "pod_sandbox_id", "") or one.attributes.id for one in items]

    assert ids("StreamPodSandboxes", "pod_sandboxes") == pods[::-1]
    assert ids("StreamPodSandboxes", "pod_sandboxes", filter={"label_selector": {"n": "1"}}) == [pods[1]]
    assert ids("StreamContainers", "containers") == containers[::-1]
    assert ids("StreamContainers", "containers", filter={"id": containers[0]}) == [containers[0]]
    assert sorted(ids("StreamContainerStats", "container_stats")) == sorted(containers)
    assert sorted(ids("StreamPodSandboxStats", "pod_sandbox_stats")) == sorted(pods)
    assert sorted(ids("StreamPodSandboxMetrics", "pod_sandbox_metrics")) == sorted(pods)
    images = [one["id"] for one in node.call("ListImages")["images"]]
    assert ids("StreamImages", "images") == images
    assert len(ids("StreamImages", "images", filter={"image": {"image": BUSYBOX}})) == 1
    assert streamed(node, "StreamContainers", "containers", filter={"id": "0" * 64}) == []


def test_a_long_list_comes_in_batches_with_each_item_once(node: Node) -> None:
    big = {f"key{number}": "x" * 60_000 for number in range(8)}
    pods = [node.run_pod(f"p{number}", handler="runc-host-overlay", annotations=big) for number in range(5)]
    batches = streamed(node, "StreamPodSandboxes", "pod_sandboxes")
    assert len(batches) == 3
    assert [one.id for batch in batches for one in batch] == pods[::-1]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_metrics(node: Node, runtime: str) -> None:
    pod = node.run_pod(handler=runtime)
    resources = {
        "cpu_period": 100_000,
        "cpu_quota": 20_000,
        "cpu_shares": 512,
        "memory_limit_in_bytes": 64 << 20,
    }
    script = "echo x > /file; while :; do :; done"
    container = node.run_container(pod, "sh", "-c", script, linux={"resources": resources})
    node.run_container(pod, "true", name="ended")
    descriptors = {one["name"]: one for one in node.call("ListMetricDescriptors")["descriptors"]}
    (answer,) = until(lambda: _metrics_once_throttled(node, container))
    assert answer["pod_sandbox_id"] == pod
    (of_container,) = answer["container_metrics"]
    assert of_container["container_id"] == container
    for sample in (*answer["metrics"], *of_container["metrics"]):
        descriptor = descriptors[sample["name"]]
        assert descriptor["help"]
        assert len(sample["label_values"]) == len(descriptor["label_keys"])
        labels = dict(zip(descriptor["label_keys"], sample["label_values"], strict=True))
        assert (labels["namespace"], labels["pod"]) == ("test", "pod")
    values = {(one["name"], *one["label_values"][6:]): int(one["value"]["value"]) for one in of_container["metrics"]}
    assert values["container_spec_memory_limit_bytes",] == 64 << 20
    assert values["container_spec_cpu_quota",] == 20_000
    assert values["container_spec_cpu_period",] == 100_000
    assert values["container_spec_cpu_shares",] == 512
    assert 1 << 16 < values["container_memory_usage_bytes",] <= values["container_memory_max_usage_bytes",]
    assert values["container_processes",] in (1, 2)
    assert values["container_threads",] >= 1
    assert values["container_file_descriptors",] >= 3
    assert values["container_ulimits_soft", "max_open_files"] > 0
    assert abs(values["container_start_time_seconds",] - time.time()) < 60
    (usage,) = [value for name, value in values.items() if name[0] == "container_fs_usage_bytes"]
    assert usage > 0
    network = {one["name"]: one["label_values"][6:] for one in answer["metrics"] if "network" in one["name"]}
    assert len(network) == 8
    assert set(map(tuple, network.values())) == {("eth0",)}


def _metrics_once_throttled(node: Node, container: str) -> list[Json]:
    """The metrics of the only pod, once no other of its containers runs, and this one has had to wait."""
    pods: list[Json] = node.call("ListPodSandboxMetrics")["pod_metrics"]
    of_containers = pods[0]["container_metrics"]
    name = "container_cpu_cfs_throttled_periods_total"
    periods = [int(one["value"]["value"]) for of in of_containers for one in of["metrics"] if one["name"] == name]
    return pods if len(of_containers) == 1 and of_containers[0]["container_id"] == container and periods[0] > 0 else []


def _spec_values(node: Node) -> dict[str, str]:
    """What the cgroup of the only pod says of its limits."""
    (answer,) = node.call("ListPodSandboxMetrics")["pod_metrics"]
    return {one["name"]: one["value"]["value"] for one in answer["metrics"] if "_spec_" in one["name"]}


def test_limits_of_a_pod_are_kept_and_its_cgroup_is_left_alone(node: Node) -> None:
    """The kubelet has set it by then, and what it tells may be what the kernel refuses."""
    pod = node.run_pod()
    before = _spec_values(node)
    assert len(before) > 3
    node.call("UpdatePodSandboxResources", pod_sandbox_id=pod, resources={"cpu_quota": 1, "cpu_period": 1})
    node.call(
        "UpdatePodSandboxResources",
        pod_sandbox_id=pod,
        resources={"memory_limit_in_bytes": 96 << 20, "cpu_quota": 50_000, "cpu_period": 100_000, "cpu_shares": 300},
        overhead={"memory_limit_in_bytes": 32 << 20, "cpu_quota": 10_000, "cpu_period": 100_000, "cpu_shares": 100},
    )
    assert _spec_values(node) == before
    node.daemon.restart()
    info = node.call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)["info"]["info"]
    assert str(96 << 20) in info
    assert str(32 << 20) in info
    node.call("StopPodSandbox", pod_sandbox_id=pod)
    with pytest.raises(Exception, match="not ready"):
        node.call("UpdatePodSandboxResources", pod_sandbox_id=pod, resources={"cpu_shares": 2})
