"""The hooks of the ``bridge`` driver: addresses are given out here, and everything that blocks is sent to threads.

A pod leaves in two steps. ``detach`` takes it out of the tables, at once: nothing leads to it and nothing comes from
it. Its link goes with its namespace, which the kernel removes in the background, or is removed by us shortly after;
only then its addresses are free. When the last pod has left and none comes for a while, bridge and tables go too.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import CrinoidError, DriverError, InvalidArgument, ResourceExhausted, Unsupported
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux.threads import call_in_thread, run_in_fresh_thread
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.plugins.networks.bridge import sysctls
from crinoid.plugins.networks.bridge.addresses import AddressBook
from crinoid.plugins.networks.bridge.interfaces import Address, Network
from crinoid.plugins.networks.bridge.node import AddressInUseError, Node, Settings, describe, exists
from crinoid.plugins.networks.bridge.records import Names, Record, plan_record

T = TypeVar("T")

DEFAULT_SUBNETS = ("10.241.0.0/24", "fd00:10:241::/64")
_LEAST_BITS = 2  # of host part: the network, the gateway, a pod, and IPv4's broadcast
_MOST_CONFLICTS = 16
_LEAVE_POLL_S = 0.1
_LEAVE_GRACE_S = 0.3
_EXHAUSTED_WAIT_S = 5.0
_RETRY_S = 5.0


def _check_subnet(text: str) -> str:
    network = ipaddress.ip_network(text)
    if network.max_prefixlen - network.prefixlen < _LEAST_BITS:
        raise ValueError("has no room for a gateway and pods")
    return str(network)


def _check_families(subnets: tuple[str, ...]) -> tuple[str, ...]:
    if len({ipaddress.ip_network(subnet).version for subnet in subnets}) != len(subnets):
        raise ValueError("at most one of each family, IPv4 and IPv6")
    return subnets


def _check_network(text: str) -> str:
    return str(ipaddress.ip_network(text))


class BridgeOptions(DriverConfig):
    """Ranges, MTU and masquerading of the built-in network."""

    subnets: Annotated[tuple[Annotated[str, AfterValidator(_check_subnet)], ...], AfterValidator(_check_families)] = ()
    """The node's ranges of pod addresses, one of a family, the first one's address being a pod's primary one. Empty:
    the pod CIDR that the kubelet tells, and until it does 10.241.0.0/24 and fd00:10:241::/64."""
    mtu: int = Field(0, ge=0, le=65535)
    """MTU of pods' interfaces; 0: that of the link of the node's default route."""
    masquerade: bool = True
    """Give what leaves the ranges the node's own address, as it must have where nobody else routes to the pods."""
    masquerade_except: tuple[Annotated[str, AfterValidator(_check_network)], ...] = ()
    """Destinations that see pods' own addresses although they are outside of the node's ranges, such as the cluster's
    pod network."""
    linger_s: float = Field(5.0, ge=0)
    """How long bridge and tables stay after the last pod has left, in seconds."""


