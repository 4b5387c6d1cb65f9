"""A blocking CRI client that adds as little as possible to what is measured, and requests as a kubelet makes them.

Messages are built beforehand; what is asked many times goes out and comes back as bytes.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from crinoid.core.cri.wire import api_pb2 as cri

_CGROUPS = Path("/sys/fs/cgroup")
_OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


class Client:
    """One connection. ``call`` takes a ready message and returns the answer's message."""

    def __init__(self, socket: Path | str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=_OPTIONS)
        self._calls: dict[str, Any] = {}
        self._paths: dict[str, str] = {}
        for service in cri.DESCRIPTOR.services_by_name.values():
            for rpc in service.methods:
                self._paths[rpc.name] = f"/{service.full_name}/{rpc.name}"
                self._calls[rpc.name] = self._channel.unary_unary(
                    self._paths[rpc.name],
                    request_serializer=getattr(cri, rpc.input_type.name).SerializeToString,
                    response_deserializer=getattr(cri, rpc.output_type.name).FromString,
                )

    def call(self, rpc: str, request: Any, timeout_s: float = 60) -> Any:
        """Call an RPC. ``Any``: each has its own messages."""
        return self._calls[rpc](request, timeout=timeout_s)

    def prepare(self, rpc: str, request: Any) -> Callable[[], bytes]:
        """Return a function that sends this request and returns the answer's bytes, neither of them coded any more."""
        call, message = self._channel.unary_unary(self._paths[rpc]), request.SerializeToString()
        return lambda: call(message, timeout=60)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def prepare_pod(request: Any) -> None:
    """Make what a kubelet makes before it asks for a pod: the directory of its logs and, on cgroup v1, its cgroups."""
    Path(request.config.log_directory).mkdir(parents=True, exist_ok=True)
    for directory in _pod_cgroups(request):
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (directory / name).exists():
                _inherit(directory, name)


def forget_pod(request: Any) -> None:
    """Remove what a kubelet removes after its pod: the cgroups."""
    for directory in _pod_cgroups(request):
        with contextlib.suppress(OSError):  # a runtime may have done it
            directory.rmdir()


def _pod_cgroups(request: Any) -> list[Path]:
    path = request.config.linux.cgroup_parent.lstrip("/")
    tops = [top for top in _CGROUPS.iterdir() if (top / "tasks").exists() and not top.is_symlink()]
    return [top / path for top in tops]


def _inherit(directory: Path, name: str) -> None:
    """Fill a setting of cpuset from above: a new cgroup has none, and takes no process."""
    value = (directory / name).read_text().strip()
    if not value:
        if directory.parent != _CGROUPS / "cpuset":
            _inherit(directory.parent, name)
        (directory / name).write_text((directory.parent / name).read_text())


def pod_request(name: str, logs: Path, cgroup: str, handler: str) -> Any:
    """A pod as a kubelet asks for one: a PID namespace for each container, a cgroup parent, DNS, RuntimeDefault."""
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options, seccomp=cri.SecurityProfile())
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, namespace="bench", uid=f"uid-{name}"),
        hostname=name[:63],
        log_directory=str(logs / name),
        dns_config=cri.DNSConfig(servers=["10.96.0.10"], searches=["svc.cluster.local"], options=["ndots:5"]),
        labels={"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench"},
        linux=cri.LinuxPodSandboxConfig(security_context=security, cgroup_parent=f"{cgroup}/{name}"),
    )
    return cri.RunPodSandboxRequest(config=config, runtime_handler=handler)


def container_request(pod_id: str, pod: Any, image: str, *command: str, name: str = "app") -> Any:
    """A container as a kubelet asks for one: resources, default seccomp, masked paths, a hosts file of its own."""
    security = cri.LinuxContainerSecurityContext(
        namespace_options=cri.NamespaceOption(pid=cri.CONTAINER),
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
        masked_paths=["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        readonly_paths=["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    )
    resources = cri.LinuxContainerResources(cpu_shares=100, memory_limit_in_bytes=256 << 20, oom_score_adj=1000)
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=image),
        command=list(command),
        envs=[cri.KeyValue(key=f"SERVICE_{n}_PORT", value=b"443") for n in range(10)],
        labels={"io.kubernetes.container.name": name},
        log_path=f"{name}.log",
        linux=cri.LinuxContainerConfig(resources=resources, security_context=security),
    )
    return cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod.config)
