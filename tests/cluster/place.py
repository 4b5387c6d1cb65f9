"""Where a kubelet and a runtime live for a test: network and mount namespaces of their own, cgroups, images, a CNI.

The mounts of the host are seen, but nothing that is mounted here is mounted there. ``/var/lib`` and ``/var/log`` are
empty, as a kubelet has directories there whose place is no setting. Where the host has cgroup v2 beside v1, it is
hidden, for crun.
"""

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.linux import namespaces
from integration.conftest import write_conflist
from support import cgroup_namespace, network_namespace
from support.images import Entry, ImageConfig, build_busybox, build_image, make_layer
from support.network_namespace import NetworkNamespace
from support.registry import RunningRegistry, running_registry

NODE_IP = "192.168.99.1"
SECOND_NODE_IP = "192.168.99.2"
_MAKE = """
mount --make-rshared / && mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/kubelet && mount -t tmpfs tmpfs /var/log &&
if [ "$HIDE" ]; then umount "$HIDE" && mount -t tmpfs tmpfs "$HIDE"; fi && echo && exec cat
"""


@dataclass(frozen=True)
class Place:
    """``prefix`` goes before every command; ``images`` before every image's name."""

    directory: Path
    network: NetworkNamespace
    mounts: Path
    registry: RunningRegistry
    images: str
    address: str = NODE_IP

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that is to run here."""
        return (*self.network.prefix, "nsenter", f"--mount={self.mounts}", f"--wd={Path.cwd()}")

    @property
    def cni_conf(self) -> Path:
        """The directory of CNI configurations."""
        return self.directory / "net.d"

    def run(self, *command: str) -> str:
        """Run a command here."""
        return subprocess.run([*self.prefix, *command], check=True, capture_output=True, text=True).stdout

    def fetch(self, url: str, method: str = "GET") -> bytes:
        """Ask a server that listens here."""

        def ask() -> bytes:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
                return bytes(answer.read())

        assert self.network.path is not None
        return namespaces.call_in(self.network.path, ask)

    def fetch_json(self, url: str) -> Any:
        """Ask for JSON."""
        return json.loads(self.fetch(url))

    def mounted_below(self, directory: Path) -> list[str]:
        """Return the mount points below a directory, the last made first."""
        table = self.mounts.parent.parent / "mountinfo"
        points = [line.split()[4] for line in table.read_text().splitlines()]
        return [point for point in reversed(points) if point.startswith(f"{directory}/")]


@contextlib.contextmanager
def place_in(directory: Path, beside: Place | None = None, subnet: str = "10.88.0.0/24") -> Iterator[Place]:
    """A place that lasts as long as the context; its pods' addresses are in ``subnet``.

    One that is ``beside`` another is the other end of its cable: the two are all that is in their network.
    """
    address = NODE_IP if beside is None else SECOND_NODE_IP
    with network_namespace.held() as network, _mounts() as mounts, contextlib.ExitStack() as stack:
        if beside is None:
            _ip(network, "link add node0 type veth peer name outside0", "link set outside0 up")
        else:
            assert network.path is not None
            _ip(beside.network, f"link set outside0 netns {network.path.parent.parent.name} name node0")
        _ip(network, f"addr add {address}/24 dev node0", "link set node0 up", "route add default via 192.168.99.254")
        write_conflist(directory / "net.d", "cluster0", subnet, directory / "ipam")
        # Two nodes have their images by the same names.
        port = 0 if beside is None else int(beside.registry.host.rpartition(":")[2])
        registry = network.call(lambda: stack.enter_context(running_registry(directory / "registry", port=port)))
        layout = directory / "layout"
        build_busybox(layout, "busybox:1")
        pause = make_layer([Entry(path="pause", content=Path("/usr/bin/catatonit").read_bytes(), mode=0o755)])
        build_image(layout, "pause:1", [pause], ImageConfig(entrypoint=("/pause", "-P"), cmd=()))
        for name in ("busybox:1", "pause:1"):
            network.call(lambda name=name: registry.push(layout, name, f"cluster/{name}"))  # type: ignore[misc]
        yield Place(directory, network, mounts, registry, f"{registry.host}/cluster", address)


def _ip(network: NetworkNamespace, *commands: str) -> None:
    for command in commands:
        subprocess.run([*network.prefix, "ip", *command.split()], check=True)


@contextlib.contextmanager
def _mounts() -> Iterator[Path]:
    hide = str(cgroup_namespace.UNIFIED) if cgroup_namespace.is_hybrid() else ""
    command = ["env", f"HIDE={hide}", "unshare", "--mount", "--propagation", "slave", "sh", "-c", _MAKE]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "the mount namespace was not made"
        yield Path(f"/proc/{holder.pid}/ns/mnt")
    finally:
        holder.kill()
        holder.communicate()
