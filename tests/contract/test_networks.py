"""The contract of the network role, applied to our own drivers; ``cni`` runs Debian's containernetworking-plugins."""

import ipaddress
import json
import os
import subprocess
from ctypes.util import find_library
from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.host import Host
from crinoid.core.api.testing.networks import BoundNetwork, NetworkContract, Strangers, fresh_network_namespace
from crinoid.core.api.values.network import NetworkRequest
from crinoid.plugins.networks.auto import AutoNetwork, AutoOptions
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions
from crinoid.plugins.networks.cni import CniNetwork, CniOptions
from crinoid.plugins.networks.host import HostNetwork, HostOptions

PLUGINS = Path("/usr/lib/cni")


RANGES = {4: [{"subnet": "10.88.77.0/29"}], 6: [{"subnet": "fd00:88:77::/125"}]}
MOST_PODS = 5  # that is what these ranges have, without the gateway
ROUTES = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING = {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}}


def write_bridge_list(
    host: Host, version: str, families: tuple[int, ...], *chained: object, masquerade: bool = False
) -> CniOptions:
    """Write a bridge, whose state lies in the test's directory, and the plugins after it."""
    ipam = {
        "type": "host-local",
        "dataDir": str(host.state_dir / "addresses"),
        "ranges": [RANGES[family] for family in families],
        "routes": [ROUTES[family] for family in families],
    }
    bridge = {"type": "bridge", "bridge": "cni-contract", "isGateway": True, "ipMasq": masquerade, "ipam": ipam}
    directory = host.state_dir / "net.d"
    directory.mkdir(exist_ok=True)
    content = {
        "cniVersion": version,
        "name": "contract",
        "disableCheck": PORTMAP in chained,  # portmap 1.1.1 looks for rules that it doesn't make
        "plugins": [bridge, *chained],
    }
    (directory / "10-contract.conflist").write_text(json.dumps(content))
    return CniOptions(conf_dir=directory, bin_dirs=(PLUGINS,))


needs_plugins = pytest.mark.skipif(not (PLUGINS / "bridge").exists(), reason="wants containernetworking-plugins")


@needs_plugins
class TestCni(NetworkContract):
    """Dual-stack, in the newest version that Debian's plugins speak."""

    most_pods = MOST_PODS
    has_garbage_collection = False  # Debian's plugins are older than the verb GC

    def make_driver(self, host: Host) -> object:
        return CniNetwork(write_bridge_list(host, "1.0.0", (4, 6), PORTMAP, BANDWIDTH), host)

    async def test_a_pod_is_dual_stack_in_the_order_of_the_configuration(
        self, network: BoundNetwork, request_a: NetworkRequest
    ) -> None:
        attachment = await network.attach(request_a, await network.plan(request_a))
        assert [ipaddress.ip_address(address).version for address in attachment.addresses] == [4, 6]
        await network.detach(request_a, attachment.data)

    async def test_the_bandwidth_is_limited(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        attachment = await network.attach(request_a, await network.plan(request_a))
        limits = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
        assert "rate 10Mbit" in limits
        await network.detach(request_a, attachment.data)


@needs_plugins
class TestCniOfVersion04(NetworkContract):
    """With masquerading, and with CHECK."""

    most_pods = MOST_PODS
    has_garbage_collection = False  # Debian's plugins are older than the verb GC
    has_host_ports = False  # no plugin for them is in the list

    def make_driver(self, host: Host) -> object:
        return CniNetwork(write_bridge_list(host, "0.4.0", (4,), TUNING, masquerade=True), host)

    @pytest.mark.skip(reason="bridge 1.1.1 forgets its masquerading rules when the namespace is gone")
    async def test_detaching_after_the_namespace_is_gone(self) -> None:  # type: ignore[override]
        """Shown without masquerading in the other classes."""

    async def test_check_sees_that_the_interface_is_gone(
        self, network: BoundNetwork, request_a: NetworkRequest
    ) -> None:
        attachment = await network.attach(request_a, await network.plan(request_a))
        subprocess.run(["nsenter", f"--net={request_a.netns}", "ip", "link", "del", "eth0"], check=True)
        with pytest.raises(DriverError, match=r"plugin bridge .* CHECK"):
            await network.call("check", request=request_a, data=attachment.data)
        await network.detach(request_a, attachment.data)


@needs_plugins
class TestCniOfVersion03(NetworkContract):
    """Versions below 0.4.0 get no result at DEL and have no CHECK; IPv6 first; no loopback plugin."""

    most_pods = MOST_PODS
    has_garbage_collection = False  # Debian's plugins are older than the verb GC
    has_host_ports = False  # no plugin for them is in the list

    def make_driver(self, host: Host) -> object:
        directory = host.state_dir / "bin"
        directory.mkdir(exist_ok=True)
        for name in ("bridge", "host-local", "tuning"):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(PLUGINS / name)
        options = write_bridge_list(host, "0.3.1", (6, 4), TUNING)
        return CniNetwork(options.model_copy(update={"bin_dirs": (directory,)}), host)


@pytest.mark.skipif(find_library("nftables") is None, reason="wants libnftables1")
class TestBridge(NetworkContract):
    """Dual-stack, in ranges so small that a lost address shows."""

    most_pods = MOST_PODS

    def make_driver(self, host: Host) -> object:
        return BridgeNetwork(BridgeOptions(subnets=("10.88.77.0/29", "fd00:88:77::/125")), host)


@pytest.mark.skipif(find_library("nftables") is None, reason="wants libnftables1")
class TestAutoWithoutConfiguration(NetworkContract):
    """The bridge, by way of the driver that chooses."""

    most_pods = MOST_PODS

    def make_driver(self, host: Host) -> object:
        bridge = BridgeOptions(subnets=("10.88.77.0/29", "fd00:88:77::/125"))
        return AutoNetwork(AutoOptions(cni=CniOptions(conf_dir=host.state_dir / "none"), bridge=bridge), host)


@needs_plugins
class TestAutoWithConfiguration(NetworkContract):
    """CNI, by way of the driver that chooses."""

    most_pods = MOST_PODS
    has_garbage_collection = False  # Debian's plugins are older than the verb GC
    has_host_ports = False  # no plugin for them is in the list

    def make_driver(self, host: Host) -> object:
        return AutoNetwork(AutoOptions(cni=write_bridge_list(host, "1.0.0", (4, 6))), host)


@pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root")
@pytest.mark.parametrize("act", [["ip", "link", "del", Strangers.LINK], ["nft", "flush", "ruleset"]], ids=" ".join)
def test_a_driver_that_harms_others_is_found(act: list[str]) -> None:
    with fresh_network_namespace():
        strangers = Strangers()
        strangers.check()
        subprocess.run(act, check=True)
        with pytest.raises(AssertionError, match=r"not its own: .*stranger"):
            strangers.check()


class TestHost(NetworkContract):
    has_host_ports = False
    has_garbage_collection = False

    def make_driver(self, host: Host) -> object:
        return HostNetwork(HostOptions(), host)
