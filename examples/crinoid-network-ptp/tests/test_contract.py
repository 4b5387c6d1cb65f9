"""The contract of crinoid's network role, applied to this driver, and what is its own."""

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from crinoid_network_ptp import PtpNetwork, PtpOptions

from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.api.host import Host
from crinoid.core.api.testing.networks import BoundNetwork, NetworkContract
from crinoid.core.api.values.network import NetworkRequest


class TestPtp(NetworkContract):
    most_pods = 5  # a /29 has six addresses, one of them the node's
    has_host_ports = False
    has_garbage_collection = False

    def make_driver(self, host: Host) -> object:
        return PtpNetwork(PtpOptions(subnet=IPv4Network("10.89.77.0/29")), host)

    @pytest.fixture
    def full_subnet(self, network: BoundNetwork, host: Host) -> None:
        for last in range(2, 7):
            Path(host.state_dir, "addresses", f"10.89.77.{last}").symlink_to(f"other-{last}")

    @pytest.mark.usefixtures("full_subnet")
    async def test_a_full_subnet_is_an_error(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        plan = await network.plan(request_a)
        with pytest.raises(ResourceExhausted, match=r"all addresses of 10\.89\.77\.0/29"):
            await network.attach(request_a, plan)
        await network.detach(replace(request_a, pod_id="other-4"), plan)
        assert (await network.attach(request_a, plan)).addresses == ("10.89.77.4",)
        await network.detach(request_a, plan)
