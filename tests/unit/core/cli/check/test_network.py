"""What ``crinoid check`` says of the network ``auto`` on a node with a kubelet."""

import pytest

from crinoid.core.cli.check.network import judge_auto


@pytest.mark.parametrize(
    ("options", "has_kubelet", "warned"),
    [({}, True, True), ({"fallback": "bridge"}, True, True), ({"fallback": "none"}, True, False), ({}, False, False)],
)
def test_pods_on_the_bridge_of_a_clusters_node(options: dict[str, object], has_kubelet: bool, warned: bool) -> None:
    found = list(judge_auto(options, has_kubelet))
    assert bool(found) == warned
    assert not found or 'network.options.fallback = "none"' in found[0].advice
