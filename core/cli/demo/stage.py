"""Where the demo plays: directories, names and a configuration of its own, beside whatever else runs on the host."""

import json
import secrets
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from crinoid.core.api.linux import libc, mount
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.cli.demo import network

UNIFIED = Path("/sys/fs/cgroup/unified")
_CLONE_NEWNS = 0x20000

CONFIGURATION = """\
root = {root}
run = {run}

[server]
socket = {socket}

[log]
format = "console"

[pods]
cgroup_root = {cgroup}
cgroup_driver = "cgroupfs"
default_runtime = "demo"

[runtimes.demo]
driver = "runc"
network = "default"
snapshotter = "default"

[network]
driver = "cni"
options = {{ conf_dir = {cni} }}

[networks.host]
driver = "host"

[snapshotter]
driver = "overlay"

[snapshotters.native]
driver = "native"

[registries.layout]
options = {{ directory = {layouts} }}

[registries.distribution]
options = {{ plain_http = [{registry}] }}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """``directory`` holds all that is written; ``run`` is short, as sockets lie below; the ports are the pod's."""

    token: str
    directory: Path
    subnet: IPv4Network
    port: int
    call_port: int

    @classmethod
    def choose(cls, directory: Path) -> "Stage":
        """Choose names, a subnet and ports that nobody else uses."""
        with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
            ports = (int(each.getsockname()[1]) for each in (first, second))
            return cls(secrets.token_hex(3), directory, network.find_free_subnet(), *ports)

    @property
    def name(self) -> str:
        """The mark that everything of the demo carries."""
        return f"crinoid-demo-{self.token}"

    @property
    def bridge(self) -> str:
        """The bridge; the names of links have at most 15 characters."""
        return f"crinoid-{self.token}"

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the bridge."""
        return next(self.subnet.hosts())

    @property
    def run(self) -> Path:
        """The daemon's run directory."""
        return Path("/run", self.name)

    @property
    def socket(self) -> Path:
        """The daemon's socket."""
        return self.run / "crinoid.sock"

    @property
    def root(self) -> Path:
        """The daemon's root."""
        return self.directory / "root"

    @property
    def layouts(self) -> Path:
        """The directory of image layouts."""
        return self.directory / "layouts"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "config.toml"

    def write_files(self, registry: str) -> None:
        """Write the configuration and the pod network."""
        network.write_configuration(self.directory / "cni", self.bridge, self.subnet, self.directory / "addresses")
        values = {
            "root": self.root,
            "run": self.run,
            "socket": self.socket,
            "cgroup": f"/{self.name}",
            "cni": self.directory / "cni",
            "layouts": self.layouts,
            "registry": registry,
        }
        quoted = {key: json.dumps(str(value)) for key, value in values.items()}
        self.config.write_text(CONFIGURATION.format(**quoted))

    def change_line(self, old: str, new: str) -> int:
        """Change the one line of the configuration that reads so; return its number."""
        lines = self.config.read_text().splitlines()
        number = lines.index(old)
        lines[number] = new
        self.config.write_text("\n".join(lines) + "\n")
        return number + 1

    def held_addresses(self) -> list[str]:
        """Name the addresses that the pod network's plugin keeps for somebody."""
        return sorted(path.name for path in (self.directory / "addresses" / self.bridge).glob("[0-9]*"))


def hide_unified() -> bool:
    """On a host with cgroup v1 and v2 at once, leave v2 out of a mount table of our own, which our children get.

    crun refuses such hosts. The host's own mounts stay as they are, and what we mount elsewhere still shows there.
    crun makes plain directories where v2 is missing: they go to a tmpfs that ends with the mount table.
    Call it before any thread is made; returns whether there was something to hide.
    """
    if not Path(UNIFIED, "cgroup.controllers").exists():
        return False
    libc.call("unshare", _CLONE_NEWNS)
    mount.make_private(UNIFIED.parent, recursive=True)
    mount.unmount(UNIFIED)
    mount.mount(Mount("tmpfs", "tmpfs"), UNIFIED)
    return True
