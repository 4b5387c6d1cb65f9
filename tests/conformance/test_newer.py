"""What the API has gained since containerd 1.6: events, lists as streams, metrics, image volumes."""

import threading
from typing import Any

import grpc
import pytest

from conformance.node import OLD, Node, Pod, differs, wait_for
from crinoid.core.cri.wire import api_pb2
from support.cri import RPCS

pytestmark = differs(containerd=OLD)


def _stream(node: Node, rpc: str) -> list[Any]:
    answer = getattr(api_pb2, RPCS[rpc].output_type.name)
    return [answer.FromString(data) for data in node.cri.stream_raw(rpc, b"", timeout_s=10)]


def test_events_tell_a_life(node: Node, pod: Pod) -> None:
    seen: list[tuple[str, int]] = []
    call = node.cri.stream_raw("GetContainerEvents", b"", timeout_s=30)

    def follow() -> None:
        try:
            for data in call:
                event = api_pb2.ContainerEventResponse.FromString(data)
                seen.append((event.container_id, event.container_event_type))
        except grpc.RpcError:
            pass

    thread = threading.Thread(target=follow)
    thread.start()
    call.initial_metadata()
    container = node.start(pod, "true")
    node.wait_exit(container)
    node.call("RemoveContainer", container_id=container)
    try:
        wait_for(lambda: len([name for name, _ in seen if name == container]) == 4 or not thread.is_alive())
    finally:
        call.cancel()
        thread.join()
    assert [kind for name, kind in seen if name == container] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rpc", "field"),
    [("StreamPodSandboxes", "pod_sandboxes"), ("StreamContainers", "containers"), ("StreamImages", "images")],
)
def test_lists_as_streams(node: Node, pod: Pod, idle: str, rpc: str, field: str) -> None:
    ids = [one.id for answer in _stream(node, rpc) for one in getattr(answer, field)]
    assert len(ids) == len(set(ids)) > 0
    assert {"pod_sandboxes": pod.id, "containers": idle, "images": node.pull()}[field] in ids


@pytest.mark.parametrize("rpc", ["StreamContainerStats", "StreamPodSandboxStats", "StreamPodSandboxMetrics"])
def test_stats_as_streams(node: Node, idle: str, rpc: str) -> None:
    assert any(answer.ByteSize() for answer in _stream(node, rpc))


def test_every_metric_is_described(node: Node, pod: Pod, idle: str) -> None:
    described = {one["name"]: one["label_keys"] for one in node.call("ListMetricDescriptors")["descriptors"]}
    (told,) = (one for one in node.call("ListPodSandboxMetrics")["pod_metrics"] if one["pod_sandbox_id"] == pod.id)
    metrics = [*told["metrics"], *(one for part in told["container_metrics"] for one in part["metrics"])]
    assert metrics
    for metric in metrics:
        assert len(metric["label_values"]) == len(described[metric["name"]])


@pytest.mark.parametrize(("sub_path", "file"), [("", "extra/file"), ("extra", "file")])
def test_an_image_as_a_volume(node: Node, pod: Pod, sub_path: str, file: str) -> None:
    node.pull("layers:1")
    volume = {"container_path": "/volume", "image": {"image": node.image("layers:1")}, "image_sub_path": sub_path}
    script = f"cat /volume/{file}; touch /volume/x 2>/dev/null || echo read-only"
    assert node.script(pod, script, mounts=[volume | {"readonly": True}]) == "second layer\nread-only"
