"""What a result says, in every version."""

import json

import pytest

from crinoid.core.api.values.pod import DnsConfig
from crinoid.plugins.networks.cni.results import (
    InvalidResult,
    convert,
    dns_of,
    pod_addresses,
    read_result,
    sort_addresses,
)

OLD = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.0.5/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": {"nameservers": ["10.1.0.1"]},
}
MIDDLE = {
    "cniVersion": "0.4.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [
        {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 0},
        {"version": "6", "address": "fd00::5/64", "interface": 0},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
    "dns": {"nameservers": ["10.1.0.1"]},
}


def test_the_oldest_form_becomes_the_newest() -> None:
    newest = convert(OLD, "0.2.0", "1.1.0")
    assert newest["ips"] == [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]
    assert newest["routes"] == MIDDLE["routes"]
    assert newest["cniVersion"] == "1.1.0"
    assert not newest.keys() & {"ip4", "ip6"}


def test_the_middle_form_becomes_the_newest_and_back() -> None:
    newest = convert(MIDDLE, "0.4.0", "1.0.0")
    assert all("version" not in item for item in newest["ips"])
    assert convert(newest, "1.0.0", "0.4.0") == MIDDLE


def test_the_middle_form_becomes_the_oldest() -> None:
    assert convert(MIDDLE, "0.4.0", "0.2.0") == OLD


def test_keys_that_nobody_knows_are_kept() -> None:
    assert convert({**MIDDLE, "own": {"x": 1}}, "0.4.0", "1.1.0")["own"] == {"x": 1}


def test_a_result_without_version_is_of_the_version_that_was_asked_for() -> None:
    assert read_result(json.dumps(OLD | {"cniVersion": ""}).encode(), "0.2.0")["cniVersion"] == "0.2.0"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b"", "printed no CNI result but nothing"),
        (b"Segmentation fault\n", "printed no CNI result but 'Segmentation fault'"),
        (b"\xff\xfe", "printed no CNI result but "),
        (b"[]", r"printed no CNI result but '\[\]'"),
        (b"x" * 500, r"printed no CNI result but 'x{200}'… \(500 bytes\)"),
        (b'{"cniVersion": "7.0.0"}', "of the unknown CNI version '7.0.0'"),
        (b'{"ips": [{"address": "ten"}]}', "invalid CNI result: 'ten' does not appear to be"),
        (b'{"ips": [{"gateway": "10.0.0.1"}]}', "invalid CNI result: ips.0.address: Field required"),
        (b'{"ips": "10.0.0.1"}', "invalid CNI result: ips: "),
        (b'{"ips": ["10.0.0.1/8"], "routes": [1]}', r"invalid CNI result: ips\.0: "),
        (b'{"cniVersion": "0.2.0", "ip4": 7}', "invalid CNI result: ip4: "),
        (b'{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8", "routes": 7}}', r"invalid CNI result: ip4\.routes: "),
    ],
)
def test_what_is_no_result_is_refused(output: bytes, reason: str) -> None:
    with pytest.raises(InvalidResult, match=reason):
        read_result(output, "1.0.0")


def test_addresses_of_the_host_and_of_other_interfaces_are_not_the_pods() -> None:
    answer = {
        "interfaces": [
            {"name": "br0"},
            {"name": "eth0", "sandbox": "/run/netns/x"},
            {"name": "net1", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.1.0.1/24", "interface": 0},
            {"address": "fd00::5/64", "interface": 1},
            {"address": "10.2.0.9/24", "interface": 2},
            {"address": "10.1.0.5/24", "interface": 1},
            {"address": "10.3.0.5/24"},
        ],
    }
    assert pod_addresses(answer, "1.0.0", "eth0") == ("fd00::5", "10.1.0.5", "10.3.0.5")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_addresses_of_the_oldest_form(version: str) -> None:
    assert pod_addresses(OLD, version, "eth0") == ("10.1.0.5", "fd00::5")


def test_one_family_can_be_put_first() -> None:
    mixed = ("fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2")
    assert sort_addresses(mixed, None) == mixed
    assert sort_addresses(mixed, 4) == ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")
    assert sort_addresses(mixed, 6) == ("fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2")


def test_dns_of_a_result() -> None:
    dns = {"nameservers": ["10.0.0.10"], "domain": "a.example", "search": ["b.example"], "options": ["ndots:5"]}
    assert dns_of({"dns": dns}) == DnsConfig(("10.0.0.10",), ("a.example", "b.example"), ("ndots:5",))
    assert dns_of({"dns": {}}) is None
    assert dns_of({}) is None
