"""Scripted lives of pods, containers and images, as a kubelet leads them: each request is made again until it succeeds.

Each life ends with all removed that it has made, so the host must then be as it was before.
"""

import hashlib
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from chaos.failing_daemon import KILL, KILL_ALONE, Plan
from crinoid.core.cri.wire.node_images_pb2 import AdoptImagesRequest, AdoptImagesResponse
from integration.conftest import BUSYBOX, Node
from support.daemon import container_config, pod_config
from support.patience import patient

FORMER = "docker.io/test/former:1"
TWO = "docker.io/test/two:1"
VOLUMES = "docker.io/test/volumes:1"
TRIES = 4


@dataclass
class Kubelet:
    """A client that starts the daemon again where it has died, and asks again as the kubelet does.

    ``plan`` is written by ``arm``, which each life calls where its failpoints begin. ``errors`` are what requests
    failed with while the daemon lived: status and message.
    """

    node: Node
    points: Path
    plan: Plan | None = None
    errors: list[tuple[str, str]] = field(default_factory=list)
    starts: int = 0

    def arm(self) -> None:
        """From here on acts are noted, and the plan is in force."""
        (self.points / "plan").unlink(missing_ok=True)
        (self.points / "hits").write_text("")
        if self.plan is not None:
            self.plan.write(self.points)

    def hits(self) -> list[str]:
        """The acts since ``arm``."""
        return (self.points / "hits").read_text().splitlines()

    @property
    def reached(self) -> bool:
        """Whether the plan was carried out."""
        return any(line.startswith("! ") for line in self.hits())

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        """Make a request until it succeeds."""
        for _ in range(TRIES - 1):
            try:
                return self.node.call(rpc, **fields)
            except grpc.RpcError as error:
                if self.reached and error.code() is grpc.StatusCode.UNAVAILABLE:
                    time.sleep(patient(0.5))  # a daemon that can't go on takes a moment to end
                if not self.revive():
                    self.errors.append((error.code().name, f"{rpc}: {error.details()}"))
                    if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                        raise
        return self.node.call(rpc, **fields)

    def revive(self) -> bool:
        """Start the daemon if it has died; a daemon that dies leaves its socket a moment before it is reaped."""
        process = self.node.daemon.process
        assert process is not None
        deadline = time.monotonic() + 0.3
        while process.poll() is None and self.reached and self.plan and self.plan.act in (KILL, KILL_ALONE):
            time.sleep(0.01)
            if time.monotonic() > deadline:
                break
        if process.poll() is None:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        """Start a daemon that is dead, without a plan unless that was not reached yet."""
        if self.reached:
            (self.points / "plan").unlink(missing_ok=True)
        self.node.daemon.forget_client()
        self.starts += 1
        try:
            self.node.daemon.start()
        except AssertionError:
            if not self.reached or not (self.points / "plan").exists():
                raise
            self.restart()  # it died on the way, as planned

    def run_pod(self, name: str, handler: str, **config: Any) -> str:
        """RunPodSandbox; a pod whose id the kubelet did not hear of is found by its name."""
        wanted = pod_config(name, log_directory=str(self.node.logs / name), **config)
        try:
            return str(self.call("RunPodSandbox", config=wanted, runtime_handler=handler)["pod_sandbox_id"])
        except grpc.RpcError:
            pods = self.call("ListPodSandbox")["items"]
            return next(str(pod["id"]) for pod in pods if pod["metadata"]["name"] == name)

    def create(self, pod: str, name: str, *command: str, image: str = BUSYBOX, **config: Any) -> str:
        """CreateContainer; as ``run_pod``."""
        wanted = container_config(name, image, *command, **config)
        try:
            return str(self.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"])
        except grpc.RpcError:
            containers = self.call("ListContainers")["containers"]
            return next(str(one["id"]) for one in containers if one["metadata"]["name"] == name)

    def start(self, container: str) -> None:
        """StartContainer, unless the kubelet sees that it was started."""
        for _ in range(TRIES):
            if self.status(container)["state"] != "CONTAINER_CREATED":
                return
            try:
                self.node.call("StartContainer", container_id=container)
            except grpc.RpcError as error:
                if not self.revive():
                    self.errors.append((error.code().name, f"StartContainer: {error.details()}"))

    def adopt(self, *, copy: bool) -> None:
        """AdoptImages from the containerd beside the points, until all are adopted."""
        request = AdoptImagesRequest(runtime="containerd", root=str(self.former), copy=copy).SerializeToString()
        for _ in range(TRIES):
            try:
                answers = self.node.daemon.cri.own_stream("NodeImages/AdoptImages", request)
                faults = [fault for one in answers if (fault := AdoptImagesResponse.FromString(one).fault)]
                if not faults:
                    return
                self.errors += [("fault", f"AdoptImages: {fault}") for fault in faults]
            except grpc.RpcError as error:
                if not self.revive():
                    self.errors.append((error.code().name, f"AdoptImages: {error.details()}"))
        raise AssertionError(f"no image is adopted: {self.errors}")

    @property
    def former(self) -> Path:
        """The root of the containerd that was there before."""
        return self.points.parent / "former"

    def status(self, container: str) -> dict[str, Any]:
        """ContainerStatus."""
        status: dict[str, Any] = self.call("ContainerStatus", container_id=container)["status"]
        return status

    def wait_exit(self, container: str) -> int:
        """Return the exit code of a container that ends by itself."""
        deadline = time.monotonic() + patient(30)
        while (status := self.status(container))["state"] != "CONTAINER_EXITED":
            assert time.monotonic() < deadline, f"container {container} is {status['state']}"
            time.sleep(0.02)
        return int(status["exit_code"])


Life = Callable[[Kubelet], None]


def pod(handler: str, containers: int = 2, **config: Any) -> Life:
    """A pod with a server and a job, from RunPodSandbox to RemovePodSandbox."""

    def life(kubelet: Kubelet) -> None:
        kubelet.arm()
        pod_id = kubelet.run_pod("life", handler, **config)
        server = kubelet.create(pod_id, "server", "sleep", "1000")
        kubelet.start(server)
        assert kubelet.status(server)["state"] in ("CONTAINER_RUNNING", "CONTAINER_EXITED")
        if kubelet.status(server)["state"] == "CONTAINER_RUNNING":
            kubelet.call("ExecSync", container_id=server, cmd=["true"], timeout=int(patient(20)))
            limits = {"linux": {"cpu_shares": 512}}
            kubelet.call("UpdateContainerResources", container_id=server, **limits)
            kubelet.call("ReopenContainerLog", container_id=server)
        if containers > 1:
            job = kubelet.create(pod_id, "job", "sh", "-c", "echo done; exit 7")
            kubelet.start(job)
            code = kubelet.wait_exit(job)
            failed_to_start = kubelet.status(job)["reason"] == "StartError" and kubelet.errors
            assert code == 7 or failed_to_start, f"the job's exit code is told as {code}: {kubelet.status(job)}"
        kubelet.call("StopContainer", container_id=server, timeout=0)
        kubelet.call("RemoveContainer", container_id=server)
        kubelet.call("StopPodSandbox", pod_sandbox_id=pod_id)
        kubelet.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    return life


def volumes(handler: str) -> Life:
    """A pod with an init, a container with an image as a volume and one that its image declares."""

    def life(kubelet: Kubelet) -> None:
        kubelet.arm()
        shared = {"security_context": {"namespace_options": {"pid": "POD"}}}
        pod_id = kubelet.run_pod("volumes", handler, linux=shared)
        mounts = [{"container_path": "/image", "image": {"image": BUSYBOX}, "readonly": True}]
        container = kubelet.create(pod_id, "app", "sleep", "1000", image=VOLUMES, mounts=mounts, linux=shared)
        kubelet.start(container)
        kubelet.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    return life


def checkpoint(handler: str) -> Life:
    """A checkpoint of a container, which runs on. Where criu can't work, it is refused, and the container runs on."""

    def life(kubelet: Kubelet) -> None:
        kubelet.arm()
        pod_id = kubelet.run_pod("checkpoint", handler)
        container = kubelet.create(pod_id, "app", "sleep", "1000")
        kubelet.start(container)
        archive = kubelet.node.logs / "checkpoint.tar"
        for _ in range(2):
            try:
                kubelet.node.call("CheckpointContainer", container_id=container, location=str(archive))
            except grpc.RpcError:
                kubelet.revive()
        archive.unlink(missing_ok=True)
        assert kubelet.status(container)["state"] == "CONTAINER_RUNNING"
        kubelet.call("ExecSync", container_id=container, cmd=["true"], timeout=int(patient(20)))
        kubelet.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    return life


def images(handler: str) -> Life:
    """A pull for one snapshotter, and the image's removal."""

    def life(kubelet: Kubelet) -> None:
        kubelet.arm()
        config = pod_config("pulls")
        kubelet.call("PullImage", image={"image": TWO, "runtime_handler": handler}, sandbox_config=config)
        kubelet.call("RemoveImage", image={"image": TWO})

    return life


def adoption() -> Life:
    """The adoption of another runtime's image, by links and by copies, and its removal; the other's files stay."""

    def life(kubelet: Kubelet) -> None:
        kubelet.arm()
        for copy in (False, True):
            kubelet.adopt(copy=copy)
            kubelet.call("RemoveImage", image={"image": FORMER})
        for blob in kubelet.former.rglob("blobs/sha256/*"):
            digest = hashlib.sha256(blob.read_bytes()).hexdigest()
            assert (digest, stat.S_IMODE(blob.stat().st_mode)) == (blob.name, 0o444), f"{blob} was changed"

    return life


def restart(handler: str) -> Life:
    """The start of a daemon that finds a pod that runs, one half made, and a container half made."""

    def life(kubelet: Kubelet) -> None:
        plan, kubelet.plan = kubelet.plan, None
        pod_id = kubelet.run_pod("restart", handler)
        server = kubelet.create(pod_id, "server", "sleep", "1000")
        kubelet.start(server)
        for cut in (
            Plan("sqlite INSERT OR REPLACE INTO containers created"),
            Plan("sqlite INSERT OR REPLACE INTO pods ready"),
        ):
            kubelet.plan = cut
            kubelet.arm()
            with _death(kubelet):
                if cut.name.endswith("created"):
                    kubelet.create(pod_id, "half", "true")
                else:
                    kubelet.run_pod("half", handler)
            kubelet.plan = None
            if cut.name.endswith("created"):
                kubelet.arm()
                kubelet.restart()
        kubelet.plan = plan
        kubelet.arm()
        kubelet.restart()
        assert kubelet.status(server)["state"] == "CONTAINER_RUNNING"
        kubelet.call("RemovePodSandbox", pod_sandbox_id=pod_id)

    return life


@contextmanager
def _death(kubelet: Kubelet) -> Iterator[None]:
    """The request inside ends with the daemon, which is not started again yet."""
    revive, kubelet.revive = kubelet.revive, lambda: False  # type: ignore[method-assign]
    try:
        yield
    except grpc.RpcError:
        pass
    except StopIteration:
        pass
    finally:
        kubelet.revive = revive  # type: ignore[method-assign]
    assert kubelet.node.daemon.process is not None
    kubelet.node.daemon.process.wait(patient(20))
    kubelet.errors.clear()


MAPS = [{"host_id": 200_000, "container_id": 0, "length": 65_536}]
USER_NAMESPACE = {
    "security_context": {
        "namespace_options": {
            "pid": "CONTAINER",
            "userns_options": {"mode": "POD", "uids": MAPS, "gids": MAPS},
        }
    }
}
PORTS = [{"protocol": "TCP", "container_port": 80, "host_port": 8080}]
LIVES: dict[str, Life] = {
    "bridge pod, runc, overlay": pod("runc-bridge-overlay", port_mappings=PORTS),
    "bridge pod, crun, native": pod("crun-bridge-native", 1),
    "CNI pod, crun, overlay": pod("crun-cni-overlay", 1, port_mappings=PORTS),
    "pod with a user namespace, crun, overlay": pod("crun-host-overlay", 1, linux=USER_NAMESPACE),
    "pod with an init and volumes, runc, overlay": volumes("runc-host-overlay"),
    "checkpoint, runc, overlay": checkpoint("runc-host-overlay"),
    "pull and removal, overlay": images("runc-host-overlay"),
    "pull and removal, native": images("crun-host-native"),
    "adoption from containerd, overlay": adoption(),
    "restart, crun, bridge": restart("crun-bridge-overlay"),
    "restart, runc, CNI": restart("runc-cni-overlay"),
}
