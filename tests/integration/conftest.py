"""A node for the integration tests: one daemon with a handler for every combination of drivers, and both sources.

Every test ends with proof that its pods left nothing: pods are removed, and the ledger must be empty.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import cgroup_namespace
from support.daemon import Daemon, container_config, pod_config
from support.images import Entry, ImageConfig, build_busybox
from support.patience import patient
from support.registry import RunningRegistry, running_registry
from support.subnets import third_octet

BUSYBOX = "docker.io/library/busybox:test"
RUNTIMES, NETWORKS, SNAPSHOTTERS = ("runc", "crun"), ("cni", "bridge", "host"), ("overlay", "native", "erofs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this directory runs real containers."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="real containers need root"))


@dataclass
class Node:
    """A running daemon and what it was set up with; ``run_pod`` and ``run_container`` for short tests."""

    daemon: Daemon
    layouts: Path
    registry: RunningRegistry
    bridge: str
    logs: Path

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        """Call an RPC."""
        return self.daemon.cri.call(rpc, **fields)

    def pull(self, image: str = BUSYBOX) -> str:
        """Pull an image; return its id."""
        return str(self.call("PullImage", image={"image": image})["image_ref"])

    def run_pod(self, name: str = "pod", handler: str = "", **config: Any) -> str:
        """Run a pod sandbox; return its id."""
        config.setdefault("log_directory", str(self.logs / f"{name}-{secrets.token_hex(3)}"))
        answer = self.call("RunPodSandbox", config=pod_config(name, **config), runtime_handler=handler)
        return str(answer["pod_sandbox_id"])

    def create(self, pod: str, *command: str, name: str = "app", image: str = BUSYBOX, **config: Any) -> str:
        """Create a container; return its id."""
        wanted = container_config(name, image, *command, **config)
        return str(self.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"])

    def run_container(self, pod: str, *command: str, **config: Any) -> str:
        """Create and start a container; return its id."""
        container = self.create(pod, *command, **config)
        self.call("StartContainer", container_id=container)
        return container

    def status(self, container: str) -> dict[str, Any]:
        """Return a container's status."""
        status: dict[str, Any] = self.call("ContainerStatus", container_id=container)["status"]
        return status

    def wait_exit(self, container: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until a container has ended; return its status."""
        import time

        deadline = time.monotonic() + patient(timeout_s)
        while (status := self.status(container))["state"] != "CONTAINER_EXITED":
            assert time.monotonic() < deadline, f"still {status['state']} after {timeout_s} s"
            time.sleep(patient(0.02))
        return status

    def log(self, container: str) -> str:
        """Return what a container wrote, without the CRI's columns."""
        lines = Path(self.status(container)["log_path"]).read_text().splitlines()
        return "".join(
            text + ("\n" if tag == "F" else "") for _, _, tag, text in (line.split(" ", 3) for line in lines)
        )

    def output(self, pod: str, *command: str, **config: Any) -> str:
        """Run a container to its end and return what it wrote."""
        container = self.run_container(pod, *command, **config)
        self.wait_exit(container)
        return self.log(container)

    def execute(self, container: str, *command: str, timeout: int = int(patient(20))) -> tuple[int, str, str]:
        """Run a command in a container; return exit code, stdout, stderr."""
        import base64

        answer = self.call("ExecSync", container_id=container, cmd=list(command), timeout=timeout)
        out, err = (base64.b64decode(answer[stream]).decode() for stream in ("stdout", "stderr"))
        return int(answer["exit_code"]), out, err

    def remove_pods(self) -> None:
        """Remove every pod."""
        for pod in self.call("ListPodSandbox")["items"]:
            self.call("RemovePodSandbox", pod_sandbox_id=pod["id"])


def write_conflist(directory: Path, bridge: str, subnet: str, state: Path) -> None:
    """Write a CNI network of bridge and portmap, the set-up that most nodes have."""
    ipam = {
        "type": "host-local",
        "dataDir": str(state),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    directory.mkdir(parents=True, exist_ok=True)
    document = {"cniVersion": "1.0.0", "name": bridge, "plugins": plugins}
    (directory / "10-test.conflist").write_text(json.dumps(document))


def configuration(directory: Path, registry: str, cni_conf: Path) -> str:
    """A handler for each combination of runtime, network and snapshotter, such as ``crun-host-native``."""
    lines = [
        # CNI's binaries cost each pod twice what all else of it does: a test that is about them names them.
        f"[network]\ndriver = 'bridge'\noptions = {{ subnets = ['10.91.{third_octet()}.0/24'] }}",
        "[networks.cni]\ndriver = 'cni'",
        f"options = {{ conf_dir = '{cni_conf}' }}",
        "[networks.host]\ndriver = 'host'",
        f"[networks.bridge]\ndriver = 'bridge'\noptions = {{ subnets = ['10.90.{third_octet()}.0/24'] }}",
        f"[watchdog]\nstall_s = {patient(3)}",
        "[snapshotters.overlay]\ndriver = 'overlay'",
        "[snapshotters.native]\ndriver = 'native'",
        "[snapshotters.erofs]\ndriver = 'erofs'",
        "[runtimes.crun]\ndriver = 'crun'",
        "[pods]\ncheckpoint_images = ['docker.io/test/checkpoint:*']",
        f"[registries.layout]\ndriver = 'layout'\noptions = {{ directory = '{directory}' }}",
        f"[registries.distribution]\ndriver = 'distribution'\noptions = {{ plain_http = ['{registry}'] }}",
    ]
    for runtime in RUNTIMES:
        for network in NETWORKS:
            for snapshotter in SNAPSHOTTERS:
                lines.append(f"[runtimes.{runtime}-{network}-{snapshotter}]\ndriver = '{runtime}'")
                lines.append(f"network = '{network}'\nsnapshotter = '{snapshotter}'")
    return "\n".join(lines)


@pytest.fixture(scope="session")
def node_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("node")
    bridge, subnet = f"crt{secrets.token_hex(3)}", f"10.89.{third_octet()}.0/24"
    layouts = directory / "layouts"
    build_busybox(layouts / "busybox", BUSYBOX)
    user = ImageConfig(user="alice", entrypoint=("/bin/echo", "entry"), cmd=("cmd",), working_dir="/home/alice")
    build_busybox(layouts / "user", "docker.io/test/user:1", user)
    build_busybox(
        layouts / "two", "docker.io/test/two:1", extra=[Entry(path="bin/.wh.nc"), Entry(path="extra", content=b"x")]
    )
    write_conflist(directory / "net.d", bridge, subnet, directory / "ipam")
    with running_registry(directory / "registry") as registry, cgroup_namespace.held() as prefix:
        config = configuration(layouts, registry.host, directory / "net.d")
        daemon = Daemon(directory / "daemon", config, prefix)
        try:
            daemon.start(is_forked=False)  # this one as it is started elsewhere, with an interpreter of its own
            node = Node(daemon, layouts, registry, bridge, directory / "logs")
            node.pull()
            yield node
            daemon.clean()
            assert daemon.leftovers() == []
        finally:
            daemon.end()
            subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


@pytest.fixture
def node(node_of_session: Node) -> Iterator[Node]:
    """The node, without pods before and after; nothing of one may be left in its ledger, and its loop never stands."""
    if node_of_session.daemon.process is None or node_of_session.daemon.process.poll() is not None:
        node_of_session.daemon.start()
    node_of_session.pull()
    written = node_of_session.daemon.log.stat().st_size
    yield node_of_session
    assert node_of_session.daemon.stalls(since=written) == []
    if node_of_session.daemon.process is None or node_of_session.daemon.process.poll() is not None:
        node_of_session.daemon.start()
    node_of_session.remove_pods()
    assert node_of_session.daemon.query("SELECT owner, kind, key FROM ledger") == []
