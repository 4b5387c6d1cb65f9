"""RPCs that answer with a stream, over a real socket: lists in batches, events, and how a stream ends."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from crinoid.core.api.errors import InvalidArgument, ResourceExhausted
from crinoid.core.cri import lists
from crinoid.core.cri.client import Client, Json
from crinoid.core.cri.server import Endpoint, Server
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.events.events import Event, EventReader, EventType
from crinoid.core.lifecycle.queries import ContainerFilter
from unit.core.cri.conftest import FakePods, make_container, make_pod


async def collect(client: Client, rpc: str, request: Json | None = None) -> list[Json]:
    return [answer async for answer in client.stream(rpc, request)]


@pytest.mark.parametrize(
    ("rpc", "field", "count"),
    [
        ("StreamPodSandboxes", "pod_sandboxes", 2),
        ("StreamContainers", "containers", 2),
        ("StreamImages", "images", 1),
        ("StreamContainerStats", "container_stats", 3),
        ("StreamPodSandboxStats", "pod_sandbox_stats", 2),
        ("StreamPodSandboxMetrics", "pod_sandbox_metrics", 2),
    ],
)
async def test_a_stream_has_what_the_list_has(client: Client, rpc: str, field: str, count: int) -> None:
    answers = await collect(client, rpc)
    assert sum(len(answer[field]) for answer in answers) == count
    assert all(answer[field] for answer in answers)


async def test_a_filter_narrows_a_stream(client: Client, services: SimpleNamespace) -> None:
    await collect(client, "StreamContainerStats", {"filter": {"pod_sandbox_id": "pod1"}})
    assert services.stats.queries == [ContainerFilter(pod_id="pod1")]
    states = {"filter": {"state": {"state": "SANDBOX_NOTREADY"}}}
    (answer,) = await collect(client, "StreamPodSandboxes", states)
    assert [one["id"] for one in answer["pod_sandboxes"]] == ["pod2"]
    assert await collect(client, "StreamImages", {"filter": {"image": {"image": "absent"}}}) == []


async def test_batches_hold_every_item_once(
    client: Client, services: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "BATCH_BYTES", 300)
    pods: FakePods = services.pods
    pods.records = {f"pod{number}": make_pod(f"pod{number}", 10**9 + number) for number in range(20)}
    answers = await collect(client, "StreamPodSandboxes")
    assert 1 < len(answers) < 20
    assert [one["id"] for answer in answers for one in answer["pod_sandboxes"]] == list(reversed(pods.records))


async def test_an_item_larger_than_a_batch_has_its_own(
    client: Client, services: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "BATCH_BYTES", 1)
    assert [len(answer["pod_sandboxes"]) for answer in await collect(client, "StreamPodSandboxes")] == [1, 1]


async def test_a_bad_request_ends_a_stream_with_its_status(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        await collect(client, "StreamContainers", {"filter": {"id": "a\0"}})


async def test_events_are_told_until_the_reading_ends(client: Client, services: SimpleNamespace) -> None:
    reader = services.events.reader
    pod, container = make_pod(), make_container()
    reader.put(Event(EventType.CREATED, "pod1", 5, pod, ()))
    reader.put(Event(EventType.STOPPED, "c1", 6, pod, (container,)))
    reader.put(Event(EventType.DELETED, "pod1", 7, None, ()))
    reader.end(ResourceExhausted("too slow"))
    answers = []
    with pytest.raises(ResourceExhausted, match="too slow"):
        async for answer in client.stream("GetContainerEvents"):
            answers.append(answer)  # noqa: PERF401  # what came before the error counts
    assert [(one["container_id"], one["container_event_type"], one["created_at"]) for one in answers] == [
        ("pod1", "CONTAINER_CREATED_EVENT", "5"),
        ("c1", "CONTAINER_STOPPED_EVENT", "6"),
        ("pod1", "CONTAINER_DELETED_EVENT", "7"),
    ]
    assert answers[0]["pod_sandbox_status"]["id"] == "pod1"
    assert [one["id"] for one in answers[1]["containers_statuses"]] == ["c1"]
    assert answers[2].get("pod_sandbox_status") is None


async def test_a_client_that_leaves_ends_its_stream(
    client: Client, server: Server, observed: list[tuple[str, float, str]]
) -> None:
    following = asyncio.create_task(collect(client, "GetContainerEvents"))
    async with asyncio.timeout(60):
        while not server.in_flight["GetContainerEvents"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        following.cancel()
        while server.in_flight["GetContainerEvents"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert [(rpc, code) for rpc, _, code in observed] == [("GetContainerEvents", "CANCELLED")]


async def test_metrics(client: Client) -> None:
    descriptors = {one["name"]: one for one in (await client.call("ListMetricDescriptors"))["descriptors"]}
    assert descriptors["container_cpu_usage_seconds_total"]["label_keys"][-1] == "cpu"
    (answer,) = (await client.call("ListPodSandboxMetrics"))["pod_metrics"]
    assert [(one["name"], one["metric_type"], one["value"], one["timestamp"]) for one in answer["metrics"]] == [
        ("container_start_time_seconds", "GAUGE", {"value": "1"}, "9"),
        ("container_last_seen", "GAUGE", {"value": "0"}, "9"),
    ]
    assert answer["container_metrics"][0]["container_id"] == "c1"


async def test_limits_of_a_pod(client: Client, services: SimpleNamespace) -> None:
    await client.call(
        "UpdatePodSandboxResources", {"pod_sandbox_id": "pod1", "resources": {"memory_limit_in_bytes": "7"}}
    )
    ((rpc, pod_id, resources, overhead),) = services.pods.calls
    assert (rpc, pod_id, resources.memory_limit_bytes, overhead) == ("update", "pod1", 7, None)
    with pytest.raises(InvalidArgument, match="pod_sandbox_id is missing"):
        await client.call("UpdatePodSandboxResources")
    with pytest.raises(InvalidArgument, match=r"overhead\.cpu_shares is -1"):
        await client.call("UpdatePodSandboxResources", {"pod_sandbox_id": "p", "overhead": {"cpu_shares": -1}})


async def test_a_client_that_does_not_read_is_cut_off_and_gets_no_gap(
    server: Server, endpoint: Endpoint, services: SimpleNamespace
) -> None:
    reader = services.events.reader = EventReader(100)
    pod, containers = make_pod(), tuple(make_container(f"c{number}") for number in range(10))
    async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
        call = channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents", _registered_method=True)(b"")
        await call.initial_metadata()
        for number in range(100_000):
            reader.put(Event(EventType.STARTED, str(number), number, pod, containers))
            if reader.has_ended:
                break
            await asyncio.sleep(0.0002)
        assert reader.has_ended, "the server took everything in for a client that reads nothing"
        told = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for data in call:
                told.append(api_pb2.ContainerEventResponse.FromString(data).container_id)  # noqa: PERF401
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told == [str(number) for number in range(len(told))]
        assert 100 <= len(told) < 10_000
