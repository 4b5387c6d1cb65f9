"""Real calls over a real socket: every RPC, bad bytes, errors, clients that go away, sockets that are taken."""

import asyncio
import contextlib
import dataclasses
import grp
import json
import logging
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame, PingFrame

from crinoid.core.api.errors import (
    ConfigurationError,
    CorruptContent,
    CrinoidError,
    DeadlineExceeded,
    DriverError,
    InvalidArgument,
    NotFound,
    RegistryUnavailable,
    ResourceExhausted,
    SignatureValidationFailed,
    StateNotUsable,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from crinoid.core.api.values.image import Credentials
from crinoid.core.api.values.pod import LinuxResources
from crinoid.core.cri.calls import CallHooks
from crinoid.core.cri.client import Client, rpc_names
from crinoid.core.cri.server import RELAY_S, Endpoint, Listener, Server, _options
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.events.events import Event, EventType
from crinoid.core.lifecycle.queries import ContainerFilter, PodFilter
from crinoid.core.state import timeline_log
from crinoid.core.state.records import ContainerState, PodState
from crinoid.core.state.timelines import Timelines
from support import http2

POD_CONFIG = {"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}}
CONTAINER_CONFIG = {"metadata": {"name": "nginx"}, "image": {"image": "nginx"}}


async def call_raw(endpoint: Endpoint, rpc: str, data: bytes) -> grpc.aio.AioRpcError:
    """Send bytes as they are and return the error they were answered with."""
    async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/runtime.v1.RuntimeService/{rpc}", _registered_method=True)(data, timeout=5)
    return raised.value


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class TestNode:
    async def test_version(self, client: Client) -> None:
        assert await client.call("Version") == {
            "version": "0.1.0",
            "runtime_name": "crinoid",
            "runtime_version": "1.2.3",
            "runtime_api_version": "v1",
        }

    async def test_status_gives_info_only_when_asked(self, client: Client) -> None:
        answer = await client.call("Status")
        assert answer["info"] == {}
        assert [(one["type"], one["status"], one["reason"]) for one in answer["status"]["conditions"]] == [
            ("RuntimeReady", True, ""),
            ("NetworkReady", False, "NoConfig"),
        ]
        assert [one["name"] for one in answer["runtime_handlers"]] == ["", "fast"]
        assert answer["runtime_handlers"][0]["features"] == {
            "recursive_read_only_mounts": True,
            "user_namespaces": False,
        }
        assert answer["features"]["supplemental_groups_policy"] is True
        assert (await client.call("Status", {"verbose": True}))["info"] == {"a": "{}"}

    async def test_cgroup_driver(self, client: Client) -> None:
        assert await client.call("RuntimeConfig") == {"linux": {"cgroup_driver": "CGROUPFS"}}

    async def test_pod_cidrs(self, client: Client, services: Any) -> None:
        async def update(cidr: str) -> None:
            await client.call("UpdateRuntimeConfig", {"runtime_config": {"network_config": {"pod_cidr": cidr}}})

        await update("")
        await update("10.244.1.0/24, fd00:1::/64")
        assert services.node.cidrs == [("10.244.1.0/24", "fd00:1::/64")]
        for bad in ("10.244.1.0/24,10.245.0.0/24", "10.244.0.0/33", "all of it"):
            with pytest.raises(InvalidArgument, match="pod_cidr"):
                await update(bad)


class TestPods:
    async def test_run_is_acknowledged_after_its_answer(self, client: Client, services: Any) -> None:
        answer = await client.call("RunPodSandbox", {"config": POD_CONFIG, "runtime_handler": "fast"})
        assert answer == {"pod_sandbox_id": "pod9"}
        await wait_until(lambda: len(services.pods.calls) == 2)
        (run, config, handler), acknowledged = services.pods.calls
        assert (run, config.metadata.name, handler) == ("run", "web", "fast")
        assert acknowledged == ("acknowledge", "pod9")

    async def test_what_can_not_be_acknowledged_has_been_answered(
        self, client: Client, services: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_pod_id: str) -> None:
            raise ResourceExhausted("no space left")

        services.pods.acknowledge = fail
        assert await client.call("RunPodSandbox", {"config": POD_CONFIG}) == {"pod_sandbox_id": "pod9"}
        await wait_until(lambda: "could not be noted: no space left" in caplog.text)

    async def test_stop_and_remove(self, client: Client, services: Any) -> None:
        await client.call("StopPodSandbox", {"pod_sandbox_id": "pod1"})
        await client.call("RemovePodSandbox", {"pod_sandbox_id": "pod1"})
        assert services.pods.calls == [("stop", "pod1"), ("remove", "pod1")]

    async def test_status(self, client: Client, services: Any) -> None:
        answer = await client.call("PodSandboxStatus", {"pod_sandbox_id": "pod1"})
        assert answer["status"]["network"] == {"ip": "10.0.0.5", "additional_ips": [{"ip": "fd00::5"}]}
        assert answer["status"]["runtime_handler"] == "fast"
        assert answer["status"]["metadata"] == {"name": "web", "uid": "u1", "namespace": "shop", "attempt": 2}
        assert answer["status"]["linux"]["namespaces"]["options"]["network"] == "POD"
        assert [one["id"] for one in answer["containers_statuses"]] == ["c1", "c2"]
        assert int(answer["timestamp"]) > 10**18
        assert answer["info"] == {}
        assert services.containers.calls == [("list", ContainerFilter(pod_id="pod1"))]
        verbose = await client.call("PodSandboxStatus", {"pod_sandbox_id": "pod1", "verbose": True})
        told = json.loads(verbose["info"]["info"])
        assert (told["pod"], told["config"]["metadata"]["name"]) == ("pod1", "web")

    async def test_list_newest_first(self, client: Client) -> None:
        items = (await client.call("ListPodSandbox"))["items"]
        assert [(one["id"], one["state"]) for one in items] == [("pod2", "SANDBOX_NOTREADY"), ("pod1", "SANDBOX_READY")]
        assert items[1]["labels"] == {"app": "web"}

    async def test_list_filter(self, client: Client, services: Any) -> None:
        query = {"id": "p", "state": {"state": "SANDBOX_NOTREADY"}, "label_selector": {"app": "web"}}
        items = (await client.call("ListPodSandbox", {"filter": query}))["items"]
        assert [one["id"] for one in items] == ["pod2"]
        assert services.pods.calls == [("list", PodFilter("p", PodState.NOT_READY, {"app": "web"}))]


class TestContainers:
    async def test_create(self, client: Client, services: Any) -> None:
        request = {"pod_sandbox_id": "pod1", "config": CONTAINER_CONFIG}
        assert await client.call("CreateContainer", request) == {"container_id": "c9"}
        await wait_until(lambda: len(services.containers.calls) == 2)
        (_, pod_id, config, pod_config), acknowledged = services.containers.calls
        assert (pod_id, config.image, pod_config) == ("pod1", "nginx", None)
        assert acknowledged == ("acknowledge", "c9")
        await client.call("CreateContainer", request | {"sandbox_config": POD_CONFIG})
        assert services.containers.calls[2][3].metadata.uid == "u1"

    async def test_start_stop_remove_reopen(self, client: Client, services: Any) -> None:
        await client.call("StartContainer", {"container_id": "c1"})
        await client.call("StopContainer", {"container_id": "c1", "timeout": 30})
        await client.call("RemoveContainer", {"container_id": "c1"})
        await client.call("ReopenContainerLog", {"container_id": "c1"})
        assert services.containers.calls == [
            ("start", "c1"),
            ("stop", "c1", 30.0),
            ("remove", "c1"),
            ("reopen_log", "c1"),
        ]

    async def test_status(self, client: Client) -> None:
        answer = await client.call("ContainerStatus", {"container_id": "c1"})
        status = answer["status"]
        assert status["image"]["image"] == "docker.io/library/nginx:latest"
        assert status["image"]["user_specified_image"] == "nginx"
        assert status["image_ref"] == "docker.io/library/nginx@sha256:def"
        assert status["image_id"] == "sha256:abc"
        assert status["stop_signal"] == "SIGNAL_SIGQUIT"
        assert status["user"]["linux"] == {"uid": "101", "gid": "102", "supplemental_groups": ["103"]}
        assert status["resources"]["linux"]["cpu_shares"] == "512"
        assert answer["info"] == {}
        verbose = await client.call("ContainerStatus", {"container_id": "c1", "verbose": True})
        told = json.loads(verbose["info"]["info"])
        assert (told["pid"], told["config"]["metadata"]["name"]) == (7, "nginx")

    async def test_list(self, client: Client, services: Any) -> None:
        query = {"id": "c", "pod_sandbox_id": "p", "state": {"state": "CONTAINER_EXITED"}, "label_selector": {"l": "1"}}
        containers = (await client.call("ListContainers", {"filter": query}))["containers"]
        assert [one["id"] for one in containers] == ["c2", "c1"]
        assert services.containers.calls == [("list", ContainerFilter("c", ContainerState.EXITED, "p", {"l": "1"}))]

    async def test_update(self, client: Client, services: Any) -> None:
        request = {"container_id": "c1", "linux": {"memory_limit_in_bytes": 5}, "annotations": {"x": "y"}}
        await client.call("UpdateContainerResources", request)
        assert services.containers.calls == [("update", "c1", LinuxResources(memory_limit_bytes=5), {"x": "y"})]
        with pytest.raises(InvalidArgument, match="linux is missing"):
            await client.call("UpdateContainerResources", {"container_id": "c1"})

    async def test_exec_sync(self, client: Client, services: Any) -> None:
        answer = await client.call("ExecSync", {"container_id": "c1", "cmd": ["ls", "-l"]})
        assert answer == {"stdout": "b3V0/w==", "stderr": "ZXJy", "exit_code": 3}
        await client.call("ExecSync", {"container_id": "c1", "cmd": ["ls"], "timeout": 7})
        assert services.containers.calls == [
            ("exec_sync", "c1", ("ls", "-l"), None),
            ("exec_sync", "c1", ("ls",), 7.0),
        ]
        with pytest.raises(InvalidArgument, match="cmd is missing"):
            await client.call("ExecSync", {"container_id": "c1"})


class TestStats:
    async def test_container(self, client: Client) -> None:
        stats = (await client.call("ContainerStats", {"container_id": "c1"}))["stats"]
        assert stats["cpu"]["usage_nano_cores"] == {"value": "55"}
        assert stats["memory"]["working_set_bytes"] == {"value": "60"}
        assert stats["writable_layer"]["fs_id"] == {"mountpoint": "/upper"}

    async def test_lists(self, client: Client, services: Any) -> None:
        query = {"id": "c", "pod_sandbox_id": "p", "label_selector": {"l": "1"}}
        stats = (await client.call("ListContainerStats", {"filter": query}))["stats"]
        assert [one["attributes"]["id"] for one in stats] == ["c1", "c2"]
        stats = (await client.call("ListPodSandboxStats", {"filter": {"id": "p", "label_selector": {"a": "b"}}}))[
            "stats"
        ]
        assert [one["attributes"]["id"] for one in stats] == ["pod1"]
        assert services.stats.queries == [ContainerFilter("c", None, "p", {"l": "1"}), PodFilter("p", None, {"a": "b"})]

    async def test_pod(self, client: Client) -> None:
        linux = (await client.call("PodSandboxStats", {"pod_sandbox_id": "pod1"}))["stats"]["linux"]
        assert linux["process"]["process_count"] == {"value": "4"}
        assert linux["network"]["default_interface"]["name"] == "eth0"
        assert [one["name"] for one in linux["network"]["interfaces"]] == ["net1"]
        assert [one["attributes"]["id"] for one in linux["containers"]] == ["c1"]
        assert "usage_nano_cores" not in linux["cpu"]


class TestImages:
    async def test_list(self, client: Client) -> None:
        (image,) = (await client.call("ListImages"))["images"]
        assert image["repo_tags"] == ["docker.io/library/other:1", "docker.io/library/nginx:latest"]
        assert (image["size"], image["uid"]) == ("12345", {"value": "0"})
        named = await client.call("ListImages", {"filter": {"image": {"image": "nginx"}}})
        assert [one["id"] for one in named["images"]] == ["sha256:abc"]
        assert await client.call("ListImages", {"filter": {"image": {"image": "none"}}}) == {"images": []}

    async def test_status(self, client: Client) -> None:
        answer = await client.call("ImageStatus", {"image": {"image": "nginx"}, "verbose": True})
        assert (answer["image"]["id"], answer["info"]) == ("sha256:abc", {"info": "{}"})
        assert await client.call("ImageStatus", {"image": {"image": "none"}, "verbose": True}) == {"info": {}}
        verifying = {"image": {"image": "nginx", "annotations": {"crinoid.io/verify": "true"}}, "verbose": True}
        assert json.loads((await client.call("ImageStatus", verifying))["info"]["damage"]) == [
            "blob sha256:abc is damaged"
        ]
        with pytest.raises(InvalidArgument, match=r"image\.image is missing"):
            await client.call("ImageStatus", {})

    async def test_pull(self, client: Client, services: Any) -> None:
        request = {
            "image": {"image": "nginx", "annotations": {"a": "b"}, "runtime_handler": "fast"},
            "auth": {"auth": "dXNlcjpwYXNzOndvcmQ="},
            "sandbox_config": POD_CONFIG,
        }
        assert await client.call("PullImage", request) == {"image_ref": "sha256:abc"}
        credentials = Credentials("user", "pass:word")
        assert services.images.calls == [("pull", "nginx", credentials, {"a": "b"}, "fast")]

    async def test_a_registry_that_is_down_is_said_in_the_kubelets_word(self, client: Client, services: Any) -> None:
        services.images.error = Unavailable("registry example.org does not answer")
        with pytest.raises(RegistryUnavailable, match=r"^RegistryUnavailable: registry example.org") as caught:
            await client.call("PullImage", {"image": {"image": "nginx"}})
        assert caught.value.grpc_status == "UNKNOWN", "of this status alone the kubelet looks at the words"

    async def test_a_state_that_can_not_be_used_is_no_registrys_fault(
        self, client: Client, services: SimpleNamespace
    ) -> None:
        services.images.error = StateNotUsable("state.db can't be used: disk I/O error")
        with pytest.raises(Unavailable, match=r"^state.db can't be used") as caught:
            await client.call("PullImage", {"image": {"image": "nginx"}})
        assert caught.value.grpc_status == "UNAVAILABLE"

    async def test_a_signature_that_an_extension_refuses_is_said_in_the_kubelets_word(
        self, client: Client, services: Any
    ) -> None:
        services.images.error = SignatureValidationFailed("no signature by the key of the site")
        with pytest.raises(SignatureValidationFailed, match=r"^SignatureValidationFailed: no signature"):
            await client.call("PullImage", {"image": {"image": "nginx"}})

    async def test_remove_and_filesystems(self, client: Client, services: Any) -> None:
        await client.call("RemoveImage", {"image": {"image": "nginx"}})
        assert services.images.calls == [("remove", "nginx", "")]
        answer = await client.call("ImageFsInfo")
        assert answer["image_filesystems"][0]["fs_id"] == {"mountpoint": "/images"}
        assert answer["container_filesystems"][0]["used_bytes"] == {"value": "20"}


class TestErrors:
    async def test_all_43_are_there(self, client: Client) -> None:
        assert len(rpc_names()) == 43

    @pytest.mark.parametrize(
        ("rpc", "request_", "field"),
        [
            ("RunPodSandbox", {}, "config is missing"),
            ("RunPodSandbox", {"config": {}}, r"config\.metadata is missing"),
            ("StopPodSandbox", {}, "pod_sandbox_id is missing"),
            ("CheckpointContainer", {"container_id": "c1"}, "location is missing"),
            ("CheckpointContainer", {"container_id": "c1", "location": "x.tar"}, "location .x.tar. is not an absolute"),
            ("CheckpointContainer", {"container_id": "c1", "location": "/x", "timeout": -1}, "timeout is -1"),
            ("CheckpointPod", {"output_path": "/x"}, "pod_sandbox_id is missing"),
            ("RestorePod", {"config": POD_CONFIG}, "checkpoint_path is missing"),
            ("RestorePod", {"checkpoint_path": "/x"}, "config is missing"),
            ("RemovePodSandbox", {}, "pod_sandbox_id is missing"),
            ("PodSandboxStatus", {}, "pod_sandbox_id is missing"),
            ("PodSandboxStats", {}, "pod_sandbox_id is missing"),
            ("CreateContainer", {"config": CONTAINER_CONFIG}, "pod_sandbox_id is missing"),
            ("CreateContainer", {"pod_sandbox_id": "p"}, "config is missing"),
            ("StartContainer", {}, "container_id is missing"),
            ("StopContainer", {}, "container_id is missing"),
            ("RemoveContainer", {}, "container_id is missing"),
            ("ContainerStatus", {}, "container_id is missing"),
            ("ContainerStats", {}, "container_id is missing"),
            ("UpdateContainerResources", {"linux": {}}, "container_id is missing"),
            ("ReopenContainerLog", {}, "container_id is missing"),
            ("ExecSync", {"cmd": ["ls"]}, "container_id is missing"),
            ("PullImage", {}, r"image\.image is missing"),
            ("RemoveImage", {"image": {"image": " "}}, r"image\.image is missing"),
            ("StopPodSandbox", {"pod_sandbox_id": "a\0b"}, "pod_sandbox_id holds a NUL"),
        ],
    )
    async def test_what_is_missing_is_named(
        self, client: Client, services: Any, rpc: str, request_: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=field):
            await client.call(rpc, request_)
        assert services.pods.calls == services.containers.calls == services.images.calls == []

    async def test_not_found(self, client: Client) -> None:
        with pytest.raises(NotFound, match="there is no pod nope"):
            await client.call("PodSandboxStatus", {"pod_sandbox_id": "nope"})
        with pytest.raises(NotFound, match="there is no container nope"):
            await client.call("ContainerStatus", {"container_id": "nope"})

    @pytest.mark.parametrize(
        "kind", [Unsupported, Unauthenticated, CorruptContent, DriverError, ResourceExhausted, DeadlineExceeded]
    )
    async def test_an_error_arrives_as_what_it_was(
        self, client: Client, services: Any, kind: type[CrinoidError]
    ) -> None:
        error = kind("the pod web can't be — run")
        error.add_note('network "cni" attach')
        services.pods.error = error
        with pytest.raises(kind) as raised:
            await client.call("RunPodSandbox", {"config": POD_CONFIG})
        assert type(raised.value) is kind
        assert str(raised.value) == 'the pod web can\'t be — run; network "cni" attach'
        assert [call[0] for call in services.pods.calls] == ["run"]

    async def test_a_surprise_is_internal_and_its_words_stay_in_the_log(
        self, client: Client, services: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        services.node.error = KeyError("secret")
        with pytest.raises(DriverError, match=r"^Status: internal error \(KeyError\); see crinoid's log$"):
            await client.call("Status")
        assert any(record.exc_info and "secret" in str(record.exc_info[1]) for record in caplog.records)

    @pytest.mark.parametrize(
        "error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1), BaseException("x")]
    )
    async def test_what_ends_a_task_is_internal_where_the_client_is_still_there(
        self, client: Client, services: Any, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(*_: object) -> str:
            raise error

        services.pods.run = fail
        with pytest.raises(DriverError, match="RunPodSandbox: internal error"):
            await client.call("RunPodSandbox", {"config": {"metadata": {"name": "x"}}}, timeout_s=10)
        assert "the client has gone away" not in caplog.text

    async def test_a_message_too_long_for_a_header_is_cut(self, client: Client, services: Any) -> None:
        services.node.error = DriverError("begin " + "ü\n" * 20000 + " end")
        with pytest.raises(DriverError, match=r"(?s)^begin .* … .* end$"):
            await client.call("Status")


class TestBadBytes:
    @pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xff\xfe", b"\x0b" * 200])
    async def test_malformed(self, server: Server, endpoint: Endpoint, data: bytes) -> None:
        error = await call_raw(endpoint, "RunPodSandbox", data)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no RunPodSandboxRequest" in (error.details() or "")

    async def test_an_unknown_enum_number(self, server: Server, endpoint: Endpoint) -> None:
        metadata = api_pb2.PodSandboxMetadata(name="a")
        config = api_pb2.PodSandboxConfig(metadata=metadata)
        config.linux.security_context.namespace_options.pid = 77  # type: ignore[assignment]
        error = await call_raw(
            endpoint, "RunPodSandbox", api_pb2.RunPodSandboxRequest(config=config).SerializeToString()
        )
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "config.linux.security_context.namespace_options.pid has the unknown value 77" in (error.details() or "")

    async def test_fields_nobody_knows_are_passed_over(self, client: Client, endpoint: Endpoint) -> None:
        async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
            version = channel.unary_unary("/runtime.v1.RuntimeService/Version")
            answer = api_pb2.VersionResponse.FromString(await version(b"\x92\x4e\x02ab"))
        assert answer.runtime_name == "crinoid"

    async def test_oversized(self, client: Client, services: Any) -> None:
        config = POD_CONFIG | {"annotations": {"a": "x" * (1 << 20)}}
        with pytest.raises(ResourceExhausted):
            await client.call("RunPodSandbox", {"config": config})
        assert services.pods.calls == []
        assert (await client.call("Version"))["runtime_name"] == "crinoid"

    async def test_an_answer_that_is_too_large(self, endpoint: Endpoint, services: Any) -> None:
        server = Server(dataclasses.replace(endpoint, max_response_bytes=5), services)
        await server.start()
        async with Client(str(endpoint.path)) as client:
            with pytest.raises(ResourceExhausted):
                await client.call("Version")
        await server.stop(0)

    async def test_an_unknown_rpc(self, server: Server, endpoint: Endpoint) -> None:
        assert (await call_raw(endpoint, "Nonsense", b"")).code() is grpc.StatusCode.UNIMPLEMENTED


class TestGoneClients:
    async def test_a_cancelled_call_is_not_acknowledged(
        self, client: Client, services: Any, server: Server, observed: list[tuple[str, float, str]]
    ) -> None:
        services.pods.pause = asyncio.Event()
        task = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
        await wait_until(lambda: services.pods.calls)
        assert server.in_flight["RunPodSandbox"] == 1
        task.cancel()
        await wait_until(lambda: observed)
        assert services.pods.cancelled
        assert [call[0] for call in services.pods.calls] == ["run"]
        assert [(rpc, code) for rpc, _, code in observed] == [("RunPodSandbox", "CANCELLED")]
        assert server.in_flight["RunPodSandbox"] == 0

    async def test_a_service_that_finishes_all_the_same_is_not_acknowledged(
        self, client: Client, services: Any, observed: list[tuple[str, float, str]]
    ) -> None:
        async def run_on(*_: object) -> str:
            services.pods.calls.append(("run",))
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "pod9"
            return "too late"

        services.pods.run = run_on
        task = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
        await wait_until(lambda: services.pods.calls)
        task.cancel()
        await wait_until(lambda: observed)
        await asyncio.sleep(0.1)
        assert services.pods.calls == [("run",)]

    async def test_a_deadline_cancels(self, client: Client, services: Any) -> None:
        services.pods.pause = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await client.call("RunPodSandbox", {"config": POD_CONFIG}, timeout_s=2)
        await wait_until(lambda: services.pods.cancelled)


class TestObservation:
    async def test_every_call_is_observed(
        self, client: Client, server: Server, observed: list[tuple[str, float, str]]
    ) -> None:
        await client.call("Version")
        with pytest.raises(NotFound):
            await client.call("ContainerStatus", {"container_id": "nope"})
        with pytest.raises(InvalidArgument):
            await client.call("CheckpointPod")
        await wait_until(lambda: len(observed) == 3)  # the last one's client may have its answer before
        assert [(rpc, code) for rpc, _, code in observed] == [
            ("Version", "OK"),
            ("ContainerStatus", "NOT_FOUND"),
            ("CheckpointPod", "INVALID_ARGUMENT"),
        ]
        assert all(0 <= seconds < 5 for _, seconds, _ in observed)
        assert sum(server.in_flight.values()) == 0

    async def test_a_call_runs_in_its_span(self, endpoint: Endpoint, services: Any) -> None:
        told: list[object] = []

        @contextlib.contextmanager
        def span(rpc: str, metadata: Mapping[str, str]) -> Iterator[None]:
            told.append((rpc, metadata["traceparent"]))
            try:
                yield
            except NotFound as error:
                told.append(str(error))
                raise

        server = Server(endpoint, services, CallHooks(span=span))
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
            stop = channel.unary_unary("/runtime.v1.RuntimeService/PodSandboxStatus")
            with pytest.raises(grpc.aio.AioRpcError):
                await stop(b"\x0a\x01x", metadata=(("traceparent", "00-1-2-01"), ("some-bin", b"\xff")))
        await server.stop(0)
        assert told == [("PodSandboxStatus", "00-1-2-01"), "there is no pod x"]

    async def test_what_changes_something_is_recorded_by_all_its_names_and_without_its_secrets(
        self, endpoint: Endpoint, services: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeline_log, "LEAST_FREE_BYTES", 0)
        timelines = services.timelines = Timelines(tmp_path, 1 << 20)
        server = Server(endpoint, services, CallHooks(record=timelines.recording))
        await server.start()
        async with Client(f"unix://{endpoint.path}") as client:
            pod = await client.call("RunPodSandbox", {"config": POD_CONFIG})
            await client.call("PullImage", {"image": {"image": "nginx"}, "auth": {"username": "u", "password": "hush"}})
            await client.call("ListContainers")
            await client.call("ExecSync", {"container_id": "none", "cmd": ["true"]})
            answer = await client.call_crinoid("ReadTimeline")
            named = await client.call_crinoid("ReadTimeline", about=["shop/web"])
        await server.stop(0)
        acts = [json.loads(line) for line in answer.acts]
        assert [(act["act"], act["code"]) for act in acts] == [("RunPodSandbox", "OK"), ("PullImage", "OK")]
        assert {"web", "shop/web", pod["pod_sandbox_id"]} <= set(acts[0]["about"])
        assert "image:nginx" in acts[1]["about"]
        assert list(named.acts) == list(answer.acts)[:1]
        assert "hush" not in str(answer)

    async def test_acts_are_logged_with_what_they_are_about_and_no_secrets(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "crinoid.cri")
        await client.call("ListContainers")
        await client.call("PullImage", {"image": {"image": "nginx"}, "auth": {"username": "u", "password": "hush"}})
        await client.call("RunPodSandbox", {"config": POD_CONFIG})
        lines = [record.getMessage() for record in caplog.records if record.name == "crinoid.cri"]
        assert [line.split(" in ")[0] for line in lines] == ["PullImage nginx: OK", "RunPodSandbox shop/web: OK"]
        assert "hush" not in repr([vars(record) for record in caplog.records])


class TestSocket:
    async def test_mode_group_and_directory(self, tmp_path: Path, services: Any) -> None:
        gid = os.getgid()
        endpoint = Endpoint(tmp_path / "a" / "b" / "c.sock", 0o600, grp.getgrgid(gid).gr_name)
        server = Server(endpoint, services)
        await server.start()
        found = endpoint.path.stat()
        assert (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode), found.st_gid) == (True, 0o600, gid)
        assert [entry.name for entry in endpoint.path.parent.iterdir()] == ["c.sock"]
        await server.stop(0)
        await server.stop(0)
        assert list(endpoint.path.parent.iterdir()) == []

    async def test_a_live_socket_is_refused_and_lives_on(
        self, server: Server, client: Client, endpoint: Endpoint, services: Any
    ) -> None:
        second = Server(endpoint, services)
        with pytest.raises(ConfigurationError, match=f"another daemon serves {endpoint.path}"):
            await second.start()
        await second.stop(0)
        assert (await client.call("Version"))["runtime_name"] == "crinoid"
        assert endpoint.path.exists()

    async def test_a_stale_socket_is_replaced(self, endpoint: Endpoint, services: Any) -> None:
        endpoint.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(endpoint.path))
        server = Server(endpoint, services)
        await server.start()
        async with Client(str(endpoint.path)) as client:
            assert (await client.call("Version"))["runtime_name"] == "crinoid"
        await server.stop(0)

    async def test_what_is_no_socket_is_left_alone(self, endpoint: Endpoint, services: Any) -> None:
        endpoint.path.parent.mkdir()
        endpoint.path.write_text("mine")
        with pytest.raises(ConfigurationError, match="no socket"):
            await Server(endpoint, services).start()
        assert endpoint.path.read_text() == "mine"

    async def test_a_successors_socket_is_left_alone(self, endpoint: Endpoint, services: Any) -> None:
        server = Server(endpoint, services)
        await server.start()
        endpoint.path.unlink()
        endpoint.path.write_text("the successor's")
        await server.stop(0)
        assert endpoint.path.exists()

    async def test_bad_places(self, tmp_path: Path, services: Any) -> None:
        for endpoint, words in (
            (Endpoint(tmp_path / ("x" * 120)), "too long"),
            (Endpoint(tmp_path / "a.sock", group="no-such-group"), "no-such-group"),
            (Endpoint(Path("/proc/nowhere/a.sock")), "can't make the directory"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                await Server(endpoint, services).start()

    async def test_all_calls_have_a_limit(self, endpoint: Endpoint, services: Any) -> None:
        server = Server(dataclasses.replace(endpoint, max_requests=2), services)
        await server.start()
        services.pods.pause = asyncio.Event()
        async with Client(str(endpoint.path)) as client:
            calls = [asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG})) for _ in range(2)]
            await wait_until(lambda: len(services.pods.calls) == 2)
            with pytest.raises(ResourceExhausted):
                await client.call("Version", {})
            services.pods.pause.set()
            await asyncio.gather(*calls)
            await client.call("Version", {})
        await server.stop(0)

    async def test_calls_beyond_a_connections_limit_wait(self, endpoint: Endpoint, services: Any) -> None:
        """The client takes a call for over a moment before the server does, and was refused the next one."""
        server = Server(dataclasses.replace(endpoint, max_streams=16), services)
        await server.start()
        services.pods.pause = asyncio.Event()
        async with Client(str(endpoint.path)) as client:
            calls = [asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG})) for _ in range(128)]
            await wait_until(lambda: len(services.pods.calls) == 16)
            services.pods.pause.set()
            assert await asyncio.gather(*calls) == [{"pod_sandbox_id": "pod9"}] * 128
        await server.stop(0)

    async def test_connections_that_lie_idle_make_room(self, endpoint: Endpoint, services: Any) -> None:
        """critest leaves some of each test: after 105 tests it was cut off, and a kubelet would have been, too."""
        server = Server(dataclasses.replace(endpoint, max_connections=4, age_s=0.5), services)
        await server.start()
        own = [("grpc.use_local_subchannel_pool", 1)]  # or they would share one connection
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(12):
                channel = grpc.aio.insecure_channel(f"unix:{endpoint.path}", own)
                await stack.enter_async_context(channel)
                version = channel.unary_unary("/runtime.v1.RuntimeService/Version", _registered_method=True)
                assert await version(b"", wait_for_ready=True, timeout=60)
        await server.stop(0)

    async def test_a_call_that_crosses_the_end_of_its_connection_is_answered(
        self, endpoint: Endpoint, services: Any
    ) -> None:
        """A kubelet's was lost: grpc's end of idle connections asks nobody, and tells of an internal error."""
        server = Server(dataclasses.replace(endpoint, age_s=0.2), services)
        await server.start()

        def cross() -> None:
            with http2.frames(endpoint.path) as (client, received):
                client.sendall(http2.ACKNOWLEDGEMENT)
                farewell = next(one for one in received if isinstance(one, GoAwayFrame))
                assert (farewell.error_code, farewell.last_stream_id) == (0, 2**31 - 1), "it still takes calls"
                client.sendall(http2.begin(1, http2.call()) + http2.data(1))
                asked = next(one for one in received if isinstance(one, PingFrame))
                assert any(isinstance(one, HeadersFrame) and one.stream_id == 1 for one in received), "answered"
                client.sendall(PingFrame(0, asked.opaque_data, flags=["ACK"]).serialize())
                assert any(isinstance(one, GoAwayFrame) and one.last_stream_id == 1 for one in received)

        await asyncio.to_thread(cross)
        await server.stop(0)

    def test_a_client_has_to_leave_many_connections_to_lock_others_out(self, endpoint: Endpoint) -> None:
        """Four a second, each for a tenth more than its age and 20 s without an answer; critest leaves two a test."""
        options = dict(_options(endpoint))
        longest_s = 1.1 * options["grpc.max_connection_age_ms"] / 1000 + 20
        assert options["grpc.max_allowed_incoming_connections"] / longest_s >= 4

    async def test_metadata_has_a_limit(self, server: Server, endpoint: Endpoint) -> None:
        """What a kubelet sends with a trace is far below it."""
        async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
            version = channel.unary_unary("/runtime.v1.RuntimeService/Version")
            await version(b"", metadata=(("baggage", "a" * 7000),))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await version(b"", metadata=(("baggage", "a" * 20_000),))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_stop_lets_calls_end(self, endpoint: Endpoint, services: Any) -> None:
        server = Server(endpoint, services)
        await server.start()
        services.pods.pause = asyncio.Event()
        async with Client(str(endpoint.path)) as client:
            task = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
            await wait_until(lambda: services.pods.calls)
            stopping = asyncio.create_task(server.stop(5))
            await asyncio.sleep(0.05)
            services.pods.pause.set()
            assert await task == {"pod_sandbox_id": "pod9"}
        await stopping

    async def test_stop_cancels_what_does_not_end(self, endpoint: Endpoint, services: Any) -> None:
        server = Server(endpoint, services)
        await server.start()
        services.pods.pause = asyncio.Event()
        async with Client(str(endpoint.path)) as client:
            task = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
            await wait_until(lambda: services.pods.calls)
            await server.stop(0.05)
            with pytest.raises(CrinoidError):
                await task
        assert services.pods.cancelled


