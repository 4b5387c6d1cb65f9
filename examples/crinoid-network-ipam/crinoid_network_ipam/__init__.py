"""A network driver whose addresses come from an external IPAM, over a unix socket; each pod has a link to the node.

``protocol`` has what is said over the socket, ``server`` an IPAM of a hundred lines. ``plan`` draws a token and touches
nothing; ``attach`` takes an address for the token, ``detach`` gives back what the token has. A token that was given
back never gets an address again, so it does not matter which of the two an IPAM hears first of a pod that was given up.
"""

import asyncio
import hashlib
import secrets
import shutil
import socket
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path

from pydantic import Field

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import CommandFailed, DriverError, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.network import NetworkHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import links, process
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid_network_ipam.protocol import ask

_TIMEOUT_S = 20.0


class IpamOptions(DriverConfig):
    """Options of the driver."""

    socket: Path = Path("/run/ipam/ipam.sock")
    """Where the IPAM listens."""
    timeout_s: float = Field(5.0, gt=0)
    """How long it may take to answer."""
    owner: str = ""
    """In whose name addresses are taken: what a daemon collects as garbage is its own. By default the
    host's name and the slot's."""


class IpamNetwork(NetworkHooks):
    """The driver."""

    api_version = "1.0"
    Config = IpamOptions

    def __init__(self, config: IpamOptions, host: Host) -> None:
        self._config = config
        self._owner = config.owner or f"{socket.gethostname()}/{host.slot}"
        # A link's name has at most 15 characters. Its beginning is the slot's: another one's links are not garbage.
        self._prefix = "im" + hashlib.sha256(host.slot.encode()).hexdigest()[:4]
        self._log = host.log

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(host_network=False)

    @hookimpl
    async def status(self) -> NetworkStatus:
        missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
        if missing:
            return NetworkStatus(False, "ProgramMissing", f"install {' and '.join(missing)}")
        try:
            await self._ask(str(self._config.socket), act="status")
        except DriverError as error:
            return NetworkStatus(False, "IpamUnavailable", error.message)
        return NetworkStatus(ready=True)

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        """Draw all names: the daemon stores them before it calls ``attach``, and undoes by them."""
        token = secrets.token_hex(16)
        return {"token": token, "link": f"{self._prefix}{token[:9]}", "socket": str(self._config.socket)}

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        pod = {"namespace": request.metadata.namespace, "name": request.metadata.name, "uid": request.metadata.uid}
        answer = await self._ask(
            str(plan["socket"]),
            act="allocate",
            owner=self._owner,
            token=plan["token"],
            pod=pod,
            asked=list(request.ips),
        )
        try:
            address, gateway = ip_interface(str(answer["address"])).ip, ip_interface(str(answer["gateway"])).ip
        except (KeyError, ValueError) as error:
            raise DriverError(f"the IPAM at {plan['socket']} answers {answer!r}: {error}") from error
        if address.version != 4 or gateway.version != 4:
            raise Unsupported(f"the IPAM at {plan['socket']} gives {address}, and this driver knows IPv4 alone")
        link = plan["link"]
        await _ip(
            f"link add {link} type veth peer name {request.interface} netns {request.netns}",
            f"address add {gateway} peer {address}/32 dev {link}",
            f"link set {link} up",
        )
        await _ip(
            "link set lo up",
            f"address add {address} peer {gateway}/32 dev {request.interface}",
            f"link set {request.interface} up",
            f"route add default via {gateway}",
            enter=("nsenter", f"--net={request.netns}"),
        )
        return Attachment((str(address),), dict(plan))

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Undo by the plan or the attachment, whichever the daemon has; what is done already is done."""
        await _delete_link(str(data["link"]))
        await self._ask(str(data["socket"]), act="release", token=data["token"])

    @hookimpl
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        """Give back what this owner has and no pod does, and remove links without a pod."""
        tokens, kept = {data["token"] for _, data in valid}, {data["link"] for _, data in valid}
        for link in links.names():
            if link.startswith(self._prefix) and link not in kept:
                self._log.info("removing link %s, which no pod owns", link)
                await _delete_link(link)
        place = str(self._config.socket)
        listed = (await self._ask(place, act="list", owner=self._owner)).get("tokens")
        for token in listed if isinstance(listed, list) else ():
            if token not in tokens:
                self._log.info("giving back the address of token %s, which no pod owns", token)
                await self._ask(place, act="release", token=token)

    async def _ask(self, place: str, **request: object) -> Mapping[str, object]:
        """In a thread: an IPAM may take its time. One that goes on when nobody waits does no harm: see above."""
        return await asyncio.to_thread(ask, place, request, self._config.timeout_s)


async def _delete_link(link: str) -> None:
    try:
        if link in links.names():
            await _ip(f"link delete {link}")
    except CommandFailed:
        if link in links.names():  # else it went with the pod's namespace, just now
            raise


async def _ip(*commands: str, enter: tuple[str, ...] = ()) -> None:
    """Run ``ip`` once for several commands; raises CommandFailed with its own words."""
    script = "".join(f"{command}\n" for command in commands)
    await process.run_checked([*enter, "ip", "-batch", "-"], stdin=script.encode(), timeout_s=_TIMEOUT_S)
