"""What is measured: crinoid in its two set-ups, Debian's containerd beside it, and any socket that is named."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Client
from bench.measure import command_lines
from crinoid.core.cri.wire import api_pb2 as cri
from support import cgroup_namespace
from support.containerd import Containerd
from support.daemon import Daemon

PAUSE = "bench/pause:1"


@dataclass
class Endpoint:
    """One CRI endpoint. ``marks`` are words of which one stands in the command line of each process of its own.

    ``daemon`` is its process, 0 where it was started by somebody else; ``restart`` is ``None``, then.
    """

    name: str
    socket: Path
    cgroup: str
    marks: tuple[str, ...] = ()
    daemon: int = 0
    handler: str = ""
    engine: Daemon | Containerd | None = None
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.socket)

    def processes(self) -> list[int]:
        """Return the daemon and all its monitors, but no container's own process."""
        found = [pid for pid, line in command_lines().items() if any(mark in line for mark in self.marks)]
        return sorted({*found, *([self.daemon] if self.daemon else [])} - {os.getpid()})

    def restart(self) -> None:
        """End the daemon as a service manager does, and start it again; returns as soon as it was started."""
        assert self.engine is not None
        assert self.engine.process is not None
        os.kill(self.engine.process.pid, signal.SIGTERM)
        self.engine.process.wait(60)
        self.client.close()
        self.engine.launch()
        assert self.engine.process is not None
        self.daemon = self.engine.process.pid
        self.client = Client(self.socket)

    def wait_for_list(self, timeout_s: float = 60) -> int:
        """Wait until a full list is answered; return its length."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                return len(self.client.call("ListContainers", cri.ListContainersRequest(), 5).containers)
            self.client.close()
            self.client = Client(self.socket)
            time.sleep(0.002)
        raise TimeoutError(f"{self.name} does not answer")

    def remove_all(self) -> None:
        """Remove every pod."""
        for pod in self.client.call("ListPodSandbox", cri.ListPodSandboxRequest()).items:
            self.client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            self.client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


def write_network(folder: Path, bridge: str, subnet: str, state: Path) -> Path:
    """Write the CNI network that both peers use: bridge and portmap, as most nodes have."""
    ipam = {
        "type": "host-local",
        "dataDir": str(state),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    folder.mkdir(parents=True)
    text = json.dumps({"cniVersion": "1.0.0", "name": bridge, "plugins": plugins})
    (folder / "10-bench.conflist").write_text(text)
    return folder


def crinoid_configuration(network: str, runtime: str, registry: str, cni_conf: Path) -> str:
    """A node as a site runs it, with metrics on."""
    subnet = f"10.87.{secrets.randbelow(250)}.0/24"
    options = f"conf_dir = '{cni_conf}'" if network == "cni" else f"subnets = ['{subnet}']"
    return f"""[network]
driver = "{network}"
options = {{ {options} }}
[runtimes.{runtime}]
driver = "{runtime}"
[registries.distribution]
options = {{ plain_http = ["{registry}"] }}
[metrics]
listen = "127.0.0.1:0"
[log]
level = "info"
"""


@contextlib.contextmanager
def crinoid(folder: Path, name: str, network: str, runtime: str, registry: str) -> Iterator[Endpoint]:
    """Run crinoid with a network and a runtime."""
    bridge = f"crb{secrets.token_hex(3)}"
    subnet = f"10.86.{secrets.randbelow(250)}.0/24"
    conf = write_network(folder / "net.d", bridge, subnet, folder / "ipam")
    with cgroup_namespace.held() as prefix:
        config = crinoid_configuration(network, runtime, registry, conf)
        daemon = Daemon(folder / "daemon", config, prefix if runtime == "crun" else ())
        daemon.start()
        assert daemon.process is not None
        marks = (f"/run/{daemon.name}/",)
        endpoint = Endpoint(name, daemon.socket, daemon.cgroup, marks, daemon.process.pid, runtime, daemon)
        try:
            yield endpoint
        finally:
            with contextlib.suppress(Exception):
                endpoint.remove_all()
                daemon.stop()
            daemon.end()
            subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


@contextlib.contextmanager
def containerd(folder: Path, registry: str) -> Iterator[Endpoint]:
    """Run Debian's containerd with runc and CNI."""
    bridge = f"crb{secrets.token_hex(3)}"
    conf = write_network(folder / "net.d", bridge, f"10.85.{secrets.randbelow(250)}.0/24", folder / "ipam")
    engine = Containerd(folder / "containerd", conf, registry, f"{registry}/{PAUSE}")
    engine.start()
    assert engine.process is not None
    marks = (f"/run/{engine.name}/", "/pause")
    endpoint = Endpoint("containerd", engine.socket, engine.cgroup, marks, engine.process.pid, "", engine)
    try:
        yield endpoint
    finally:
        engine.end()
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


def named(text: str) -> Endpoint:
    """Return the endpoint of ``NAME=unix:///path[,handler]``, which somebody else runs."""
    name, _, rest = text.partition("=")
    socket, _, handler = rest.partition(",")
    return Endpoint(name, Path(socket.removeprefix("unix://")), f"/bench-{name}", handler=handler)
