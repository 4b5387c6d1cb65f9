"""Network drivers with a bug each, on top of the built-in bridge."""

import asyncio
import contextlib
import fcntl
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import DriverError, ResourceExhausted
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.testing.networks import Strangers
from crinoid.core.api.values.network import Attachment, NetworkRequest, NetworkStatus
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions
from support.patience import patient

from . import caught_by

MOST_PODS = 5
_ADD_BRIDGE = 0x89A0


class Good(BridgeNetwork):
    """The bridge, with so few addresses that a lost one shows, and a book of its own beside it."""

    def __init__(self, host: Host) -> None:
        super().__init__(BridgeOptions(subnets=("10.88.77.0/29", "fd00:88:77::/125")), host)
        self.file = host.state_dir / "book.json"

    def read(self) -> list[str]:
        return json.loads(self.file.read_text()) if self.file.exists() else []

    def take(self, pod_id: str) -> None:
        book = {*self.read(), pod_id}
        if len(book) > MOST_PODS:
            raise ResourceExhausted("no address is left")
        self.file.write_text(json.dumps(sorted(book)))

    def give_back(self, pod_id: str) -> None:
        self.file.write_text(json.dumps([one for one in self.read() if one != pod_id]))

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        self.take(request.pod_id)
        attachment = await super().attach(request, plan)
        return replace(attachment, data={**attachment.data, "whole": True})

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await super().detach(request, {name: value for name, value in data.items() if name != "whole"})
        self.give_back(request.pod_id)

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await super().check(request, {name: value for name, value in data.items() if name != "whole"})

    @hookimpl
    async def collect_garbage(self, valid: Any) -> None:
        plain = tuple((one, {name: data[name] for name in data if name != "whole"}) for one, data in valid)
        await super().collect_garbage(plain)
        for pod_id in {*self.read()} - {one.pod_id for one, _ in valid}:
            self.give_back(pod_id)

    @hookimpl
    async def close(self) -> None:
        await super().close()


def in_pod(request: NetworkRequest, *command: str) -> None:
    subprocess.run(["nsenter", f"--net={request.netns}", *command], check=True, timeout=20)


