"""What is written down of a pod, and what is refused before anything is done."""

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError, InvalidArgument
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata, PortMapping, Protocol
from crinoid.plugins.networks.bridge.records import Record, bridge_name, plan_record, port_prefix

RANGES = (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/64"))


def request(**more: Any) -> NetworkRequest:
    given = {"pod_id": "pod", "metadata": PodMetadata("p", "n", "u"), "netns": Path("/run/netns/pod"), **more}
    return NetworkRequest(**given)


def test_a_record_goes_through_json() -> None:
    plan = plan_record(request(port_mappings=(PortMapping(80, 8080),), ips=("10.0.0.7",)), "default", RANGES)
    full = plan.with_addresses([ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("fd00::2")])
    for record in (plan, full):
        assert Record.read(json.loads(json.dumps(record.write()))) == record
    assert full.mac == bytes.fromhex("02430a000007")


def test_names_fit_and_tell_slots_and_pods_apart() -> None:
    slots = ["default", "a", "a-name-of-which-nobody-thought-that-it-would-be-so-long", "cr-default"]
    assert all(len(bridge_name(slot).encode()) <= 15 for slot in slots)
    assert len({bridge_name(slot) for slot in slots}) == len({port_prefix(slot) for slot in slots}) == len(slots)
    links = {plan_record(request(pod_id=pod), slot, RANGES).link for pod in ("a", "b") for slot in slots}
    assert len(links) == 8
    assert all(len(link) == 15 and not link.startswith("cr-") for link in links)


def test_ports_without_a_host_port_are_left_out() -> None:
    assert plan_record(request(port_mappings=(PortMapping(80),)), "default", RANGES).ports == ()


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
        plan_record(request(**more), "default", RANGES)


@pytest.mark.parametrize("data", [{"pod_id": 7}, {"rubbish": []}, {"pod_id": "a", "addresses": ["x"]}])
def test_a_record_of_something_else(data: dict[str, object]) -> None:
    with pytest.raises(DriverError, match="does not parse"):
        Record.read(data)
