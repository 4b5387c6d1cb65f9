"""What a kubelet reads unasked is in every statistic, whatever could be read of a pod; the rules can fail."""

import itertools
import math
from pathlib import Path

import pytest
from google.protobuf.message import Message

from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage
from crinoid.core.cri.encode.containers import encode_container, encode_container_status
from crinoid.core.cri.encode.events import encode_event
from crinoid.core.cri.encode.pods import encode_pod, encode_pod_status
from crinoid.core.cri.encode.stats import encode_container_stats, encode_pod_stats
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.events.events import Event, EventType
from crinoid.core.lifecycle.queries import ContainerUsage, PodUsage
from crinoid.core.state.records import ContainerState, PodState
from support.kubelet import RULES, Rule, breaches, table
from unit.core.cri.conftest import make_container, make_pod

ROOT = Path(__file__).parents[4]
NAMES = (None, (), ("eth0",), ("net1",), ("tunl0", "eth0", "net1"))
NETWORKS = [
    None if names is None else NetworkUsage(5, tuple(InterfaceUsage(name, 1, 0, 1, 0) for name in names))
    for names in NAMES
]
USAGES = (None, CgroupUsage(timestamp_ns=9))


@pytest.mark.parametrize("usage", USAGES, ids=("no cgroup", "cgroup"))
@pytest.mark.parametrize("network", NETWORKS, ids=map(str, NAMES))
def test_statistics_of_pods(usage: CgroupUsage | None, network: NetworkUsage | None) -> None:
    containers = tuple(
        ContainerUsage(make_container(), of_container, None, disk, 7, "/")
        for of_container, disk in itertools.product(USAGES, (None, DiskUsage(1, 1)))
    )
    for own in ((), containers):
        stats = encode_pod_stats(PodUsage(make_pod(), usage, None, network, own))
        assert list(breaches(stats)) == []
        assert stats.linux.HasField("network") == (network is not None and network.default is not None)
    for one in containers:
        assert list(breaches(encode_container_stats(one))) == []


def test_statuses_and_events() -> None:
    for pod_state, state, attachment in itertools.product(PodState, ContainerState, (None, make_pod().attachment)):
        pod, container = make_pod(state=pod_state, attachment=attachment), make_container(state=state)
        status = encode_container_status(container, None)
        event = Event(EventType.STOPPED, container.id, 5, pod, (container,))
        for answer in (encode_pod(pod), encode_pod_status(pod), encode_container(container), status):
            assert list(breaches(answer)) == []
        assert list(breaches(encode_event(event, [status]))) == []


def test_figures_beyond_what_the_field_holds_are_cut() -> None:
    """A driver's are refused before they come here; the kernel's, of a network device, are not looked at."""
    interface = InterfaceUsage("eth0", 1 << 64, -1, (1 << 64) - 1, 0)
    network = encode_pod_stats(PodUsage(make_pod(), None, None, NetworkUsage(5, (interface,)), ())).linux.network
    default = network.default_interface
    assert (default.rx_bytes.value, default.rx_errors.value, default.tx_bytes.value) == (
        (1 << 64) - 1,
        0,
        (1 << 64) - 1,
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.message}.{rule.field}")
def test_a_rule_finds_what_is_missing(rule: Rule) -> None:
    answer: Message = getattr(api_pb2, rule.message)()
    for one in RULES:
        if one.message == rule.message:
            _fill(answer, one.field)
    assert f"{rule.message} lacks {rule.field}:" not in " ".join(breaches(answer))
    parent = answer
    *above, last = rule.field.split(".")
    for name in above:
        parent = getattr(parent, name)
    parent.ClearField(last)
    assert any(f"{rule.message} lacks {rule.field}: a kubelet {rule.otherwise}" in one for one in breaches(answer))


def test_a_figure_that_is_no_number_is_found() -> None:
    stats = api_pb2.CpuUsage(timestamp=1, psi=api_pb2.PsiStats(Some=api_pb2.PsiData(Avg10=math.nan)))
    assert [one for one in breaches(stats) if "Avg10 is nan" in one]


def test_the_rules_are_documented() -> None:
    assert table() in (ROOT / "docs/conformance.md").read_text()


def _fill(message: Message, path: str) -> None:
    """Give a field some value that is not its default."""
    head, _, rest = path.partition(".")
    value = getattr(message, head)
    if isinstance(value, Message):
        value.SetInParent()
        if rest:
            _fill(value, rest)
    elif isinstance(value, str):
        setattr(message, head, "/")
    elif isinstance(value, int):
        setattr(message, head, 1)
    else:
        value.add()
