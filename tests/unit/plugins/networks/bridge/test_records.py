"""What is written down of a pod, and what is refused before anything is done."""

import ipaddress
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError, InvalidArgument
from crinoid.core.api.host import Host
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata, PortMapping, Protocol
from crinoid.plugins.networks.bridge.records import Names, Record, plan_record

RANGES = (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/64"))


def request(**more: Any) -> NetworkRequest:
    given = {"pod_id": "pod", "metadata": PodMetadata("p", "n", "u"), "netns": Path("/run/netns/pod"), **more}
    return NetworkRequest(**given)


def test_a_record_goes_through_json() -> None:
    plan = plan_record(request(port_mappings=(PortMapping(80, 8080),), ips=("10.0.0.7",)), names(), RANGES)
    full = plan.with_addresses([ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("fd00::2")])
    for record in (plan, full):
        assert Record.read(json.loads(json.dumps(record.write()))) == record
    assert full.mac == bytes.fromhex("02430a000007")


@pytest.mark.parametrize("change", [{"link": "eth0"}, {"buffer": "docker0"}, {"pod_id": "b"}, {"interface": "eth9"}])
def test_a_record_that_names_anothers_link_is_refused(change: dict[str, str]) -> None:
    record = plan_record(request(pod_id="a"), names(root="/elsewhere"), RANGES)
    record.require_own("a")
    with pytest.raises(DriverError, match="names what is another's"):
        record.model_copy(update=change).require_own("a")


def names(slot: str = "default", root: str = "/var/lib/crinoid/plugins/network") -> Names:
    return Names.of(Host(slot, Path(root, slot), Path("/run/x"), logging.getLogger("test")))


def test_names_fit_and_tell_slots_pods_and_daemons_apart() -> None:
    slots = ["default", "a", "a-name-of-which-nobody-thought-that-it-would-be-so-long", "cr-default"]
    several = [names(slot) for slot in slots] + [names(root="/elsewhere")]
    assert all(len(one.bridge.encode()) <= 15 for one in several)
    for field in ("table", "bridge", "port_prefix", "buffer_prefix", "bridge_mac"):
        assert len({getattr(one, field) for one in several}) == len(several)
    links = {plan_record(request(pod_id=pod), one, RANGES).link for pod in ("a", "b") for one in several}
    assert len(links) == 2 * len(several)
    assert all(len(link) == 15 for link in links)
    assert not any(one.bridge.startswith(one.port_prefix) for one in several), "rules for ports must spare the bridge"


def test_ports_without_a_host_port_are_left_out() -> None:
    assert plan_record(request(port_mappings=(PortMapping(80),)), names(), RANGES).ports == ()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"netns": None}, "pod pod has no network namespace"),
        ({"interface": "a-name-too-long-"}, "can't be the name of a network interface"),
        ({"interface": "../x"}, "can't be the name of a network interface"),
        ({"pod_id": ""}, "can't be recorded"),
        ({"ips": ("10.9.9.9",)}, "10.9.9.9, which is not in the node's ranges: 10.0.0.0/24, fd00::/64"),
        ({"ips": ("rubbish",)}, "asks for address 'rubbish'"),
        ({"ips": ("10.0.0.3", "10.0.0.4")}, "two addresses of one family"),
        ({"port_mappings": (PortMapping(80, 70000),)}, "port 70000"),
        ({"port_mappings": (PortMapping(0, 80),)}, "port 0"),
        ({"port_mappings": (PortMapping(80, 80, Protocol.TCP, "localhost"),)}, "host address of port 80"),
        ({"port_mappings": (PortMapping(80, 80), PortMapping(81, 80))}, "host port 80/tcp is asked for twice"),
    ],
)
def test_what_can_not_be_done_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        plan_record(request(**more), names(), RANGES)


@pytest.mark.parametrize("data", [{"pod_id": 7}, {"rubbish": []}, {"pod_id": "a", "addresses": ["x"]}])
def test_a_record_of_something_else(data: dict[str, object]) -> None:
    with pytest.raises(DriverError, match="does not parse"):
        Record.read(data)
