"""The pod's network inside of the guest: a tap device in the pod's network namespace, and what its interface has.

Whatever network driver made the pod's interface: all that comes to it goes on to the tap device, and back (the action
``mirred`` of tc), so the guest has the pod's MAC address, addresses and routes as they are, and the namespace itself
sees nothing of it. No bridge, no second address, no rule of a packet filter.
"""

import fcntl
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import Unavailable
from crinoid.core.api.linux.namespaces import call_in, is_pinned
from crinoid.core.api.linux.process import run_checked
from crinoid.core.api.linux.threads import call_in_thread

INTERFACE, TAP = "eth0", "microvm"
_COMMAND_S = 30.0
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_OF_EVERY_POD = ("net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range")
_ALL = "parent ffff: protocol all u32 match u32 0 0"


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """What the guest's interface is to be: as ``address/length`` and ``destination/length gateway`` (or nothing)."""

    mac: str
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


async def read_network(pin: Path) -> GuestNetwork | None:
    """Read what a pod's interface has; ``None`` where the pod has none. Raises CommandFailed."""
    links = await _ip(pin, "address", "show")
    link = next((one for one in links if one["ifname"] == INTERFACE), None)
    if link is None:
        return None
    routes = [
        *await _ip(pin, "-4", "route", "show", "dev", INTERFACE),
        *await _ip(pin, "-6", "route", "show", "dev", INTERFACE),
    ]
    return GuestNetwork(
        mac=link["address"],
        mtu=link["mtu"],
        addresses=tuple(
            f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one.get("scope") != "link"
        ),
        routes=tuple(sorted(filter(None, map(_route, routes)), key=lambda route: not route.endswith(" "))),
    )


def read_sysctls(pin: Path | None, wanted: Mapping[str, str]) -> list[str]:
    """Return a pod's sysctls as ``path=value``, with those of its network that crinoid sets for every pod. Blocks."""
    found = {key.replace(".", "/"): value for key, value in wanted.items()}
    if pin is not None:
        found |= call_in(pin, lambda: {name: Path("/proc/sys", name).read_text().strip() for name in _OF_EVERY_POD})
    return [f"{name}={value}" for name, value in found.items()]


def open_tap(pin: Path) -> int:
    """Make a tap device in a network namespace; it is there as long as the descriptor is open. Blocks."""

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), flags))
        except BaseException:
            os.close(fd)
            raise
        return fd

    try:
        return call_in(pin, make)
    except OSError as error:
        raise Unavailable(f"no tap device can be made for the guest: {error.strerror} (/dev/net/tun)") from error


async def redirect(pin: Path, mtu: int) -> None:
    """Lead all that the pod's interface gets to the tap device, and the other way round. Raises CommandFailed."""
    commands = [f"ip link set dev {TAP} mtu {mtu} up"]
    for one, other in ((INTERFACE, TAP), (TAP, INTERFACE)):
        commands.append(f"tc qdisc replace dev {one} ingress")
        commands.append(f"tc filter replace dev {one} {_ALL} action mirred egress redirect dev {other}")
    await run_checked(["nsenter", f"--net={pin}", "sh", "-c", " && ".join(commands)], timeout_s=_COMMAND_S)


async def undo_redirect(pin: Path) -> None:
    """Undo it; the tap device has gone with its descriptor. Idempotent."""
    command = f"tc qdisc del dev {INTERFACE} ingress 2>/dev/null || true"
    if await call_in_thread(lambda: is_pinned(pin)):
        await run_checked(["nsenter", f"--net={pin}", "sh", "-c", command], timeout_s=_COMMAND_S)


def _route(route: dict[str, Any]) -> str | None:
    """Return one of ``ip -j route`` in the agent's form; ``None`` for what the guest's kernel makes by itself."""
    destination, gateway = route["dst"], route.get("gateway", "")
    if route.get("protocol") == "kernel" or route.get("type", "unicast") != "unicast":
        return None
    if destination == "default":
        destination = "::/0" if ":" in gateway else "0.0.0.0/0"
    elif "/" not in destination:
        destination += "/128" if ":" in destination else "/32"
    return f"{destination} {gateway}"


async def _ip(pin: Path, *words: str) -> list[dict[str, Any]]:  # Any: JSON of iproute2
    done = await run_checked(["nsenter", f"--net={pin}", "ip", "-j", *words], timeout_s=_COMMAND_S)
    found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    return found