class TestClient:
    async def test_nobody_there(self, tmp_path: Path) -> None:
        async with Client(f"unix:{tmp_path}/no.sock") as client:
            with pytest.raises(Unavailable, match="there is no socket at unix://"):
                await client.call("Version", timeout_s=5)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "stale.sock"))
        async with Client(f"unix://{tmp_path}/stale.sock") as client:
            with pytest.raises(Unavailable, match="nobody serves"):
                await client.call("Version", timeout_s=5)

    @pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "crinoid.sock", ""])
    def test_endpoints_that_are_none(self, endpoint: str) -> None:
        with pytest.raises(InvalidArgument, match="write unix:///"):
            Client(endpoint)

    async def test_names_that_are_none(self, client: Client) -> None:
        with pytest.raises(InvalidArgument, match="did you mean ListContainers"):
            await client.call("ListContainer")
        with pytest.raises(InvalidArgument, match="container"):
            await client.call("StartContainer", {"container": "c1"})


@contextlib.asynccontextmanager
async def succeeding(endpoint: Endpoint, services: Any) -> AsyncIterator[tuple[Server, Any]]:
    """A successor that listens, and does not serve yet, with services of its own."""
    listener = Listener(endpoint)
    await listener.listen(taking_over=True)
    listener.publish()
    own: Any = SimpleNamespace(**vars(services) | {"node": type(services.node)(), "events": type(services.events)()})
    successor = Server(endpoint, own, listener=listener)
    try:
        yield successor, own
    finally:
        await successor.stop(0)


