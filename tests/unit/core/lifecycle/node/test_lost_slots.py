"""A slot that has gone from the configuration while pods use it is told at the start, with the pods."""

import logging

import pytest

from crinoid.core.api.config import NoOptions
from crinoid.core.api.testing.fakes import FakeNetwork, fake_host
from unit.core.lifecycle.conftest import FakeNode, a_pod


async def test_a_lost_slot_is_told_once_with_its_pods(fake_node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    pods = [await fake_node.now.pods.run(a_pod(f"pod{number}"), "") for number in range(7)]
    await fake_node.crash()
    with caplog.at_level(logging.ERROR):
        await fake_node.start()
    assert "is not in the configuration" not in caplog.text
    await fake_node.crash()
    fake_node.network = FakeNetwork(NoOptions(), fake_host(fake_node.directory, "other"))
    with caplog.at_level(logging.ERROR):
        await fake_node.start()
    (said,) = [one.getMessage() for one in caplog.records if "is not in the configuration" in one.getMessage()]
    assert said.startswith('network "default" is not in the configuration, and 7 pods use it (')
    assert sum(pod in said for pod in pods) == 5
    assert said.endswith(", …): put it back until they are removed")
