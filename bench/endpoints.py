"""What is measured: crinoid in its set-ups, containerd and CRI-O beside it, and any socket that is named."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket as sockets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Client
from bench.crio import Crio
from bench.measure import command_lines, descendants
from crinoid.core.cri.wire import api_pb2 as cri
from support import cgroup_namespace
from support.containerd import Containerd
from support.daemon import Daemon

PAUSE = "bench/pause:1"
OURS = ("crinoid bridge+crun", "crinoid cni+runc")
OTHER_SNAPSHOTTERS = ("crinoid bridge+crun+erofs",)
"""Measured, unless the command line names endpoints, where images are concerned."""


@dataclass
class Endpoint:
    """One CRI endpoint. ``marks`` are words of which one stands in the command line of each process of its own.

    ``daemon`` is its process, 0 where it was started by somebody else; ``engine`` is ``None``, then, and ``make`` too,
    which starts another of the kind over a directory.
    """

    name: str
    socket: Path
    cgroup: str
    marks: tuple[str, ...] = ()
    daemon: int = 0
    handler: str = ""
    engine: Daemon | Containerd | Crio | None = None
    make: Callable[[Path], AbstractContextManager["Endpoint"]] | None = None
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.socket)

    def processes(self) -> list[int]:
        """Return the daemon, its helpers and all its monitors, but no container's own process."""
        if not self.daemon:
            return []
        monitors = {pid for pid, line in command_lines().items() if any(mark in line for mark in self.marks)}
        helpers = {pid for pid in descendants(self.daemon) if not self._holds(pid)}
        return sorted({*monitors, *helpers, self.daemon} - {os.getpid()})

    def _holds(self, pid: int) -> bool:
        """Return whether a process is a container's: it is in a cgroup of the pods."""
        try:
            return f":{self.cgroup}/" in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return True

    def restart(self) -> None:
        """End the daemon as a service manager does, and start it again; returns as soon as it was started."""
        self.end()
        self.launch()

    def end(self) -> None:
        """End the daemon, as a service manager does."""
        assert self.engine is not None
        assert self.engine.process is not None
        if self.engine.process.poll() is None:
            os.kill(self.engine.process.pid, signal.SIGTERM)
            self.engine.process.wait(60)
        self.client.close()

    def launch(self) -> None:
        """Start the daemon, and don't wait for it."""
        assert self.engine is not None
        self.engine.launch()
        assert self.engine.process is not None
        self.daemon = self.engine.process.pid
        self.client = Client(self.socket)

    def wait_for_socket(self, timeout_s: float = 60) -> None:
        """Wait until a connection is taken."""
        deadline = time.monotonic() + timeout_s
        while not self._listens():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} takes no connection after {timeout_s:g} s")
            time.sleep(0.001)

    def wait_for_list(self, count: int = 0, timeout_s: float = 60) -> int:
        """Wait until a list of at least so many containers is answered; return its length."""
        deadline, found = time.monotonic() + timeout_s, -1
        while time.monotonic() < deadline:
            if self._listens():
                with contextlib.suppress(Exception):
                    found = len(self.client.call("ListContainers", cri.ListContainersRequest(), 5).containers)
                    if found >= count:
                        return found
                self.client.close()
                self.client = Client(self.socket)
            time.sleep(0.002)
        raise TimeoutError(f"{self.name} lists {found} of {count} containers after {timeout_s:g} s")

    def _listens(self) -> bool:
        """Return whether a connection is taken; a client that is refused one waits longer than it need."""
        with sockets.socket(sockets.AF_UNIX) as one:
            return one.connect_ex(str(self.socket)) == 0

    def revive(self) -> None:
        """Start the daemon again if it ended."""
        if self.engine is not None and self.engine.process is not None and self.engine.process.poll() is not None:
            self.restart()
            self.wait_for_list()

    def remove_all(self) -> None:
        """Remove every pod."""

        def remove(pod: str) -> None:
            self.client.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod))
            self.client.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod))

        with ThreadPoolExecutor(4) as threads:
            found = self.client.call("ListPodSandbox", cri.ListPodSandboxRequest()).items
            list(threads.map(remove, [pod.id for pod in found]))


def start(name: str, directory: Path, registry: str) -> AbstractContextManager[Endpoint]:
    """Start ``crinoid NETWORK+RUNTIME[+SNAPSHOTTER]``, ``containerd``, ``containerd=PROGRAM`` or ``crio=PROGRAM``."""
    kind, _, program = name.partition("=")
    if kind == "containerd":
        return containerd(directory, registry, program or "containerd")
    if kind == "crio":
        return crio(directory, registry, Path(program))
    network, runtime, *snapshotter = name.removeprefix("crinoid ").split("+")
    return crinoid(directory, name, (network, runtime, *snapshotter), registry)