def an_event(number: int) -> Event:
    return Event(EventType.STARTED, f"c{number}", number, None, ())


class TestHandover:
    async def test_calls_go_to_the_successor_over_the_connections_that_are_there(
        self, server: Server, client: Client, endpoint: Endpoint, services: Any
    ) -> None:
        """One call is under way, one waits for a successor that listens and does not serve yet, one fails there."""
        services.pods.pause = asyncio.Event()
        under_way = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
        await wait_until(lambda: server.in_flight["RunPodSandbox"])
        left: list[int] = []

        async def end_streams() -> None:
            left.append(server.in_flight["RunPodSandbox"])

        async with succeeding(endpoint, services) as (successor, other):
            handing_over = asyncio.create_task(server.hand_over(60, end_streams))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(client.call("Version"))
            services.pods.pause.set()
            await handing_over
            assert (await under_way)["pod_sandbox_id"]
            assert left == [0]
            assert not waiting.done()
            other.node.version = "2.0.0"
            await successor.start()
            assert (await waiting)["runtime_version"] == "2.0.0"
            with pytest.raises(NotFound, match="there is no pod x"):
                await client.call("PodSandboxStatus", {"pod_sandbox_id": "x"})
            streamed = [answer async for answer in client.stream("StreamPodSandboxes")]
            assert {pod["id"] for answer in streamed for pod in answer["pod_sandboxes"]} == {"pod1", "pod2"}
            await server.stop(1)
            assert endpoint.path.is_socket()  # it is the successor's

    async def test_streams_of_events_go_on_with_the_successor_until_it_ends_them(
        self, server: Server, client: Client, endpoint: Endpoint, services: Any
    ) -> None:
        """Of two successors in a row, over the first daemon's connection; the last is told until when that is there."""
        seen: list[str] = []

        async def follow() -> None:
            async for event in client.stream("GetContainerEvents"):
                seen.append(event["container_id"])  # noqa: PERF401  # each as it comes

        def handing(events: Any) -> Callable[[], Awaitable[None]]:
            async def end_streams() -> None:
                events.reader.end(StopAsyncIteration())

            return end_streams

        following = asyncio.create_task(follow())
        services.events.reader.put(an_event(1))
        await wait_until(lambda: seen == ["c1"])
        async with succeeding(endpoint, services) as (second, events_of_second):
            services.events.reader.put(an_event(2))
            before_s = time.monotonic()
            await server.hand_over(60, handing(services.events))
            events_of_second.events.reader.put(an_event(3))  # while nobody serves
            await second.start()
            await wait_until(lambda: seen == ["c1", "c2", "c3"])
            async with succeeding(endpoint, services) as (third, events_of_third):
                await second.hand_over(60, handing(events_of_second.events))
                await third.start()
                events_of_third.events.reader.put(an_event(4))
                await wait_until(lambda: len(seen) == 4)
                (until_s,) = events_of_third.events.relayed_until_s
                assert before_s + RELAY_S - 0.001 <= until_s <= time.monotonic() + RELAY_S
                assert until_s == events_of_second.events.relayed_until_s[0], "the first daemon is the first to end"
                assert services.events.relayed_until_s == [None]
                assert not following.done()
                events_of_third.events.reader.put(an_event(5))
                events_of_third.events.reader.end(StopAsyncIteration())
                await following  # without an error
        assert seen == ["c1", "c2", "c3", "c4", "c5"]

    async def test_a_client_that_leaves_its_stream_leaves_the_successor_s_too(
        self, server: Server, client: Client, endpoint: Endpoint, services: Any
    ) -> None:
        async def follow() -> None:
            async for _ in client.stream("GetContainerEvents"):
                pass

        async def end_streams() -> None:
            services.events.reader.end(StopAsyncIteration())

        following = asyncio.create_task(follow())
        await wait_until(lambda: server.in_flight["GetContainerEvents"])
        async with succeeding(endpoint, services) as (successor, _):
            await server.hand_over(60, end_streams)
            await successor.start()
            await wait_until(lambda: successor.in_flight["GetContainerEvents"])
            following.cancel()
            await wait_until(lambda: not successor.in_flight["GetContainerEvents"])

    @pytest.mark.parametrize("value", ["soon", "nan", "inf", ""])
    async def test_nonsense_in_the_header_of_relayed_streams_is_none(
        self, server: Server, endpoint: Endpoint, services: Any, value: str
    ) -> None:
        services.events.reader.end(StopAsyncIteration())
        async with grpc.aio.insecure_channel(f"unix:{endpoint.path}") as channel:
            call = channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents", _registered_method=True)
            assert [one async for one in call(b"", metadata=(("crinoid-relayed-until", value),), timeout=60)] == []
        assert services.events.relayed_until_s == [None]

    async def test_what_does_not_end_is_given_up(self, server: Server, client: Client, services: Any) -> None:
        services.pods.pause = asyncio.Event()
        calling = asyncio.create_task(client.call("RunPodSandbox", {"config": POD_CONFIG}))
        await wait_until(lambda: server.in_flight["RunPodSandbox"])
        await server.hand_over(0.01, lambda: asyncio.sleep(0))
        with pytest.raises(Unavailable, match="RunPodSandbox had not ended when another crinoid took over: ask it"):
            await calling
        assert services.pods.cancelled
