"""The contract of the network role, applied to this driver beside a real IPAM, and what is its own."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from crinoid_network_ipam import IpamNetwork, IpamOptions
from crinoid_network_ipam.protocol import ask
from crinoid_network_ipam.server import Ipam, Server

from crinoid.core.api.errors import DriverError, ResourceExhausted
from crinoid.core.api.host import Host
from crinoid.core.api.testing.networks import BoundNetwork, NetworkContract
from crinoid.core.api.values.network import NetworkRequest


class TestIpam(NetworkContract):
    most_pods = 5  # a /29 has six addresses, one of them the node's
    has_host_ports = False

    @pytest.fixture(autouse=True)
    def ipam(self, tmp_path: Path) -> Iterator[Path]:
        """Where an IPAM serves."""
        self.place = tmp_path / "ipam.sock"
        with Server(self.place, Ipam(IPv4Network("10.89.79.0/29"), tmp_path / "ipam.json")) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            yield self.place
            server.shutdown()
            thread.join()

    def make_driver(self, host: Host) -> object:
        return IpamNetwork(IpamOptions(socket=self.place, owner="here"), host)

    async def test_no_address_is_left(
        self, network: BoundNetwork, make_request: Callable[[str], NetworkRequest], ipam: Path
    ) -> None:
        for number in range(self.most_pods):
            ask(str(ipam), {"act": "allocate", "owner": "other", "token": str(number)}, 5.0)
        request = make_request("a")
        plan = await network.plan(request)
        with pytest.raises(ResourceExhausted, match=r"no address of 10\.89\.79\.0/29 is free"):
            await network.attach(request, plan)
        await network.call("collect_garbage", valid=())
        assert len(ask(str(ipam), {"act": "list", "owner": "other"}, 5.0)["tokens"]) == 5  # type: ignore[arg-type]
        await network.detach(request, plan)

    async def test_an_address_that_is_asked_for(self, network: BoundNetwork, request_a: NetworkRequest) -> None:
        request = replace(request_a, ips=("10.89.79.5",))
        attachment = await network.attach(request, await network.plan(request))
        assert attachment.addresses == ("10.89.79.5",)
        await network.detach(request, attachment.data)

    async def test_what_was_given_back_is_not_taken_again(self, ipam: Path, tmp_path: Path) -> None:
        """An IPAM may hear of the end of a pod that was given up before it hears of its beginning, and restart."""
        ask(str(ipam), {"act": "release", "token": "t"}, 5.0)
        late = {"act": "allocate", "owner": "here", "token": "t"}
        with pytest.raises(DriverError, match="token t was released"):
            ask(str(ipam), late, 5.0)
        again = Ipam(IPv4Network("10.89.79.0/29"), tmp_path / "ipam.json")
        assert "error" in again.answer(late)

    async def test_without_an_ipam(self, host: Host, request_a: NetworkRequest, tmp_path: Path) -> None:
        network = BoundNetwork(IpamNetwork(IpamOptions(socket=tmp_path / "nowhere.sock"), host))
        status = await network.call("status")
        assert (status.ready, status.reason) == (False, "IpamUnavailable")
        plan = await network.plan(request_a)
        with pytest.raises(DriverError, match=r"nowhere\.sock can't be asked"):
            await network.attach(request_a, plan)