def write_network(directory: Path, bridge: str, subnet: str, state: Path) -> Path:
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
    directory.mkdir(parents=True)
    text = json.dumps({"cniVersion": "1.0.0", "name": bridge, "plugins": plugins})
    (directory / "10-bench.conflist").write_text(text)
    return directory


@contextlib.contextmanager
def _network(directory: Path) -> Iterator[Path]:
    """Write a CNI network over a bridge of its own, which goes when the context ends."""
    bridge = f"crb{secrets.token_hex(3)}"
    try:
        yield write_network(directory / "net.d", bridge, _subnet(), directory / "ipam")
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


def _subnet() -> str:
    """Return a range for 1,000 pods that hardly anybody else has, of 100.64.0.0/10 (RFC 6598)."""
    return f"100.{64 + secrets.randbelow(64)}.{4 * secrets.randbelow(64)}.0/22"


def crinoid_configuration(drivers: Sequence[str], registry: str, cni_conf: Path) -> str:
    """A node as a site runs it, with metrics on. ``drivers``: network, runtime and, perhaps, snapshotter."""
    network, runtime, snapshotter = (*drivers, "overlay")[:3]
    options = f"conf_dir = '{cni_conf}'" if network == "cni" else f"subnets = ['{_subnet()}']"
    return f"""[network]
driver = "{network}"
options = {{ {options} }}
[snapshotter]
driver = "{snapshotter}"
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
def crinoid(directory: Path, name: str, drivers: Sequence[str], registry: str) -> Iterator[Endpoint]:
    """Run crinoid with a network, a runtime and, if it is not overlay, a snapshotter."""
    runtime = drivers[1]
    with _network(directory) as conf, cgroup_namespace.held() as prefix:
        config = crinoid_configuration(drivers, registry, conf)
        daemon = Daemon(directory / "daemon", config, prefix if runtime == "crun" else ())
        try:
            daemon.start()
            assert daemon.process is not None
            endpoint = Endpoint(name, daemon.socket, daemon.cgroup, (f"/run/{daemon.name}/",), daemon.process.pid)
            endpoint.handler, endpoint.engine = runtime, daemon
            endpoint.make = lambda other: crinoid(other, name, drivers, registry)
            try:
                yield endpoint
            finally:
                with contextlib.suppress(Exception):  # what is not undone so is undone below
                    endpoint.remove_all()
                    daemon.stop()
        finally:
            daemon.end()


@contextlib.contextmanager
def containerd(directory: Path, registry: str, program: str = "containerd") -> Iterator[Endpoint]:
    """Run a containerd with runc and CNI; Debian's, unless told otherwise."""
    with _network(directory) as conf:
        engine = Containerd(directory / "containerd", conf, registry, f"{registry}/{PAUSE}", program=program)
        try:
            engine.start()
            assert engine.process is not None
            name = f"containerd {version_of(program)}"
            endpoint = Endpoint(name, engine.socket, engine.cgroup, (f"/run/{engine.name}/",), engine.process.pid)
            endpoint.engine = engine
            endpoint.make = lambda other: containerd(other, registry, program)
            yield endpoint
        finally:
            engine.end()


@contextlib.contextmanager
def crio(directory: Path, registry: str, program: Path) -> Iterator[Endpoint]:
    """Run a CRI-O with runc and CNI; its ``pinns`` lies beside it."""
    with _network(directory) as conf:
        engine = Crio(directory / "crio", conf, registry, program)
        try:
            engine.start()
            assert engine.process is not None
            name = f"CRI-O {version_of(str(program))}"
            endpoint = Endpoint(name, engine.socket, engine.cgroup, (f"/run/{engine.name}/",), engine.process.pid)
            endpoint.engine = engine
            endpoint.make = lambda other: crio(other, registry, program)
            yield endpoint
        finally:
            engine.end()


def version_of(program: str) -> str:
    """Return the first number with dots that a program says of itself."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bv?(\d+\.\d+[\w.+~-]*)", text)
    return re.split(r"[~+]", found[1])[0] if found else "of unknown version"


def named(text: str) -> Endpoint:
    """Return the endpoint of ``NAME=unix:///path[,handler]``, which somebody else runs."""
    name, _, rest = text.partition("=")
    socket, _, handler = rest.partition(",")
    return Endpoint(name, Path(socket.removeprefix("unix://")), f"/bench-{name}", handler=handler)
