"""Requests that no runtime should take: the wrong in each field is named, and nothing is left of the try."""

import contextlib
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
    case("metadata.name", "x" * 300, containerd=LENIENT),
    case("metadata.uid", "a\nb", containerd=LENIENT),
    case("hostname", "two\nlines", containerd=LENIENT),
    case("hostname", "x" * 65, containerd=UNKNOWN),
    case("log_directory", "relative/path", containerd=LENIENT),
    case("log_directory", "/a/../../b", containerd=LENIENT),
    case("dns_config.servers", ["1.2.3.4\nnameserver 6.6.6.6"], containerd=LENIENT),
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
    case("metadata.name", "a\nb", containerd=LENIENT),
    case("image.image", "", containerd=UNKNOWN),
    case("log_path", "../escape.log", containerd=LENIENT),
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


TAKEN_PODS = [
    ("metadata.name", "two words/and a slash"),
    ("metadata.namespace", ""),
    ("metadata.uid", ""),
    ("hostname", "under score!"),
    ("hostname", "web.shop."),
    ("dns_config.searches", ["two words"]),
    ("dns_config.options", ["", "ndots:1 2"]),
]


@pytest.mark.parametrize(("path", "value"), TAKEN_PODS)
def test_pods_that_every_runtime_takes(node: Node, path: str, value: Any) -> None:
    """The kernel takes them, and who is to judge names is Kubernetes."""
    pod = node.run_config(_set(node.pod_config(), path, value))
    told = node.pod_status(pod)["metadata"]
    assert {key: told[key] for key in pod.config["metadata"]} == pod.config["metadata"]


def test_a_host_name_with_a_dot_at_its_end(node: Node) -> None:
    """Kubernetes makes it of setHostnameAsFQDN where the kubelet knows no cluster domain."""
    pod = node.run_pod(hostname="web.shop.")
    assert node.script(pod, "hostname; cat /etc/hostname") == "web.shop.\nweb.shop."


TAKEN_CONTAINERS = [
    ("log_path", "/from/the/root.log"),
    ("metadata.name", "two words/and a slash"),
    ("mounts", [{"container_path": "relative", "host_path": "/tmp"}]),
]


@pytest.mark.parametrize(("path", "value"), TAKEN_CONTAINERS)
def test_containers_that_every_runtime_takes(node: Node, pod: Pod, path: str, value: Any) -> None:
    container = node.create_config(pod, _set(node.container_config("true"), path, value))
    node.call("StartContainer", container_id=container)
    assert node.wait_exit(container)["exit_code"] == 0


def test_a_working_directory_that_is_relative(node: Node, pod: Pod) -> None:
    """Kubernetes takes it; a pod with restartPolicy Never fails by it, instead of waiting for a container for ever."""
    container = node.create(pod, "pwd", working_dir="tmp")
    with contextlib.suppress(grpc.RpcError):
        node.call("StartContainer", container_id=container)
    status = node.wait_exit(container)
    runs = (status["exit_code"], node.log(container)) == (0, "/tmp\n")  # as some OCI runtimes have it
    assert runs or (status["exit_code"], status["reason"]) == (128, "StartError"), status


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
