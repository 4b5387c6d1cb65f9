"""The addresses that pods on the host's network get."""

import logging
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from crinoid.core.api.host import Host
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodMetadata
from crinoid.plugins.networks import host as module
from crinoid.plugins.networks.host import HostNetwork, HostOptions, find_addresses

REQUEST = NetworkRequest(pod_id="p", metadata=PodMetadata("web", "shop", "u"), netns=None)


def make(tmp_path: Path, **options: object) -> HostNetwork:
    return HostNetwork(HostOptions.model_validate(options), Host("t", tmp_path, tmp_path, logging.getLogger()))


async def test_the_configured_addresses_come_before_the_found(tmp_path: Path) -> None:
    driver = make(tmp_path, addresses=["192.0.2.7", "2001:DB8::7"])
    plan = await driver.plan(REQUEST)
    assert (await driver.attach(REQUEST, plan)).addresses == ("192.0.2.7", "2001:db8::7")


def test_an_address_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        make(tmp_path, addresses=["node.example"])


def test_found_addresses_are_the_hosts_own() -> None:
    for address in find_addresses():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))


def test_a_host_without_routes_has_its_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ELSEWHERE", ((socket.AF_INET, "no address"), (socket.AF_INET6, "no address")))
    assert find_addresses() == ("127.0.0.1",)
