"""What the tests speak to: any node with a CRI socket, by the API alone.

A ``Node`` knows where the images of the tests are, and in which network namespace the node's own addresses are. It
keeps count of the pods that it ran, so that a test's end removes those of the test.
"""

import base64
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from support.cri import Cri, Json
from support.network_namespace import NetworkNamespace
from support.patience import patient

differs = pytest.mark.differs
"""``differs(containerd="why")``: that runtime fails the test for this reason; that it still does is proven, too."""

differs_at_times = pytest.mark.differs_at_times
"""The same where a race of that runtime decides it: it may pass, too."""

OLD = "containerd 1.6 speaks the API of Kubernetes 1.24 to 1.26, which has no such field or RPC"
UNKNOWN = "containerd answers Unknown where a status code tells what is wrong"
LENIENT = "containerd takes the request and leaves out what is wrong in it"
EMPTY = "containerd looks for an object with the empty id, and answers as for any that it does not find"


def case(*values: object, name: str = "", containerd: str = "") -> Any:
    """A case of ``parametrize``; ``containerd`` says why that one fails it."""
    marks = [differs(containerd=containerd)] if containerd else []
    return pytest.param(*values, id=name or None, marks=marks)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod sandbox and what it was asked to be."""

    id: str
    config: Json


@dataclass
class Node:
    """A runtime behind a socket. ``images`` is the prefix of the test images' names; ``cgroup`` the pods' parent.

    ``cni_handler`` is the runtime handler whose pods' network is CNI's; None where that is every handler's, or unknown.
    """

    cri: Cri
    runtime: str
    images: str
    directory: Path
    network: NetworkNamespace
    cgroup: str = ""
    handler: str = ""
    cni_handler: str | None = None
    pods: list[Pod] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def call(self, rpc: str, **fields: Any) -> Json:
        """Call an RPC; fields of the request as keywords, the answer with its default values."""
        return self.cri.call(rpc, **fields)

    def refuse(self, rpc: str, *codes: str, **fields: Any) -> str:
        """Call an RPC that has to fail with one of the codes; return the message."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(rpc, **fields)
        code, message = caught.value.code().name, caught.value.details()
        assert code in codes, f"{code}: {message}"
        return str(message)

    def image(self, name: str = "busybox:1") -> str:
        """Return a test image's reference."""
        return f"{self.images}/{name}"

    def pull(self, name: str = "busybox:1") -> str:
        """Pull a test image; return its id."""
        return str(self.call("PullImage", image={"image": self.image(name)})["image_ref"])

    def unique(self, prefix: str = "n") -> str:
        """Return a name that nothing else has."""
        return f"{prefix}{next(self._numbers)}-{secrets.token_hex(3)}"

    def make_directory(self) -> Path:
        """Make a directory on the node."""
        directory = self.directory / self.unique("directory")
        directory.mkdir(parents=True)
        return directory

    def pod_config(self, namespaces: Json | None = None, security: Json | None = None, **more: Any) -> Json:
        """A pod as the kubelet asks for one; ``more`` are fields of the config, those of ``linux`` are merged."""
        name = self.unique("pod")
        context = {"namespace_options": {"pid": "CONTAINER"} | (namespaces or {})} | (security or {})
        linux: Json = {"security_context": context} | more.pop("linux", {})
        if self.cgroup:
            linux.setdefault("cgroup_parent", f"{self.cgroup}/{name}")
        hostname = "" if (namespaces or {}).get("network") == "NODE" else name  # as the kubelet does
        metadata = {"name": name, "namespace": "conformance", "uid": f"uid-{name}", "attempt": 0}
        logs = str(self.directory / "logs" / name)
        return {"metadata": metadata, "hostname": hostname, "log_directory": logs, "linux": linux} | more

    def run_pod(self, namespaces: Json | None = None, handler: str | None = None, **config: Any) -> Pod:
        """Run a pod sandbox; arguments as ``pod_config``."""
        return self.run_config(self.pod_config(namespaces, **config), handler)

    def run_config(self, config: Json, handler: str | None = None) -> Pod:
        """Run a pod sandbox by a whole config."""
        wanted = self.handler if handler is None else handler
        pod = Pod(str(self.call("RunPodSandbox", config=config, runtime_handler=wanted)["pod_sandbox_id"]), config)
        self.pods.append(pod)
        return pod

    def remove_pods(self, but: int = 0) -> None:
        """Remove the pods that were run, but for the first ones."""
        while len(self.pods) > but:
            pod = self.pods.pop()
            with contextlib.suppress(grpc.RpcError):  # to some an unknown pod is an error
                self.call("StopPodSandbox", pod_sandbox_id=pod.id)
            self.call("RemovePodSandbox", pod_sandbox_id=pod.id)

    def pod_status(self, pod: Pod) -> Json:
        """Return a pod's status."""
        status: Json = self.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]
        return status

    def container_config(
        self, *command: str, image: str = "busybox:1", security: Json | None = None, **more: Any
    ) -> Json:
        """A container with a command; ``more`` are fields of the config, ``resources`` those of its ``linux``."""
        name = self.unique("c")
        context = {"namespace_options": {"pid": "CONTAINER"}} | (security or {})
        linux = {"security_context": context, "resources": more.pop("resources", {})}
        config = {"metadata": {"name": name, "attempt": 0}, "image": {"image": self.image(image)}}
        return config | {"command": list(command), "log_path": f"{name}.log", "linux": linux} | more

    def create_config(self, pod: Pod, config: Json) -> str:
        """Create a container by a whole config; return its id."""
        answer = self.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(answer["container_id"])

    def create(self, pod: Pod, *command: str, **config: Any) -> str:
        """Create a container; arguments as ``container_config``."""
        return self.create_config(pod, self.container_config(*command, **config))

    def start(self, pod: Pod, *command: str, **config: Any) -> str:
        """Create and start a container; return its id."""
        container = self.create(pod, *command, **config)
        self.call("StartContainer", container_id=container)
        return container

    def idle(self, pod: Pod, **config: Any) -> str:
        """Start a container that does nothing, and ends at once when asked to."""
        return self.start(pod, "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait", **config)

    def refuse_container(self, pod: Pod, *codes: str, command: tuple[str, ...] = ("true",), **config: Any) -> str:
        """See a container refused, when it is created or when it is started; return the message."""
        with pytest.raises(grpc.RpcError) as caught:
            self.start(pod, *command, **config)
        code, message = caught.value.code().name, caught.value.details()
        assert code in codes, f"{code}: {message}"
        return str(message)

    def status(self, container: str) -> Json:
        """Return a container's status."""
        status: Json = self.call("ContainerStatus", container_id=container)["status"]
        return status

    def wait_exit(self, container: str, timeout_s: float = 20) -> Json:
        """Wait until a container has ended; return its status."""
        wait_for(lambda: self.status(container)["state"] == "CONTAINER_EXITED", timeout_s)
        return self.status(container)

    def log_lines(self, container: str) -> list[list[str]]:
        """Return a log's lines in their four columns: time, stream, tag, text."""
        with open(self.status(container)["log_path"], encoding="utf-8", newline="\n") as file:
            return [line.rstrip("\n").split(" ", 3) for line in file]

    def log(self, container: str) -> str:
        """Return what a container wrote."""
        return "".join(text + ("\n" if tag == "F" else "") for _, _, tag, text in self.log_lines(container))

    def output(self, pod: Pod, *command: str, **config: Any) -> str:
        """Run a container to its end; return what it wrote."""
        container = self.start(pod, *command, **config)
        self.wait_exit(container)
        if self.runtime != "crinoid" and not self.log(container):
            time.sleep(0.3)  # others may tell of the end before the log is written
        return self.log(container)

    def script(self, pod: Pod, text: str, **config: Any) -> str:
        """Run a shell script in a container of its own; return what it wrote, without white space at the ends."""
        return self.output(pod, "sh", "-c", text, **config).strip()

    def execute(self, container: str, *command: str, timeout: int = int(patient(20))) -> tuple[int, str, str]:
        """Run a command in a container; return exit code, stdout, stderr."""
        answer = self.call("ExecSync", container_id=container, cmd=list(command), timeout=timeout)
        out, err = (base64.b64decode(answer[stream]).decode() for stream in ("stdout", "stderr"))
        return int(answer["exit_code"]), out, err


def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + patient(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(patient(0.01))
