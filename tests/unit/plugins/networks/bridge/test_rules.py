"""The text of the tables, and what a pod puts into their sets and maps."""

import ctypes
import ipaddress
from ctypes.util import find_library
from pathlib import Path

import pytest

from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata, PortMapping, Protocol
from crinoid.plugins.networks.bridge import rules
from crinoid.plugins.networks.bridge.nftables import BRIDGE, INET, Element
from crinoid.plugins.networks.bridge.records import Names, Record, plan_record
from crinoid.plugins.networks.bridge.rules import Surroundings, pod_elements, write_ruleset

NAMES = Names("crinoid_default", "cb1234-default", "cr1234", "ci1234", bytes.fromhex("064300000001"))
RANGES = (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/64"))


def surroundings(**more: object) -> Surroundings:
    given = {
        "table": "crinoid_default",
        "bridge": "cr-default",
        "port_prefix": "cr1234",
        "bridge_mac": bytes.fromhex("064300000001"),
        "ranges": RANGES,
        **more,
    }
    return Surroundings(**given)  # type: ignore[arg-type]


def record(*ports: PortMapping) -> Record:
    request = NetworkRequest(
        pod_id="pod", metadata=PodMetadata("p", "n", "u"), netns=Path("/run/netns/pod"), port_mappings=ports
    )
    addresses = [ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("fd00::2")]
    return plan_record(request, NAMES, RANGES).with_addresses(addresses)


@pytest.mark.skipif(find_library("nftables") is None, reason="wants libnftables1")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"masquerade": False},
        {"ranges": RANGES[:1]},
        {"ranges": RANGES[1:]},
        {"unmasqueraded": (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))},
        {"table": "crinoid_A.slot-with_all.kinds-of-letters-1"},
    ],
)
def test_libnftables_understands_the_text(more: dict[str, object]) -> None:
    """Only parsed and evaluated: a dry run, in a cache that need not be filled."""
    library = ctypes.CDLL(find_library("nftables"))
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    library.nft_ctx_set_dry_run(context, ctypes.c_bool(True))
    library.nft_ctx_buffer_error(context)
    failed = library.nft_run_cmd_from_buffer(
        context, ctypes.c_char_p(write_ruleset(surroundings(**more)).commands.encode())
    )
    said = library.nft_ctx_get_error_buffer(context).decode()
    library.nft_ctx_free(context)
    if "Operation not permitted" in said:
        pytest.skip("wants root")
    assert not failed, said


def test_the_marker_tells_texts_apart() -> None:
    first, second = write_ruleset(surroundings()), write_ruleset(surroundings(masquerade=False))
    assert first.marker != second.marker
    assert f"add chain inet crinoid_default {first.marker}\n" in first.commands
    assert first == write_ruleset(surroundings())
    assert first.rules[INET] == second.rules[INET] + 2


def test_ranges_that_lie_in_others_are_left_out() -> None:
    text = write_ruleset(surroundings(unmasqueraded=(ipaddress.ip_network("10.0.0.0/8"),))).commands
    assert "set ranges4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/24 }; }" in text
    assert "set near4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }" in text
    assert "set ranges6 { type ipv6_addr; flags interval; }" in write_ruleset(surroundings(ranges=RANGES[:1])).commands


def test_a_pod_is_its_link_mac_and_addresses() -> None:
    pod = record()
    name = pod.link.encode().ljust(16, b"\0")
    senders = {element.key for element in pod_elements(pod) if element.place.family == BRIDGE}
    assert senders == {
        name + bytes.fromhex("02430a000002") + b"\0\0" + ipaddress.ip_address(address).packed
        for address in ("10.0.0.2", "fd00::2", "fe80::43:aff:fe00:2")
    }
    assert Element(rules.HAIRPINS[4], bytes.fromhex("0a0000020a000002")) in pod_elements(pod)


def test_host_ports_by_family_and_address() -> None:
    pod = record(
        PortMapping(80, 8080),
        PortMapping(53, 8053, Protocol.UDP, "127.0.0.1"),
        PortMapping(99, 9999, Protocol.SCTP, "::"),
    )
    ports = {e: d for e, d in pod_elements(pod).items() if "ports" in e.place.name}
    four, six = (ipaddress.ip_address(address).packed for address in ("10.0.0.2", "fd00::2"))
    assert ports == {
        Element(rules.PORTS[4], bytes.fromhex("060000001f900000")): four + bytes.fromhex("00500000"),
        Element(rules.PORTS[6], bytes.fromhex("060000001f900000")): six + bytes.fromhex("00500000"),
        Element(rules.ADDRESS_PORTS[4], bytes.fromhex("7f000001110000001f750000")): four + bytes.fromhex("00350000"),
        Element(rules.PORTS[6], bytes.fromhex("84000000270f0000")): six + bytes.fromhex("00630000"),
    }


def test_a_plan_has_no_elements() -> None:
    assert pod_elements(record(PortMapping(80, 8080)).with_addresses(())) == {}
