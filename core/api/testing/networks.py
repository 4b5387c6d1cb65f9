"""The contract of the network role as tests: whoever writes a driver applies them to it.

Subclass the contract, and say how a driver is made::

    class TestMine(NetworkContract):
        def make_driver(self, host: Host) -> object:
            return MyNetwork(MyOptions(subnet="10.99.0.0/24"), host)

It wants root, a Linux kernel with bridges, pytest and pytest-asyncio. Each test runs in a network namespace that plays
the node, with a link and rules of others in it: so the real node's interfaces and rules stay as they are. What a driver
keeps on disk belongs below ``host.state_dir``. A driver whose features say ``host_network`` skips the tests that have
no meaning for it; the switches of the class, such as ``has_host_ports``, say what else it can't do.
"""

import asyncio
import contextlib
import errno
import fcntl
import fnmatch
import functools
import ipaddress
import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.hooks.network import NetworkHooks
from crinoid.core.api.host import Host
from crinoid.core.api.linux import libc, links, namespaces
from crinoid.core.api.testing.binding import bind_hooks, cuts
from crinoid.core.api.testing.contract import Contract, needs
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest
from crinoid.core.api.values.pod import PodMetadata, PortMapping

_NEW_NETWORK = 0x40000000
_ADD_BRIDGE = 0x89A0  # SIOCBRADDBR: a link that takes no tool to make
_SET_ADDRESS = 0x8916  # SIOCSIFADDR
_ADDRESS_REQUEST = struct.Struct("16sHH4s16x")  # struct ifreq with ifr_addr, an IPv4 address
_SYSCTLS = Path("/proc/sys/net")
_SETTLE_TRIES = 60
_SETTLE_PAUSE_S = 0.05
_CONNECT_S = 0.5
_CONNECT_TRIES = 10
_FIRST_HOST_PORT = 18080


class BoundNetwork:
    """A driver behind the hooks, called as the kernel calls it: by keyword, and with data that went through JSON."""

    def __init__(self, driver: object) -> None:
        self._hook = bind_hooks(driver, NetworkHooks)

    def features(self) -> NetworkFeatures:
        """What the driver says of itself."""
        features = self._hook.features()
        assert isinstance(features, NetworkFeatures), f"features returned {features!r}"
        return features

    async def call(self, hook: str, **arguments: object) -> Any:
        """Call a hook and wait for its answer; a hook that the driver left out answers ``None``."""
        answer = getattr(self._hook, hook)(**arguments)
        return None if answer is None else await answer

    async def plan(self, request: NetworkRequest) -> dict[str, object]:
        """The driver's plan, as it comes back from the kernel's records."""
        return _through_json(await self.call("plan", request=request))

    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        """The driver's attachment, with its data as it comes back from the kernel's records."""
        attachment = await self.call("attach", request=request, plan=plan)
        assert isinstance(attachment, Attachment), f"attach returned {attachment!r}"
        return replace(attachment, data=_through_json(attachment.data))

    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        """Undo an attachment."""
        assert await self.call("detach", request=request, data=data) is None, "detach returned something"


def _through_json(data: Mapping[str, object]) -> dict[str, object]:
    assert isinstance(data, Mapping), f"not a JSON object: {data!r}"
    copy: dict[str, object] = json.loads(json.dumps(dict(data)))
    return copy


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the node's network namespace holds: interfaces, and packet filter rules without their counters."""

    links: tuple[str, ...]
    rules: tuple[str, ...]

    @classmethod
    def take(cls) -> "NodeState":
        """Look at the calling thread's network namespace."""
        return cls(links.names(), _list_rules())


