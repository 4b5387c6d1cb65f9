"""Requests that no runtime should take: the wrong in each field is named, and nothing is left of the try."""

from typing import Any

import grpc
import pytest

from conformance.node import LENIENT, UNKNOWN, Node, Pod, case
from support.cri import RPCS


def _set(config: Any, path: str, value: Any) -> Any:
    """Set a field of nested objects by its path."""
    *parents, last = path.split(".")
    inner = config
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return config


PODS = [
    case("metadata.name", "", containerd=UNKNOWN),
    case("metadata.name", "a/b", containerd=LENIENT),
    case("metadata.name", "x" * 300, containerd=LENIENT),
    case("metadata.namespace", "", containerd=LENIENT),
    case("metadata.uid", "", containerd=LENIENT),
    case("metadata.uid", "a b", containerd=LENIENT),
    case("hostname", "under score!", containerd=LENIENT),
    case("hostname", "x" * 65, containerd=UNKNOWN),
    case("log_directory", "relative/path", containerd=LENIENT),
    case("log_directory", "/a/../../b", containerd=LENIENT),
    case("dns_config.servers", ["1.2.3.4\nnameserver 6.6.6.6"], containerd=LENIENT),
    case("dns_config.searches", ["two words"], containerd=LENIENT),
    case("dns_config.options", [""], containerd=LENIENT),
    case("port_mappings", [{"container_port": 70000, "host_port": 80}], containerd=UNKNOWN),
    case("port_mappings", [{"container_port": 80, "host_port": -1}], containerd=LENIENT),
    case("port_mappings", [{"container_port": 80, "host_port": 80, "host_ip": "host"}], containerd=UNKNOWN),
    case("port_mappings", [{"protocol": 77, "container_port": 80, "host_port": 80}], containerd=LENIENT),
    case("linux.cgroup_parent", "/../../escape", containerd=LENIENT),
    case("linux.security_context.namespace_options.network", "TARGET", containerd=LENIENT),
    case("linux.security_context.namespace_options.pid", "TARGET", containerd=LENIENT),
    case("linux.security_context.namespace_options.pid", 9, containerd=LENIENT),
    case("linux.security_context.run_as_group", {"value": 5}, containerd=UNKNOWN),
    case("linux.security_context.seccomp", {"profile_type": "Localhost"}, containerd=UNKNOWN),
    case("linux.resources", {"cpu_shares": -5}, containerd=LENIENT),
    case("linux.sysctls", {"net.core/../x": "1"}, containerd=UNKNOWN),
]


@pytest.mark.parametrize(("path", "value"), PODS)
def test_pods(node: Node, path: str, value: Any) -> None:
    config = _set(node.pod_config(), path, value)
    try:
        message = node.refuse("RunPodSandbox", "INVALID_ARGUMENT", config=config, runtime_handler=node.handler)
        assert path.split(".")[-1] in message or "sysctl" in message
        assert config["metadata"] not in [one["metadata"] for one in node.call("ListPodSandbox")["items"]]
    finally:
        _remove(node, config)


def _remove(node: Node, config: Any) -> None:
    """A runtime that took it has a pod to remove."""
    for one in node.call("ListPodSandbox")["items"]:
        if one["metadata"]["name"] == config["metadata"]["name"][:300]:
            node.call("RemovePodSandbox", pod_sandbox_id=one["id"])


CONTAINERS = [
    case("metadata.name", "", containerd=UNKNOWN),
    case("metadata.name", "a/b", containerd=LENIENT),
    case("image.image", "", containerd=UNKNOWN),
    case("working_dir", "relative", containerd=UNKNOWN),
    case("log_path", "../escape.log", containerd=LENIENT),
    case("log_path", "/absolute.log", containerd=LENIENT),
    case("envs", [{"key": "", "value": "eA=="}], containerd=LENIENT),
    case("envs", [{"key": "A=B", "value": "eA=="}], containerd=LENIENT),
    case("envs", [{"key": "A", "value": "AA=="}], containerd=LENIENT),
    case("mounts", [{"container_path": "/mnt"}], containerd=LENIENT),
    case("devices", [{"container_path": "/dev/x", "host_path": "/dev/null", "permissions": "q"}], containerd=LENIENT),
    case("stop_signal", 99, containerd=LENIENT),
    case("linux.resources.oom_score_adj", 5000, containerd=UNKNOWN),
    case("linux.resources.hugepage_limits", [{"page_size": "big", "limit": 1}], containerd=LENIENT),
    case("linux.resources.unified", {"../escape": "1"}, containerd=LENIENT),
    case("linux.security_context.run_as_user", {"value": -1}, containerd=UNKNOWN),
    case("linux.security_context.capabilities", {"add_capabilities": ["NO SUCH"]}, containerd=LENIENT),
    case("linux.security_context.masked_paths", ["relative"], containerd=LENIENT),
    case("linux.security_context.readonly_paths", [""], containerd=LENIENT),
    case("linux.security_context.seccomp_profile_path", "nonsense", containerd=UNKNOWN),
    case("linux.security_context.apparmor_profile", "nonsense", containerd=UNKNOWN),
    case("linux.security_context.seccomp", {"profile_type": "Localhost", "localhost_ref": "x"}, containerd=UNKNOWN),
    case("linux.security_context.namespace_options.ipc", "TARGET", containerd=LENIENT),
]


@pytest.mark.parametrize(("path", "value"), CONTAINERS)
def test_containers(node: Node, pod: Pod, path: str, value: Any) -> None:
    config = _set(node.container_config("true"), path, value)
    before = node.call("ListContainers")["containers"]
    fields = {"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config}
    message = node.refuse("CreateContainer", "INVALID_ARGUMENT", **fields)
    assert path.split(".")[-1] in message
    assert node.call("ListContainers")["containers"] == before


OF_OLD = set(RPCS) - {
    *("CheckpointPod", "ListMetricDescriptors", "ListPodSandboxMetrics", "RestorePod", "RuntimeConfig"),
    *("UpdatePodSandboxResources", *(rpc for rpc in RPCS if rpc.startswith("Stream"))),
}


@pytest.mark.parametrize(
    "rpc",
    [
        case(rpc, containerd="containerd leaves this to grpc-go, which answers Internal" if rpc in OF_OLD else "")
        for rpc in sorted(RPCS)
    ],
)
def test_bytes_that_are_no_message(node: Node, rpc: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        node.cri.raw(rpc, b"\xff\xff\xff\xff\x0f garbage")
    assert caught.value.code().name in ("INVALID_ARGUMENT", "UNIMPLEMENTED")


@pytest.mark.parametrize("rpc", ["RunPodSandbox", "CreateContainer"])
def test_an_empty_request(node: Node, rpc: str) -> None:
    codes = ("INVALID_ARGUMENT",) if node.runtime == "crinoid" else ("INVALID_ARGUMENT", "UNKNOWN", "NOT_FOUND")
    node.refuse(rpc, *codes)


@pytest.mark.parametrize("rpc", ["Version", "Status", "ListPodSandbox", "ListContainers", "ListImages", "ImageFsInfo"])
def test_fields_of_tomorrow_are_no_hindrance(node: Node, rpc: str) -> None:
    """A newer kubelet sends fields that this runtime does not know."""
    assert node.cri.raw(rpc, b"\xfa\x7f\x03abc") is not None