def add_link(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(FileExistsError):
        fcntl.ioctl(control, _ADD_BRIDGE, name.encode() + b"\0")


@caught_by("test_its_hooks_are_as_specified", "detach has the name of a hook but no @hookimpl")
class MarkForgotten(Good):
    """``detach`` has no ``@hookimpl``."""

    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await super().detach(request, data)


@caught_by("test_its_hooks_are_as_specified", 'colect_garbage is all but "collect_garbage"')
class NameMisspelt(Good):
    """An optional hook is misspelt, and has no mark."""

    collect_garbage = None  # type: ignore[assignment]

    async def colect_garbage(self, valid: Any) -> None: ...


@caught_by("test_its_hooks_are_as_specified", "'detach'")
class HookMissing(Good):
    """It can't detach."""

    detach = None  # type: ignore[assignment]


@caught_by("test_it_tells_version_and_options", "'2' == '1'")
class OfTheFuture(Good):
    """It is for another version of the plugin API."""

    api_version = "2.0"


@caught_by("test_it_tells_version_and_options", "issubclass")
class OptionsOfItsOwn(Good):
    """Its options are no ``DriverConfig``: unknown keys pass."""

    Config = dict  # type: ignore[assignment]


@caught_by("test_making_it_touches_nothing", "begun")
class BeginsWhenMade(Good):
    """``__init__`` begins to work."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        (host.run_dir / "begun").touch()


@caught_by("test_tells_that_it_is_ready", "Slow: soon")
class NeverReady(Good):
    """It says that it is not ready."""

    @hookimpl
    async def status(self) -> NetworkStatus:
        return NetworkStatus(False, "Slow", "soon")


@caught_by("test_tells_that_it_is_ready", "returned True where NetworkStatus is due")
class WrongType(Good):
    """A status is a mere truth value."""

    @hookimpl
    async def status(self) -> Any:
        return True


@caught_by("test_tells_that_it_is_ready", "status has had no answer for 0.2 s", hook_s=0.2)
class Hangs(Good):
    """``status`` waits for what never comes."""

    @hookimpl
    async def status(self) -> NetworkStatus:
        await asyncio.Event().wait()
        raise AssertionError


@caught_by("test_tells_that_it_is_ready", "status has held the event loop for")
class Blocks(Good):
    """``status`` holds up the loop for a second."""

    @hookimpl
    async def status(self) -> NetworkStatus:
        time.sleep(patient(0.6))
        return await super().status()


@caught_by("test_planning_touches_nothing", "planned0")
class PlanActs(Good):
    """``plan`` makes a link already."""

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        add_link("planned0")
        return await super().plan(request)


@caught_by("test_planning_touches_nothing", "not JSON serializable")
class PlanIsNoJson(Good):
    """A plan holds what can't be stored."""

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        return {**await super().plan(request), "netns": request.netns}


@caught_by("test_a_pod_that_goes_takes_nothing_of_others", "was given to another pod while it was in use")
class GivesBackAll(Good):
    """The end of one pod frees the addresses of all."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        made = await super().attach(request, plan)
        used = vars(self).setdefault("used", {})
        free = vars(self).pop("free", made.addresses)
        used[request.pod_id] = made.addresses
        return replace(made, addresses=free)

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await super().detach(request, data)
        used = vars(self).setdefault("used", {})
        used.pop(request.pod_id, None)
        if used:
            vars(self)["free"] = next(iter(used.values()))


@caught_by("test_the_pod_has_a_way_out", "has no default route")
class NoWayOut(Good):
    """Pods have an address, and no default route."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        made = await super().attach(request, plan)
        in_pod(request, "ip", "route", "delete", "default")
        return made


@caught_by("test_attaching_gives_addresses", "at least one address")
class NoAddress(Good):
    """A pod's addresses are not told."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        return replace(await super().attach(request, plan), addresses=())


@caught_by("test_attaching_gives_addresses", "does not appear to be an IPv4 or IPv6 address")
class WithPrefix(Good):
    """Addresses are told with the length of their prefix."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        attachment = await super().attach(request, plan)
        return replace(attachment, addresses=tuple(f"{one}/29" for one in attachment.addresses))


@caught_by("test_the_interface_and_loopback_are_up", "eth0 is down")
class InterfaceDown(Good):
    """The pod's interface is left down."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        attachment = await super().attach(request, plan)
        in_pod(request, "ip", "link", "set", request.interface, "down")
        return attachment


@caught_by("test_the_interface_and_loopback_are_up", "lo is down")
class LoopbackDown(Good):
    """The pod's loopback is left down."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        attachment = await super().attach(request, plan)
        in_pod(request, "ip", "link", "set", "lo", "down")
        return attachment


@caught_by("test_the_interface_has_the_name_that_is_asked_for", "'net7' in")
class InterfaceIgnored(Good):
    """The interface is called eth0, whatever its name is to be."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        request = replace(request, interface="eth0")
        return await super().attach(request, await super().plan(request))


@caught_by("test_the_pod_has_its_addresses", "annot assign requested address")
class OtherAddress(Good):
    """Another address is told than the pod has."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        return replace(await super().attach(request, plan), addresses=("192.0.2.9",))


@caught_by("test_the_node_reaches_the_pod", "timed out")
class Unreachable(Good):
    """Nothing that is sent to a pod arrives."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        attachment = await super().attach(request, plan)
        drop = "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }"
        in_pod(request, "nft", drop)
        return attachment


@caught_by("test_pods_at_the_same_time_differ", "an address was given twice")
class SameAddress(Good):
    """All pods are told the same address."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        return replace(await super().attach(request, plan), addresses=("10.88.77.2",))


@caught_by("test_a_host_port_leads_to_the_pod_as_long_as_it_is_attached", "refused")
class HostPortsNotServed(Good):
    """Port mappings are passed over."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        request = replace(request, port_mappings=())
        return await super().attach(request, await super().plan(request))


@caught_by("test_a_host_port_leads_to_the_pod_as_long_as_it_is_attached", "DID NOT RAISE")
class HostPortsNotFreed(Good):
    """What listens on a host port listens on when the pod is gone."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        self.left = socket.create_server(("0.0.0.0", request.port_mappings[0].host_port))
        return await super().attach(request, plan)


@caught_by("test_what_is_not_its_own_stays", "ipv4/ip_default_ttl")
class ChangesASysctl(Good):
    """A setting of the whole node is changed on the way."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        Path("/proc/sys/net/ipv4/ip_default_ttl").write_text("17")
        return await super().attach(request, plan)


@caught_by("test_what_is_not_its_own_stays", "has removed what is not its own")
class RemovesStrangers(Good):
    """It tidies up what is not its own."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        subprocess.run(["ip", "link", "delete", Strangers.LINK], check=True, timeout=20)
        return await super().attach(request, plan)


@caught_by("test_detaching_leaves_nothing", "links left")
class LeavesLinks(Good):
    """``detach`` leaves the pod's link."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        self.give_back(request.pod_id)


@caught_by("test_detaching_leaves_nothing", "rules left")
class LeavesRules(Good):
    """Each pod has a packet filter rule, which stays."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        subprocess.run(["nft", f"add table ip pod-{request.pod_id[:20]}"], check=True, timeout=20)
        return await super().attach(request, plan)


@caught_by("test_detaching_is_idempotent", "it is detached already")
class DetachesOnce(Good):
    """A second ``detach`` is an error."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if request.pod_id not in self.read():
            raise DriverError("it is detached already")
        await super().detach(request, data)


@caught_by("test_detaching_by_the_plan_alone", "links left")
class WantsTheAttachment(Good):
    """With the plan alone ``detach`` does nothing."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if "whole" in data:
            await super().detach(request, data)


@caught_by("test_detaching_what_was_never_attached", "nothing is known of it")
class RefusesTheUnknown(Good):
    """What was never attached is an error to detach."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if request.pod_id not in self.read():
            raise DriverError("nothing is known of it")
        await super().detach(request, data)


@caught_by("test_detaching_after_the_namespace_is_gone", "no namespace to enter")
class WantsTheNamespace(Good):
    """It enters the pod's namespace to detach, which may be gone."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if request.netns is None or not request.netns.is_mount():
            raise DriverError("no namespace to enter")
        await super().detach(request, data)


@caught_by("test_another_daemon_can_detach", "links left")
class Remembers(Good):
    """What is attached is in memory only."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.known: set[str] = set()

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        self.known.add(request.pod_id)
        return await super().attach(request, plan)

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if request.pod_id in self.known:
            await super().detach(request, data)


@caught_by("test_no_address_is_lost", "no address is left")
class LosesAddresses(Good):
    """Addresses are never given back."""

    def give_back(self, pod_id: str) -> None:
        """Forget to."""


@caught_by("test_no_address_is_lost_when_only_the_plan_is_known", "no address is left")
class LosesAddressesByThePlan(Good):
    """The address is given back by the attachment, not by the plan."""

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        await super().detach(request, data)
        if "whole" not in data:
            self.take(request.pod_id)


@caught_by("test_no_address_is_lost_when_only_the_plan_is_known", "no address is left")
class PlanTakesAnAddress(Good):
    """``plan`` takes an address under a name that ``detach`` does not know."""

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        self.take(f"planned-{request.pod_id}")
        return await super().plan(request)

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        self.give_back(f"planned-{request.pod_id}")
        return await super().attach(request, plan)


@caught_by("test_an_attachment_that_is_cancelled_is_undone", "no address is left")
class LosesAddressesWhenCancelled(Good):
    """Between two awaits of ``attach`` the address has no owner."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        self.take(f"early-{request.pod_id}")
        await asyncio.sleep(0)
        self.give_back(f"early-{request.pod_id}")
        return await super().attach(request, plan)


@caught_by("test_an_attachment_that_is_cancelled_is_undone", "links left.*attach was cancelled")
class LeavesALinkWhenCancelled(Good):
    """A thread makes a link, and whoever waits for it removes it, unless he is gone."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        await asyncio.sleep(0)
        await asyncio.to_thread(add_link, "early0")
        await asyncio.to_thread(subprocess.run, ["ip", "link", "delete", "early0"], check=True)
        return await super().attach(request, plan)


@caught_by("test_a_detachment_that_is_cancelled_can_be_done_again", "links left.*detach was cancelled")
class ForgetsTooEarly(Good):
    """``detach`` forgets the pod before it is done, and then thinks that it is."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.gone: set[str] = set()

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if request.pod_id in self.gone:
            return
        self.gone.add(request.pod_id)
        await asyncio.sleep(0)
        await super().detach(request, data)


@caught_by("test_check_accepts_an_attachment", "it looks odd")
class ChecksTooMuch(Good):
    """``check`` finds fault with what is right."""

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        raise DriverError("it looks odd")


@caught_by("test_garbage_collection_spares_what_is_owned", "lacks entries of pod owned")
class CollectsWhatIsOwned(Good):
    """Garbage collection removes pods that are there."""

    @hookimpl
    async def collect_garbage(self, valid: Any) -> None:
        for request, data in valid:
            await self.detach(request, data)


@caught_by("test_garbage_collection_removes_what_nobody_owns", "links left")
class CollectsNothing(Good):
    """Garbage collection removes nothing."""

    @hookimpl
    async def collect_garbage(self, valid: Any) -> None:
        """Look away."""


@caught_by("test_garbage_collection_removes_what_nobody_owns", "no address is left")
class CollectsNoAddresses(Good):
    """Garbage collection removes links, and forgets addresses."""

    @hookimpl
    async def collect_garbage(self, valid: Any) -> None:
        book = self.file.read_text()
        await super().collect_garbage(valid)
        self.file.write_text(book)


@caught_by("test_pod_cidrs_are_taken", "fd00:244:7::/64 is no range")
class OneFamily(Good):
    """The kubelet's range of IPv6 is refused."""

    @hookimpl
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        if any(":" in one for one in cidrs):
            raise DriverError(f"{cidrs[-1]} is no range")


@caught_by("test_a_pod_without_its_namespace_is_an_error", "DID NOT RAISE")
class AttachesNothing(Good):
    """A pod whose namespace is gone is attached all the same."""

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        try:
            return await super().attach(request, plan)
        except DriverError:
            return Attachment(("10.88.77.6",))
