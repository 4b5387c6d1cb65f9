"""A network driver for crinoid: each pod gets one IPv4 address and a veth pair, one end of it on the node.

The kernel of crinoid calls ``plan``, stores what it returns, calls ``attach``, stores that too, and later calls
``detach`` with the newest of the two. So a daemon that was killed at any moment can undo what it had begun.
"""

import hashlib
import shutil
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import CommandFailed, ResourceExhausted
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import links, process
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus

TIMEOUT_S = 10.0


class PtpOptions(DriverConfig):
    """What the ``options`` table of the slot may hold."""

    subnet: IPv4Network = IPv4Network("10.89.0.0/24")
    """Where the addresses of pods come from; the first one is the node's."""


class PtpNetwork:
    """Gives pods a point-to-point link to the node."""

    api_version = "1.0"
    Config = PtpOptions

    def __init__(self, config: PtpOptions, host: Host) -> None:
        self._subnet = config.subnet
        self._node = next(iter(config.subnet.hosts()))
        self._book = host.state_dir / "addresses"
        self._book.mkdir(exist_ok=True)

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(host_network=False)

    @hookimpl
    async def status(self) -> NetworkStatus:
        missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
        if missing:
            return NetworkStatus(False, "ProgramMissing", f"install {' and '.join(missing)}")
        return NetworkStatus(ready=True)

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        """Name the node's end of the pair; names of interfaces have at most 15 characters."""
        return {"link": "ptp" + hashlib.sha256(request.pod_id.encode()).hexdigest()[:12]}

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        link, address = plan["link"], self._take_address(request.pod_id)
        enter = ["nsenter", f"--net={request.netns}"]
        await _run_ip(enter, "link set lo up")
        await _run_ip(
            [],
            f"link add {link} type veth peer name {request.interface} netns {request.netns}",
            f"address add {self._node} peer {address}/32 dev {link}",
            f"link set {link} up",
        )
        await _run_ip(
            enter,
            f"address add {address} peer {self._node}/32 dev {request.interface}",
            f"link set {request.interface} up",
            f"route add default via {self._node}",
        )
        return Attachment((str(address),), dict(plan))

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Remove the pair, by either end, then give the address back; done already is done."""
        link = str(data["link"])
        try:
            if link in links.names():
                await _run_ip([], f"link delete {link}")
        except CommandFailed:
            if link in links.names():  # else it went with the pod's namespace, just now
                raise
        self._give_back(request.pod_id)

    def _take_address(self, pod_id: str) -> IPv4Address:
        """Write the pod's id into the book, a directory with a symbolic link per address: making one is atomic."""
        for address in islice(self._subnet.hosts(), 1, None):
            try:
                Path(self._book, str(address)).symlink_to(pod_id)
            except FileExistsError:
                continue
            return address
        raise ResourceExhausted(f"pod {pod_id}: all addresses of {self._subnet} are in use")

    def _give_back(self, pod_id: str) -> None:
        for entry in self._book.iterdir():
            if str(entry.readlink()) == pod_id:
                entry.unlink()


async def _run_ip(enter: list[str], *commands: str) -> None:
    """Run ``ip`` once for several commands; raises CommandFailed with its own words."""
    script = "".join(f"{command}\n" for command in commands)
    await process.run_checked([*enter, "ip", "-batch", "-"], stdin=script.encode(), timeout_s=TIMEOUT_S)
