"""Who has which address of the node's ranges: on disk, so that neither a crash nor a restart gives one out twice.

An address is a symbolic link of its name whose target is the pod: the file system makes it in one act, with its
content, and only if there is none. So at any instant, whatever dies, each address has one owner or none. It is not
synced: a power cut takes the pods, too.
"""

import contextlib
import ipaddress
from collections.abc import Collection
from pathlib import Path

from crinoid.core.api.errors import ResourceExhausted, Unavailable
from crinoid.core.api.linux import rights
from crinoid.plugins.networks.bridge.interfaces import Address, Network
from crinoid.plugins.networks.bridge.records import gateway_of

_MOST_TRIED = 1 << 16  # an IPv6 range has more addresses than a node ever has pods


class AddressBook:
    """The addresses that are taken, by their owners. For one process and one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        rights.make_directories(self._directory)
        self._owners: dict[Address, str] = {}
        self._last: dict[Network, Address] = {}
        self.reload()

    def reload(self) -> None:
        """Read the disk. What is no address, or no link, is none of ours."""
        self._owners = {}
        for path in self._directory.iterdir():
            with contextlib.suppress(ValueError, OSError):
                self._owners[ipaddress.ip_address(path.name)] = str(path.readlink())

    @property
    def owners(self) -> set[str]:
        """Everyone who has an address."""
        return set(self._owners.values())

    def owned_by(self, owner: str) -> tuple[Address, ...]:
        """Return the addresses of an owner, IPv4 first."""
        found = (address for address, other in self._owners.items() if other == owner)
        return tuple(sorted(found, key=lambda address: (address.version, int(address))))

    def take(self, owner: str, network: Network, avoid: Collection[Address] = ()) -> Address:
        """Give out the address that was free for longest, as far as is known. Raises ResourceExhausted."""
        # All but the gateway's and those that can't be a pod's: IPv4's broadcast, and the network itself.
        first = int(gateway_of(network)) + 1
        end = int(network.broadcast_address) + (0 if network.version == 4 else 1)
        count = min(end - first, _MOST_TRIED)
        # Begin after the last one given out: others' tables of neighbours forget a pod before its address comes again.
        last = self._last.get(network) or max((a for a in self._owners if a in network), default=None, key=int)
        start = int(last) - first + 1 if last is not None else 0
        for step in range(count):
            address = type(network.network_address)(first + (start + step) % count)
            if address not in self._owners and address not in avoid and self._claim(address, owner):
                self._last[network] = address
                return address
        in_use = sum(address in network for address in self._owners)
        raise ResourceExhausted(f"no address of {network} is free for pod {owner}: {in_use} are in use")

    def take_this(self, owner: str, address: Address) -> None:
        """Give out the address that was asked for. Raises Unavailable when it is another's."""
        if self._owners.get(address) != owner and not self._claim(address, owner):
            raise Unavailable(f"pod {owner} asks for address {address}, which pod {self._owners[address]} has")

    def adopt(self, owner: str, addresses: Collection[Address]) -> None:
        """Note what a pod has by its record, as when the directory was lost. What another owner has stays theirs."""
        for address in addresses:
            if address not in self._owners:
                self._claim(address, owner)

    def give_back(self, owner: str) -> None:
        """Free all addresses of an owner. Idempotent."""
        for address in self.owned_by(owner):
            (self._directory / str(address)).unlink(missing_ok=True)
            del self._owners[address]

    def _claim(self, address: Address, owner: str) -> bool:
        path = self._directory / str(address)
        try:
            path.symlink_to(owner)  # in one act, and only where there is none (symlink(2))
        except FileExistsError:
            self._owners[address] = str(path.readlink()) if path.is_symlink() else "unknown"
            return False
        self._owners[address] = owner
        return True
