"""Which network is chosen, where it is said, and that the other one's pods are still its own."""

import logging
from pathlib import Path

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.host import Host
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from crinoid.plugins.networks.auto import AutoNetwork, AutoOptions
from crinoid.plugins.networks.cni import CniOptions
from support.cni import Node

REQUEST = NetworkRequest(pod_id="pod", metadata=PodMetadata("p", "n", "u"), netns=Path("/run/netns/pod"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def make_driver(node: Node) -> AutoNetwork:
    host = Host("default", node.root / "state", node.root / "run", logging.getLogger("test-auto"))
    cni = CniOptions(conf_dir=node.conf_dir, bin_dirs=(node.root / "bin",), loopback=False)
    return AutoNetwork(AutoOptions(cni=cni), host)


@pytest.mark.parametrize(
    ("file", "chosen"),
    [("", "bridge"), ("10-a.conflist", "cni"), ("a.conf", "cni"), ("a.json", "cni"), ("README.txt", "bridge")],
)
def test_a_configuration_decides(file: str, chosen: str, node: Node, caplog: pytest.LogCaptureFixture) -> None:
    if file:
        (node.conf_dir / file).write_text("whatever it says")
    with caplog.at_level(logging.INFO):
        assert make_driver(node).chosen == chosen
    assert f"network {chosen}: there is {'a' if chosen == 'cni' else 'no'} CNI configuration in" in caplog.text


def test_no_directory_is_no_configuration(node: Node) -> None:
    node.conf_dir.rmdir()
    assert make_driver(node).chosen == "bridge"


async def test_a_configuration_that_is_wrong_is_not_passed_over(node: Node) -> None:
    """The administrator meant CNI: the status says what is wrong with it."""
    (node.conf_dir / "10-a.conflist").write_text("not JSON")
    status = await make_driver(node).status()
    assert (status.ready, status.reason) == (False, "NoNetworkConfiguration")
    assert "10-a.conflist" in status.message


async def test_a_pod_stays_with_the_driver_that_attached_it(node: Node) -> None:
    before = make_driver(node)
    plan = await before.plan(REQUEST)
    assert plan["driver"] == "bridge"
    (node.conf_dir / "10-a.conflist").write_text("{}")
    after = make_driver(node)
    assert after.chosen == "cni"
    await after.detach(REQUEST, plan)  # the bridge's, and by CNI it would not parse
    await after.detach(REQUEST, {})


async def test_records_of_before_the_driver_was_auto(node: Node) -> None:
    driver = make_driver(node)
    marked = await driver.plan(REQUEST)
    assert isinstance(marked["data"], dict)
    await driver.detach(REQUEST, marked["data"])
    of_cni = {"container_id": "pod", "netns": "/run/netns/pod", "args": "", "bin_dirs": [], "networks": []}
    await driver.detach(REQUEST, of_cni)


@pytest.mark.parametrize("data", [{"driver": "other", "data": {}}, {"driver": "cni"}, {"pod_id": "x"}])
async def test_a_record_of_something_else(data: dict[str, object], node: Node) -> None:
    with pytest.raises(DriverError, match="not one of the auto network"):
        await make_driver(node).detach(REQUEST, data)
