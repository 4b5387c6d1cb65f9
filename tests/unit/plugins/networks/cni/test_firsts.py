"""Pods that come at the same time to plugins which make what all of them share."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PortMapping
from crinoid.plugins.networks.cni.firsts import Firsts
from crinoid.plugins.networks.cni.plans import NetworkPlan, Plan
from support.cni import Node, quote, result

RACY = """#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then printf '{{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}}'; exit 0; fi
[ "$CNI_COMMAND" = ADD ] || exit 0
grep -q '"hostPort"' && chain={directory}/ports || chain={directory}/chain
[ -e "$chain" ] || {{ sleep 0.1; mkdir "$chain" || exit 1; }}
printf '%s' {answer}
"""
"""Sees that a chain is missing, and fails where another one made it meanwhile."""


def plan(*capabilities: str) -> Plan:
    networks = (
        NetworkPlan(file="f", text="t", version="1.0.0", interface="eth0", capabilities=dict.fromkeys(capabilities, 1)),
    )
    return Plan(container_id="c", netns="n", args="", bin_dirs=(), networks=networks)


async def test_many_first_pods_at_once(node: Node, make_request: Callable[..., NetworkRequest]) -> None:
    script = RACY.format(directory=node.root, answer=quote(json.dumps(result("10.1.0.5/24"))))
    node.write_script("racy", script)
    node.configure_chain({"type": "racy", "capabilities": {"portMappings": True}})
    driver: Any = node.driver()

    async def attach(number: int) -> None:
        ports = (PortMapping(80, 8000 + number),) if number % 2 else ()
        request = make_request(f"pod{number}", port_mappings=ports)
        await driver.attach(request, await driver.plan(request))

    await asyncio.gather(*(attach(number) for number in range(8)))


async def test_the_others_go_on_together_when_the_first_is_done() -> None:
    firsts, inside, most = Firsts(), 0, 0
    order: list[int] = []

    async def attach() -> None:
        nonlocal inside, most
        async with firsts.alone_if_first(plan()):
            inside += 1
            order.append(inside)
            most = max(most, inside)
            for _ in range(5):
                await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(attach() for _ in range(4)))
    assert order == [1, 1, 2, 3]
    async with firsts.alone_if_first(plan()), firsts.alone_if_first(plan()):
        """What is known waits for nobody."""


async def test_a_first_that_fails_leaves_its_place_to_the_next() -> None:
    firsts = Firsts()
    with pytest.raises(DriverError):
        async with firsts.alone_if_first(plan("dns")):
            raise DriverError("no")
    async with firsts.alone_if_first(plan("dns")):
        waiting = asyncio.create_task(enter(firsts, "dns"))
        other = asyncio.create_task(enter(firsts, "ips"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not other.done()
    await asyncio.wait_for(asyncio.gather(waiting, other), 60)


async def enter(firsts: Firsts, *capabilities: str) -> None:
    async with firsts.alone_if_first(plan(*capabilities)):
        await asyncio.sleep(0)