class Strangers:
    """What others than the driver under test have on the node: a link, and packet filter rules where there is nft.

    A driver takes away its own things, some of them in the background, and never these.
    """

    LINK = "stranger0"
    ADDRESS = "198.51.100.1"
    """An address of the node (RFC 5737), which the link has."""
    _RULES = "add table inet stranger; add chain inet stranger kept; add rule inet stranger kept counter"

    def __init__(self) -> None:
        """Put them into the calling thread's network namespace."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _ADD_BRIDGE, self.LINK.encode() + b"\0")
            address = _ADDRESS_REQUEST.pack(self.LINK.encode(), socket.AF_INET, 0, socket.inet_aton(self.ADDRESS))
            fcntl.ioctl(control, _SET_ADDRESS, address)
        if shutil.which("nft"):
            subprocess.run(["nft", *self._RULES.split()], check=True, timeout=20)
        self._state = NodeState.take()

    def check(self) -> None:
        """Fail unless all are there."""
        found = NodeState.take()
        lost = Counter(self._state.links) - Counter(found.links), Counter(self._state.rules) - Counter(found.rules)
        assert not any(lost), f"the driver has removed what is not its own: {[set(part) for part in lost]}"


def _list_rules() -> tuple[str, ...]:
    """Ask nft, else iptables-save; a node that has neither has no rules that a driver could have left."""
    for command in (["nft", "-s", "list", "ruleset"], ["iptables-save"]):
        if shutil.which(command[0]):
            output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
            lines = (re.sub(r"\[\d+:\d+\]", "", line) for line in output.splitlines())
            return tuple(line for line in lines if line.strip() and not line.startswith("#"))
    return ()


@pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root")
@pytest.mark.asyncio
class NetworkContract(Contract):
    """What every network driver must do. Override ``make_driver``."""

    specification = NetworkHooks
    has_host_ports: ClassVar[bool] = True
    """Whether connections to a pod's ``port_mappings`` on the node, by TCP and IPv4, get to the pod."""

    has_garbage_collection: ClassVar[bool] = True
    """Whether ``collect_garbage`` removes what nobody owns."""

    changes_sysctls: ClassVar[tuple[str, ...]] = ("*forwarding*", "*/ip_forward")
    """Patterns of the settings below ``/proc/sys/net`` that the driver changes for the whole node: a pod's packets are
    forwarded, as a rule."""

    has_default_route: ClassVar[bool] = True
    """Whether a pod has a way to whatever is neither the node's nor another pod's."""

    reaches_pods: ClassVar[bool] = True
    """Whether the node can open a connection to a pod's first address, as Kubernetes wants it."""

    most_pods: ClassVar[int] = 3
    """How many pods the driver has addresses for, as ``make_driver`` makes it; not less than 3. A small number is best:
    it shows an address that is never given back."""

    def make_driver(self, host: Host) -> object:
        """Make a driver; called twice with the same host, the second is the first after a restart of the daemon."""
        raise NotImplementedError("say how a driver is made")

    @pytest.fixture(autouse=True)
    def node(self) -> Iterator[Strangers]:
        """Put the test, and what it runs, into a network namespace of its own, with loopback up and strangers in it."""
        with fresh_network_namespace():
            links.set_up("lo")
            strangers = Strangers()
            yield strangers
            strangers.check()

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """The driver's place on the node."""
        directories = [tmp_path / name for name in ("state", "run")]
        for directory in directories:
            directory.mkdir(mode=0o700)
        return Host("contract", directories[0], directories[1], logging.getLogger("contract"))

    @pytest.fixture
    def driver(self, host: Host) -> object:
        """The driver under test."""
        return self.make_driver(host)

    @pytest.fixture
    def network(self, driver: object) -> BoundNetwork:
        """The driver under test, bound."""
        return BoundNetwork(driver)

    @pytest.fixture
    def make_request(self, tmp_path: Path, network: BoundNetwork) -> Iterator[Callable[[str], NetworkRequest]]:
        """Makes requests of pods by name, each with a pinned network namespace unless the driver uses the host's."""
        pinned: list[Path] = []

        def make(name: str) -> NetworkRequest:
            netns = None if network.features().host_network else tmp_path / f"netns-{name}"
            if netns is not None:
                namespaces.pin({"network": netns})
                pinned.append(netns)
            return NetworkRequest(
                pod_id=f"{name}{'0' * (64 - len(name))}",
                metadata=PodMetadata(name, "contract", f"uid-{name}"),
                netns=netns,
                port_mappings=(PortMapping(container_port=8080, host_port=_FIRST_HOST_PORT + len(pinned)),),
                ingress_bits_per_s=10_000_000,
                annotations={"example.org/contract": name},
            )

        yield make
        for netns in pinned:
            namespaces.unpin(netns)

    @pytest.fixture
    def request_a(self, make_request: Callable[[str], NetworkRequest]) -> NetworkRequest:
        """A pod."""
        return make_request("a")

    async def test_tells_that_it_is_ready(self, network: BoundNetwork) -> None:
        status = await network.call("status")
        assert status.ready, f"{status.reason}: {status.message}"
        assert status.reason == "", "a network that is ready gives no reason"

    async def test_planning_touches_nothing(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        before = NodeState.take()
        await network.plan(request_a)
        assert NodeState.take() == before
        if request_a.netns:
            assert namespaces.call_in(request_a.netns, links.names) == ("lo",), "plan made an interface in the pod"

    async def test_attaching_gives_addresses(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        attachment = await _attach(network, request_a)
        assert attachment.addresses, "a pod has at least one address"
        for address in attachment.addresses:
            ipaddress.ip_address(address)  # without prefix length
        await network.detach(request_a, attachment.data)

    async def test_the_interface_and_loopback_are_up(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        netns = _own_namespace(request_a)
        attachment = await _attach(network, request_a)
        assert namespaces.call_in(netns, lambda: links.is_up(request_a.interface)), f"{request_a.interface} is down"
        assert namespaces.call_in(netns, lambda: links.is_up("lo")), "lo is down"
        await network.detach(request_a, attachment.data)

    async def test_the_interface_has_the_name_that_is_asked_for(
        self, network: BoundNetwork, request_a: NetworkRequest
    ) -> None:
        netns = _own_namespace(request_a)
        request = replace(request_a, interface="net7")
        attachment = await _attach(network, request)
        assert "net7" in namespaces.call_in(netns, links.names)
        await network.detach(request, attachment.data)

    async def test_the_pod_has_its_addresses(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        attachment = await _attach(network, request_a)
        for address in attachment.addresses:
            _in_pod(request_a, functools.partial(_listen, address)).close()
        await network.detach(request_a, attachment.data)

    async def test_the_node_reaches_the_pod(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        if not self.reaches_pods:
            pytest.skip("the driver says that its pods can't be reached from the node")
        attachment = await _attach(network, request_a)
        with _in_pod(request_a, lambda: _listen(attachment.addresses[0])) as listener:
            await _connect(listener.getsockname()[:2])
        await network.detach(request_a, attachment.data)

    async def test_pods_at_the_same_time_differ(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        requests = [make_request(name) for name in ("a", "b", "c")]
        _own_namespace(requests[0])
        attachments = await asyncio.gather(*(_attach(network, request) for request in requests))
        addresses = [address for attachment in attachments for address in attachment.addresses]
        assert len(set(addresses)) == len(addresses), f"an address was given twice: {addresses}"
        await asyncio.gather(
            *(network.detach(request, a.data) for request, a in zip(requests, attachments, strict=True))
        )

    async def test_a_pod_that_goes_takes_nothing_of_others(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """The address of one that stays is not given to the next."""
        goes, stays, comes = (make_request(name) for name in ("a", "b", "c"))
        _own_namespace(goes)
        first, second = await _attach(network, goes), await _attach(network, stays)
        await network.detach(goes, first.data)
        third = await _attach(network, comes)
        for address in second.addresses:
            assert address not in third.addresses, f"{address} was given to another pod while it was in use"
            _in_pod(stays, functools.partial(_listen, address)).close()
        await network.detach(stays, second.data)
        await network.detach(comes, third.data)

    async def test_the_pod_has_a_way_out(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        if not self.has_default_route:
            pytest.skip("the driver says that its pods have no default route")
        _own_namespace(request_a)
        attachment = await _attach(network, request_a)
        for address in attachment.addresses:
            _in_pod(request_a, functools.partial(_look_for_route, address)).close()
        await network.detach(request_a, attachment.data)

    @needs("host_ports")
    async def test_a_host_port_leads_to_the_pod_as_long_as_it_is_attached(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """And to the next pod that has it, once it is free."""
        first = make_request("a")
        _own_namespace(first)
        second = replace(make_request("b"), port_mappings=first.port_mappings)
        mapping = first.port_mappings[0]
        for request in (first, second):
            attachment = await _attach(network, request)
            address = next(one for one in attachment.addresses if ":" not in one)
            with _in_pod(request, functools.partial(_listen, address, mapping.container_port)) as listener:
                listener.setblocking(False)
                await _connect((Strangers.ADDRESS, mapping.host_port))
                listener.accept()[0].close()
                await network.detach(request, attachment.data)
                with pytest.raises(OSError):
                    await asyncio.to_thread(
                        socket.create_connection, (Strangers.ADDRESS, mapping.host_port), _CONNECT_S
                    )

    async def test_what_is_not_its_own_stays(
        self, node: Strangers, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """Links and rules of others, and settings of the whole node but those of ``changes_sysctls``."""
        # As on a node that has just been booted, whatever this one is like.
        (_SYSCTLS / "ipv4/ip_forward").write_text("0")
        before = _read_sysctls()
        request = make_request("a")
        attachment = await _attach(network, request)
        node.check()
        after = _read_sysctls()
        changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
        if "ipv4/ip_forward" in changed:  # the kernel's own doing (inet_forward_change)
            changed -= {f"ipv4/conf/{link}/accept_redirects" for link in ("all", "default")}
        changed -= {name for name in changed if any(fnmatch.fnmatch(name, one) for one in self.changes_sysctls)}
        assert not changed, {name: (before[name], after[name]) for name in changed}
        await network.detach(request, attachment.data)
        node.check()

    async def test_detaching_leaves_nothing(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        await self._attach_and_detach(network, make_request("first"))  # bridges and chains for all pods may stay
        before = NodeState.take()
        await self._attach_and_detach(network, make_request("second"))
        await _wait_until_nothing_is_new(before)

    async def test_detaching_is_idempotent(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        attachment = await _attach(network, request_a)
        for _ in range(3):
            await network.detach(request_a, attachment.data)

    async def test_detaching_by_the_plan_alone(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """The daemon died after ``attach`` and before the attachment was recorded."""
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        request = make_request("second")
        plan = await network.plan(request)
        await network.attach(request, plan)
        await network.detach(request, plan)
        await _wait_until_nothing_is_new(before)

    async def test_detaching_what_was_never_attached(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """The daemon died after the plan was recorded and before ``attach``."""
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        request = make_request("second")
        await network.detach(request, await network.plan(request))
        await _wait_until_nothing_is_new(before)

    async def test_detaching_after_the_namespace_is_gone(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        request = make_request("second")
        netns = _own_namespace(request)
        attachment = await _attach(network, request)
        namespaces.unpin(netns)
        await network.detach(request, attachment.data)
        await network.detach(replace(request, netns=None), attachment.data)
        await _wait_until_nothing_is_new(before)

    async def test_another_daemon_can_detach(
        self, network: BoundNetwork, host: Host, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        request = make_request("second")
        attachment = await _attach(network, request)
        await BoundNetwork(self.make_driver(host)).detach(request, attachment.data)
        await _wait_until_nothing_is_new(before)

    async def test_no_address_is_lost(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """More pods come and go than there are addresses."""
        for index in range(self.most_pods + 1):
            await self._attach_and_detach(network, make_request(f"p{index}"))

    async def test_no_address_is_lost_when_only_the_plan_is_known(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """The daemon died again and again: before ``attach`` (a plan takes nothing that it can't give back), and before
        its answer was recorded."""
        for index in range(self.most_pods + 1):
            never, request = make_request(f"n{index}"), make_request(f"p{index}")
            await network.detach(never, await network.plan(never))
            plan = await network.plan(request)
            await network.attach(request, plan)
            await network.detach(request, plan)

    async def test_an_attachment_that_is_cancelled_is_undone(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """At every await, by its plan; nothing is left, and no address is lost."""
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        for number, cut in enumerate(cuts()):
            request = make_request(f"c{number}")
            plan = await network.plan(request)
            await cut(network.attach(request, plan))
            await network.detach(request, plan)
            await _wait_until_nothing_is_new(before, f" (attach was {cut})")
        await self._attach_and_detach(network, *(make_request(f"p{index}") for index in range(self.most_pods)))

    async def test_a_detachment_that_is_cancelled_can_be_done_again(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        await self._attach_and_detach(network, make_request("first"))
        before = NodeState.take()
        for number, cut in enumerate(cuts()):
            request = make_request(f"c{number}")
            attachment = await _attach(network, request)
            await cut(network.detach(request, attachment.data))
            await network.detach(request, attachment.data)
            await _wait_until_nothing_is_new(before, f" (detach was {cut})")
        await self._attach_and_detach(network, *(make_request(f"p{index}") for index in range(self.most_pods)))

    async def test_check_accepts_an_attachment(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        attachment = await _attach(network, request_a)
        await network.call("check", request=request_a, data=attachment.data)
        await network.detach(request_a, attachment.data)

    async def test_garbage_collection_spares_what_is_owned(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        owned = make_request("owned")
        attachment = await _attach(network, owned)
        await network.call("collect_garbage", valid=((owned, attachment.data),))
        _in_pod(owned, lambda: _listen(attachment.addresses[0])).close()
        await network.call("check", request=owned, data=attachment.data)
        others = [make_request(f"p{index}") for index in range(0 if owned.netns is None else self.most_pods - 1)]
        given = [await _attach(network, request) for request in others]
        shared = {*attachment.addresses} & {address for one in given for address in one.addresses}
        assert not shared, f"given to another pod, though their pod is there: {shared}"
        for request, one in zip((owned, *others), (attachment, *given), strict=True):
            await network.detach(request, one.data)

    @needs("garbage_collection")
    async def test_garbage_collection_removes_what_nobody_owns(
        self, host: Host, network: BoundNetwork, make_request: Callable[[str], NetworkRequest]
    ) -> None:
        """At the start of a daemon, with its address, its link and its rules, as ``detach`` would."""
        owned = make_request("owned")
        attachment = await _attach(network, owned)
        before = NodeState.take()
        for index in range(self.most_pods):
            await _attach(network, make_request(f"lost{index}"))
            network = BoundNetwork(self.make_driver(host))
            await network.call("collect_garbage", valid=((owned, attachment.data),))
            await _wait_until_nothing_is_new(before)
        await network.detach(owned, attachment.data)

    async def test_pod_cidrs_are_taken(self, network: BoundNetwork) -> None:
        await network.call("set_pod_cidrs", cidrs=("10.244.7.0/24", "fd00:244:7::/64"))

    async def test_a_pod_without_its_namespace_is_an_error(
        self, network: BoundNetwork, request_a: NetworkRequest, tmp_path: Path
    ) -> None:
        _own_namespace(request_a)
        lost = replace(request_a, netns=tmp_path / "nowhere")
        plan = await network.plan(lost)
        with pytest.raises(DriverError):
            await network.attach(lost, plan)
        await network.detach(lost, plan)

    async def _attach_and_detach(self, network: BoundNetwork, *requests: NetworkRequest) -> None:
        """Attach pods, all of them at a time, and detach them."""
        attachments = [await _attach(network, request) for request in requests]
        for request, attachment in zip(requests, attachments, strict=True):
            await network.detach(request, attachment.data)


async def _attach(network: BoundNetwork, request: NetworkRequest) -> Attachment:
    return await network.attach(request, await network.plan(request))


def _own_namespace(request: NetworkRequest) -> Path:
    """The pod's namespace; the test is skipped for a driver that uses the host's."""
    if request.netns is None:
        pytest.skip("pods share the host's network")
    return request.netns


def _in_pod(request: NetworkRequest, function: Callable[[], socket.socket]) -> socket.socket:
    return namespaces.call_in(request.netns, function) if request.netns else function()


def _listen(address: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def _read_sysctls() -> dict[str, str]:
    """Read the settings of this network namespace that are not of one link."""
    found = {}
    for path in _SYSCTLS.rglob("*"):
        link = path.parent.name if path.parent.parent.name in ("conf", "neigh") else "all"
        if link in ("all", "default") and path.is_file() and path.stat().st_mode & 0o200:
            with contextlib.suppress(OSError):  # some can only be written to
                found[str(path.relative_to(_SYSCTLS))] = path.read_text()
    return found


def _look_for_route(source: str) -> socket.socket:
    """Have the kernel choose a way to an address of nobody (RFC 5737, RFC 3849), of the family of ``source``."""
    family, target = (socket.AF_INET6, "2001:db8::1") if ":" in source else (socket.AF_INET, "192.0.2.1")
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.connect((target, 9))  # sends nothing
    except OSError as error:
        made.close()
        assert error.errno != errno.ENETUNREACH, f"the pod with the address {source} has no default route"
    return made


async def _connect(address: tuple[str, int]) -> None:
    """Connect, with patience: a new IPv6 address of the node can't be used until it is known to be the only one."""
    for attempt in range(_CONNECT_TRIES):
        try:
            return (await asyncio.to_thread(socket.create_connection, address, _CONNECT_S)).close()
        except OSError:
            if attempt == _CONNECT_TRIES - 1:
                raise
        await asyncio.sleep(_SETTLE_PAUSE_S)
    return None


async def _wait_until_nothing_is_new(before: NodeState, when: str = "") -> None:
    """Compare, with patience: links may go in the background, ours or the Linux kernel's, after ``detach`` is done.

    So ``before`` may still show a link of the first pod, which is gone by now. What may not go, strangers tell.
    """
    for _ in range(_SETTLE_TRIES):
        found = NodeState.take()
        links, rules = Counter(found.links) - Counter(before.links), Counter(found.rules) - Counter(before.rules)
        if not links and not rules:
            break
        await asyncio.sleep(_SETTLE_PAUSE_S)
    assert not links, f"links left: {set(links)}{when}"
    assert not rules, f"rules left: {set(rules)}{when}"


@contextlib.contextmanager
def fresh_network_namespace() -> Iterator[None]:
    """Move this thread into a new network namespace and back; what it left there is dropped by the Linux kernel."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", _NEW_NETWORK)
        try:
            yield
        finally:
            libc.call("setns", fd, _NEW_NETWORK)
    finally:
        os.close(fd)
