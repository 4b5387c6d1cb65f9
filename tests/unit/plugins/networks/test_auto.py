"""Which network is chosen, where it is said, and that the other one's pods are still its own."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError, Unavailable
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


def make_driver(node: Node, **options: Any) -> AutoNetwork:
    host = Host("default", node.root / "state", node.root / "run", logging.getLogger("test-auto"))
    cni = CniOptions(conf_dir=node.conf_dir, bin_dirs=(node.root / "bin",), loopback=False)
    return AutoNetwork(AutoOptions(cni=cni, **options), host)


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


async def test_new_pods_move_over_when_a_configuration_comes(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.add_working_plugin("first")
    driver = make_driver(node)
    before = await driver.plan(REQUEST)
    node.configure_chain("first")
    with caplog.at_level(logging.INFO):
        after = await driver.plan(REQUEST)
    assert (before["driver"], after["driver"], driver.chosen) == ("bridge", "cni", "cni")
    assert "network cni for new pods: there is a CNI configuration in" in caplog.text
    await driver.detach(REQUEST, before)  # the bridge's still
    await driver.close()


async def test_it_stays_with_cni_while_an_add_on_is_replaced(node: Node) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first")
    driver = make_driver(node)
    assert (await driver.status()).ready
    (node.conf_dir / "10-x.conflist").unlink()
    status = await driver.status()
    assert (status.ready, status.reason) == (False, "NoNetworkConfiguration")
    await driver.close()


async def test_it_stays_with_cni_at_a_start_while_pods_are_attached_by_it(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make_driver(node)
    attached = {"container_id": "pod", "netns": "/run/netns/pod", "args": "", "bin_dirs": [], "networks": []}
    await driver.collect_garbage(((REQUEST, {"driver": "cni", "data": attached}),))
    assert driver.chosen == "cni"
    assert "is gone, and pods are attached by it" in caplog.text
    await driver.close()


async def test_without_fallback_pods_wait_for_a_configuration(node: Node) -> None:
    node.add_working_plugin("first")
    driver = make_driver(node, fallback="none")
    status = await driver.status()
    assert (status.ready, status.reason) == (False, "NoNetworkConfiguration")
    assert str(node.conf_dir) in status.message
    with pytest.raises(Unavailable, match="no CNI configuration"):
        await driver.plan(REQUEST)
    node.configure_chain("first")
    assert (await driver.status()).ready
    await driver.close()


async def test_the_move_is_in_the_log_when_it_happens(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing asks: the directory is watched, and even made only now."""
    node.conf_dir.rmdir()
    driver = make_driver(node)
    await driver.status()
    node.conf_dir.mkdir()
    node.configure_chain("first")
    with caplog.at_level(logging.INFO):
        for _ in range(6000):
            if driver.chosen == "cni" and "CNI networks in" in caplog.text:
                break
            await asyncio.sleep(0.01)
    assert "network cni for new pods" in caplog.text
    assert "blue (10-x.conflist)" in caplog.text
    await driver.close()


async def test_address_ranges_reach_the_network_that_comes_later(node: Node) -> None:
    node.add_working_plugin("first")
    driver = make_driver(node)
    await driver.set_pod_cidrs(("10.9.0.0/24",))
    node.configure_chain({"type": "first", "capabilities": {"ipRanges": True}})
    plan = await driver.plan(REQUEST)
    assert "10.9.0.0/24" in str(plan)
    await driver.close()