class BridgeNetwork:
    """Attaches pods to a bridge of its own, with nothing but the Linux kernel."""

    api_version = "1.0"
    Config = BridgeOptions

    def __init__(self, config: BridgeOptions, host: Host) -> None:
        self._config = config
        self._log: logging.Logger = host.log
        unmasqueraded = tuple(map(ipaddress.ip_network, config.masquerade_except))
        self._names = Names.of(host)
        settings = Settings(self._names, config.mtu, config.masquerade, unmasqueraded)
        self._node = Node(settings, host.run_dir, host.log)
        self._book = AddressBook(host.state_dir / "addresses")
        self._pod_cidrs: tuple[Network, ...] = ()
        self._attached: dict[str, Record] = {}
        self._leaving: dict[str, Record] = {}
        self._avoided: set[Address] = set()
        self._space = asyncio.Condition()
        self._left = asyncio.Event()
        self._cleanup: asyncio.Task[None] | None = None
        self._removal = asyncio.Lock()  # held while bridge and tables are removed: no address is given out then

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(host_network=False)

    @hookimpl
    async def status(self) -> NetworkStatus:
        try:
            await call_in_thread(lambda: self._node.look(self._choose_ranges(())))
        except Unsupported as error:
            return NetworkStatus(ready=False, reason="NetworkLibraryMissing", message=error.message)
        except (CrinoidError, OSError) as error:
            return NetworkStatus(ready=False, reason="BridgeNotReady", message=describe(error))
        return NetworkStatus(ready=True)

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        return plan_record(request, self._names, self._choose_ranges(request.pod_cidrs)).write()

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        wanted = Record.read(plan)
        what = f"pod {wanted.pod_id} can't be attached"
        for _ in range(_MOST_CONFLICTS):
            async with self._removal:  # not while bridge and tables are removed after the last pod
                record = await self._give_addresses(wanted)
                self._attached[record.pod_id] = record
            # In a thread that ends with it: it enters the pod's namespace, and one that can't come back is of no use.
            connect = functools.partial(self._node.connect, record)
            try:
                await _guard(run_in_fresh_thread(connect), what)
            except AddressInUseError as error:  # the node has it itself, or somebody else on the bridge
                self._log.warning("pod %s: %s; taking another one", wanted.pod_id, error)
                self._avoided.add(error.address)
                self._book.give_back(wanted.pod_id)
                self._attached.pop(wanted.pod_id)
                if error.address in wanted.wanted:
                    raise DriverError(f"{what}: {error}") from error
            else:
                return Attachment(tuple(map(str, record.addresses)), record.write())
        raise DriverError(f"{what}: {_MOST_CONFLICTS} addresses in a row are not free")

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if not data:
            return
        record = Record.read(data)
        record.require_own(request.pod_id)
        owned = self._book.owned_by(record.pod_id)
        # A collection of garbage may have taken for attached who was leaving, and have made it whole again.
        is_leaving = record.pod_id in self._leaving and record.pod_id not in self._attached
        if is_leaving or (not owned and not exists(record.link) and not exists(record.buffer)):
            return
        record = record.with_addresses(owned or record.addresses)
        await _in_thread(lambda: self._node.disconnect(record), f"pod {record.pod_id} can't be detached")
        self._attached.pop(record.pod_id, None)
        self._leaving[record.pod_id] = record
        self._begin_cleanup()

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        record = Record.read(data)
        what = f"pod {record.pod_id} can't be checked"
        await _guard(run_in_fresh_thread(lambda: self._node.check(record)), what)

    @hookimpl
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        self._pod_cidrs = _parse_cidrs(cidrs)

    @hookimpl
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        recorded = (Record.read(data) for _, data in valid)
        owned = {record.pod_id: record.with_addresses(self._addresses_of(record)) for record in recorded}
        owned.update(self._attached)
        await _in_thread(lambda: self._node.collect(owned.values()), "attachments that nobody owns can't be removed")
        self._attached = owned
        for record in owned.values():
            self._book.adopt(record.pod_id, record.addresses)
        for owner in self._book.owners - owned.keys() - self._leaving.keys():
            self._log.info("giving back the addresses of pod %s, which nobody owns", owner)
            self._book.give_back(owner)
        await self._close()

    @hookimpl
    async def close(self) -> None:
        if self._cleanup is not None:
            self._cleanup.cancel()
            await asyncio.wait({self._cleanup})
        if self._leaving:
            await self._release_addresses()
        await self._close()

    # Attaching.

    @property
    def names(self) -> Names:
        """What the slot's things on the node are called."""
        return self._names

    def _choose_ranges(self, told: tuple[str, ...]) -> tuple[Network, ...]:
        """Return the configuration's ranges, else those of the kubelet, else our own."""
        if self._config.subnets:
            return tuple(map(ipaddress.ip_network, self._config.subnets))
        if cidrs := _parse_cidrs(told) or self._pod_cidrs:
            return cidrs
        versions = (4, 6) if sysctls.has_ipv6() else (4,)
        return tuple(network for network in map(ipaddress.ip_network, DEFAULT_SUBNETS) if network.version in versions)

    async def _give_addresses(self, plan: Record) -> Record:
        """Take an address of each range; wait for pods that are just leaving where there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXHAUSTED_WAIT_S), self._space:
                while self._leaving:
                    with contextlib.suppress(ResourceExhausted):
                        return self._take_addresses(plan)
                    await self._space.wait()
        # Nobody is leaving, or nobody comes to an end: what was in use elsewhere may be free, and the disk has the
        # last word.
        self._avoided.clear()
        self._book.reload()
        return self._take_addresses(plan)

    def _take_addresses(self, plan: Record) -> Record:
        """Take an address of each range, or none."""
        try:
            for network in plan.ranges:
                wanted = next((address for address in plan.wanted if address in network), None)
                if wanted is not None:
                    self._book.take_this(plan.pod_id, wanted)
                else:
                    self._book.take(plan.pod_id, network, self._avoided)
        except CrinoidError:
            self._book.give_back(plan.pod_id)
            raise
        return plan.with_addresses(self._addresses_of(plan))

    def _addresses_of(self, record: Record) -> tuple[Address, ...]:
        """Return the pod's addresses in the order of its ranges."""
        owned = self._book.owned_by(record.pod_id)
        found = (next((a for a in owned if a in network), None) for network in record.ranges)
        return tuple(address for address in found if address is not None) or record.addresses

    # Leaving.

    def _begin_cleanup(self) -> None:
        """Wait in the background for the links of detached pods; after the last pod, remove bridge and tables."""
        self._left.set()
        if self._cleanup is None or self._cleanup.done():
            self._cleanup = asyncio.get_running_loop().create_task(self._clean_up())

    async def _clean_up(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                while self._leaving:
                    await self._release_addresses()
                self._left.clear()
                await asyncio.wait_for(self._left.wait(), self._config.linger_s)
        await self._close()

    async def _release_addresses(self) -> None:
        """Wait until links are gone with their namespaces, remove the others, and free the addresses."""
        records = tuple(self._leaving.values())
        # The kernel removes a pod's end of its veth pair with the network namespace, in the background, and the host's
        # end with that. An address that is given out before would be there twice: the old pod's link answers for it.
        for _ in range(round(_LEAVE_GRACE_S / _LEAVE_POLL_S)):
            await asyncio.sleep(_LEAVE_POLL_S)
            if not any(exists(record.link) or exists(record.buffer) for record in records):
                break
        try:
            await call_in_thread(lambda: self._node.remove_links(records))
        except OSError as error:
            self._log.warning("links of pods that have left can't be removed yet: %s", describe(error))
            await asyncio.sleep(_RETRY_S)
            return
        async with self._space:
            for record in records:
                self._book.give_back(record.pod_id)
                del self._leaving[record.pod_id]
            self._space.notify_all()

    async def _close(self) -> None:
        """Remove bridge and tables, unless a pod is attached again."""
        async with self._removal:
            if self._attached or self._leaving or self._book.owners:
                return
            try:
                await call_in_thread(self._node.clear)
            except (CrinoidError, OSError) as error:
                self._log.warning("the bridge that nobody uses can't be removed: %s", describe(error))


def _parse_cidrs(cidrs: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        networks = tuple(ipaddress.ip_network(_check_subnet(str(ipaddress.ip_network(c, strict=False)))) for c in cidrs)
    except ValueError as error:
        raise InvalidArgument(f"pod CIDR {', '.join(cidrs)}: {error}") from error
    first = {network.version: network for network in reversed(networks)}
    return tuple(network for network in networks if first[network.version] is network)


async def _in_thread(function: Callable[[], T], what: str) -> T:
    return await _guard(call_in_thread(function), what)


async def _guard(work: Awaitable[T], what: str) -> T:
    """Make DriverErrors of what the kernel refuses."""
    try:
        return await work
    except OSError as error:
        raise DriverError(f"{what}: {describe(error)}") from error
