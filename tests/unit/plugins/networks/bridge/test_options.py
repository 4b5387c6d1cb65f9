"""The options, and what they say when they are wrong; and a host without libnftables."""

import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.host import Host
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions, nftables


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("default", tmp_path, tmp_path, logging.getLogger("test"))


@pytest.mark.parametrize(
    ("subnets", "said"),
    [
        (("10.0.0.1/24",), "has host bits set"),
        (("10.0.0.0/31",), "has no room for a gateway and pods"),
        (("10.0.0.0/24", "10.0.1.0/24"), "at most one of each family"),
        (("here",), "does not appear to be"),
    ],
)
def test_subnets_that_can_not_be(subnets: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BridgeOptions(subnets=subnets)


async def test_ranges_configured_told_and_built_in(host: Host) -> None:
    request = NetworkRequest(pod_id="p", metadata=PodMetadata("p", "n", "u"), netns=Path("/run/p"))

    async def ranges(driver: BridgeNetwork) -> object:
        return (await driver.plan(request))["ranges"]

    configured = BridgeNetwork(BridgeOptions(subnets=("10.7.0.0/24",)), host)
    await configured.set_pod_cidrs(("10.8.0.0/24",))
    assert await ranges(configured) == ["10.7.0.0/24"]
    told = BridgeNetwork(BridgeOptions(), host)
    built_in = await ranges(told)
    assert isinstance(built_in, list)
    assert built_in[0] == "10.241.0.0/24"
    await told.set_pod_cidrs(("fd08::/64", "10.8.0.7/24", "10.9.0.0/24"))
    assert await ranges(told) == ["fd08::/64", "10.8.0.0/24"], "one of each family, as the kubelet orders them"
    with pytest.raises(InvalidArgument, match=r"pod CIDR 10.0.0.0/32: has no room"):
        await told.set_pod_cidrs(("10.0.0.0/32",))


async def test_a_host_without_libnftables(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "libnot-there.so.1")
    nftables.load_library.cache_clear()
    try:
        status = await BridgeNetwork(BridgeOptions(), host).status()
    finally:
        nftables.load_library.cache_clear()
    assert (status.ready, status.reason) == (False, "NetworkLibraryMissing")
    assert "install the package libnftables1" in status.message
